"""Which rows of another system's embedding tables are our genes, phenotypes and values: by name."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.cells.genes import GenePanel
from core.cells.phenotypes import label_token, match_label
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.presets.schema import STANDARD_PHENOTYPES
from core.published.foreign_model import ForeignModel
from core.published.foreign_tokens import ForeignTokens

__all__ = ["MatchedRows", "match_rows"]

logger = logging.getLogger(__name__)

#: Names in a message, before the rest are counted.
_SHOWN = 5


@dataclass(frozen=True)
class MatchedRows:
    """Rows of the other model's tables, in the order of ours.

    Attributes
    ----------
    slots, genes
        Of its identity table, for our phenotypes and panel.
    values
        Of its value table, for all our phenotype values.
    unspecified
        Of its value table, for [NO_*] of our phenotypes; None where it has no such token.
    """

    slots: list[int]
    genes: list[int]
    values: list[list[int]]
    unspecified: list[int | None]


def match_rows(
    foreign: ForeignModel,
    tokens: ForeignTokens,
    config: TfxConfig,
    panel: GenePanel,
    columns: Mapping[str, str],
) -> MatchedRows:
    """Find our genes, phenotypes and values among another model's, by name.

    Parameters
    ----------
    foreign, tokens
        The other model and its tokens.
    config, panel
        Of our network.
    columns
        Phenotype -> obs column.

    Raises
    ------
    ConfigurationError
        The other model does not know a gene, a phenotype, a value or the bins of ours.
    """
    where = f"model.start_from: {foreign.folder}"
    if config.kind == "continuous" or config.n_bins != len(tokens.bins):
        message = f"{where} has {len(tokens.bins)} bins; set encoding.kind = 'binned' and encoding.bins = {len(tokens.bins)}"
        raise ConfigurationError(message)
    genes, unknown = [], []
    for gene, symbol in zip(panel.ids, panel.symbols, strict=True):
        index = tokens.genes.index_of(gene)
        index = tokens.genes.index_of(symbol) if index is None else index
        if index is None:
            unknown.append(gene)
        else:
            genes.append(tokens.first_gene + index)
    if unknown:
        message = f"{where} does not know {_listed(unknown)} of the panel's {len(panel)} genes; lower data.genes, or prepare from files with its genes only"
        raise ConfigurationError(message)
    slots, values, unspecified, strange = [], [], [], []
    for name, own in config.phenotypes.items():
        key = next((k for k in _names(name, columns) if k in tokens.slots), None)
        if key is None:
            message = f"{where} does not know the phenotype '{name}' (it knows {', '.join(tokens.slots)}); set data.phenotypes.{name} = false"
            raise ConfigurationError(message)
        known = tokens.values[key]
        found = {value: match_label(label_token(value), known) for value in own}
        strange += [f"{name} '{value}'" for value, token in found.items() if token is None]
        slots.append(tokens.slots[key])
        values.append([known[token] for token in found.values() if token is not None])
        unspecified.append(tokens.unspecified.get(key))
    if strange:
        ages = "; ages in years need data.age_groups = 'none'" if "age" in config.phenotypes else ""
        message = (
            f"{where} does not know {_listed(strange)}; give its values as data.vocabulary{ages}"
        )
        raise ConfigurationError(message)
    absent = [name for name, row in tokens.slots.items() if row not in slots]
    if absent:
        logger.warning(
            "%s was trained with %s in the header, which these cells do not have",
            foreign.folder,
            ", ".join(absent),
        )
    return MatchedRows(slots, genes, values, unspecified)


def _names(name: str, columns: Mapping[str, str]) -> Iterator[str]:
    yield name
    yield from (table[name] for table in (columns, STANDARD_PHENOTYPES) if name in table)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
