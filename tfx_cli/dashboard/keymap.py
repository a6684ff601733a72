"""All keys of the dashboard in one table: dispatch, footer, help and the user's own keys.

A user's own keys are in `~/.config/tfx/keys.toml` (or the file in TFX_KEYS): `id = "key"` or
`id = "key,key"` with the ids that the help shows.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from textual.binding import Binding, BindingType

from core.errors import ConfigurationError
from core.files import file_text
from core.renamed import KEY_IDS
from core.runlog.reader import dotted_values
from core.wording import did_you_mean

#: Keys of tmux, screen, flow control and the terminal.
RESERVED_KEYS = frozenset({"ctrl+a", "ctrl+b", "ctrl+s", "ctrl+o", "ctrl+q", "ctrl+z", "ctrl+c"})


class Key(NamedTuple):
    """An action and its keys, comma-separated as textual names them."""

    id: str
    screen: str
    keys: str
    action: str
    label: str
    #: At most six of a screen are.
    in_footer: bool = False


KEYS = (
    Key("help", "everywhere", "question_mark", "app.help", "Help", in_footer=True),
    Key("quit", "everywhere", "q", "app.quit", "Quit"),
    Key("back", "everywhere", "escape", "back", "Back"),
    Key("theme", "everywhere", "T", "app.next_theme", "Next theme"),
    Key("pause", "everywhere", "space", "app.pause", "Pause the view (data still arrive)"),
    # runs
    Key("runs.open", "runs", "enter", "open", "Open", in_footer=True),
    Key("runs.select", "runs", "v", "select", "Overlay", in_footer=True),
    Key("runs.metric", "runs", "m", "next_metric", "Next metric"),
    Key("runs.pin", "runs", "p", "pin", "Pin: draw this run on top"),
    Key("runs.filter", "runs", "f,slash", "filter", "Filter", in_footer=True),
    Key("runs.down", "runs", "j", "move('down')", "Next run"),
    Key("runs.up", "runs", "k", "move('up')", "Run before"),
    Key("runs.end", "runs", "G", "move('ctrl+end')", "Last run"),
    Key("runs.sort", "runs", "s", "sort", "Sort by the next column"),
    Key("runs.reverse", "runs", "S", "reverse", "Reverse the order"),
    Key("runs.columns", "runs", "o", "columns", "Choose columns"),
    Key("runs.rename", "runs", "r", "rename", "Rename the run"),
    Key("runs.tag", "runs", "t", "tag", "Tag the run"),
    Key("runs.delete", "runs", "d,delete", "delete", "Delete the run (to the trash)"),
    Key("runs.new", "runs", "n", "app.new_run", "New run", in_footer=True),
    Key("runs.generate", "runs", "g", "app.generate", "Generate", in_footer=True),
    # one run
    Key("run.curves", "run", "1", "pane('curves')", "Curves"),
    Key("run.phenotypes", "run", "2", "pane('phenotypes')", "Phenotypes"),
    Key("run.machine", "run", "3", "pane('machine')", "Machine"),
    Key("run.log", "run", "4", "pane('log')", "Log"),
    Key("run.preset", "run", "5", "pane('preset')", "Preset"),
    Key("run.evaluation", "run", "6", "pane('evaluation')", "Evaluation"),
    Key("run.metrics", "run", "7", "pane('metrics')", "All metrics"),
    Key("run.filter", "run", "slash", "filter", "Filter all metrics"),
    Key("run.x-axis", "run", "a", "next_axis", "Curves over steps, cells, hours"),
    Key("run.log-axis", "run", "y", "log_axis", "Log axis"),
    Key("run.smoothing", "run", "s", "smoothing", "Smooth"),
    Key("run.crosshair", "run", "x", "crosshair", "Crosshair", in_footer=True),
    Key("run.zoom-in", "run", "plus,equals_sign", "zoom(0.5)", "Zoom in"),
    Key("run.zoom-out", "run", "minus", "zoom(2.0)", "Zoom out"),
    Key("run.left", "run", "left", "shift(-0.1)", "Crosshair or zoomed range to the left"),
    Key("run.right", "run", "right", "shift(0.1)", "Crosshair or zoomed range to the right"),
    Key("run.reset", "run", "0", "reset", "Whole range, no crosshair"),
    Key("run.stop", "run", "t", "app.stop_run", "Stop (saves)", in_footer=True),
    Key("run.resume", "run", "u", "app.resume_run", "Resume", in_footer=True),
    Key("run.evaluate", "run", "e", "app.evaluate_run", "Evaluate", in_footer=True),
    Key("run.generate", "run", "g", "app.generate", "Generate", in_footer=True),
    Key("run.copy", "run", "c", "copy", "Copy the metrics of this pane"),
    # generate
    Key("generate.go", "generate", "g", "go", "Generate", in_footer=True),
    Key("generate.cancel", "generate", "k", "cancel", "Cancel", in_footer=True),
    Key("generate.flip", "generate", "f", "flip", "Flip token", in_footer=True),
    Key("generate.next-set", "generate", "b", "next_set", "Next set", in_footer=True),
    Key("generate.save", "generate", "w", "save", "Save", in_footer=True),
    Key("generate.copy", "generate", "c", "copy", "Copy the command of the shown cells"),
    Key("generate.genes", "generate", "1", "pane('genes')", "Genes"),
    Key("generate.means", "generate", "2", "pane('means')", "Means"),
    Key("generate.cells", "generate", "3", "pane('cells')", "Cells"),
    Key("generate.gene-counts", "generate", "4", "pane('gene-counts')", "Genes per cell"),
    Key("generate.moved", "generate", "5", "pane('moved')", "Moved genes"),
    # new run
    Key("start.go", "start", "f5,ctrl+g", "go", "Start", in_footer=True),
    Key("start.forecast", "start", "f6", "forecast", "Estimate, or cancel it", in_footer=True),
)


def bindings_of(screen: str) -> list[BindingType]:
    """Return textual's bindings of a screen, including those of all screens."""
    return [
        Binding(key.keys, key.action, key.label, id=key.id, show=key.in_footer, tooltip=key.label)
        for key in KEYS
        if key.screen in (screen, "everywhere")
    ]


def read_key_overrides(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Read the user's own keys, id -> keys; a wrong file raises ConfigurationError."""
    named = environment.get("TFX_KEYS")
    path = Path(named) if named else Path.home() / ".config" / "tfx" / "keys.toml"
    try:
        found = tomllib.loads(file_text(path))
    except FileNotFoundError:
        if named:
            raise ConfigurationError(f"TFX_KEYS={named}: there is no such file") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path}: the keys cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    known = {key.id for key in KEYS}
    # ``[run] log-axis`` and ``"run.log-axis"`` alike.
    flat = {KEY_IDS.get(name, name): keys for name, keys in dotted_values(found).items()}
    for name, keys in flat.items():
        if name not in known:
            hint = did_you_mean(name, sorted(known))
            raise ConfigurationError(f"{path}: there is no key '{name}'{hint and f'; {hint}'}")
        if not isinstance(keys, str) or not keys.strip():
            raise ConfigurationError(f'{path}: {name} must be a key such as "j" or "ctrl+d,j"')
        taken = RESERVED_KEYS.intersection(one.strip().lower() for one in keys.split(","))
        if taken:
            raise ConfigurationError(
                f"{path}: {name}: {', '.join(sorted(taken))} belongs to the terminal or tmux; choose another"
            )
    return {name: str(keys) for name, keys in flat.items()}
