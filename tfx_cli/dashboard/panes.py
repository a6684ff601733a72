"""Panes behind tabs that change when a tab or a key says so, and for no other reason."""

from typing import Any

from textual.widgets import TabbedContent, TabPane

__all__ = ["Panes"]


class Panes(TabbedContent):
    """Tabbed panes. Focus does not move them.

    textual brings up the pane in which something takes the focus. What is asked for at one moment
    takes it a little later, and on a busy machine after the user has gone on to another pane.
    """

    def __init__(self, *, initial: str, **settings: Any) -> None:  # noqa: ANN401 - textual's own
        super().__init__(initial=initial, **settings)
        self._is_begun = False
        self._wanted: str | None = None

    def choose(self, name: str) -> None:
        """Bring up a pane."""
        if self._is_begun:
            self.active = name
        else:  # the first pane, which is still coming up, would come back over it
            self._wanted = name

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Go on to what was chosen while the first pane came up."""
        self._is_begun = True
        if self._wanted is not None:
            event.stop()
            self.active, self._wanted = self._wanted, None

    def on_tab_pane_focused(self, event: TabPane.Focused) -> None:
        """Stay where the user is."""
        event.prevent_default()
        event.stop()
