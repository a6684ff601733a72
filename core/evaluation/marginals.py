"""The baseline of every target: each gene's marginal distribution, each phenotype's class frequencies.

Both are those of the training cells and look at nothing else of a cell. As logits they take the place of a
model's, so that any loss can be computed of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.model.batch_tensors import BatchTensors
from core.model.cell_model import CellOutput
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.log_linear_fit import gene_marginals, masked_counts
from core.model.losses import loss_kind
from core.presets.schema import LossSettings

#: The probability of what cannot occur.
_IMPOSSIBLE = 1e-13
#: Least standard deviation of the values of a gene, log1p counts per 10,000.
_LEAST_DEVIATION = 0.05


@dataclass(frozen=True)
class Marginals:
    """Logits that are the same for every cell; G genes, O outputs per gene, V values of all phenotypes."""

    config: TfxConfig
    #: (G, O), joint head: (G, bins + V).
    genes: Tensor
    #: (V,), joint head: (bins + V,).
    phenotypes: Tensor
    #: (V,), the phenotype of each value.
    slot_of_value: Tensor
    #: The logit of a value of another phenotype.
    foreign: float

    @classmethod
    def of(
        cls, model: CellModel, loss: LossSettings | None = None, class_weights: Tensor | None = None
    ) -> "Marginals":
        """Take them from a model's training cells.

        With a ``loss``, and its ``class_weights`` (V,), they are smoothed and weighted as it is, so that no other
        constant prediction has less of it.
        """
        config, slot_of_value = model.config, model.network.slot_of_value
        sizes, is_joint = config.phenotype_sizes, config.head == "joint"
        n_values, n_bins = sum(sizes), config.n_bins
        genes = _gene_logits(model)
        if config.kind == "binned" or is_joint:
            genes = functional.pad(genes.exp(), (0, n_values if is_joint else 0))
            is_smoothed = loss is not None and (
                is_joint or loss_kind(loss, config.kind) == "label_smoothing"
            )
            genes = _smoothed(
                genes, loss.smoothing if loss and is_smoothed else 0.0, genes.shape[1]
            )
        counts = [
            np.array(model.reference.value_counts(slot, size)) + 1.0
            for slot, size in enumerate(sizes)
        ]
        weight = (
            np.ones(n_values) if class_weights is None else class_weights.double().cpu().numpy()
        )
        weighted = torch.from_numpy(np.concatenate([*counts, np.zeros(0)]) * weight + _IMPOSSIBLE)
        slots = slot_of_value.cpu()
        sums = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, slots, weighted)
        frequency, n_classes = weighted / sums[slots], torch.tensor(sizes, dtype=torch.long)[slots]
        smoothing = 0.0 if loss is None else loss.phenotype_smoothing
        foreign = -math.inf
        if is_joint:
            frequency = functional.pad(frequency, (n_bins, 0))
            n_classes = torch.full((n_bins + n_values,), n_bins + n_values)
            smoothing = 0.0 if loss is None else loss.smoothing
            foreign = math.log(max(smoothing / (n_bins + n_values), _IMPOSSIBLE))
        phenotypes = _smoothed(frequency, smoothing, n_classes)
        return cls(
            config,
            genes.float().to(slot_of_value.device),
            phenotypes.float().to(slot_of_value.device),
            slot_of_value,
            foreign,
        )

    def predict(self, batch: BatchTensors) -> CellOutput:
        """Return the logits of the masked positions of a batch."""
        phenotypes = self.phenotypes.expand(len(batch.phenotype_slot), -1)
        foreign = self.slot_of_value != batch.phenotype_slot.unsqueeze(-1)
        n_before = phenotypes.shape[1] - foreign.shape[1]  # bins of a joint head
        foreign = functional.pad(foreign, (n_before, 0), value=False)
        return CellOutput(self.genes[batch.gene], phenotypes.masked_fill(foreign, self.foreign))


def _smoothed(probability: Tensor, smoothing: float, n_classes: Tensor | int) -> Tensor:
    """Return the logits of a distribution with label smoothing over ``n_classes``."""
    return ((1 - smoothing) * probability + smoothing / n_classes).clamp(min=_IMPOSSIBLE).log()


def _gene_logits(model: CellModel) -> Tensor:
    """(G, O) logits of the genes as masking chooses them: in the expressed layout mostly expressed ones."""
    config = model.config
    counts = model.reference.bin_counts.astype(np.float64)
    unexpressed = model.masking.unexpressed
    if config.layout == "expressed" and 0 < unexpressed < 1:
        counts = masked_counts(counts, unexpressed)
    if config.kind != "continuous":
        return gene_marginals(config, counts)
    expressed = np.log(counts[:, 1:].sum(axis=1) + 1) - np.log(counts[:, 0] + 1)
    values = model.table.quantiles[:, 1]  # (G, quantiles)
    deviation = np.maximum(values.std(axis=1), _LEAST_DEVIATION)
    outputs = np.stack([expressed, model.table.means[:, 1], np.log(deviation)], axis=1)
    return torch.from_numpy(outputs.astype(np.float32))
