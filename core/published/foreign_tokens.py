"""Where other systems keep what our `TokenSpace` names: rows of their two embedding tables.

PolyGene and PerturbGene feed their encoders with the sum of a value embedding (their word
embeddings: special tokens, bins and phenotype values in one table) and an identity embedding
(PolyGene's learned positions, PerturbGene's token types). `ForeignTokens` says which rows mean
what; `core.published.conversion` copies them. Text models have no such tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.cells.genes import GenePanel, strip_version
from core.cells.vocabulary import load_vocabulary
from core.errors import ConfigurationError, DataError

__all__ = [
    "GENES_FILE",
    "PERTURBGENE_FILES",
    "POLYGENE_FILE",
    "ForeignTokens",
    "Place",
    "is_polygene_vocabulary",
    "perturbgene_tokens",
    "polygene_tokens",
    "read_genes",
]

#: The model's genes, one id or symbol a line, in its order; the originals do not save them.
GENES_FILE = "genes.txt"
#: PolyGene's tokens, one a line.
POLYGENE_FILE = "vocab.txt"
#: PerturbGene's phenotypic tokens by obs column.
PERTURBGENE_FILES = ("phenotypic_tokens_map.json", "vocab.json")

#: PolyGene's header, and how it writes "not specified".
_POLYGENE_SLOTS = ("sex", "tissue", "cell_type", "age", "disease")
_PERTURBGENE_SPECIAL = ("[CLS]", "[EOS]", "[MASK]", "[PAD]")


@dataclass(frozen=True)
class Place:
    """One token of another system's input.

    Attributes
    ----------
    value, identity
        Rows of its value table and of its identity table.
    """

    value: int
    identity: int


@dataclass(frozen=True)
class ForeignTokens:
    """What the rows of another system's embedding tables stand for.

    Attributes
    ----------
    system
        Its name, for messages.
    cls, start, end
        What it writes where our sequence has [CLS], [START] and [END].
    mask, bins
        Value rows of [MASK] and of each bin.
    slots
        Phenotype, by its name or obs column -> identity row.
    values
        Phenotype -> token, as in "[T_cell]" -> value row.
    unspecified
        Phenotype -> value row of "not specified"; where a phenotype is absent, the system writes
        ``empty`` instead.
    empty
        The token of a header place about which nothing is said, or None.
    genes, first_gene
        Its genes, and the identity row of the first; the others follow.
    """

    system: str
    cls: Place
    start: Place
    end: Place
    mask: int
    bins: tuple[int, ...]
    slots: dict[str, int]
    values: dict[str, dict[str, int]]
    unspecified: dict[str, int]
    empty: Place | None
    genes: GenePanel
    first_gene: int


def polygene_tokens(
    vocabulary: Sequence[str], genes: GenePanel, *, vocab_size: int, n_positions: int, where: str
) -> ForeignTokens:
    """Read PolyGene's conventions.

    Its sequence is [CLS], sex, tissue, cell type, age, disease, [START], the genes, [END], at
    positions 0, 1, ...; its value table holds the lines of ``vocab.txt``, then the bins.

    Parameters
    ----------
    vocabulary
        Lines of ``vocab.txt``.
    genes
        In the model's order.
    vocab_size, n_positions
        Rows of the value and of the position table.
    where
        The folder, for messages.

    Raises
    ------
    DataError
        The vocabulary lacks a token, or the numbers of tokens and genes do not fit the tables.
    """
    row = {token: index for index, token in enumerate(vocabulary)}
    needed = ("[CLS]", "[START]", "[END]", "[MASK]", *(f"[no_{name}]" for name in _POLYGENE_SLOTS))
    missing = [token for token in needed if token not in row]
    if missing:
        message = f"{where}: {POLYGENE_FILE} lacks {', '.join(missing)}; copy the vocabulary that the model was trained with"
        raise DataError(message)
    header = len(_POLYGENE_SLOTS) + 2
    if n_positions != header + len(genes) + 1:
        message = (
            f"{where}: {GENES_FILE} lists {len(genes)} genes, but {n_positions} positions are those "
            f"of {n_positions - header - 1}; list the genes of the model's shards, in their order"
        )
        raise DataError(message)
    n_bins = vocab_size - len(vocabulary)
    if n_bins < 2:
        message = f"{where}: {POLYGENE_FILE} has {len(vocabulary)} lines and the model {vocab_size} tokens, which leaves no bins; copy the vocabulary that it was trained with"
        raise DataError(message)
    special = {*needed, "[PAD]", "[SEP]", "[UNK]"}
    labels = {token: index for token, index in row.items() if token not in special}
    return ForeignTokens(
        system="PolyGene",
        cls=Place(row["[CLS]"], 0),
        start=Place(row["[START]"], header - 1),
        end=Place(row["[END]"], n_positions - 1),
        mask=row["[MASK]"],
        bins=tuple(range(len(vocabulary), vocab_size)),
        slots={name: place for place, name in enumerate(_POLYGENE_SLOTS, start=1)},
        # One vocabulary for all phenotypes: the file does not say which token is whose.
        values=dict.fromkeys(_POLYGENE_SLOTS, labels),
        unspecified={name: row[f"[no_{name}]"] for name in _POLYGENE_SLOTS},
        empty=None,
        genes=genes,
        first_gene=header,
    )


def perturbgene_tokens(
    vocabulary: Mapping[str, Sequence[str]],
    genes: GenePanel,
    *,
    vocab_size: int,
    n_types: int,
    where: str,
) -> ForeignTokens:
    """Read PerturbGene's conventions.

    Its value table holds [CLS], [EOS], [MASK], [PAD], the phenotype tokens by sorted obs column,
    and the bins; its token types are 0 for special tokens, one per phenotype, one per gene. It has
    neither [START] nor "not specified". A phenotype that it drops becomes [PAD] of type 0 and is
    attended to: that is what we write for both.

    Parameters
    ----------
    vocabulary
        Obs column -> tokens.
    genes
        In the model's order.
    vocab_size, n_types
        Rows of the value and of the token type table.
    where
        The folder, for messages.

    Raises
    ------
    DataError
        The numbers of tokens and genes do not fit the tables.
    """
    columns = sorted(vocabulary)
    tokens = [*_PERTURBGENE_SPECIAL, *(token for name in columns for token in vocabulary[name])]
    row = {token: index for index, token in enumerate(tokens)}
    n_bins = vocab_size - len(tokens)
    if n_bins < 2:
        message = f"{where}: its vocabulary has {len(tokens)} tokens and the model {vocab_size}, which leaves no bins; copy the vocabulary that it was trained with"
        raise DataError(message)
    if n_types != 1 + len(columns) + len(genes):
        message = (
            f"{where}: {GENES_FILE} lists {len(genes)} genes, but {n_types} token types are those of "
            f"{n_types - 1 - len(columns)}; list the genes of the model's shards, in their order"
        )
        raise DataError(message)
    empty = Place(row["[PAD]"], 0)
    return ForeignTokens(
        system="PerturbGene",
        cls=Place(row["[CLS]"], 0),
        start=empty,
        end=Place(row["[EOS]"], 0),
        mask=row["[MASK]"],
        bins=tuple(range(len(tokens), vocab_size)),
        slots={name: place for place, name in enumerate(columns, start=1)},
        values={name: {token: row[token] for token in vocabulary[name]} for name in columns},
        unspecified={},
        empty=empty,
        genes=genes,
        first_gene=1 + len(columns),
    )


def is_polygene_vocabulary(path: Path) -> bool:
    """Whether a ``vocab.txt`` is PolyGene's, and not that of a text model."""
    return path.is_file() and {"[START]", "[END]", "[no_sex]"} <= set(read_lines(path))


