"""Ctrl-C and its kin during training: the first asks for a checkpoint, the second leaves at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tfx_cli.launch import launcher_is_gone
from tfx_cli.output import narrate

__all__ = ["StopSignal", "stop_on_signals"]

#: Ctrl-C; a scheduler ending the job; SLURM's usual early warning (``--signal=USR1@120``).
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopSignal:
    """Remembers that a signal came; call it to ask."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __call__(self) -> str:
        """Return why to stop, or nothing."""
        if self.received is None and launcher_is_gone():
            self.received = "the launcher died"
        return self.received or ""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        narrate(
            f"{self.received}: saving a checkpoint after this step; Ctrl-C again leaves at once"
        )


@contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """Catch the signals while the block runs."""
    stop = StopSignal()
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
