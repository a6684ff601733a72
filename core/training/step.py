"""One optimiser step: the virtual ranks of this process, in as many parts as memory allows.

Losses are divided by the targets of the whole step over all processes, so that the gradient is the
same however cells are dealt. Nothing here waits for the device: whether a step was finite is decided
there (the fused optimiser leaves its weights alone) and read by the host one step later.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import MachineError
from core.model.batch_tensors import BatchTensors
from core.model.cell_objectives import cell_loss
from core.model.losses import LossCounts, masked_loss
from core.random_streams import Stream, torch_seed
from core.training.processes import Processes
from core.training.run_setup import RunSetup
from core.training.virtual_ranks import RankBatch, StepBatch

logger = logging.getLogger(__name__)


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
    """Does steps.

    Parameters
    ----------
    network, optimiser
        As accelerate shares them among the processes.
    on_smaller
        Called with the new number of parts when memory runs out.
    """

    def __init__(
        self,
        setup: RunSetup,
        processes: Processes,
        network: nn.Module,
        optimiser: Any,  # noqa: ANN401 (accelerate's wrapper of one)
        *,
        on_smaller: Callable[[int], None],
    ) -> None:
        self.processes, self.network, self.optimiser = processes, network, optimiser
        self.config, self.loss = setup.model.config, setup.preset.loss
        self.train, self.source, self.on_smaller = setup.preset.train, setup.source, on_smaller
        weights = setup.class_weights
        self.class_weights = None if weights is None else weights.to(processes.device)

    def __call__(
        self, step: int, rows: NDArray[np.int64], batch: StepBatch, counts: LossCounts
    ) -> StepOutcome:
        """Do one step, counted from 0, on the cells of this process.

        ``counts`` are the targets over all processes; ``rows`` are kept for the record.

        Raises
        ------
        MachineError
            A single cell does not fit into memory; or memory ran out in one of several processes,
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
            self._make_smaller(batch, reason)
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

    def _accumulate(self, step: int, batch: StepBatch, counts: LossCounts) -> Tensor:
        """Sum the gradients of all parts; return (4,) loss; of genes, of phenotypes, of [CLS]."""
        parts = [
            (rank.virtual_rank, number, part)
            for rank in batch.ranks
            for number, part in enumerate(self._parts(rank))
        ]
        losses = torch.zeros(4, device=self.processes.device)
        for place, (virtual_rank, number, part) in enumerate(parts):
            is_last = place == len(parts) - 1
            with self._reducing(now=is_last):
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

    def _reducing(self, *, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients among processes only with the last part of a step."""
        if now or self.processes.count == 1:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.processes.accelerator.no_sync(
            self.network
        )
        return context

    def _clip(self) -> Tensor:
        norm = self.processes.accelerator.clip_grad_norm_(
            self.network.parameters(), self.train.gradient_clip
        )
        if norm is None:
            return torch.zeros((), device=self.processes.device)
        full = getattr(norm, "full_tensor", None)  # FSDP2: a norm of slices
        whole: Tensor = full() if full is not None else norm
        return whole

    def _make_smaller(self, batch: StepBatch, reason: str) -> None:
        """Halve the parts after memory ran out, or give up."""
        self.optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        wanted = 2 * self.source.n_parts
        if self.processes.count > 1:
            message = (
                f"a process ran out of memory ({reason}); resume with "
                f"--set train.micro_batches={wanted}, which computes the same steps in more parts"
            )
            raise MachineError(message)
        if self.source.n_parts >= max(rank.arrays.n_cells for rank in batch.ranks):
            longest = max(rank.arrays.max_length for rank in batch.ranks)
            message = (
                f"a single cell of {longest} tokens does not fit into memory ({reason}); lower "
                f"encoding.max_length, data.genes or model.hidden_size"
            )
            raise MachineError(message)
        self.source.n_parts = wanted
        logger.warning("memory ran out: steps are computed in %d parts from now on", wanted)
        self.on_smaller(wanted)


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )
