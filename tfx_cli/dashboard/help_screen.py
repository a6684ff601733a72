"""The keys that work on the screen below, from the table that drives them."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

__all__ = ["HelpScreen"]

_NAMES = {
    "question_mark": "?", "escape": "esc", "plus": "+", "equals_sign": "=", "minus": "-",
    "slash": "/", "space": "space", "left": "←", "right": "→", "up": "↑", "down": "↓",
}  # fmt: skip


class HelpScreen(ModalScreen[None]):
    """Keys, what they do, and the ids by which they can be changed.

    Parameters
    ----------
    rows
        (keys as textual names them, what they do, id) of the live bindings.
    """

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll { width: 76; max-width: 95%; height: auto; max-height: 90%;
        background: $surface; border: round $primary; padding: 0 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark", "leave", "Close")]

    def __init__(self, screen_name: str, rows: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self._screen_name = screen_name
        self._rows = rows

    def compose(self) -> ComposeResult:
        """Lay out one long text."""
        with VerticalScroll():
            yield Static(self._content(), markup=False)

    def _content(self) -> Content:
        lines = [Content.styled(f"keys: {self._screen_name}", "bold"), Content("")]
        for keys, label, name in self._rows:
            shown = " ".join(_NAMES.get(key, key) for key in keys.split(","))
            lines.append(
                Content.assemble((f"{shown:10}", "$primary"), f" {label:42}", (name, "$secondary"))
            )
        lines += [
            Content(""),
            Content("ctrl+p  all commands by name       mouse: rows, tabs, curves (wheel zooms)"),
            Content('your own keys: ~/.config/tfx/keys.toml, as  "run.log-axis" = "l"'),
        ]
        return Content("\n").join(lines)

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)
