"""Names of human and mouse genes: Ensembl ids, symbols, previous symbols, aliases.

The tables are the files of ``gene_tables/``, whose README gives their sources and licences. A table is read
when the names of a file and of a model do not meet, and not before.
"""

import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from importlib import resources
from typing import Literal

Species = Literal["human", "mouse"]

#: Ensembl stable gene ids: "ENS", a species code of none or more letters, "G", digits, a version.
#: (Fly, worm and yeast ids of Ensembl follow their own model-organism databases.)
ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G)(\d{6,})(\.\d+)?(_PAR_Y)?")
_SPECIES_OF_PREFIX: dict[str, Species] = {"ENSG": "human", "ENSMUSG": "mouse"}
#: Genomes that Cell Ranger writes before the names of genes ("GRCh38_CD4", "mm10___Cd4"); Seurat makes
#: dashes of the underscores.
_GENOME = re.compile(r"(?:GRCh3[78]|hg19|hg38|GRCm3[89]|mm9|mm10|mm39)[_-]+(?=.)")
#: Symbols that spreadsheets turn into dates: MARCH1, SEPT2, DEC1, as 1-Mar, Mar-01 or 2023-03-01.
_DATE = re.compile(r"(?:(\d\d?)-(Mar|Sep|Dec)|(Mar|Sep|Dec)-(\d\d?))", re.IGNORECASE)
_ISO_DATE = re.compile(r"\d{4}-(03|09|12)-(\d\d)(?: 00:00:00)?")
_OF_MONTH = {"mar": ("MARCH", "MARC"), "sep": ("SEPT",), "dec": ("DEC",)}
_MONTH_OF_NUMBER = {"03": "mar", "09": "sep", "12": "dec"}
#: CELLxGENE writes the id behind a symbol that several genes have.
_WITH_ID = re.compile(r".+_(ENS[A-Z]{0,6}G\d{6,})")
#: R replaces dashes by dots and puts an X before a digit.
_R_DIGIT = re.compile(r"X(?=\d)")


class NameKind(IntEnum):
    """How a name means a gene, the most certain first."""

    ID = 0
    SYMBOL = 1
    PREVIOUS = 2
    ALIAS = 3
    R_NAME = 4
    DATE = 5


@dataclass(frozen=True)
class GeneNames:
    """The genes of a species; a gene is its Ensembl id without version."""

    species: Species
    #: id -> symbol, of genes that have one.
    symbols: dict[str, str]
    #: Retired id -> id.
    _current: dict[str, str]
    #: Name -> ids, for `NameKind.SYMBOL`, `PREVIOUS` and `ALIAS`.
    _ids: tuple[dict[str, list[str]], ...]

    def find(self, name: str) -> tuple[list[str], NameKind]:
        """Return the genes that a name may mean, and how it means them; [] if it is unknown.

        Of a symbol, the gene of the nomenclature committee; of other kinds all genes, more than one if
        the name is ambiguous. A name of a kind is not looked for among less certain kinds.
        """
        if match := _WITH_ID.fullmatch(name):
            name = match[1]
        if match := ENSEMBL.fullmatch(name):
            gene = match[1] + match[2]
            known = _SPECIES_OF_PREFIX.get(match[1]) == self.species
            return ([self._current.get(gene, gene)] if known else []), NameKind.ID
        if ids := self._ids[0].get(name):
            return ids[:1], NameKind.SYMBOL
        for kind, of_kind in zip((NameKind.PREVIOUS, NameKind.ALIAS), self._ids[1:], strict=True):
            if ids := of_kind.get(name):
                return ids, kind
        if genes := self._of_date(name):
            return genes, NameKind.DATE
        if ids := self._ids[0].get(_R_DIGIT.sub("", name, count=1).replace(".", "-")):
            return ids[:1], NameKind.R_NAME
        return [], NameKind.ALIAS

    def _of_date(self, name: str) -> list[str]:
        """Return the genes whose symbol a spreadsheet turns into a date."""
        if match := _DATE.fullmatch(name):
            month, number = (match[2] or match[3]).lower(), int(match[1] or match[4])
        elif match := _ISO_DATE.fullmatch(name):
            month, number = _MONTH_OF_NUMBER[match[1]], int(match[2])
        else:
            return []
        spelled = (f"{stem}{number}" for stem in _OF_MONTH[month])
        of_species = (one if self.species == "human" else one.capitalize() for one in spelled)
        found = [self.find(one)[0] for one in of_species]
        return [ids[0] for ids in found if len(ids) == 1]


@lru_cache(maxsize=2)
def gene_names(species: Species) -> GeneNames:
    """Read the table of a species; 0.3 s."""
    ids, symbols, *synonyms = _columns(f"{species}_symbols")
    older_ids, older_names, retired = _columns(f"{species}_older_releases")
    of_kind: tuple[defaultdict[str, list[str]], ...] = tuple(defaultdict(list) for _ in range(3))
    columns = [(of_kind[0], ids, symbols), (of_kind[1], ids, synonyms[0])]
    columns += [(of_kind[2], ids, synonyms[1]), (of_kind[1], older_ids, older_names)]
    for known, genes, names in columns:
        for gene, of_gene in zip(genes, names, strict=True):
            for name in of_gene.split("|") if of_gene else ():
                known[name].append(gene)
    return GeneNames(
        species=species,
        symbols={gene: symbol for gene, symbol in zip(ids, symbols, strict=True) if symbol},
        _current={
            old: gene
            for gene, of_gene in zip(older_ids, retired, strict=True)
            for old in of_gene.split("|")
            if old
        },
        _ids=tuple(map(dict, of_kind)),
    )


def _columns(name: str) -> list[list[str]]:
    packed = resources.files("core.cells").joinpath("gene_tables", f"{name}.tsv.xz").read_bytes()
    lines = lzma.decompress(packed).decode().splitlines()
    return [line.split("\t")[1:] for line in lines]


def species_of(names: Sequence[str]) -> Species | None:
    """Return the species that most of the names are of, by their prefix or capitals; None if another.

    Human symbols are in capitals ("CD4"), those of mouse are not ("Cd4").
    """
    found: Counter[Species | None] = Counter()
    for name in names:
        if match := ENSEMBL.fullmatch(name):
            found[_SPECIES_OF_PREFIX.get(match[1])] += 1
        elif any(map(str.isalpha, name)):
            found["human" if name.isupper() else "mouse"] += 1
    return found.most_common(1)[0][0] if found else None


def drop_genomes(names: Iterable[str]) -> list[str]:
    """Drop the genome before each name ("GRCh38_CD4"), unless two names would become one."""
    before = list(names)
    dropped = [_GENOME.sub("", name, count=1) if _GENOME.match(name) else name for name in before]
    return dropped if len(set(dropped)) == len(set(before)) else before
