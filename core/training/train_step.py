"""One optimiser step: the virtual ranks of this process, in as many parts as memory wants.

Losses are divided by the answers of the whole step over all processes, so that the gradient is the
same however cells are dealt. Nothing here waits for the device: whether a step was finite is decided
there (the fused optimiser leaves its weights alone) and read by the host one step later.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import MachineError
from core.model.batch_tensors import BatchTensors
from core.model.cell_objectives import cell_loss
from core.model.configuration import TfxConfig
from core.model.losses import LossCounts, masked_loss
from core.presets.schema import LossSettings
from core.random_streams import Stream, torch_seed
from core.training.processes import Processes
from core.training.virtual_ranks import StepBatch, VirtualRankBatch, VirtualRankSources

__all__ = ["StepFigures", "StepOutcome", "TrainStep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepFigures:
    """What a step came to, as numbers.

    Attributes
    ----------
    loss, gene_loss, phenotype_loss, cls_loss
        Over all processes.
    gradient_norm
        Before clipping.
    finite
        Whether the weights were changed.
    """

    loss: float
    gene_loss: float
    phenotype_loss: float
    cls_loss: float
    gradient_norm: float
    finite: bool


class StepOutcome:
    """A step that the device may still be at."""

    def __init__(self, step: int, rows: NDArray[np.int64], figures: Tensor) -> None:
        self.step, self.rows = step, rows
        self._arrived: torch.cuda.Event | None = None
        self._figures = figures.detach()
        if figures.is_cuda:
            self._figures = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            self._figures.copy_(figures.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> StepFigures:
        """Wait until the device is through with the step, and no longer."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, genes, phenotypes, cls, norm, failed = self._figures.tolist()
        return StepFigures(loss, genes, phenotypes, cls, norm, finite=not failed)


class TrainStep:
    """Does steps.

    Parameters
    ----------
    processes
        Of the run.
    network
        What `Processes.prepare` gave.
    optimiser
        Likewise.
    config, loss, class_weights
        Of the model, and what a wrong answer costs.
    gradient_clip
        Largest norm.
    seed
        Of dropout, with the step, the virtual rank and the part.
    sources
        Told to cut smaller where memory runs out.
    on_smaller
        Called with the new number of parts.
    """

    def __init__(
        self,
        processes: Processes,
        network: nn.Module,
        optimiser: Any,  # noqa: ANN401 (accelerate's wrapper of one)
        *,
        config: TfxConfig,
        loss: LossSettings,
        class_weights: Tensor | None,
        gradient_clip: float,
        seed: int,
        sources: VirtualRankSources,
        on_smaller: Callable[[int], None],
    ) -> None:
        self.processes, self.network, self.optimiser = processes, network, optimiser
        self.config, self.loss, self.class_weights = config, loss, class_weights
        self.gradient_clip, self.seed = gradient_clip, seed
        self.sources, self.on_smaller = sources, on_smaller

    def __call__(
        self, step: int, rows: NDArray[np.int64], batch: StepBatch, counts: LossCounts
    ) -> StepOutcome:
        """Do one step.

        Parameters
        ----------
        step
            Counted from 0.
        rows
            Of the cells, for the record.
        batch
            This process' share.
        counts
            Answers over all processes.

        Raises
        ------
        MachineError
            A single cell does not fit into memory; or a share does not in one of several processes,
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
        figures = self.processes.add_up(parts)
        norm = self._clip()
        failed = ~(torch.isfinite(norm) & torch.isfinite(figures).all())
        if self.processes.is_sharded:  # the fused kernel takes no flag there: wait for it
            if not failed.item():
                self.optimiser.step()
        else:
            if self.processes.accelerator.scaler is None:
                self._fused.found_inf = failed.float()
            self.optimiser.step()  # fp16: the scaler skips a step itself and lowers its scale
        self.optimiser.zero_grad()
        return StepOutcome(step, rows, torch.stack([*figures, norm.float(), failed.float()]))

    @property
    def _fused(self) -> Any:  # noqa: ANN401 (torch's optimiser has no such attribute declared)
        return self.optimiser.optimizer

    def _accumulate(self, step: int, batch: StepBatch, counts: LossCounts) -> Tensor:
        """Add up the gradients of all parts; return (4,) loss; of genes, of phenotypes, of [CLS]."""
        parts = [
            (virtual_rank.virtual_rank, number, part)
            for virtual_rank in batch.virtual_ranks
            for number, part in enumerate(self._parts(virtual_rank))
        ]
        totals = torch.zeros(4, device=self.processes.device)
        for place, (virtual_rank, number, part) in enumerate(parts):
            is_last = place == len(parts) - 1
            with self._gathering(now=is_last):
                # Dropout is a function of the cells, not of which process computes them.
                key = (self.seed, step, virtual_rank, number, Stream.DROPOUT)
                torch.manual_seed(torch_seed(*key))
                totals += self._backward(part, counts)
        return totals

    def _parts(self, virtual_rank: VirtualRankBatch) -> list[BatchTensors]:
        wanted = min(self.sources.n_parts, virtual_rank.arrays.n_cells)
        if len(virtual_rank.parts) == wanted:
            return virtual_rank.parts
        return self.sources.cut(virtual_rank.arrays, wanted)  # made ahead, before memory ran out

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
        # Processes' gradients are averaged; what the counts want is their sum.
        self.processes.accelerator.backward(total * self.processes.count)
        return torch.stack([total, parts.genes, parts.phenotypes, cls]).detach()

    def _gathering(self, *, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Share gradients among processes only with the last part of a step."""
        if now or self.processes.count == 1:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.processes.accelerator.no_sync(
            self.network
        )
        return context

    def _clip(self) -> Tensor:
        norm = self.processes.accelerator.clip_grad_norm_(
            self.network.parameters(), self.gradient_clip
        )
        if norm is None:
            return torch.zeros((), device=self.processes.device)
        full = getattr(norm, "full_tensor", None)  # FSDP2: a norm of shards
        whole: Tensor = full() if full is not None else norm
        return whole

    def _make_smaller(self, batch: StepBatch, reason: str) -> None:
        """Halve the parts after memory ran out, or give up."""
        self.optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        wanted = 2 * self.sources.n_parts
        largest = max(virtual_rank.arrays.n_cells for virtual_rank in batch.virtual_ranks)
        if self.processes.count > 1:
            message = (
                f"a process ran out of memory ({reason}); go on with "
                f"--set train.micro_batches={wanted}, which computes the same steps in more parts"
            )
            raise MachineError(message)
        if self.sources.n_parts >= largest:
            longest = max(virtual_rank.arrays.max_length for virtual_rank in batch.virtual_ranks)
            message = (
                f"a single cell of {longest} tokens does not fit into memory ({reason}); lower "
                f"encoding.max_length, data.genes or model.hidden_size"
            )
            raise MachineError(message)
        self.sources.n_parts = wanted
        logger.warning("memory ran out: steps are computed in %d parts from now on", wanted)
        self.on_smaller(wanted)


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )
