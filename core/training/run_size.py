"""The size of a run before it begins: its cells, the steps they make, and the tokens of a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.store import Store, values_of_one
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.presets.schema import Preset, TrainSettings
from core.training.flops import mean_attended_length
from core.training.optimiser import total_steps
from core.training.run_cells import RunCells
from core.training.virtual_ranks import cells_per_virtual_rank

#: Cells whose genes are counted.
_COUNTED_CELLS = 5_000
#: Cells that are dealt to steps to count the steps; more cells make proportionally more steps.
_DEALT_CELLS = 100_000


@dataclass(frozen=True)
class CellOutline:
    """What is known of the cells that a run will learn from."""

    #: In words: where this is known from.
    source: str
    n_training: int
    n_validation: int
    #: Genes of the panel.
    n_genes: int
    #: Name -> values.
    phenotypes: dict[str, list[str]]
    #: (some cells,), expressed genes of the panel.
    genes_per_cell: NDArray[np.int64]
    #: Of the store that is yet to be made, and of making it; 0 if it exists.
    store_bytes: int = 0
    prepare_seconds: float = 0.0
    #: What is not known and was assumed, a sentence each.
    assumptions: tuple[str, ...] = ()


def outline_of_store(preset: Preset, store: Store) -> CellOutline:
    """Outline the cells of a store, as `tfx train` would take them."""
    cells = RunCells.of(preset, store)
    store, training = cells.store, cells.training
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(training, min(len(training), _COUNTED_CELLS), replace=False))
    return CellOutline(
        source=f"store {store.path}",
        n_training=len(training),
        n_validation=len(cells.validation),
        n_genes=len(cells.panel),
        phenotypes={name: list(values) for name, values in store.phenotypes.items()},
        genes_per_cell=PanelReader(store, cells.panel).count_values(some),
    )


def outline_of_facts(preset: Preset, facts: dict[str, Any]) -> CellOutline:
    """Outline cells that are not prepared, from the facts of `core.cells.checks.check.check_data`.

    Raises
    ------
    ConfigurationError
        The files' tables do not contain the number of cells.
    """
    split, estimate = facts.get("split"), facts.get("estimate")
    if split is None or estimate is None or not facts.get("genes"):
        message = "the cells cannot be counted without reading them; see 'tfx check', or prepare them first by 'tfx prepare'"
        raise ConfigurationError(message)
    n_genes = min(preset.data.genes, int(facts["genes"]))
    per_cell = estimate["n_values"] / max(facts["cells"], 1)
    assumptions = ["the cells are not prepared yet: sizes are those of the files' tables"]
    if preset.encoding.layout == "expressed":
        assumptions.append(
            "every cell is assumed to express the average number of genes of the panel, by the "
            "density of all genes; the most variable genes are often denser"
        )
        per_cell *= n_genes / int(facts["genes"])
    if preset.data.where:
        assumptions.append("data.where is not applied yet: every cell is counted")
    phenotypes = {name: list(found["labels"]) for name, found in facts["phenotypes"].items()}
    positive = preset.classification.positive
    if preset.classified is not None and positive is not None:
        phenotypes[preset.classified] = values_of_one(positive)
    return CellOutline(
        source=f"{len(facts['files'])} file{'s' * (len(facts['files']) != 1)}",
        n_training=int(split["train"]),
        n_validation=int(split["validation"]),
        n_genes=n_genes,
        phenotypes=phenotypes,
        genes_per_cell=np.array([max(round(per_cell), 1)]),
        store_bytes=int(estimate["store_bytes"]),
        prepare_seconds=float(estimate["seconds"]),
        assumptions=tuple(assumptions),
    )


@dataclass(frozen=True)
class RunSize:
    """Cells and tokens of a step over all processes, on average, and steps."""

    cells: float
    tokens: float
    #: Tokens of a cell, on average and at most.
    length: float
    longest: int
    #: L̄ of `core.training.flops`.
    attended_length: float
    #: (some cells,), tokens of each.
    lengths: NDArray[np.int64]
    #: Steps of an epoch, and of the run.
    per_epoch: int
    total: int

    @classmethod
    def of(
        cls, train: TrainSettings, config: TfxConfig, cells: CellOutline, *, n_virtual_ranks: int
    ) -> "RunSize":
        """Let the sampler of the run deal cells to steps.

        Raises
        ------
        ConfigurationError
            A step has no room for a cell, or the virtual ranks cannot share cells or steps.
        """
        special = config.tokens.header_length + 1
        is_ranked = config.layout == "ranked"
        genes = np.array([config.n_genes])
        if not is_ranked:
            genes = np.minimum(cells.genes_per_cell, config.longest_sequence - special)
        lengths = genes.astype(np.int64) + special
        length, longest = float(lengths.mean()), int(lengths.max())
        n_cells = min(cells.n_training, _DEALT_CELLS)
        batch_size, budget = cells_per_virtual_rank(
            train, n_virtual_ranks, length=longest if is_ranked else None
        )
        sampler = BlockSampler(
            np.arange(n_cells),
            seed=train.seed,
            batch_size=batch_size,
            lengths=None if budget is None else np.resize(lengths, n_cells),
            tokens_per_batch=budget,
            virtual_ranks=n_virtual_ranks,
        )
        in_step = n_virtual_ranks * sampler.quota / (1.0 if budget is None else length)

        def steps_of(epoch: int) -> int:
            return round(sampler.steps(epoch) * cells.n_training / n_cells)

        return cls(
            cells=in_step,
            tokens=in_step * length,
            length=length,
            longest=longest,
            attended_length=mean_attended_length(lengths.tolist()),
            lengths=lengths,
            per_epoch=steps_of(0),
            total=total_steps(steps_of, max_steps=train.max_steps, epochs=train.epochs),
        )
