"""Common parts of all screens: top bar, body, footer, panes, and a notice in a too small window."""

from collections.abc import Iterable, Mapping
from typing import Any

from textual.app import ComposeResult
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static, TabbedContent, TabPane

from tfx_cli.dashboard.workspace import WorkspaceView

#: Sign and style of each state: a sign, a word, and only then a colour.
STATE_STYLES = {
    "starting": ("◌", "$success"),
    "running": ("●", "$success"),
    "finished": ("✔", "$primary"),
    "stopped": ("■", "$warning"),
    "failed": ("✖", "$error"),
    "stale": ("?", "$warning"),
    "crashed": ("✖", "$error"),
    "unknown": ("?", "$secondary"),
    "unreadable": ("!", "$error"),
}


def state_content(state: str) -> Content:
    """Write a state with its sign."""
    sign, style = STATE_STYLES.get(state, ("?", "$secondary"))
    return Content.assemble((f"{sign} {state}", style))


class DashboardScreen(Screen[None]):
    """A screen of the dashboard: subclasses give `make_body` and show new data in `update_view`."""

    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (100, "-normal"), (180, "-wide")]  # noqa: RUF012 - as textual declares them
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (16, "-low"), (32, "-tall")]  # noqa: RUF012
    #: For the help.
    NAME = ""
    #: Set by the application while the user keeps the view as it is.
    is_paused = False

    def compose(self) -> ComposeResult:
        """Lay out bar, body and footer."""
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

    @property
    def is_laid_out(self) -> bool:
        """Whether the widgets exist: not before they are composed, nor while the screen closes."""
        return bool(self.query(".bar")) and bool(self.query(".body"))

    def set_bar(self, *parts: Any) -> None:  # noqa: ANN401 - of Content.assemble
        """Show a line on top, with a mark while the view is paused."""
        marks = [(" ‖ view paused ", "$warning")] if self.is_paused else []
        # The mark is first: the end may be cut off.
        self.query_one(".bar", Static).update(Content.assemble(*marks, *parts))

    def write(self, name: str, content: Content) -> None:
        """Show a text in a widget, by its id."""
        self.query_one(f"#{name}", Static).update(content)

    def action_pane(self, name: str) -> None:
        """Switch to a pane."""
        self.query_one(Panes).choose(name)

    def update_view(self, view: WorkspaceView) -> None:
        """Show new data; called about twice a second, but not while the view is paused."""

    def open_runs(self) -> list[str]:
        """Return the paths of the runs whose curves this screen needs."""
        return []

    @property
    def is_busy(self) -> bool:
        """Whether cells are being generated for this screen."""
        return False

    def take_event(self, run: str, event: Mapping[str, Any]) -> None:
        """Take an event of the process that holds the model of a run."""


class Panes(TabbedContent):
    """Tabbed panes that change by a tab or a key only; focus does not move them.

    textual activates the pane in which a widget takes the focus. A widget takes a requested focus
    a little later: on a busy machine after the user has moved to another pane.
    """

    def __init__(self, *, initial: str, **settings: Any) -> None:  # noqa: ANN401 - textual's own
        super().__init__(initial=initial, **settings)
        self._has_begun = False
        self._wanted: str | None = None

    def choose(self, name: str) -> None:
        """Activate a pane."""
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
