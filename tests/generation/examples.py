"""Models whose answers are known: log-linear parts without layers, their tables written by hand."""

import numpy as np
import torch

from core.model.reference import Reference
from tests.model.examples import N_GENES, make_cell_model

__all__ = [
    "COMBINATIONS",
    "COUNTS",
    "FEMALE",
    "LUNG",
    "MARGINALS",
    "N_GENES",
    "known_model",
    "set_class_effect",
    "set_pairs",
    "with_reference",
]

#: Rows of the log-linear part's class table: [NO_SEX], female, male, [NO_TISSUE], lung, blood, liver.
FEMALE, LUNG = 1, 4

#: (genes, bins) probabilities; no two bins of a gene are equally likely.
MARGINALS = np.array(
    [
        [0.70, 0.15, 0.10, 0.05],
        [0.10, 0.60, 0.20, 0.10],
        [0.40, 0.30, 0.20, 0.10],
        [0.05, 0.15, 0.25, 0.55],
        [0.85, 0.10, 0.03, 0.02],
        [0.20, 0.10, 0.50, 0.20],
        [0.90, 0.05, 0.03, 0.02],
    ]
)

#: sex (female, male), tissue (lung, blood, liver); -1 is a missing label. No male lung cell.
COMBINATIONS = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [-1, 0]], dtype=np.int32)
COUNTS = np.array([600, 200, 150, 4, 50])


def with_reference(model):
    """Give a model training cells of known numbers."""
    reference = model.reference
    model.reference = Reference(
        COMBINATIONS, COUNTS, reference.means, reference.detection, reference.bin_counts
    )
    return model


def known_model(kind="binned", marginals=MARGINALS, *, layers=0):
    """Make a model whose genes are independent and have the given marginals."""
    model = with_reference(
        make_cell_model(kind, layers=layers, log_linear=True, log_linear_rank=4, randomise=False)
    )
    with torch.no_grad():
        log = np.log(marginals)
        if kind == "binary":  # one output, the log-odds of "on"
            log = np.log1p(-marginals[:, :1]) - log[:, :1]
        model.network.log_linear.gene_prior.copy_(torch.from_numpy(log.reshape(-1)).float())
    return model


def set_class_effect(model, row, gene, effect):
    """Let a shown phenotype value raise all expressed bins of a gene by ``effect`` (log-odds)."""
    table = model.network.log_linear.class_table
    with torch.no_grad():
        table.view(len(table), N_GENES, -1)[row, gene, 1:] = effect


def set_pairs(model, signs, strength=4.0):
    """Couple genes: those of one sign move together, those of opposite sign against each other."""
    log_linear = model.network.log_linear
    signs = torch.tensor(signs, dtype=torch.float)
    with torch.no_grad():
        log_linear.couplings.weight.zero_()
        couplings = log_linear.couplings.weight.view(N_GENES, 4, -1)
        couplings[:, 0, 0] = -signs
        couplings[:, 1:, 0] = signs[:, None]
        effects = log_linear.effects.weight.view(N_GENES, 4, -1)
        effects[:, 1:, 0] = strength * signs[:, None]
    return model
