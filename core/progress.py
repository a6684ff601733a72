"""How long work reports itself: plain events to a listener, which the terminal or a test supplies."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Listener", "ProgressEvent", "ignore_progress"]


@dataclass(frozen=True)
class ProgressEvent:
    """One report of long work.

    Attributes
    ----------
    stage
        What is being done, in a few words ("reading cells", "training").
    done, total
        Units finished and expected; ``total`` is None while unknown.
    message
        A sentence worth keeping on the screen, or "" for a mere tick of the bar.
    """

    stage: str
    done: int = 0
    total: int | None = None
    message: str = ""


Listener = Callable[[ProgressEvent], None]


def ignore_progress(event: ProgressEvent) -> None:
    """Take an event and do nothing: the default listener of every function that reports."""
