"""Panes behind tabs that change when a tab or a key says so, and for no other reason."""

from textual.widgets import TabbedContent, TabPane

__all__ = ["Panes"]


class Panes(TabbedContent):
    """Tabbed panes. Focus does not move them.

    textual brings up the pane in which something takes the focus. What is asked for at one moment
    takes it a little later, and on a busy machine after the user has gone on to another pane.
    """

    def on_tab_pane_focused(self, event: TabPane.Focused) -> None:
        """Stay where the user is."""
        event.prevent_default()
        event.stop()
