"""How long work reports itself: plain events to a listener, which the terminal or a test supplies."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One report of long work."""

    #: The work in a few words ("reading cells", "training").
    stage: str
    #: Units finished and expected; ``total`` is None while unknown.
    done: int = 0
    total: int | None = None
    #: A sentence worth keeping on the screen, or "" for a mere step of the bar.
    message: str = ""
    #: How the work goes, in a few words ("loss 1.23, 310 cells/s"), and seconds left as it estimates them.
    note: str = ""
    seconds_left: float | None = None


Listener = Callable[[ProgressEvent], None]


def to_all(*listeners: Listener) -> Listener:
    """Return a listener that gives every event to all of these."""

    def listen(event: ProgressEvent) -> None:
        for one in listeners:
            one(event)

    return listen


def ignore_progress(event: ProgressEvent) -> None:
    """Take an event and do nothing: the default listener of every function that reports."""
