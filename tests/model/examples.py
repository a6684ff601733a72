"""Small models and batches for the model tests."""

import numpy as np
import torch
from scipy import sparse

from core.cells.genes import GenePanel
from core.encoding.batches import BatchEncoder
from core.encoding.values import ValueEncoder, ValueTable
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.reference import Reference
from core.presets.schema import GenerateSettings, MaskingSettings

PHENOTYPES = {"sex": ["female", "male"], "tissue": ["lung", "blood", "liver"]}
EDGES = np.array([0.5, 1.5, 2.5], dtype=np.float32)
N_GENES = 7


def make_config(kind="binned", layout="ranked", *, phenotypes=PHENOTYPES, **changes):
    settings = {
        "phenotype_names": list(phenotypes),
        "phenotype_values": list(phenotypes.values()),
        "n_genes": N_GENES,
        "n_bins": 4 if kind == "binned" else 2,
        "kind": kind,
        "layout": layout,
        "longest_sequence": N_GENES + 5,
        "hidden_size": 12,
        "layers": 2,
        "heads": 3,
        "intermediate_size": 20,
        "dropout": 0.1,
    }
    return TfxConfig(**(settings | changes))


def make_network(kind="binned", layout="ranked", *, seed=0, randomise=True, **changes):
    """Build a network; ``randomise`` draws every weight, so that no part is zero as at start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TfxModel(make_config(kind, layout, **changes))
        network.start()
        if randomise:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(std=0.3)
                if network.log_linear is not None:
                    for buffer in network.log_linear.buffers():
                        if buffer.is_floating_point():
                            buffer.normal_(std=0.5)
    return network.eval()


def value_encoder(config):
    return ValueEncoder(config.kind, EDGES if config.kind == "binned" else EDGES[:1])


def make_expression(seed=0, *, n_cells=5, n_genes=N_GENES):
    """Make sparse cells of different numbers of expressed genes."""
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.2, 0.9, (n_cells, 1))
    dense = rng.uniform(0.1, 4, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < chance)
    return sparse.csr_matrix(dense.astype(np.float32))


def make_codes(config, seed=0, *, n_cells=5):
    rng = np.random.default_rng([seed, 1])
    columns = [rng.integers(-1, size, n_cells) for size in config.phenotype_sizes]
    return np.array(columns, dtype=np.int32).reshape(len(columns), n_cells).T


def make_batch(config, seed=0, *, n_cells=5, **masking):
    encoder = BatchEncoder(
        config.tokens,
        value_encoder(config),
        max_length=config.longest_sequence,
        context_genes=config.context_genes,
    )
    arrays = encoder.masked(
        make_expression(seed, n_cells=n_cells),
        make_codes(config, seed, n_cells=n_cells),
        MaskingSettings(**({"genes": "uniform"} | masking)),
        np.random.default_rng([seed, 2]),
    )
    return BatchTensors.from_arrays(arrays)


def make_cell_model(kind="binned", layout="ranked", **changes):
    """Make a model with everything that its folder holds."""
    network = make_network(kind, layout, **changes)
    config = network.config
    expression = make_expression(n_cells=40)
    values = value_encoder(config)
    bins = values.encode(expression.toarray())
    codes = make_codes(config, n_cells=40)
    combinations, counts = Reference.count(codes)
    n_values = sum(config.phenotype_sizes)
    return CellModel(
        network=network,
        panel=GenePanel(
            tuple(f"ENSG0000000000{gene}" for gene in range(N_GENES)),
            tuple(f"GENE{gene}" for gene in range(N_GENES)),
        ),
        values=values,
        table=ValueTable.fit(values, expression),
        reference=Reference(
            combinations=combinations,
            counts=counts,
            means=np.zeros((n_values, N_GENES), np.float32),
            detection=np.zeros((n_values, N_GENES), np.float32),
            bin_counts=np.stack([(bins == b).sum(axis=0) for b in range(config.n_bins)], axis=1),
        ),
        masking=MaskingSettings(genes="uniform"),
        generate=GenerateSettings(steps=3),
        provenance={"name": "example", "sources": ["cells.h5ad"], "simulated": True, "step": 7},
    )
