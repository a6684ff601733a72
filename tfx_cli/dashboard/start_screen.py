"""Start a run: choose a preset and change values, with an immediate check and a forecast."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.message import Message
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from core.errors import TfxError
from core.presets.catalogue import PresetSummary, list_own_presets, list_presets
from core.wording import duration, size
from tfx_cli.dashboard.base_screen import DashboardScreen, StartRun
from tfx_cli.dashboard.keymap import Key, bindings_of
from tfx_cli.dashboard.processes import RunProcesses, forecast, train_arguments
from tfx_cli.formatting import FORECAST_VERDICTS, count_of

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
#: The first of the bundled presets to try, and the id of the folder of published ones.
_FIRST_PRESETS, _PUBLISHED = ("base", "pbmc68k"), "published"
#: Seconds without a change after which a valid preset is forecast.
FORECAST_DELAY = 1.0


@dataclass
class PresetCheck(Message):
    """The check of a preset with changes: a summary, or validation errors."""

    #: The preset and its changes.
    chosen: tuple[str, str]
    #: Name of the run; "" if the preset is not valid.
    name: str
    lines: list[str]
    assignments: Sequence[str] = ()

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
    values, before = resolved.preset.model_dump(), None
    changed = [key for key, where in resolved.provenance.items() if where == "--set"]
    if changed:
        try:
            before = resolve_preset(Path(preset), environment=os.environ).preset.model_dump()
        except TfxError:  # it is valid with the changes only
            before = {}
    keys = [f"{section}.{name}" for section, names in _SUMMARY.items() for name in names]
    lines = []
    for key in [*changed, *(key for key in keys if key not in changed)]:
        value = _value_at(values, key)
        if key in changed:
            old = "" if not before else f" (the preset has {_value_at(before, key) or 'none'})"
            lines.append(f"{key:22} {value or 'none'}, changed{old}")
        elif value:
            lines.append(f"{key:22} {value}")
    return PresetCheck(chosen, resolved.name, lines, assignments)


def _value_at(values: Mapping[str, Any], key: str) -> str:
    """Write the value of a dotted key; "" where it is not set."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def forecast_content(record: Mapping[str, Any]) -> Content:
    """Write the record of `tfx train --dry-run --json` in two lines, and its notes."""
    seconds, memory, files = (record.get(name) or {} for name in ("seconds", "memory", "files"))
    tokens, machine = (record.get(name) or {} for name in ("tokens", "machine"))
    used, free = sum(memory.values()), record.get("memory_available") or 0
    time = f"about {duration(seconds['run'])} of training" if "run" in seconds else "unknown time"
    facts = f", {size(used)} of memory ({size(free)} free), {size(sum(files.values()))} of disk"
    steps = f"{tokens.get('steps', 0):,.0f} steps ({tokens.get('epochs', 0):,.1f} epochs)"
    lines = [
        Content.assemble(("estimate  ", "$secondary"), (time, "bold"), facts),
        Content(f"{steps} on {machine.get('device')}; {record.get('timing')}"),
    ]
    verdict = record.get("verdict", "ok")
    if verdict != "ok":
        style = "$error" if verdict == "too much" else "$warning"
        lines.append(Content.styled(f"! {FORECAST_VERDICTS.get(verdict, verdict)}", style))
    lines += [Content.styled(f"note: {note}", "$secondary") for note in record.get("notes") or ()]
    return Content("\n").join(lines)


