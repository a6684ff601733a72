"""All keys of the dashboard in one table: dispatch, footer, help and the user's own keys.

A user's own keys are in `~/.config/tfx/keys.toml` (or the file in TFX_KEYS): `id = "key"` or
`id = "key,key"` with the ids that the help shows.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from textual.binding import Binding, BindingType
from textual.screen import Screen

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
    #: What it does, for the help and the palette.
    about: str
    #: A word or two for the footer; "": it is not there.
    label: str = ""
    #: The panes in whose footer it is; none: in all.
    panes: tuple[str, ...] = ()


_CURVES = ("curves", "machine", "metrics")
KEYS = (
    Key("help", "everywhere", "question_mark", "app.help", "All keys of this screen", "Help"),
    Key("quit", "everywhere", "q", "app.quit", "Quit; trainings continue"),
    Key("back", "everywhere", "escape", "back", "Back"),
    Key("theme", "everywhere", "T", "app.next_theme", "Next theme: dark, light, colour-blind, mono"),
    Key("pause", "everywhere", "space", "app.pause", "Pause the view (data still arrive)"),
    Key("down", "everywhere", "j", "move('down')", "Down"),
    Key("up", "everywhere", "k", "move('up')", "Up"),
    Key("top", "everywhere", "g", "move('home')", "First row (gg, too)"),
    Key("end", "everywhere", "G", "move('end')", "Last row"),
    # runs
    Key("runs.open", "runs", "enter", "open", "Open the run", "Open"),
    Key("runs.select", "runs", "v", "select", "Overlay the curves of the run", "Overlay"),
    Key("runs.metric", "runs", "m", "next_metric", "Next metric of the overlay"),
    Key("runs.pin", "runs", "p", "pin", "Pin: draw this run on top"),
    Key("runs.filter", "runs", "slash,f", "filter", "Filter by name, state, tag", "Filter"),
    Key("runs.sort", "runs", "s", "sort", "Sort by the next column"),
    Key("runs.reverse", "runs", "S", "reverse", "Reverse the order"),
    Key("runs.columns", "runs", "o", "columns", "Choose columns"),
    Key("runs.rename", "runs", "r", "rename", "Rename the run"),
    Key("runs.tag", "runs", "t", "tag", "Tag the run"),
    Key("runs.delete", "runs", "d,delete", "delete", "Delete the run (to the trash)"),
    Key("runs.new", "runs", "n", "app.new_run", "Train a preset as a new run", "New run"),
    Key("runs.generate", "runs", "c", "app.generate", "Generate cells of the run's model", "Cells"),
    # one run
    Key("run.curves", "run", "1", "pane('curves')", "Curves"),
    Key("run.phenotypes", "run", "2", "pane('phenotypes')", "Phenotypes"),
    Key("run.machine", "run", "3", "pane('machine')", "Machine"),
    Key("run.log", "run", "4", "pane('log')", "Log"),
    Key("run.preset", "run", "5", "pane('preset')", "Preset"),
    Key("run.evaluation", "run", "6", "pane('evaluation')", "Evaluation"),
    Key("run.metrics", "run", "7", "pane('metrics')", "All metrics"),
    Key(
        "run.filter", "run", "slash", "filter", "Filter metrics, keys of the preset, or the log",
        "Filter", ("log", "preset", "metrics"),
    ),
    Key("run.order", "run", "o", "order", "Next order of all metrics", "Order", ("metrics",)),
    Key(
        "run.next-phenotype", "run", "p", "next_phenotype",
        "Confusion matrix of the next phenotype", "Next phenotype", ("evaluation",),
    ),
    Key("run.x-axis", "run", "a", "next_axis", "Curves over steps, cells, hours", "Axis", _CURVES),
    Key("run.log-axis", "run", "y", "log_axis", "Log axis", "Log", _CURVES),
    Key("run.smoothing", "run", "s", "smoothing", "Smooth the curves more, or not", "Smooth", _CURVES[:2]),
    Key("run.crosshair", "run", "x", "crosshair", "Crosshair: values at a step", "Values", _CURVES),
    Key("run.zoom-in", "run", "plus,equals_sign", "zoom(0.5)", "Zoom in"),
    Key("run.zoom-out", "run", "minus", "zoom(2.0)", "Zoom out"),
    Key("run.left", "run", "left", "shift(-0.1)", "Crosshair or zoomed range to the left"),
    Key("run.right", "run", "right", "shift(0.1)", "Crosshair or zoomed range to the right"),
    Key("run.reset", "run", "0", "reset", "Whole range, no crosshair"),
    Key("run.stop", "run", "t", "app.stop_run", "Stop: save a checkpoint and end", "Stop"),
    Key("run.resume", "run", "u", "app.resume_run", "Resume a run that stopped", "Resume"),
    Key("run.evaluate", "run", "e", "app.evaluate_run", "Evaluate on the test cells (tfx eval)", "Eval"),
    Key("run.generate", "run", "c", "app.generate", "Generate cells of the model", "Cells"),
    Key(
        "run.interactions", "run", "i", "app.interactions",
        "Interactions of genes, perturbations", "Genes",
        ("curves", "phenotypes", "machine", "log", "preset", "evaluation"),
    ),
    Key("run.copy", "run", "C", "copy", "Copy the metrics of this pane"),
    # generate
    Key("generate.go", "generate", "c", "go", "Generate cells", "Generate"),
    Key("generate.cancel", "generate", "x", "cancel", "Cancel generating", "Cancel"),
    Key(
        "generate.flip", "generate", "f", "flip",
        "Flip a token: the same cells with one phenotype changed", "Flip token",
    ),
    Key("generate.next-set", "generate", "b", "next_set", "Show the next set", "Next set"),
    Key("generate.save", "generate", "w", "save", "Save the shown cells as .h5ad", "Save"),
    Key("generate.filter", "generate", "slash", "filter", "Find genes by name", "Find gene"),
    Key("generate.copy", "generate", "C", "copy", "Copy the command of the shown cells"),
    Key("generate.genes", "generate", "1", "pane('genes')", "Genes"),
    Key("generate.means", "generate", "2", "pane('means')", "Means"),
    Key("generate.cells", "generate", "3", "pane('cells')", "Cells"),
    Key("generate.gene-counts", "generate", "4", "pane('gene-counts')", "Genes per cell"),
    Key("generate.moved", "generate", "5", "pane('moved')", "Moved genes"),
    # interactions
    Key(
        "interactions.go", "interactions", "i", "go",
        "Find the edges of the context (tfx interactions)", "Find edges",
    ),
    Key(
        "interactions.contrast", "interactions", "b", "contrast",
        "Contrast two values of a phenotype", "Contrast",
    ),
    Key("interactions.stop", "interactions", "t", "app.stop_run", "Stop the search", "Stop"),
    Key("interactions.edges", "interactions", "1", "pane('edges')", "Edges, or genes that respond"),
    Key("interactions.heat", "interactions", "2", "pane('heat')", "Heat map, or phenotypes"),
    # new run
    Key("start.go", "start", "f5,ctrl+g", "go", "Start training", "Start"),
    Key(
        "start.forecast", "start", "f6", "forecast", "Estimate time and memory, or cancel that",
        "Estimate",
    ),
)  # fmt: skip
KEY_OF_ID = {key.id: key for key in KEYS}
_KEY_NAMES = {
    "question_mark": "?",
    "escape": "esc",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "slash": "/",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
}


def names_of_keys(keys: str) -> str:
    """Write comma-separated keys as they are on a keyboard."""
    return " ".join(_KEY_NAMES.get(key, key) for key in keys.split(","))


def bindings_of(screen: str) -> list[BindingType]:
    """Return textual's bindings of a screen, including those of all screens."""
    return [
        Binding(key.keys, key.action, key.label, id=key.id, show=bool(key.label), tooltip=key.about)
        for place in (screen, "everywhere")
        for key in KEYS
        if key.screen == place
    ]


