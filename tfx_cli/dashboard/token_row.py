"""One line per phenotype: the control token of the cells to generate."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from tfx_cli.formatting import shortened

__all__ = ["NOT_SPECIFIED", "SAMPLED", "TokenRow", "choice_text"]

#: Choices beside the values.
SAMPLED, NOT_SPECIFIED = -1, -2


def choice_text(name: str, choice: int, values: Sequence[str]) -> str:
    """Write a choice in words."""
    if choice == SAMPLED:
        return "sample from real cells"
    return f"not specified [NO_{name.upper()}]" if choice == NOT_SPECIFIED else values[choice]


class TokenRow(Widget, can_focus=True):
    """A control token: left and right go through the values, enter or a click lists them.

    Parameters
    ----------
    name
        The phenotype.
    values
        Its values.
    label_width
        Columns for the name, the same in all rows.
    """

    DEFAULT_CSS = """
    TokenRow { height: 1; width: 1fr; padding: 0 1; }
    TokenRow:focus { background: $panel; text-style: bold; }
    TokenRow:hover { background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Value before", show=False),
        Binding("right", "step(1)", "Next value", show=False),
        Binding("enter", "choose", "List the values", show=False),
        Binding("up", "app.focus_previous", "Row above", show=False),
        Binding("down", "app.focus_next", "Row below", show=False),
    ]
    choice: reactive[int] = reactive(SAMPLED)
    counts: reactive[Mapping[str, int]] = reactive(dict)

    class Changed(Message):
        """Another value was chosen."""

    class Asked(Message):
        """The list of values is wanted."""

        def __init__(self, row: "TokenRow") -> None:
            super().__init__()
            self.row = row

    def __init__(self, name: str, values: Sequence[str], *, label_width: int) -> None:
        super().__init__(classes="token")
        self.phenotype = name
        self.values = tuple(values)
        self.label_width = label_width

    @property
    def value(self) -> str | None:
        """The value asked for; None where the phenotype is left open."""
        return self.values[self.choice] if self.choice >= 0 else None

    def render(self) -> Content:
        """Write name, choice and how many real cells have it."""
        label = shortened(self.phenotype, self.label_width)
        text = choice_text(self.phenotype, self.choice, self.values)
        note = ""
        if self.value is not None:
            count = self.counts.get(self.value, 0)
            note = f"{count:,} real cell{'' if count == 1 else 's'}"
        room = max(self.size.width - self.label_width - len(note) - 7, 8)
        shown = shortened(text, room)
        style = "$primary" if self.choice >= 0 else "$secondary"
        left = f"{label:{self.label_width}}  "
        content = Content.assemble((left, "$secondary"), "‹ ", (shown, style), " ›")
        gap = max(self.size.width - content.cell_length - len(note), 1)
        return Content.assemble(
            content, " " * gap, (note, "$warning" if note.startswith("0 ") else "$secondary")
        )

    def watch_choice(self) -> None:
        """Tell the screen."""
        self.post_message(self.Changed())

    def action_step(self, by: int) -> None:
        """Go to the value before or after: sampled, not specified, then the values."""
        order = [SAMPLED, NOT_SPECIFIED, *range(len(self.values))]
        self.choice = order[(order.index(self.choice) + by) % len(order)]

    def action_choose(self) -> None:
        """Ask for the list."""
        self.post_message(self.Asked(self))

    def on_click(self, event: events.Click) -> None:
        """List the values."""
        event.stop()
        self.focus()
        self.action_choose()
