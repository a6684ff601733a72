"""Start a run: choose a preset, change values, see at once whether it holds."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.message import Message
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from core.errors import TfxError
from core.presets.catalogue import list_presets
from tfx_cli.dashboard.base_screen import DashboardScreen
from tfx_cli.dashboard.keymap import bindings_of

__all__ = ["PresetCheck", "StartScreen", "check_preset_values", "find_preset_files"]

#: Keys that a summary shows.
_SUMMARY = (
    "data.files", "data.genes", "encoding.kind", "encoding.layout", "encoding.bins",
    "model.layers", "model.hidden_size", "train.max_steps", "train.epochs", "train.batch_size",
    "train.learning_rate", "train.device",
)  # fmt: skip

#: What the focused part of the screen is for, by id: said in the bar.
_HINTS = {
    "presets": "choose a preset; enter goes on to its name",
    "name": "type its name; tab goes on to changes",
    "changes": "type changes, or start as it is: enter",
    "go": "enter starts it",
}


class PresetCheck(Message):
    """What became of a preset with changes: a summary, or what is wrong with it."""

    def __init__(
        self, asked: tuple[str, str], name: str, lines: Sequence[str], *, ok: bool
    ) -> None:
        super().__init__()
        self.asked = asked
        self.name = name
        self.lines = tuple(lines)
        self.ok = ok


def find_preset_files(folder: Path) -> list[Path]:
    """Return the .toml files of a folder, and of a folder ``presets`` in it, that look like presets."""
    found = [*sorted(folder.glob("*.toml")), *sorted((folder / "presets").glob("*.toml"))]
    return [path for path in found if path.name != "pyproject.toml" and path.is_file()]


def check_preset_values(preset: str, changes: str) -> PresetCheck:
    """Resolve a preset with ``key=value`` changes, as `tfx train PRESET --set ...` would."""
    from core.presets.loading import resolve_preset

    asked = (preset, changes)
    try:
        assignments = shlex.split(changes)
        resolved = resolve_preset(Path(preset), environment=os.environ, assignments=assignments)
    except ValueError as error:
        return PresetCheck(asked, "", [f"changes: {error}"], ok=False)
    except TfxError as error:
        return PresetCheck(asked, "", str(error).splitlines(), ok=False)
    values = resolved.preset.model_dump()
    lines = []
    for key in _SUMMARY:
        section, name = key.split(".")
        value = values[section][name]
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"{key:22} {shown}")
    return PresetCheck(asked, resolved.name, lines, ok=True)


class StartScreen(DashboardScreen):
    """Choose a preset and start it as a run."""

    NAME = "new run"
    BINDINGS = bindings_of("start")
    DEFAULT_CSS = """
    StartScreen .body { layout: vertical; }
    StartScreen.-normal .body, StartScreen.-wide .body { layout: horizontal; }
    StartScreen #presets { width: 1fr; height: 1fr; border: none; background: $surface;
        text-wrap: nowrap; text-overflow: ellipsis; }
    StartScreen.-narrow #presets { max-height: 7; }
    StartScreen #form { width: 1fr; height: 1fr; padding: 0 1; }
    StartScreen .label { height: 1; color: $secondary; margin-top: 1; }
    StartScreen.-low .label { margin-top: 0; }
    StartScreen #form Input { height: 1; border: none; padding: 0; background: $panel; }
    StartScreen #form Horizontal { height: auto; margin: 1 0; }
    StartScreen.-low #form Horizontal { margin: 0; }
    StartScreen #check { height: auto; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._presets: list[str] = []
        self._check: PresetCheck | None = None
        self._named_by_user = False
        self._proposed = ""

    def make_body(self) -> ComposeResult:
        """Lay out list and form."""
        with Container(classes="body"):
            yield OptionList(id="presets", markup=False)
            with Vertical(id="form"):
                yield Static("name of the run", classes="label", markup=False)
                yield Input(id="name", compact=True)
                yield Static(
                    "changes, as: train.max_steps=500 data.genes=512", classes="label", markup=False
                )
                yield Input(id="changes", compact=True, placeholder="none")
                with Horizontal():
                    yield Button("Start training (F5)", id="go", compact=True, variant="success")
                with VerticalScroll():
                    yield Static("", id="check", markup=False)

    def on_mount(self) -> None:
        """List the presets."""
        options = self.query_one("#presets", OptionList)
        for path in find_preset_files(Path.cwd()):
            shown = str(path.relative_to(Path.cwd()))
            self._presets.append(shown)
            options.add_option(Option(Content.assemble((shown, "bold"), "  your file")))
        bundled = sorted(list_presets(), key=lambda one: one.is_published)
        for summary in bundled:
            self._presets.append(summary.name)
            options.add_option(
                Option(Content.assemble((f"{summary.name:14}", "bold"), f" {summary.title}"))
            )
        options.highlighted = 0
        options.focus()

    @property
    def preset(self) -> str:
        """The preset under the cursor."""
        place = self.query_one("#presets", OptionList).highlighted
        return self._presets[place or 0]

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Say what is typed now, and where to."""
        hint = _HINTS.get(event.widget.id or "", "")
        self.set_bar(Content.assemble(("new run", "bold"), "  ", hint))

    def on_option_list_option_highlighted(self) -> None:
        """Check the preset under the cursor."""
        self._ask()

    def on_option_list_option_selected(self) -> None:
        """Go on to the name."""
        self.query_one("#name", Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Check again after a change."""
        if event.input.id == "changes":
            self._ask()
        elif event.value != self._proposed:
            self._named_by_user = bool(event.value)

    def _ask(self) -> None:
        asked = (self.preset, self.query_one("#changes", Input).value)
        self.run_worker(
            lambda: self.post_message(check_preset_values(*asked)),
            thread=True, group="check", exclusive=True,
        )  # fmt: skip

    def on_preset_check(self, event: PresetCheck) -> None:
        """Show what became of it, unless something else has been asked since."""
        if event.asked != (self.preset, self.query_one("#changes", Input).value):
            return
        self._check = event
        head = ("✔ valid", "$success") if event.ok else ("✖ not valid", "$error")
        style = "" if event.ok else "$error"
        lines = [Content.assemble(head)]
        lines += [Content.styled(line, style) if style else Content(line) for line in event.lines]
        self.query_one("#check", Static).update(Content("\n").join(lines))
        if event.ok and not self._named_by_user:
            self._proposed = self.dashboard.free_name(event.name)
            self.query_one("#name", Input).value = self._proposed

    def on_input_submitted(self) -> None:
        """Start."""
        self.action_go()

    def on_button_pressed(self) -> None:
        """Start by mouse."""
        self.action_go()

    def action_go(self) -> None:
        """Start the run, if the preset holds."""
        changes = self.query_one("#changes", Input).value
        if self._check is None or self._check.asked != (self.preset, changes):
            self.notify("the preset is being checked; once more, please", markup=False)
        elif not self._check.ok:
            self.notify("the preset is not valid yet: see below", severity="error", markup=False)
        else:
            name = self.query_one("#name", Input).value.strip()
            self.dashboard.start_run(self.preset, name, shlex.split(changes))

    def action_back(self) -> None:
        """Back to the runs."""
        self.dismiss(None)