async def run_key(screen: Screen[Any], key: str) -> None:
    """Do at once what a key does in the focused widget; a simulated key would come after those that wait."""
    active = screen.active_bindings.get(key)
    if active is not None and active.enabled:
        await screen.app.run_action(active.binding.action, active.node)


def user_folder() -> Path:
    """Return the folder of the user's own keys and choices."""
    return Path.home() / ".config" / "tfx"


def read_key_overrides(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Read the user's own keys, id -> keys; a wrong file raises ConfigurationError."""
    named = environment.get("TFX_KEYS")
    path = Path(named) if named else user_folder() / "keys.toml"
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
    # ``[run] log-axis`` and ``"run.log-axis"`` alike.
    flat = {KEY_IDS.get(name, name): keys for name, keys in dotted_values(found).items()}
    for name, keys in flat.items():
        if name not in KEY_OF_ID:
            hint = did_you_mean(name, sorted(KEY_OF_ID))
            raise ConfigurationError(f"{path}: there is no key '{name}'{hint and f'; {hint}'}")
        if not isinstance(keys, str) or not keys.strip():
            raise ConfigurationError(f'{path}: {name} must be a key such as "j" or "ctrl+d,j"')
        taken = RESERVED_KEYS.intersection(one.strip().lower() for one in keys.split(","))
        if taken:
            raise ConfigurationError(
                f"{path}: {name}: {', '.join(sorted(taken))} belongs to the terminal or tmux; choose another"
            )
    return {name: str(keys) for name, keys in flat.items()}
