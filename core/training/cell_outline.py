"""What is known of the cells of a run before it begins: from their store, or from their tables alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.one_against_rest import values_of_one
from core.cells.store import Store
from core.encoding.panel_cells import PanelReader
from core.errors import ConfigurationError
from core.presets.schema import Preset
from core.training.classification import store_of_task
from core.training.setup import chosen_rows, training_panel

__all__ = ["CellOutline", "outline_of_facts", "outline_of_store"]

#: Cells whose genes are counted.
_COUNTED_CELLS = 5_000


@dataclass(frozen=True)
class CellOutline:
    """What is known of the cells that a run will learn from.

    Attributes
    ----------
    source
        In words: where this is known from.
    n_training, n_validation
        Cells.
    n_genes
        Of the panel.
    phenotypes
        Name -> values.
    genes_per_cell
        (some cells,), expressed genes of the panel.
    store_bytes, prepare_seconds
        Of the store that is yet to be made, and what making it takes; 0 where there is one.
    assumptions
        What is not known and was assumed, a sentence each.
    """

    source: str
    n_training: int
    n_validation: int
    n_genes: int
    phenotypes: dict[str, list[str]]
    genes_per_cell: NDArray[np.int64]
    store_bytes: int = 0
    prepare_seconds: float = 0.0
    assumptions: tuple[str, ...] = ()


def outline_of_store(preset: Preset, store: Store) -> CellOutline:
    """Outline the cells of a store, as `tfx train` would take them."""
    store = store_of_task(preset, store)
    training = chosen_rows(preset, store, "train")
    panel = training_panel(preset, store)
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(training, min(len(training), _COUNTED_CELLS), replace=False))
    return CellOutline(
        source=f"store {store.path}",
        n_training=len(training),
        n_validation=len(chosen_rows(preset, store, "validation")),
        n_genes=len(panel),
        phenotypes={name: list(values) for name, values in store.phenotypes.items()},
        genes_per_cell=PanelReader(store, panel).count_values(some),
    )


def outline_of_facts(preset: Preset, facts: dict[str, Any]) -> CellOutline:
    """Outline cells that are not prepared, from what `tfx check` tells of their tables.

    Parameters
    ----------
    preset
        Of the run.
    facts
        Of the report of `core.cells.checks.preflight.preflight`.

    Raises
    ------
    ConfigurationError
        The tables do not tell how many cells there are.
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
            "every cell is taken to express as many genes of the panel as the average, by the "
            "density of all genes; the most variable ones are often denser"
        )
        per_cell *= n_genes / int(facts["genes"])
    if preset.data.where:
        assumptions.append("data.where is not applied yet: every cell is counted")
    phenotypes = {name: list(found["labels"]) for name, found in facts["phenotypes"].items()}
    asked = preset.classification
    if preset.classified is not None and asked.positive is not None:
        phenotypes[preset.classified] = values_of_one(asked.positive)
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
