"""One optimiser step, in as many parts as memory allows, and the record of the steps of a run.

Losses are divided by the targets of the whole step over all processes, so that the gradient is the
same however cells are dealt. Nothing here waits for the device: whether a step was finite is decided
there (the fused optimiser leaves its weights alone) and read by the host one step later.
"""

import contextlib
import logging
import statistics
import time
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from core.encoding.sampler import Cursor
from core.errors import MachineError, TfxError
from core.files import csv_bytes, replace_file
from core.model.batch_tensors import BatchTensors
from core.model.losses import LossCounts, cell_loss, masked_loss
from core.random_streams import Stream, torch_seed
from core.runlog.schema import NONFINITE_FOLDER
from core.training.checkpoints import checkpoint_name
from core.training.run_log import RunLog
from core.training.run_setup import RunSetup
from core.training.virtual_ranks import RankBatch, StepBatch, StepSize

logger = logging.getLogger(__name__)

#: Fraction of the peak that encoders reach, for a first estimate of their time.
_USUAL_MFU = 0.4

#: Cells that an event names at most.
_CELLS_IN_EVENT = 4096
#: The results of a step, over all processes; the norm before clipping.
STEP_METRICS = ("loss", "gene_loss", "phenotype_loss", "cls_loss", "gradient_norm")


