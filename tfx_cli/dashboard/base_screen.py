"""Common parts of all screens: layout, panes, tables, and messages to the application."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import ActiveBinding
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane

from tfx_cli.dashboard.keymap import KEY_OF_ID, KEYS, Key, run_key
from tfx_cli.dashboard.workspace import WorkspaceView

#: Keys of more letters than one that type a character.
_TYPED = ("space", "question_mark", "slash", "plus", "minus", "equals_sign")


class ReadSoon(Message):
    """Read the run folders now: the screen shows other runs than before."""


@dataclass
class OpenRun(Message):
    """Show a run."""

    path: str


@dataclass
class StartRun(Message):
    """Train a preset, changed by ``key=value`` assignments, as a new run."""

    preset: str
    name: str
    assignments: Sequence[str]


@dataclass
class OfferCopy(Message):
    """Send a text to the clipboard of the terminal, and show it where it can be selected."""

    title: str
    text: str


@dataclass
class Generate(Message):
    """Send a record (docs/generate-serve.md) to the process that holds the model of a run."""

    run: str
    record: Mapping[str, Any]


@dataclass
class FindEdges(Message):
    """Find the edges of a context of a run (`tfx interactions --where --contrast`; "": all cells, no contrast)."""

    run: str
    where: str
    contrast: str


class DashboardScreen(Screen[None]):
    """A screen of the dashboard: subclasses give `make_body` and show new data in `update_view`."""

    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (100, "-normal"), (180, "-wide")]  # noqa: RUF012 - as textual declares them
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (16, "-low"), (32, "-tall")]  # noqa: RUF012
    #: For the help.
    NAME = ""
    #: Set by the application while the user keeps the view as it is.
    is_paused = False
    #: Whether a process generates cells or makes a forecast for this screen.
    is_busy = False
    #: Whether the screen needs the presets of all runs.
    needs_settings = False
    #: What the footer shows.
    _offered: Sequence[tuple[str, str]] = ()

    def compose(self) -> ComposeResult:
        yield Static("", classes="bar", markup=False)
        yield from self.make_body()
        yield Static(
            "The dashboard needs 60 columns and 16 rows: please enlarge this window.",
            classes="no-room",
            markup=False,
        )
        yield Footer(show_command_palette=False)

    def make_body(self) -> Iterable[Widget]:
        """Return the widgets between bar and footer; the outermost has the class ``body``."""
        raise NotImplementedError

    # -- keys
    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """Return the bindings of now: those that the footer shows work in the focused widget."""
        active = super().active_bindings
        is_typing = isinstance(self.focused, Input)
        own = {key.keys: key for key in KEYS if key.screen == self.NAME}
        enter = self.enter_label()
        for name, one in active.items():
            key = KEY_OF_ID.get(one.binding.id or "")
            shown, label = key is not None and bool(key.label) and self.offers(key), ""
            if key is not None and is_typing and (len(name) == 1 or name in _TYPED):
                shown = False
            if name == "enter":
                shown, label = bool(enter), enter
                key = own.get("enter")
                if key is not None and not is_typing:  # the focused widget does the same by enter
                    one = one._replace(binding=replace(one.binding, id=key.id))
            label = label or one.binding.description
            active[name] = one._replace(binding=replace(one.binding, show=shown, description=label))
        return active

    def offers(self, key: Key) -> bool:
        """Return whether the footer shows a key that has a label: what it does can be done now."""
        return not key.panes or self.pane in key.panes

    @property
    def pane(self) -> str:
        """The active pane; "" where there are none."""
        return self.query_one(Panes).active if self.query(Panes) else ""

    def enter_label(self) -> str:
        """Return what enter does in the focused widget, for the footer; "" if it does nothing."""
        return ""

    def on_tabbed_content_tab_activated(self) -> None:
        """Show the keys of the pane."""
        self._update_footer()

    def _update_footer(self) -> None:
        """Draw the footer again if other keys work than before."""
        shown = [
            (name, one.binding.description)
            for name, one in self.active_bindings.items()
            if one.binding.show
        ]
        if shown != self._offered:
            self._offered = shown
            self.refresh_bindings()

    async def action_move(self, to: str) -> None:
        """Move in the focused widget: ``to`` is down, up, home or end."""
        if isinstance(self.focused, DataTable) and to in ("home", "end"):
            to = f"ctrl+{to}"
        await run_key(self, to)

    @property
    def is_laid_out(self) -> bool:
        """Whether the widgets exist: not before they are composed, nor while the screen closes."""
        return bool(self.query(".bar")) and bool(self.query(".body"))

    def set_bar(self, *parts: Any) -> None:  # noqa: ANN401 - of Content.assemble
        """Show a line on top, with a mark while the view is paused."""
        marks = [(" ‖ view paused ", "$warning")] if self.is_paused else []
        # The mark is first: the end may be cut off.
        self.query_one(".bar", Static).update(Content.assemble(*marks, *parts))
        self._update_footer()

    def write(self, name: str, content: Content) -> None:
        """Show a text in a widget, by its id."""
        self.query_one(f"#{name}", Static).update(content)

    def action_pane(self, name: str) -> None:
        self.query_one(Panes).choose(name)

    def action_filter(self) -> None:
        """Type a text that the rows of a list must hold."""
        self.filter.open()

    @property
    def filter(self) -> "FilterBox":
        return self.query_one(FilterBox)

    def action_back(self) -> None:
        self.app.pop_screen()

    def update_view(self, view: WorkspaceView) -> None:
        """Show new data; called about twice a second, but not while the view is paused."""

    def current_run(self) -> str | None:
        """Return the path of the run that the keys of this screen are for."""
        return None

    def open_runs(self) -> list[str]:
        """Return the paths of the runs whose curves this screen needs."""
        run = self.current_run()
        return [] if run is None else [run]

    def take_event(self, run: str, event: Mapping[str, Any]) -> None:
        """Take an event of the process that holds the model of a run."""


class FilterBox(Input):
    """The text that rows of a list must hold, on a line that is shown while it is used."""

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, id="filter", compact=True)

    @property
    def part(self) -> str:
        """The text, in small letters."""
        return self.value.strip().lower()

    def open(self) -> None:
        self.add_class("-shown")
        self.focus()

    def close(self) -> None:
        self.value = ""
        self.remove_class("-shown")


class Panes(TabbedContent):
    """Tabbed panes that change by a tab or a key only; focus does not move them.

    textual activates the pane in which a widget takes the focus. A widget takes a requested focus
    a little later: on a busy machine after the user has moved to another pane.
    """

    _has_begun = False
    _wanted: str | None = None

    def choose(self, name: str) -> None:
        if self._has_begun:
            self.active = name
        else:  # the first pane is still being activated and would return
            self._wanted = name

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Activate the pane that was chosen while the first one was being activated."""
        self._has_begun = True
        if self._wanted is not None:
            event.stop()
            self.active, self._wanted = self._wanted, None

    def on_tab_pane_focused(self, event: TabPane.Focused) -> None:
        """Keep the active pane."""
        event.prevent_default()
        event.stop()


def current_key(table: DataTable[Text]) -> str | None:
    """Return the key of the row at the cursor."""
    if not 0 <= table.cursor_row < table.row_count:
        return None
    return str(table.ordered_rows[table.cursor_row].key.value)


def fill_table(
    table: DataTable[Text],
    columns: Sequence[str] | Mapping[str, Text],
    rows: Mapping[str, Sequence[Text]],
) -> None:
    """Show rows by key; a row that stays keeps the cursor, and only changed cells are drawn.

    ``columns`` are names, or names with their heads.
    """
    current = current_key(table)
    heads = columns if isinstance(columns, Mapping) else {name: Text(name) for name in columns}
    shown = {str(column.key.value): column.label for column in table.ordered_columns}
    if list(heads.items()) != list(shown.items()):
        table.clear(columns=True)
        for name, head in heads.items():
            table.add_column(head, key=name)
    if list(rows) != [str(key.value) for key in table.rows]:
        table.clear()
        for key, cells in rows.items():
            table.add_row(*cells, key=key)
        if current is not None and current in rows:
            table.move_cursor(row=list(rows).index(current))
        return
    for key, cells in rows.items():
        for name, cell in zip(columns, cells, strict=True):
            if table.get_cell(key, name) != cell:
                table.update_cell(key, name, cell, update_width=True)
