"""Dialogs over a screen: a choice, a confirmation, a file name, the help."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, SelectionList, Static
from textual.widgets.option_list import Option

from tfx_cli.dashboard.keymap import names_of_keys, run_key

_Answer = TypeVar("_Answer")


class _Dialog(ModalScreen[_Answer | None]):
    """A dialog that escape closes without an answer; j, k, g and G move in its list or text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back"),
        *(
            Binding(key, f"move('{name}')", show=False)
            for key, name in (("j", "down"), ("k", "up"), ("g", "home"), ("G", "end"))
        ),
    ]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def action_leave(self) -> None:
        self.dismiss(None)

    async def action_move(self, to: str) -> None:
        await run_key(self, to)


class ChoiceDialog(_Dialog[int]):
    """Choose one of several options, (number, text, note) each, with a filter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "cursor_down", "Next", show=False),
        Binding("up", "cursor_up", "Before", show=False),
    ]

    def __init__(self, title: str, options: Sequence[tuple[int, str, str]], *, chosen: int) -> None:
        super().__init__(title)
        self._options = options
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._title, markup=False)
            yield Input(placeholder="type to filter", compact=True)
            yield OptionList(markup=False)

    def on_mount(self) -> None:
        self._fill("")
        options = self.query_one(OptionList)
        options.highlighted = options.get_option_index(str(self._chosen))
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._fill(event.value.strip().lower())

    def _fill(self, part: str) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        found = [one for one in self._options if part in one[1].lower()]
        widest = min(max((len(text) for _, text, _ in found), default=0), 50)
        for number, text, note in found:
            label = Content.assemble(f"{text:{widest}}   ", (note, "$secondary"))
            options.add_option(Option(label, id=str(number)))
        if found:
            options.highlighted = 0

    def on_input_submitted(self) -> None:
        self.query_one(OptionList).action_select()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(int(str(event.option_id)))

    def action_cursor_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_cursor_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()


class ConfirmDialog(_Dialog[bool]):
    """Confirm an action that cannot be undone; ``yes`` names it in a word or two."""

    AUTO_FOCUS = "#no"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n", "leave", "No"),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__(question)
        self._yes = yes

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._title, markup=False)
            with Horizontal():
                yield Button(f"{self._yes} (y)", id="yes", compact=True, variant="warning")
                yield Button("No (n)", id="no", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class TextDialog(_Dialog[str]):
    """Give a text; ``fault`` says what is wrong with one, and "" if nothing is."""

    def __init__(self, title: str, text: str, fault: Callable[[str], str]) -> None:
        super().__init__(title)
        self._text = text
        self._fault = fault

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(f"{self._title} (enter saves, esc leaves)", markup=False)
            yield Input(self._text, compact=True)
            yield Static("", id="error", markup=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        error = Content.styled(self._fault(event.value.strip()) or " ", "$error")
        self.query_one("#error", Static).update(error)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not self._fault(text):
            self.dismiss(text)


class SelectionDialog(_Dialog[list[str]]):
    """Choose any of several options: (name, text, whether it is chosen) each."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "accept", "Accept", priority=True)]

    def __init__(self, title: str, options: Sequence[tuple[str, str, bool]]) -> None:
        super().__init__(title)
        self._options = options

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(f"{self._title} (space chooses, enter accepts)", markup=False)
            options = [(Content(text), name, chosen) for name, text, chosen in self._options]
            yield SelectionList[str](*options)

    def action_accept(self) -> None:
        self.dismiss(list(self.query_one(SelectionList).selected))


def h5ad_fault(text: str) -> str:
    """Say why a new .h5ad file cannot have this name."""
    path = Path(text).expanduser()
    if path.suffix != ".h5ad":
        return "the name must end in .h5ad"
    if path.exists():
        return f"{path} exists; choose another name"
    return "" if path.parent.is_dir() else f"there is no folder {path.parent}"


class CopyDialog(_Dialog[None]):
    """A text to copy by the mouse, where the terminal does not take what is sent to its clipboard."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,enter", "leave", "Close")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__(title)
        self._text = text

    def compose(self) -> ComposeResult:
        hint = (
            "Sent to the clipboard of the terminal, which only some terminals accept. "
            "Else select the text here (in most terminals with shift and the mouse); esc closes."
        )
        with Vertical():
            yield Static(self._title, classes="title", markup=False)
            yield Static(hint, classes="hint", markup=False)
            with VerticalScroll():
                yield Static(self._text, markup=False)


class HelpDialog(_Dialog[None]):
    """Keys of a screen: (keys as textual names them, what they do, id for the user's own keys)."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,question_mark", "leave", "Close")]

    def __init__(self, screen_name: str, rows: Sequence[tuple[str, str, str]]) -> None:
        super().__init__(f"keys: {screen_name}")
        self._rows = rows

    def compose(self) -> ComposeResult:
        lines = [Content.styled(self._title, "bold"), Content("")]
        for keys, about, name in self._rows:
            shown = names_of_keys(keys)
            lines.append(
                Content.assemble((f"{shown:10}", "$primary"), f" {about:55}", (name, "$secondary"))
            )
        lines += [
            Content(""),
            Content("tab, shift+tab  next and previous part of the screen"),
            Content(
                "ctrl+p  all actions by name; ctrl+z  suspend; mouse: rows, tabs, curves (wheel zooms)"
            ),
            Content('your own keys: ~/.config/tfx/keys.toml, as  "run.log-axis" = "l"'),
        ]
        with VerticalScroll():
            yield Static(Content("\n").join(lines), markup=False)