def read_lines(path: Path) -> list[str]:
    """Read the tokens of a ``vocab.txt``.

    Raises
    ------
    DataError
        It cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read ({error}); copy it again"
        raise DataError(message) from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_phenotype_tokens(folder: Path, given: Path | None) -> dict[str, list[str]]:
    """Read PerturbGene's vocabulary from its folder, else from the preset's ``data.vocabulary``.

    Raises
    ------
    ConfigurationError
        There is none.
    DataError
        It cannot be read.
    """
    for path in (*(folder / name for name in PERTURBGENE_FILES), given):
        if path is not None and path.is_file():
            return load_vocabulary(path)
    message = (
        f"model.start_from: {folder} is a PerturbGene model without its vocabulary; copy "
        f"{PERTURBGENE_FILES[0]} into it, or name it as data.vocabulary"
    )
    raise ConfigurationError(message)


def read_genes(folder: Path) -> GenePanel:
    """Read ``genes.txt``, or the ``genes.json`` of our own model folders.

    Raises
    ------
    ConfigurationError
        There is none: genes are joined by name, never by position.
    DataError
        It cannot be read, or names a gene twice.
    """
    path = folder / GENES_FILE
    if not path.is_file():
        if (folder / "genes.json").is_file():
            return _read_gene_table(folder / "genes.json")
        message = (
            f"model.start_from: {folder} does not say which genes its model knows; write them into "
            f"{path}, one id or symbol a line, in the order of var_names in its training files"
        )
        raise ConfigurationError(message)
    names = tuple(strip_version(line.strip()) for line in read_lines(path))
    return _panel(names, names, path)


def _read_gene_table(path: Path) -> GenePanel:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return _panel(tuple(record["ids"]), tuple(record["symbols"]), path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: cannot be read ({error}); copy it again"
        raise DataError(message) from error


def _panel(ids: tuple[str, ...], symbols: tuple[str, ...], path: Path) -> GenePanel:
    seen: set[str] = set()
    for name in ids:
        if not name or name in seen:
            message = f"{path}: {f'{name!r} is named twice' if name else 'an empty line'}; give every gene once"
            raise DataError(message)
        seen.add(name)
    return GenePanel(ids, symbols)
