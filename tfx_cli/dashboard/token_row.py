"""A control token of the picker, or a phenotype of a context: one line with its value, which keys and the mouse change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from tfx_cli.formatting import count_of, shortened

#: Choices beside the values: drawn from real cells, and the token [NO_*].
SAMPLED, UNSPECIFIED = -1, -2


class TokenRow(Widget, can_focus=True):
    """A control token: left and right step through the values, enter or a click lists them.

    ``label_width`` is the width of the names in all rows.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Value before", show=False),
        Binding("right", "step(1)", "Next value", show=False),
        Binding("enter", "choose", "Values", show=False),
        Binding("up", "app.focus_previous", "Row above", show=False),
        Binding("down", "app.focus_next", "Row below", show=False),
    ]
    choice: reactive[int] = reactive(SAMPLED)
    counts: reactive[Mapping[str, int]] = reactive(dict)

    class Changed(Message):
        """Another value was chosen."""

    @dataclass
    class ListRequested(Message):
        """The user wants the list of values."""

        row: "TokenRow"

    def __init__(self, name: str, values: Sequence[str], *, label_width: int) -> None:
        super().__init__(classes="token")
        self.phenotype = name
        self.values = tuple(values)
        self.label_width = label_width

    @property
    def value(self) -> str | None:
        """The chosen value; None where cells are sampled or the phenotype is unspecified."""
        return self.values[self.choice] if self.choice >= 0 else None

    @property
    def no_token(self) -> str:
        """The control token of an unspecified phenotype."""
        return f"[NO_{self.phenotype.upper()}]"

    def text_of(self, choice: int) -> str:
        """Write a choice in words."""
        if choice == SAMPLED:
            return "sample from real cells"
        return f"unspecified {self.no_token}" if choice == UNSPECIFIED else self.values[choice]

    def choices(self) -> list[int]:
        """Return all choices, in the order to list them."""
        return [SAMPLED, UNSPECIFIED, *range(len(self.values))]

    def options(self) -> list[tuple[int, str, str]]:
        """Return all choices: number, text, and how many real cells have the value."""
        counts = [f"{self.counts.get(value, 0):,} real cells" for value in self.values]
        return [
            (choice, self.text_of(choice), counts[choice] if choice >= 0 else "")
            for choice in self.choices()
        ]

    def render(self) -> Content:
        """Write name, choice and how many real cells have it."""
        note = ""
        if self.value is not None:
            note = count_of(self.counts.get(self.value, 0), "real cell")
        room = max(self.size.width - self.label_width - len(note) - 7, 8)
        shown = shortened(self.text_of(self.choice), room)
        style = "$primary" if self.choice >= 0 else "$secondary"
        label = f"{shortened(self.phenotype, self.label_width):{self.label_width}}  "
        content = Content.assemble((label, "$secondary"), "‹ ", (shown, style), " ›")
        gap = max(self.size.width - content.cell_length - len(note), 1)
        return Content.assemble(
            content, " " * gap, (note, "$warning" if note.startswith("0 ") else "$secondary")
        )

    def watch_choice(self) -> None:
        self.post_message(self.Changed())

    def action_step(self, by: int) -> None:
        order = self.choices()
        self.choice = order[(order.index(self.choice) + by) % len(order)]

    def action_choose(self) -> None:
        self.post_message(self.ListRequested(self))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.focus()
        self.action_choose()


class ContextRow(TokenRow):
    """A phenotype of a context: any value, or one."""

    def text_of(self, choice: int) -> str:
        return "any" if choice == SAMPLED else super().text_of(choice)

    def choices(self) -> list[int]:
        return [SAMPLED, *range(len(self.values))]
