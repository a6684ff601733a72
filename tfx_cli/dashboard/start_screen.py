"""Start a run: choose a preset, change values, with an immediate check."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
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
from tfx_cli.dashboard.base_screen import DashboardScreen, StartRun
from tfx_cli.dashboard.keymap import bindings_of

#: Keys of a summary, by section.
_SUMMARY = {
    "data": ("files", "genes"),
    "encoding": ("kind", "layout", "bins"),
    "model": ("layers", "hidden_size"),
    "train": ("max_steps", "epochs", "batch_size", "learning_rate", "device"),
}
#: Purpose of the focused widget, shown in the bar.
_HINTS = {
    "presets": "choose a preset; enter moves to its name",
    "name": "type its name; tab moves to changes",
    "changes": "type changes, or start as it is: enter",
    "go": "enter starts it",
}


@dataclass
class PresetCheck(Message):
    """The check of a preset with changes: a summary, or validation errors."""

    #: The preset and its changes.
    chosen: tuple[str, str]
    #: Name of the run; "" if the preset is not valid.
    name: str
    lines: list[str]

    @property
    def is_valid(self) -> bool:
        """Whether `tfx train` can train it."""
        return bool(self.name)


def check_preset_values(preset: str, changes: str) -> PresetCheck:
    """Resolve a preset with ``key=value`` changes, as `tfx train PRESET --set ...` does."""
    from core.presets.loading import resolve_preset

    chosen = preset, changes
    try:
        assignments = shlex.split(changes)
        resolved = resolve_preset(Path(preset), environment=os.environ, assignments=assignments)
    except ValueError as error:
        return PresetCheck(chosen, "", [f"changes: {error}"])
    except TfxError as error:
        return PresetCheck(chosen, "", str(error).splitlines())
    values, lines = resolved.preset.model_dump(), []
    for section, names in _SUMMARY.items():
        for name in names:
            value = values[section][name]
            if value is not None:
                shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                lines.append(f"{f'{section}.{name}':22} {shown}")
    return PresetCheck(chosen, resolved.name, lines)


class StartScreen(DashboardScreen):
    """Choose a preset and start it as a run; ``free_name`` makes an unused name of a run's name."""

    NAME = "new run"
    BINDINGS = bindings_of("start")

    def __init__(self, free_name: Callable[[str], str]) -> None:
        super().__init__()
        self._free_name = free_name
        self._presets: list[str] = []
        self._check: PresetCheck | None = None
        self._named_by_user = False
        self._proposed = ""

    def make_body(self) -> ComposeResult:
        with Container(classes="body"):
            yield OptionList(id="presets", markup=False)
            with Vertical(id="form"):
                yield Static("name of the run", classes="label", markup=False)
                yield Input(id="name", compact=True)
                example = "changes, as: train.max_steps=500 data.genes=512"
                yield Static(example, classes="label", markup=False)
                yield Input(id="changes", compact=True, placeholder="none")
                with Horizontal():
                    yield Button("Start training (F5)", id="go", compact=True, variant="success")
                with VerticalScroll():
                    yield Static("", id="check", markup=False)

    def on_mount(self) -> None:
        options = self.query_one("#presets", OptionList)
        here = Path()
        for path in [*sorted(here.glob("*.toml")), *sorted(here.glob("presets/*.toml"))]:
            if path.name != "pyproject.toml" and path.is_file():
                self._presets.append(str(path))
                options.add_option(Option(Content.assemble((str(path), "bold"), "  your file")))
        for summary in sorted(list_presets(), key=lambda one: one.is_published):
            self._presets.append(summary.name)
            label = Content.assemble((f"{summary.name:14}", "bold"), f" {summary.title}")
            options.add_option(Option(label))
        options.highlighted = 0
        options.focus()

    def _chosen(self) -> tuple[str, str]:
        """Return the preset at the cursor and its changes."""
        place = self.query_one("#presets", OptionList).highlighted
        return self._presets[place or 0], self.query_one("#changes", Input).value

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self.set_bar(("new run", "bold"), "  ", _HINTS.get(event.widget.id or "", ""))

    def on_option_list_option_highlighted(self) -> None:
        self._start_check()

    def on_option_list_option_selected(self) -> None:
        self.query_one("#name", Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "changes":
            self._start_check()
        elif event.value != self._proposed:
            self._named_by_user = bool(event.value)

    def _start_check(self) -> None:
        chosen = self._chosen()

        def check() -> None:
            self.post_message(check_preset_values(*chosen))

        self.run_worker(check, thread=True, group="check", exclusive=True)

    def on_preset_check(self, event: PresetCheck) -> None:
        """Show the result, unless the choice has changed since."""
        if event.chosen != self._chosen():
            return
        self._check = event
        if event.is_valid:
            lines = [Content.assemble(("✔ valid", "$success")), *map(Content, event.lines)]
        else:
            lines = [Content.styled(line, "$error") for line in ("✖ not valid", *event.lines)]
        self.write("check", Content("\n").join(lines))
        if event.is_valid and not self._named_by_user:
            self._proposed = self._free_name(event.name)
            self.query_one("#name", Input).value = self._proposed

    def on_input_submitted(self) -> None:
        self.action_go()

    def on_button_pressed(self) -> None:
        self.action_go()

    def action_go(self) -> None:
        if self._check is None or self._check.chosen != self._chosen():
            self.notify("the preset is being checked; please try again", markup=False)
        elif not self._check.is_valid:
            self.notify("the preset is not valid yet: see below", severity="error", markup=False)
        else:
            name = self.query_one("#name", Input).value.strip()
            preset, changes = self._check.chosen
            self.post_message(StartRun(preset, name, shlex.split(changes)))