class StartScreen(DashboardScreen):
    """Choose a preset and start it as a run of a folder."""

    NAME = "new run"
    BINDINGS = bindings_of("start")

    def __init__(self, root: Path, processes: RunProcesses) -> None:
        super().__init__()
        self._root = root
        self._processes = processes
        self._check: PresetCheck | None = None
        self._named_by_user = False
        self._proposed = ""
        self._shows_published = False
        self._estimate = Content("")

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
        self._fill()
        self.query_one("#presets", OptionList).focus()

    def offers(self, key: Key) -> bool:
        is_valid = self._check is not None and self._check.is_valid
        return super().offers(key) and (key.screen != self.NAME or is_valid)

    def enter_label(self) -> str:
        if not isinstance(self.focused, OptionList):
            return "Start" if isinstance(self.focused, Input | Button) else ""
        is_folder = self._preset == _PUBLISHED
        return ("Close" if self._shows_published else "Open") if is_folder else "Choose"

    # -- presets
    def _fill(self) -> None:
        """List the user's own files, the presets of tfx, and the folder of published ones."""
        options = self.query_one("#presets", OptionList)
        chosen = self._preset
        bundled = list_presets()
        first = {name: place for place, name in enumerate(_FIRST_PRESETS)}
        tfx = sorted(
            (one for one in bundled if not one.is_published),
            key=lambda one: first.get(one.name, len(first)),
        )
        published = [one for one in bundled if one.is_published]
        options.clear_options()
        own = list_own_presets(Path())
        if own:
            options.add_option(_heading("your files"))
            options.add_options(_preset_option(one, str(one.path)) for one in own)
        options.add_option(_heading("presets of tfx"))
        options.add_options(_preset_option(one, one.name) for one in tfx)
        sign = "▾" if self._shows_published else "▸"
        title = (
            f"{sign} published ({count_of(len(published), 'preset')} of PolyGene and PerturbGene)"
        )
        options.add_option(Option(Content.styled(title, "bold"), id=_PUBLISHED))
        if self._shows_published:
            options.add_options(_preset_option(one, one.name, indent=2) for one in published)
        first_preset = str(own[0].path) if own else tfx[0].name
        options.highlighted = options.get_option_index(chosen or first_preset)

    @property
    def _preset(self) -> str:
        """The name or the file of the preset at the cursor, or the id of the folder; "" without any."""
        option = self.query_one("#presets", OptionList).highlighted_option
        return "" if option is None else str(option.id)

    def _chosen(self) -> tuple[str, str]:
        """Return the preset at the cursor and its changes."""
        return self._preset, self.query_one("#changes", Input).value

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self.set_bar(("new run", "bold"), "  ", _HINTS.get(event.widget.id or "", ""))

    def on_option_list_option_highlighted(self) -> None:
        self._start_check()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        if event.option_id == _PUBLISHED:
            self._shows_published = not self._shows_published
            self._fill()
        else:
            self.query_one("#name", Input).focus()

    # -- check and forecast
    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "changes":
            self._start_check()
            return
        if event.value != self._proposed:
            self._named_by_user = bool(event.value)
        self._show()

    def _start_check(self) -> None:
        chosen = self._chosen()
        self._cancel()
        if chosen[0] == _PUBLISHED:
            self._check = None
            self._show()
            return

        def check() -> None:
            self.post_message(check_preset_values(*chosen))

        self.run_worker(check, thread=True, group="check", exclusive=True)

    def on_preset_check(self, event: PresetCheck) -> None:
        """Show the result, unless the choice has changed since."""
        if event.chosen != self._chosen():
            return
        self._check = event
        if event.is_valid and not self._named_by_user:
            self._proposed = self._processes.free_name(event.name, self._root)
            self.query_one("#name", Input).value = self._proposed
        if event.is_valid:
            self._start_forecast(FORECAST_DELAY)
        self._show()

    def _start_forecast(self, delay: float) -> None:
        """Forecast the checked preset in a process of its own, once it has not changed for a while."""
        check = self._check
        assert check is not None
        self.is_busy = True
        self._estimate = Content.styled("estimating time and memory; F6 cancels", "$secondary")
        self.set_timer(delay, lambda: self._forecast_unless_changed(check))
        self._show()

    def _forecast_unless_changed(self, check: PresetCheck) -> None:
        if self._check is check and self.is_busy:
            self.run_worker(self._forecast(check), group="forecast", exclusive=True)

    async def _forecast(self, check: PresetCheck) -> None:
        try:
            name = self._processes.free_name(check.name, self._root)
            record = await forecast(check.chosen[0], name, check.assignments, self._root)
            self._estimate = forecast_content(record)
        except TfxError as error:
            self._estimate = Content.styled(f"no estimate: {error}", "$warning")
        self.is_busy = False
        self._show()

    def _cancel(self) -> None:
        """End the forecast, if there is one."""
        self.is_busy, self._estimate = False, Content("")
        self.workers.cancel_group(self, "forecast")

    def action_forecast(self) -> None:
        """Forecast the preset, or cancel that."""
        if self.is_busy:
            self._cancel()
            self._estimate = Content.styled("no estimate; F6 makes one", "$secondary")
            self._show()
        elif self._check is not None and self._check.is_valid:
            self._start_forecast(0.01)

    def _show(self) -> None:
        check = self._check
        if check is None:
            hint = "enter shows the presets that reproduce published models, on the data of these"
            self.write("check", Content.styled(hint, "$secondary"))
        elif check.is_valid:
            name = self.query_one("#name", Input).value.strip()
            command = train_arguments(check.chosen[0], name, check.assignments)
            lines = [
                Content.assemble(
                    ("✔ ", "$success"), (f"$ {shlex.join(['tfx', *command])}", "bold")
                ),
                self._estimate,
                Content(""),
            ]
            self.write("check", Content("\n").join([*lines, *map(Content, check.lines)]))
        else:
            lines = [Content.styled(line, "$error") for line in ("✖ not valid", *check.lines)]
            self.write("check", Content("\n").join(lines))
        self._update_footer()

    # -- start
    def on_input_submitted(self) -> None:
        self.action_go()

    def on_button_pressed(self) -> None:
        self.action_go()

    def action_go(self) -> None:
        if self._preset == _PUBLISHED:
            self.notify("choose one of the presets")
        elif self._check is None or self._check.chosen != self._chosen():
            self.notify("the preset is being checked; please try again")
        elif not self._check.is_valid:
            self.notify("the preset is not valid yet: see below", severity="error")
        else:
            self._cancel()
            name = self.query_one("#name", Input).value.strip()
            self.post_message(StartRun(self._check.chosen[0], name, self._check.assignments))


def _heading(text: str) -> Option:
    return Option(Content.styled(text, "$secondary"), disabled=True)


def _preset_option(summary: PresetSummary, name: str, *, indent: int = 0) -> Option:
    """Return the line of a preset: its name, its title, and the file where it is one of the user's."""
    file = f"  {name}" if name != summary.name else ""
    label = Content.assemble(
        " " * indent, (f"{summary.name:14}", "bold"), f" {summary.title}", (file, "$secondary")
    )
    return Option(label, id=name)
