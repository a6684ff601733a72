"""What the columns of obs are, by their names and labels: phenotypes, donors, others worth a look.

Names are those of CELLxGENE, the Human Cell Atlas, Seurat and Azimuth, scPerturb, muscat and CellTypist, and
common variants of them; they are compared without case, blanks, dots and underscores.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.phenotypes import PhenotypeColumn, count_codes, join_labels, read_labels
from core.cells.vocabularies import code_phenotype
from core.errors import DataError
from core.presets.phenotype_names import STANDARD_PHENOTYPES

_NOT_LETTERS = re.compile(r"[\W_]+")
#: Other names of the standard columns, the likeliest first.
_SYNONYMS = {
    "sex": "gender biologicalsex donorsex organismsex patientsex sexatbirth donororganismsex "
    "sexontologytermid",
    "tissue": "organ organtissue tissuename organname organlabel derivedorganlabel tissuegeneral "
    "specimenfromorganismorganontologylabel specimenfromorganismorgan organontologylabel "
    "anatomicalregion bodysite tissueontologytermid",
    "celltype": "celltypes cellontologyclass cellannotation annotation bulklabels authorcelltype "
    "annotatedcellidentityontologylabel annotatedcellidentitytext celltypelabel celltypename "
    "celltypeannotation annotatedcelltype annotations cellidentity celllabel celllabels "
    "manualannotation freeannotation seuratannotations celltypel2 celltypel1 celltypel3 "
    "predictedcelltypel2 predictedcelltypel1 predictedcelltypel3 predictedcelltype celltypemajor "
    "majorcelltype maincelltype broadcelltype celltypebroad subclasslabel subclass classlabel "
    "cellclass cellsubtype celltypeminor celltypefine singlerlabels majorityvoting predictedlabels "
    "celltypeontologytermid cell ident activeident labels clusterid",
    "age": "developmentstage age ageyears donorage ageatdiagnosis ageinyears ageyrs patientage "
    "organismage donororganismdevelopmentstageontologylabel donororganismdevelopmentstage "
    "donororganismorganismage agegroup agerange devstage agemonths ageweeks agedays "
    "developmentstageontologytermid",
    "disease": "condition diagnosis diseasestatus healthstatus diseasestate diseases "
    "donororganismdiseasesontologylabel donororganismdiseases diseasename clinicaldiagnosis "
    "healthstate diseaseontologytermid",
    "donorid": "donor patient patientid subject subjectid individual individualid participant "
    "participantid mouseid animalid donorname patientname mouse animal ind "
    "donororganismbiomaterialcorebiomaterialid donororganismprovenancedocumentid sampleid sample "
    "samplename origident",
}
#: Names whose columns may hold something else, numbers of clusters for instance.
_UNSURE = {"cell", "ident", "activeident", "labels", "clusterid"}

#: Names that experiments give to treatments and to traits of donors.
_WORTH_HAVING = re.compile(
    r"treatments?|treated|perturbations?(?:[_.]?(?:name|label|\d))?|pert|perturbed_gene|drug(?:_name)?"
    r"|compound(?:_name)?|product_name|stimulation|stimulus|stim|cytokine|infection|exposure|vaccin\w+"
    r"|genotype|time_?point|time|dose|dose_value|dosage|diet|group|group_id|arm"
    r"|knock_?(?:down|out)|gene_target|target_gene|response|severity|smoking_status|strain|condition"
    r"|self_reported_ethnicity|ethnicity",
    re.IGNORECASE,
)
#: Names of ids, of quality metrics and of groupings that a program made of the same expression.
_OF_NO_USE = re.compile(
    r".*ontology_term_id|.*ontology|id|.*barcode.*|.*joinid|.*(?:score|confidence|quality).*|.*uuid"
    r"|.*document_id|(?:cell|donor|patient|subject|individual|participant|sample|library|batch|run"
    r"|dataset|experiment|suspension|project|study|observation)_?(?:id|name)"
    r"|n_?(?:gene|count|umi|feature|pert|peak|fragment)s?(?:[_.].*|by.*)?|n_?genes.*|n_?counts.*"
    r"|(?:pct|percent|total|log1p)[_.].*|.*doublet.*|is_primary_data|multiplets"
    r"|suspension_type|tissue_type|organism|.*cluster.*|leiden.*|louvain.*|seurat.*|.*_snn_res.*|phase"
    r"|index|(?:orig|old|active)\.?ident|batch|library|lane|plate|well|gem_?group|perturbation_type\w*",
    re.IGNORECASE,
)
#: Numbers of more values than this are measurements; texts may be names of perturbed genes.
_MOST_NUMBERS = 50
#: Fraction of cells that must have a label of a phenotype.
_COVERED = 0.5
#: Cells per label, on average: below the first, labels are listed only; below the second they
#: name single things.
_CELLS_PER_LABEL, _LEAST_PER_LABEL = 5, 2
#: Donors: at least one for each split, of at least this many cells on average.
_LEAST_DONORS = 3
_CELLS_PER_DONOR = 5


@dataclass(frozen=True)
class FoundColumn:
    """An obs column that every file has, and the phenotype it is."""

    name: str
    column: str
    #: Its labels but the missing ones, most frequent first.
    values: tuple[str, ...]
    #: Cells that have a label.
    n_known: int
    #: (cells of all files,), of the sorted labels.
    codes: NDArray[np.signedinteger] = field(repr=False, compare=False)
    #: Text of a missing label -> cells.
    missing: dict[str, int] = field(default_factory=dict, compare=False)
    #: Label -> its other spellings -> cells.
    joined: dict[str, dict[str, int]] = field(default_factory=dict, compare=False)
    #: Columns with the same label in every cell.
    twins: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObsColumns:
    """The columns found in the obs tables."""

    #: Of two labels or more: the standard five, and others by name.
    phenotypes: tuple[FoundColumn, ...]
    #: Standard phenotypes of which all cells have the same label, or none.
    single: tuple[FoundColumn, ...]
    #: Standard phenotypes whose column some files lack.
    partial: tuple[str, ...]
    #: Columns that could be phenotypes by their labels.
    further: tuple[FoundColumn, ...]
    #: The column that names donors, or None.
    donors: FoundColumn | None


def likely_column(wanted: str, name: str, columns: Sequence[str]) -> str | None:
    """Find the column that the user probably means by an absent one, or that has a known synonym."""
    return next(iter(_likely_columns(wanted, name, columns)), None)


def _likely_columns(wanted: str, name: str, columns: Sequence[str]) -> list[str]:
    """Find all columns of a known name, the likeliest first."""
    folded = {_folded(column): column for column in reversed(columns)}
    candidates = (_folded(wanted), _folded(name), *_SYNONYMS.get(_folded(name), "").split())
    return [folded[one] for one in dict.fromkeys(candidates) if one in folded]


def _folded(name: str) -> str:
    return _NOT_LETTERS.sub("", name.casefold())


def find_columns(tables: Sequence[pd.DataFrame]) -> ObsColumns:
    """Find phenotypes and donors in the (cells, columns) obs tables of the files."""
    n_cells = sum(map(len, tables))
    anywhere = list(dict.fromkeys(str(name) for table in tables for name in table.columns))
    free = [name for name in anywhere if all(name in table.columns for table in tables)]
    donors = _find_donors(free, tables)
    if donors is not None:
        free.remove(donors.column)
    phenotypes: dict[str, FoundColumn] = {}
    single: list[FoundColumn] = []
    partial: list[str] = []
    for name, usual in STANDARD_PHENOTYPES.items():
        taken = {one.column for one in phenotypes.values()}
        candidates = _likely_columns(
            usual,
            name,
            [one for one in free if one not in taken and (one == usual or not _is_wanted(one))],
        )
        if not candidates and likely_column(usual, name, anywhere) is not None:
            partial.append(name)
        read = [one for column in candidates if (one := _read(tables, name, column))]
        fit = [one for one in read if _is_fit(one)]
        if fit:
            phenotypes[name] = fit[0]
        elif read and len(read[0].values) < 2:
            single.append(read[0])
    further: list[FoundColumn] = []
    used = {one.column for one in [*phenotypes.values(), *single]}
    for column in free:
        wanted = _is_wanted(column)
        if column in used or (_OF_NO_USE.fullmatch(column) and not wanted):
            continue
        # A name that becomes a control token, ``[NO_NAME]``: letters, digits and '_'.
        name = re.sub(r"\W+", "_", column).strip("_").lower() or "phenotype"
        name += "_2" if name in phenotypes or name in STANDARD_PHENOTYPES else ""
        found = _read(tables, name, column)
        if found is None or not _are_labels(found):
            continue
        if twin := next((one for one in phenotypes.values() if _are_equal(found, one)), None):
            phenotypes[twin.name] = replace(twin, twins=(*twin.twins, column))
            continue
        own = [one for one in phenotypes.values() if one.name not in STANDARD_PHENOTYPES]
        others = own if wanted else [*([donors] if donors else []), *phenotypes.values()]
        is_new = not any(_are_alike(found, one) for one in others)
        is_known = found.n_known >= max(_COVERED * n_cells, _CELLS_PER_LABEL * len(found.values))
        if wanted and is_known and is_new:
            phenotypes[name] = found
        elif wanted or (is_new and not any(_are_equal(found, one) for one in further)):
            further.append(found)
    return ObsColumns(
        tuple(phenotypes.values()), tuple(single), tuple(partial), tuple(further), donors
    )


def _is_fit(found: FoundColumn) -> bool:
    """Whether a column of a known name can be the standard phenotype."""
    if _folded(found.column) in _UNSURE and not _are_texts(found):
        return False
    return len(found.values) >= 2 and found.n_known >= _CELLS_PER_LABEL * len(found.values)


def _are_labels(found: FoundColumn) -> bool:
    """Whether the labels of any column group the cells."""
    n_labels = len(found.values)
    if n_labels < 2 or found.n_known < _LEAST_PER_LABEL * n_labels:
        return False
    return n_labels <= _MOST_NUMBERS or _are_texts(found)


def _are_texts(found: FoundColumn) -> bool:
    """Whether some labels are not numbers."""
    return not all(re.fullmatch(r"[-+]?\d+(?:\.\d+)?", value) for value in found.values)


def _read(tables: Sequence[pd.DataFrame], name: str, column: str) -> FoundColumn | None:
    """Labels of a column in all files; None if it holds a measurement."""
    wanted = PhenotypeColumn(name, column, explicit=False)
    try:
        files = [read_labels(table, wanted, where="obs") for table in tables]
    except DataError:
        return None
    coded = code_phenotype(join_labels(files, wanted), [len(table) for table in tables], None)
    counts = count_codes(coded.codes, len(coded.values))
    order = np.argsort(-counts, kind="stable")
    values = tuple(coded.values[index] for index in order)
    return FoundColumn(
        name, column, values, int(counts.sum()), coded.codes, coded.missing, coded.joined
    )


def _find_donors(columns: Sequence[str], tables: Sequence[pd.DataFrame]) -> FoundColumn | None:
    """Find the column of donors: of enough of them, with enough cells each."""
    for column in _likely_columns("donor_id", "donor_id", columns):
        found = _read(tables, "donor_id", column)
        n_donors = len(found.values) if found else 0
        if found and n_donors >= _LEAST_DONORS and found.n_known >= _CELLS_PER_DONOR * n_donors:
            return found
    return None


def _are_alike(first: FoundColumn, second: FoundColumn) -> bool:
    """Whether the labels of one column are those of another under other names."""
    n_labels = len(first.values)
    if n_labels != len(second.values):
        return False
    known = (first.codes >= 0) & (second.codes >= 0)
    pairs = np.zeros((n_labels, n_labels), dtype=bool)
    pairs[first.codes[known], second.codes[known]] = True
    return int(pairs.sum()) == n_labels


def _are_equal(first: FoundColumn, second: FoundColumn) -> bool:
    """Whether two columns have the same labels in the same cells."""
    return set(first.values) == set(second.values) and np.array_equal(first.codes, second.codes)


def _is_wanted(column: str) -> bool:
    return _WORTH_HAVING.fullmatch(column) is not None
