"""A list to choose from, with a filter: the values of a phenotype, the presets."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

__all__ = ["ChoiceScreen"]


class ChoiceScreen(ModalScreen[int | None]):
    """Choose one of several; None where the user left.

    Parameters
    ----------
    title
        What is chosen.
    options
        (number, text, note) of each.
    chosen
        The number to begin with.
    """

    DEFAULT_CSS = """
    ChoiceScreen { align: center middle; }
    ChoiceScreen > Vertical { width: 76; max-width: 95%; height: 80%; max-height: 30;
        background: $surface; border: round $primary; }
    ChoiceScreen OptionList { height: 1fr; border: none; background: $surface; }
    ChoiceScreen Static { height: 1; padding: 0 1; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back"),
        Binding("down", "cursor(1)", "Next", show=False),
        Binding("up", "cursor(-1)", "Before", show=False),
    ]

    def __init__(
        self, title: str, options: Sequence[tuple[int, str, str]], *, chosen: int | None = None
    ) -> None:
        super().__init__()
        self._title = title
        self._options = options
        self._chosen = chosen
        self._shown: list[int] = []

    def compose(self) -> ComposeResult:
        """Lay out filter and list."""
        with Vertical():
            yield Static(self._title, markup=False)
            yield Input(placeholder="type to filter", compact=True)
            yield OptionList(markup=False)

    def on_mount(self) -> None:
        """Show everything, at the one that is chosen."""
        self._fill("")
        options = self.query_one(OptionList)
        if self._chosen in self._shown:
            options.highlighted = self._shown.index(self._chosen)
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter."""
        self._fill(event.value.strip().lower())

    def _fill(self, wish: str) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        found = [one for one in self._options if wish in one[1].lower()]
        self._shown = [number for number, _, _ in found]
        widest = min(max((len(text) for _, text, _ in found), default=0), 50)
        options.add_options([
            Option(Content.assemble(f"{text:{widest}}   ", (note, "$secondary")))
            for _, text, note in found
        ])  # fmt: skip
        if found:
            options.highlighted = 0

    def on_input_submitted(self) -> None:
        """Take the highlighted one."""
        place = self.query_one(OptionList).highlighted
        if place is not None and place < len(self._shown):
            self.dismiss(self._shown[place])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the one that was clicked."""
        self.dismiss(self._shown[event.option_index])

    def action_cursor(self, by: int) -> None:
        """Move the highlight while the filter keeps the keys."""
        options = self.query_one(OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)
