"""A file name to write to, refused where it cannot be one."""

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

__all__ = ["SaveScreen"]


class SaveScreen(ModalScreen[str | None]):
    """Ask for an .h5ad file that does not exist yet.

    Parameters
    ----------
    title
        What is written.
    name
        Proposed file, in the working folder.
    """

    DEFAULT_CSS = """
    SaveScreen { align: center middle; }
    SaveScreen > Vertical { width: 72; max-width: 95%; height: auto; background: $surface;
        border: round $primary; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back")]

    def __init__(self, title: str, name: str) -> None:
        super().__init__()
        self._title = title
        self._name = name

    def compose(self) -> ComposeResult:
        """Lay out name and fault."""
        with Vertical():
            yield Static(f"{self._title} (enter saves, esc leaves)", markup=False)
            yield Input(self._name, compact=True)
            yield Static("", id="fault", markup=False)

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one(Input).focus()

    def fault(self, text: str) -> str:
        """Say what is wrong with a name; nothing where it is right."""
        path = Path(text).expanduser()
        if path.suffix != ".h5ad":
            return "the name must end in .h5ad"
        if path.exists():
            return f"{path} exists; choose another name"
        return "" if path.parent.is_dir() else f"there is no folder {path.parent}"

    def on_input_changed(self, event: Input.Changed) -> None:
        """Say at once what is wrong."""
        self.query_one("#fault", Static).update(
            Content.styled(self.fault(event.value.strip()) or " ", "$error")
        )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the name if it is right."""
        text = event.value.strip()
        if not self.fault(text):
            self.dismiss(text)

    def action_leave(self) -> None:
        """Save nothing."""
        self.dismiss(None)
