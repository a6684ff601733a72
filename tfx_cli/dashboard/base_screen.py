"""What all screens share: a bar on top, a body, a footer, and a sentence where there is no room."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from tfx_cli.dashboard.workspace import WorkspaceView

if TYPE_CHECKING:
    from tfx_cli.dashboard.app import DashboardApp

__all__ = ["STATE_STYLES", "DashboardScreen", "state_content"]

_WIDTHS = [(0, "-tiny"), (60, "-narrow"), (100, "-normal"), (180, "-wide")]
_HEIGHTS = [(0, "-flat"), (16, "-low"), (32, "-tall")]
#: Style and sign of each state: a sign, a word, and only then a colour.
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
    "paused": ("‖", "$warning"),
}


def state_content(state: str) -> Content:
    """Write a state with its sign."""
    sign, style = STATE_STYLES.get(state, ("?", "$secondary"))
    return Content.assemble((f"{sign} {state}", style))


class DashboardScreen(Screen[None]):
    """A screen of the dashboard.

    Subclasses give `make_body`, and take what is new from disk in `update_view`.
    """

    HORIZONTAL_BREAKPOINTS = _WIDTHS
    VERTICAL_BREAKPOINTS = _HEIGHTS
    #: For the help.
    NAME = ""

    DEFAULT_CSS = """
    DashboardScreen { overflow: hidden; background: $background; }
    DashboardScreen .bar { height: 1; background: $panel; padding: 0 1; width: 1fr;
        text-wrap: nowrap; text-overflow: ellipsis; }
    DashboardScreen .no-room { display: none; height: 1fr; width: 1fr;
        content-align: center middle; text-align: center; }
    DashboardScreen .body { height: 1fr; }
    DashboardScreen TabbedContent { height: 1fr; }
    DashboardScreen ContentSwitcher { height: 1fr; }
    DashboardScreen TabPane { padding: 0; height: 1fr; }
    DashboardScreen Tabs { height: 1; }
    DashboardScreen Tabs Tab { height: 1; padding: 0 2 0 0; }
    DashboardScreen Tabs Underline { display: none; }
    DashboardScreen Tabs #tabs-list { height: 1; min-height: 1; }
    DashboardScreen.-tiny .body, DashboardScreen.-flat .body { display: none; }
    DashboardScreen.-tiny Footer, DashboardScreen.-flat Footer { display: none; }
    DashboardScreen.-tiny .bar, DashboardScreen.-flat .bar { display: none; }
    DashboardScreen.-tiny .no-room, DashboardScreen.-flat .no-room { display: block; }
    """

    @property
    def dashboard(self) -> "DashboardApp":
        """The application."""
        from tfx_cli.dashboard.app import DashboardApp

        assert isinstance(self.app, DashboardApp)
        return self.app

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
        """Whether the widgets are there: not before they are composed, nor while it closes."""
        return bool(self.query(".bar")) and bool(self.query(".body"))

    def set_bar(self, content: Content) -> None:
        """Show a line on top, with the state of the view."""
        marks = []
        if self.dashboard.is_paused:
            marks.append((" ‖ view paused ", "$warning"))  # first: the end may be cut off
        self.query_one(".bar", Static).update(Content.assemble(*marks, content))

    def update_view(self, view: WorkspaceView) -> None:
        """Take what is new; called twice a second or so, and not while the view is paused."""

    def open_runs(self) -> list[str]:
        """Return the paths of the runs whose curves this screen needs."""
        return []
