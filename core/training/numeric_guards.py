"""What watches the numbers of a run: steps that are not finite, and losses that leap."""

import statistics
from collections import deque

from core.errors import TfxError

__all__ = ["NonFiniteSteps", "SpikeDetector"]


class NonFiniteSteps:
    """Counts steps in a row whose loss or gradient is not finite, and gives up at a number.

    Parameters
    ----------
    most
        ``train.max_nonfinite``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.in_a_row = 0

    def note(self, step: int, *, finite: bool) -> None:
        """Take the outcome of a step.

        Raises
        ------
        TfxError
            So many in a row were not finite.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row >= self._most:
            message = (
                f"loss or gradient was not finite for {self._most} steps in a row (step {step}); "
                f"lower train.learning_rate or use train.precision = 'fp32', by --set when the run "
                f"is resumed"
            )
            raise TfxError(message)


class SpikeDetector:
    """Tells losses that leap out of those before them.

    A spike lies above the median of the last losses by more than eight of their median absolute
    deviations (scaled to a standard deviation) and by more than a tenth of the median. Losses that
    were spikes are not learnt from, unless so many follow each other that the level has changed.
    """

    _WINDOW, _LEAST, _DEVIATIONS, _SHARE = 100, 25, 8.0, 0.1

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=self._WINDOW)
        self._in_a_row = 0

    def median_if_spike(self, loss: float) -> float | None:
        """Take a finite loss; return the median it leapt from, or None where it did not."""
        if len(self._losses) >= self._LEAST:
            median = statistics.median(self._losses)
            spread = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
            leap = max(self._DEVIATIONS * spread, self._SHARE * abs(median))
            if loss > median + leap:
                self._in_a_row += 1
                if self._in_a_row == self._LEAST:
                    self._losses.clear()
                return median
        self._in_a_row = 0
        self._losses.append(loss)
        return None
