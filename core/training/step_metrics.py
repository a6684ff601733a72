"""Metrics of steps: averages over the steps between two lines, loss spikes, steps that are not finite."""

import logging
import statistics
import time
from collections import deque
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.encoding.sampler import Cursor
from core.errors import TfxError
from core.files import replace_file
from core.runlog.schema import NONFINITE_FOLDER
from core.training.checkpoints import checkpoint_name
from core.training.processes import Processes
from core.training.run_log import RunLog
from core.training.run_setup import RunSetup
from core.training.step import STEP_METRICS, StepOutcome
from core.training.virtual_ranks import StepSize

logger = logging.getLogger(__name__)

#: Cells that an event names at most.
_CELLS_IN_EVENT = 4096


class StepWindow:
    """Collects steps; `close` returns their averages and starts anew."""

    def __init__(self) -> None:
        self.load({})

    def state(self) -> dict[str, float]:
        """Return the sums so far, for a checkpoint."""
        return dict(self._sums)

    def load(self, state: dict[str, float]) -> None:
        """Continue from the result of `state`; speeds are of the steps since."""
        self._sums = {"n_steps": 0, **dict.fromkeys(STEP_METRICS, 0.0), **state}
        self._began = time.perf_counter()
        self._sizes: list[StepSize] = []
        self._waited = 0.0

    def add_size(self, size: StepSize, *, waited_seconds: float) -> None:
        """Add the size of a step over all processes, and how long it waited for its cells."""
        self._sizes.append(size)
        self._waited += waited_seconds

    def add(self, metrics: dict[str, float]) -> None:
        """Add the results of a step."""
        self._sums["n_steps"] += 1
        for name, value in metrics.items():
            self._sums[name] += value

    def close(self) -> tuple[dict[str, float], float, float]:
        """Return metrics by name, seconds per step, and L̄ of `core.training.flops`."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        sums, sizes = self._sums, self._sizes
        n = max(sums["n_steps"], 1)
        n_tokens = sum(size.n_tokens for size in sizes)
        metrics = {
            "loss": sums["loss"] / n,
            "loss/genes": sums["gene_loss"] / n,
            "loss/phenotypes": sums["phenotype_loss"] / n,
            **({"loss/cls": sums["cls_loss"] / n} if sums["cls_loss"] else {}),
            "grad_norm": sums["gradient_norm"] / n,
            "cells_per_second": sum(size.n_cells for size in sizes) / seconds,
            "tokens_per_second": n_tokens / seconds,
            "wait": self._waited / seconds,
        }
        attended_length = sum(size.squared_lengths for size in sizes) / max(n_tokens, 1.0)
        self.load({})
        return metrics, seconds / max(len(sizes), 1), attended_length


class SpikeDetector:
    """Finds losses that leap above those before them.

    A spike is above the median of the last losses by more than eight of their median absolute
    deviations (scaled to a standard deviation) and by more than a tenth of the median. Spikes do not
    enter the median, unless 25 in a row show that the loss has changed for good.
    """

    _WINDOW, _LEAST, _DEVIATIONS, _FRACTION = 100, 25, 8.0, 0.1

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=self._WINDOW)
        self._in_a_row = 0

    def median_if_spike(self, loss: float) -> float | None:
        """Add a finite loss; return the median before it if it is a spike."""
        if len(self._losses) >= self._LEAST:
            median = statistics.median(self._losses)
            spread = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
            leap = max(self._DEVIATIONS * spread, self._FRACTION * abs(median))
            if loss > median + leap:
                self._in_a_row += 1
                if self._in_a_row == self._LEAST:
                    self._losses.clear()
                return median
        self._in_a_row = 0
        self._losses.append(loss)
        return None


class StepRecorder:
    """Reads the outcomes of steps when the device has them; logs averages, spikes, steps that are not finite."""

    def __init__(self, setup: RunSetup, processes: Processes, log: RunLog, folder: Path) -> None:
        self.setup, self.processes, self.log, self.folder = setup, processes, log, folder
        self.window = StepWindow()
        self._non_finite_in_a_row = 0
        self._spikes = SpikeDetector()
        self._under_way: deque[StepOutcome] = deque()

    def add(self, outcome: StepOutcome, size: StepSize, *, waited_seconds: float) -> None:
        """Add a step, its size over all processes, and how long it waited for its cells."""
        self._under_way.append(outcome)
        self.window.add_size(size, waited_seconds=waited_seconds)

    def settle(self, *, all_but: int = 0) -> None:
        """Wait for the outcomes of all steps but the newest ``all_but``, and log anomalies.

        Raises
        ------
        TfxError
            ``train.max_nonfinite`` steps in a row were not finite.
        """
        while len(self._under_way) > all_but:
            outcome = self._under_way.popleft()
            metrics, is_finite = outcome.wait()
            self.window.add(metrics)
            step = outcome.step + 1
            if not is_finite:
                self._non_finite_in_a_row += 1
                self._log_non_finite(step, outcome.rows)
                continue
            self._non_finite_in_a_row = 0
            median = self._spikes.median_if_spike(metrics["loss"])
            if median is not None:
                rows = outcome.rows[:_CELLS_IN_EVENT].tolist()
                self.log.event("spike", step=step, loss=metrics["loss"], median=median, rows=rows)

    def _log_non_finite(self, step: int, rows: NDArray[np.int64]) -> None:
        """Log a step that was skipped, and which cells it had; TfxError after too many in a row."""
        rows = np.concatenate(self.processes.gather(rows))
        if self.processes.is_main:
            self._write_non_finite(step, rows)
        limit = self.setup.preset.train.max_nonfinite
        if self._non_finite_in_a_row >= limit:
            message = (
                f"loss or gradient was not finite for {limit} steps in a row (step {step}); lower "
                f"train.learning_rate or use train.precision = 'fp32', by --set when you resume the run"
            )
            raise TfxError(message)

    def _write_non_finite(self, step: int, rows: NDArray[np.int64]) -> None:
        name = f"{NONFINITE_FOLDER}/{checkpoint_name(step)}.csv"
        logger.warning("step %d skipped: its loss or gradient is not finite (%s)", step, name)
        self.log.event("nonfinite", step=step, rows=rows[:_CELLS_IN_EVENT].tolist(), cells=name)
        store = self.setup.cells.store
        files = [source.name for source in store.manifest.sources]
        lines = ["store_row,file,file_row"]
        lines += [
            f'{row},"{files[file]}",{file_row}'
            for row, (file, file_row) in zip(
                rows.tolist(), store.origins[rows].tolist(), strict=True
            )
        ]
        try:
            (self.folder / NONFINITE_FOLDER).mkdir(exist_ok=True)
            replace_file(self.folder / name, "\n".join(lines) + "\n")
        except OSError as error:
            self.log.warn(step, f"{name} cannot be written ({error.strerror})")

    def log_window(self, step: int, total: int, *, rate: float, cursor: Cursor) -> None:
        """Log the averages of the window after ``step`` of ``total``."""
        setup = self.setup
        metrics, seconds_per_step, attended_length = self.window.close()
        metrics["lr"] = rate
        metrics["epoch"] = cursor.epoch + cursor.batch / setup.source.sampler.steps(cursor.epoch)
        mfu = setup.flops.utilisation(
            tokens_per_second=metrics["tokens_per_second"],
            attended_length=attended_length,
            peak=setup.peak,
        )
        if mfu is not None and not setup.model.network.log_linear_only:
            metrics["mfu"] = mfu
        self.log.metrics(step, "train", metrics)
        self.log.status("running", step=step, eta=round(seconds_per_step * (total - step), 1))
        speeds = ("cells_per_second", "tokens_per_second", "wait", "mfu")
        self.log.machine(**{name: metrics.get(name) for name in speeds})