class StepOutcome:
    """A step that the device may still be computing."""

    def __init__(self, step: int, rows: NDArray[np.int64], metrics: Tensor) -> None:
        self.step, self.rows = step, rows
        self._arrived: torch.cuda.Event | None = None
        self._metrics = metrics.detach()
        if metrics.is_cuda:
            self._metrics = torch.empty(metrics.shape, dtype=metrics.dtype, pin_memory=True)
            self._metrics.copy_(metrics.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[dict[str, float], bool]:
        """Wait for the device; return `STEP_METRICS` by name, and whether the weights were changed."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *numbers, failed = self._metrics.tolist()
        return dict(zip(STEP_METRICS, numbers, strict=True)), not failed


class TrainStep:
    """Does steps; network and optimiser are as accelerate shares them among the processes."""

    def __init__(
        self,
        setup: RunSetup,
        network: nn.Module,
        optimiser: Any,  # noqa: ANN401 (accelerate's wrapper of one)
        log: RunLog,
    ) -> None:
        self.processes, self.network, self.optimiser = setup.processes, network, optimiser
        self.config, self.loss = setup.model.config, setup.preset.loss
        self.train, self.source, self.log = setup.preset.train, setup.source, log
        weights = setup.class_weights
        self.class_weights = None if weights is None else weights.to(self.processes.device)

    def __call__(
        self, step: int, rows: NDArray[np.int64], batch: StepBatch, counts: LossCounts
    ) -> StepOutcome:
        """Do one step, counted from 0, on the cells of this process, and log if memory ran out.

        ``counts`` are the targets over all processes; ``rows`` are kept for the record. MachineError
        if a single cell does not fit into memory; or if memory ran out in one of several processes,
        whose others cannot be called back.
        """
        self.network.train()
        while True:
            try:
                parts = self._accumulate(step, batch, counts)
                break
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Out of the handler, whose traceback holds the tensors of the step.
            self._make_smaller(step, batch, reason)
        losses = self.processes.all_reduce_on_device(parts)
        norm = self._clip()
        failed = ~(torch.isfinite(norm) & torch.isfinite(losses).all())
        if self.processes.is_sharded:  # the fused kernel takes no flag there: wait for it
            if not failed.item():
                self.optimiser.step()
        else:
            if self.processes.accelerator.scaler is None:
                self.optimiser.optimizer.found_inf = failed.float()
            self.optimiser.step()  # fp16: the scaler skips a step itself and lowers its scale
        self.optimiser.zero_grad()
        return StepOutcome(step, rows, torch.stack([*losses, norm.float(), failed.float()]))

    def rehearse(self, step: int, batch: StepBatch, counts: LossCounts) -> None:
        """Compute the gradient of a step, to see how long that takes, and drop it."""
        self.network.train()
        try:
            self._accumulate(step, batch, counts)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        self.optimiser.zero_grad()

    def _accumulate(self, step: int, batch: StepBatch, counts: LossCounts) -> Tensor:
        """Sum the gradients of all parts; return (4,) loss; of genes, of phenotypes, of [CLS]."""
        parts = [
            (rank.virtual_rank, number, part)
            for rank in batch.ranks
            for number, part in enumerate(self._parts(rank))
        ]
        losses = torch.zeros(4, device=self.processes.device)
        for place, (virtual_rank, number, part) in enumerate(parts):
            # Gradients are exchanged among processes only with the last part.
            is_synced = place == len(parts) - 1 or self.processes.count == 1
            accelerator = self.processes.accelerator
            with contextlib.nullcontext() if is_synced else accelerator.no_sync(self.network):
                # Dropout is a function of the cells, not of which process computes them.
                key = (self.train.seed, step, virtual_rank, number, Stream.DROPOUT)
                torch.manual_seed(torch_seed(*key))
                losses += self._backward(part, counts)
        return losses

    def _parts(self, rank: RankBatch) -> list[BatchTensors]:
        wanted = min(self.source.n_parts, rank.arrays.n_cells)
        if len(rank.parts) == wanted:
            return rank.parts
        return self.source.cut(rank.arrays, wanted)  # made ahead, before memory ran out

    def _backward(self, part: BatchTensors, counts: LossCounts) -> Tensor:
        tensors = part.to(self.processes.device)
        output = self.network(tensors)
        parts = masked_loss(
            output.gene_logits,
            output.phenotype_logits,
            tensors,
            self.config,
            self.loss,
            self.class_weights,
            counts,
        )
        cls = cell_loss(output.cells, tensors, self.config, self.loss, counts)
        total = parts.total if output.cells is None else parts.total + cls
        # Processes' gradients are averaged; the loss needs their sum.
        self.processes.accelerator.backward(total * self.processes.count)
        return torch.stack([total, parts.genes, parts.phenotypes, cls]).detach()

    def _clip(self) -> Tensor:
        norm = self.processes.accelerator.clip_grad_norm_(
            self.network.parameters(), self.train.gradient_clip
        )
        if norm is None:
            return torch.zeros((), device=self.processes.device)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP2: a norm of slices

    def _make_smaller(self, step: int, batch: StepBatch, reason: str) -> None:
        """Halve the parts after memory ran out, or give up."""
        self.optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        wanted = 2 * self.source.n_parts
        if self.processes.count > 1:
            raise MachineError(
                f"a process ran out of memory ({reason}); resume with "
                f"--set train.micro_batches={wanted}, which computes the same steps in more parts"
            )
        if self.source.n_parts >= max(rank.arrays.n_cells for rank in batch.ranks):
            longest = max(rank.arrays.max_length for rank in batch.ranks)
            raise MachineError(
                f"a single cell of {longest} tokens does not fit into memory ({reason}); lower "
                f"encoding.max_length, data.genes or model.hidden_size"
            )
        self.source.n_parts = wanted
        logger.warning("memory ran out: steps are computed in %d parts from now on", wanted)
        self.log.event("warning", step=step + 1, micro_batches=wanted, reason="memory ran out")


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


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

    def __init__(self, setup: RunSetup, log: RunLog) -> None:
        self.setup, self.log = setup, log
        self._non_finite_in_a_row = 0
        self._spikes = SpikeDetector()
        self._under_way: deque[StepOutcome] = deque()
        #: The last line of metrics, and the seconds that all steps still take, as far as they are known.
        self.last: dict[str, float] = {}
        self.eta: float | None = None
        self.load({})

    def state(self) -> dict[str, float]:
        """Return the sums over the steps since the last line, for a checkpoint."""
        return dict(self._sums)

    def load(self, state: dict[str, float]) -> None:
        """Continue from the result of `state`; speeds are of the steps since."""
        self._sums = {"n_steps": 0, **dict.fromkeys(STEP_METRICS, 0.0), **state}
        self._began = time.perf_counter()
        self._sizes: list[StepSize] = []
        self._waited = 0.0

    def add(self, outcome: StepOutcome, size: StepSize, *, waited_seconds: float) -> None:
        """Add a step, its size over all processes, and how long it waited for its cells."""
        self._under_way.append(outcome)
        self._sizes.append(size)
        self._waited += waited_seconds

    def settle(self, *, all_but: int = 0) -> None:
        """Wait for the outcomes of all steps but the newest ``all_but``, and log anomalies."""
        while len(self._under_way) > all_but:
            outcome = self._under_way.popleft()
            metrics, is_finite = outcome.wait()
            self._sums["n_steps"] += 1
            for name, value in metrics.items():
                self._sums[name] += value
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
        rows = np.concatenate(self.setup.processes.gather(rows))
        if self.setup.processes.is_main:
            self._write_non_finite(step, rows)
        limit = self.setup.preset.train.max_nonfinite
        if self._non_finite_in_a_row >= limit:
            raise TfxError(
                f"loss or gradient was not finite for {limit} steps in a row (step {step}); lower "
                f"train.learning_rate or use train.precision = 'fp32', by --set when you resume the run"
            )

    def _write_non_finite(self, step: int, rows: NDArray[np.int64]) -> None:
        name = f"{NONFINITE_FOLDER}/{checkpoint_name(step)}.csv"
        logger.warning("step %d skipped: its loss or gradient is not finite (%s)", step, name)
        self.log.event("nonfinite", step=step, rows=rows[:_CELLS_IN_EVENT].tolist(), cells=name)
        store = self.setup.cells.store
        files = [source.name for source in store.manifest.sources]
        places = zip(rows.tolist(), store.origins[rows].tolist(), strict=True)
        lines = [("store_row", "file", "file_row")]
        lines += [(row, files[file], file_row) for row, (file, file_row) in places]
        try:
            folder = self.log.folder
            (folder / NONFINITE_FOLDER).mkdir(exist_ok=True)
            replace_file(folder / name, csv_bytes(lines))
        except OSError as error:
            self.log.warn(step, f"{name} cannot be written ({error.strerror})")

    def log_averages(
        self, step: int, total: int, *, rate: float, cursor: Cursor, log_linear_steps: int
    ) -> None:
        """Log the averages of the steps since the last line, after ``step`` of ``total``.

        The first ``log_linear_steps`` leave out the encoder, and are quicker than the others.
        """
        setup, sums, sizes = self.setup, self._sums, self._sizes
        seconds = max(time.perf_counter() - self._began, 1e-9)
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
            "lr": rate,
            "epoch": cursor.epoch + cursor.batch / setup.source.sampler.steps(cursor.epoch),
        }
        of_tokens = {
            "attended_length": sum(size.squared_lengths for size in sizes) / max(n_tokens, 1.0),
            "output_fraction": sum(size.n_outputs for size in sizes) / max(n_tokens, 1.0),
        }
        mfu = setup.utilisation(tokens_per_second=metrics["tokens_per_second"], **of_tokens)
        n_steps = max(len(sizes), 1)
        self.eta = seconds / n_steps * (total - step)
        if step < log_linear_steps and setup.flops.layers:
            # The encoder has not begun: its steps take what its operations take.
            operations = setup.flops.per_token(**of_tokens) * n_tokens / n_steps
            encoder = None if setup.peak is None else operations / (setup.peak * _USUAL_MFU)
            self.eta = None if encoder is None else self.eta + encoder * (total - log_linear_steps)
        self.last = metrics
        self.load({})
        if mfu is not None and not setup.model.network.log_linear_only:
            metrics["mfu"] = mfu
        self.log.metrics(step, "train", metrics)
        self.log.status("running", step=step, eta=None if self.eta is None else round(self.eta, 1))
        speeds = ("cells_per_second", "tokens_per_second", "wait", "mfu")
        self.log.machine(**{name: metrics.get(name) for name in speeds})
