"""Labels of the cells of all files together: phenotypes in codes, donors, and the split.

The vocabularies are learnt from training cells, so the split comes first; where donors are unknown
it is stratified by the labels, whose sorted values do not yet depend on it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.phenotypes import (
    MISSING,
    Labels,
    PhenotypeColumn,
    count_codes,
    describe_joined,
    join_labels,
    read_labels,
    requested_phenotypes,
)
from core.cells.spelling import is_missing, suggest
from core.cells.splits import (
    DONOR_SEARCH,
    TRAIN,
    SplitPlan,
    phenotype_distances,
    split_by_donor,
    split_stratified,
)
from core.cells.store import SPLITS
from core.cells.vocabularies import (
    CodedPhenotype,
    code_phenotype,
    load_vocabulary,
    vocabulary_entry,
)
from core.errors import DataError
from core.presets.schema import DataSettings
from core.random_streams import Stream, generator

Codes = NDArray[np.signedinteger]
_CODES: dict[str, int] = {name: code for code, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class CellLabels:
    """Labels of all cells from obs, cells in the order of the files."""

    #: Name -> values, in header order.
    phenotypes: dict[str, list[str]]
    #: (cells, phenotypes), in the smallest type that holds them.
    phenotype_codes: Codes
    split: SplitPlan
    #: (cells,) codes and their names; None without a donor column.
    donors: Codes | None
    donor_names: list[str] | None
    #: For the store's report, as the fields below.
    phenotype_report: dict[str, Any]
    left_out: dict[str, str]
    split_report: dict[str, Any]
    notices: list[str]


def read_cell_labels(
    data: DataSettings, names: Sequence[str], tables: Sequence[pd.DataFrame], roles: Sequence[str]
) -> CellLabels:
    """Read phenotypes and donors, split the cells, and give every label its code.

    `roles` are the splits that the preset gives the files to; the cells of "all" are divided.
    DataError if a named column is absent, a named phenotype has fewer than two values, or no cell is
    left for training.
    """
    n_cells = [len(table) for table in tables]
    columns = requested_phenotypes(data)
    found: dict[str, list[Labels | None]] = {}
    for phenotype in columns:
        per_file = [
            read_labels(table, phenotype, where=name)
            for name, table in zip(names, tables, strict=True)
        ]
        found[phenotype.name] = join_labels(
            per_file, phenotype, decades=data.age_groups == "decade"
        )
    donors = _read_donors(data, names, tables)
    strata = [code_phenotype(found[phenotype.name], n_cells, None).codes for phenotype in columns]
    split = _split(data, roles, n_cells, donors, strata)
    in_training = split.codes == TRAIN
    if not in_training.any():
        raise DataError(
            f"{names[0]}: no cell is left for training; lower data.split.validation and test, or "
            f"add cells"
        )
    given = {} if data.vocabulary is None else load_vocabulary(Path(data.vocabulary))
    coded: dict[str, CodedPhenotype] = {}
    left_out = {name: "set to false" for name, column in data.phenotypes.items() if column is False}
    for phenotype in columns:
        if all(labels is None for labels in found[phenotype.name]):
            left_out[phenotype.name] = f"no obs column '{phenotype.column}'"
            continue
        entry = vocabulary_entry(given, phenotype)
        result = code_phenotype(
            found[phenotype.name],
            n_cells,
            in_training,
            given=entry,
            ages=phenotype.name == "age",
            decades=data.age_groups == "decade",
        )
        if len(result.values) >= 2:
            coded[phenotype.name] = result
            continue
        reason = _why_unfit(phenotype, result)
        if phenotype.explicit or entry is not None:
            raise DataError(
                f"{names[0] if entry is None else data.vocabulary}: data.phenotypes.{phenotype.name} (obs column '{phenotype.column}') "
                f"{reason}, which a model cannot learn from; map another column or set "
                f"data.phenotypes.{phenotype.name} = false"
            )
        left_out[phenotype.name] = reason
    notices = [*split.notices, *_shared_donors(roles, n_cells, donors), *_decisions(coded)]
    requested = {name for one in columns for name in (one.name, one.column)}
    unknown = [key for key in given if key not in requested]
    if unknown:
        notices.append(f"{data.vocabulary}: {', '.join(unknown)} are no phenotypes of this preset")
    return CellLabels(
        phenotypes={name: result.values for name, result in coded.items()},
        phenotype_codes=np.column_stack(
            [np.empty((sum(n_cells), 0), dtype=np.int8), *(one.codes for one in coded.values())]
        ),
        split=split,
        donors=None if donors is None else donors.codes,
        donor_names=None if donors is None else donors.values,
        phenotype_report={name: _describe(result, in_training) for name, result in coded.items()},
        left_out=left_out,
        split_report=_describe_split(split, data, donors)
        | _describe_imbalance(split.codes, columns, strata, coded),
        notices=notices,
    )


def _split(
    data: DataSettings,
    roles: Sequence[str],
    n_cells: Sequence[int],
    donors: CodedPhenotype | None,
    strata: Sequence[Codes],
) -> SplitPlan:
    """Give files their role, and divide the cells of the others among the splits without a file."""
    of_files = np.array([_CODES.get(role, TRAIN) for role in roles], dtype=np.int8)
    codes = np.repeat(of_files, n_cells)
    divided = _cells_of(roles, n_cells, {"all"})
    wanted = {"test": data.split.test, "validation": data.split.validation}  # test first
    fractions = {
        _CODES[name]: fraction
        for name, fraction in wanted.items()
        if fraction > 0 and name not in roles
    }
    if not divided.any() or not fractions:
        return SplitPlan(codes, "files" if {*roles} & {"validation", "test"} else "none")
    rng = generator(data.split.seed, Stream.SPLIT)
    phenotypes = [part[divided] for part in strata]
    reason = f"there is no obs column '{data.split.by}'"
    if donors is not None:
        of_cells = donors.codes[divided]
        by_donor = split_by_donor(of_cells, fractions, rng, phenotypes=phenotypes)
        if by_donor is not None:
            codes[divided] = by_donor
            unknown = int(np.sum(of_cells == MISSING))
            notice = f"{unknown} cells of unknown '{data.split.by}' are used to train"
            return SplitPlan(codes, "donor", [notice] if unknown else [])
        n_donors = len(np.unique(of_cells[of_cells >= 0]))
        reason = f"obs column '{data.split.by}' has too few values ({n_donors}) to hold some out"
    codes[divided] = split_stratified(phenotypes, int(divided.sum()), fractions, rng)
    notice = f"{reason}; single cells are split, stratified by phenotype, so scores may be too optimistic"
    return SplitPlan(codes, "stratified", [] if data.split.by == "cells" else [notice])


def _read_donors(
    data: DataSettings, names: Sequence[str], tables: Sequence[pd.DataFrame]
) -> CodedPhenotype | None:
    """Codes and names of donors over all files; a donor name means one donor in all files."""
    if data.split.by == "cells":
        return None
    column = PhenotypeColumn("donor", data.split.by, explicit=False)
    files = [
        read_labels(table, column, where=name) for name, table in zip(names, tables, strict=True)
    ]
    if "by" in data.split.model_fields_set:
        for name, table, labels in zip(names, tables, files, strict=True):
            if labels is None:
                raise DataError(
                    f"{name}: data.split.by names the obs column '{data.split.by}', which does not "
                    f"exist; use 'cells' to split single cells, or another column: "
                    f"{suggest(data.split.by, table.attrs.get('columns', map(str, table.columns)))}"
                )
    joined = join_labels(files, column)
    coded = code_phenotype(joined, [len(table) for table in tables], None)
    return coded if coded.values else None


def _shared_donors(
    roles: Sequence[str], n_cells: Sequence[int], donors: CodedPhenotype | None
) -> list[str]:
    """Notices of held-out files with donors of the files that train."""
    if donors is None:
        return []
    training = donors.codes[_cells_of(roles, n_cells, {"all", "train"})]
    notices = []
    for role in ("validation", "test"):
        held_out = donors.codes[_cells_of(roles, n_cells, {role})]
        shared = [donors.values[code] for code in np.intersect1d(held_out, training) if code >= 0]
        if shared:
            notices.append(
                f"data.{role}_files share {len(shared)} donors with data.files "
                f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}), so scores may be too optimistic"
            )
    return notices


def _cells_of(
    roles: Sequence[str], n_cells: Sequence[int], wanted: Collection[str]
) -> NDArray[np.bool_]:
    """(cells of all files,), whether their file has one of the roles."""
    return np.repeat(np.array([role in wanted for role in roles], dtype=bool), n_cells)


def _decisions(phenotypes: Mapping[str, CodedPhenotype]) -> list[str]:
    """Notices of spellings that were joined, and of "none" as a label."""
    notices = []
    for name, result in phenotypes.items():
        if result.joined:
            notices.append(f"{name}: one label: {describe_joined(result.joined)}")
        if kept := [label for label in result.values if is_missing(label)]:
            notices.append(f"{name}: '{kept[0]}' is common, so it is a label")
    return notices


def _why_unfit(phenotype: PhenotypeColumn, result: CodedPhenotype) -> str:
    if not result.values:
        return f"has no known value in the training cells (column '{phenotype.column}')"
    elsewhere = ", ".join(repr(label) for label in list(result.unmapped)[:3])
    note = f" ({elsewhere} occurs in held-out cells only)" if elsewhere else ""
    return f"has one value only in the training cells, '{result.values[0]}'{note}"


def _describe(result: CodedPhenotype, in_training: NDArray[np.bool_]) -> dict[str, Any]:
    counts = count_codes(result.codes[in_training], len(result.values))
    return {
        "values": len(result.values),
        "training_cells": {
            value: int(count) for value, count in zip(result.values, counts, strict=True)
        },
        "missing_cells": int(np.sum(result.codes < 0)),
        "missing_labels": result.missing,
        "unmapped_labels": result.unmapped,
    } | ({"joined_labels": result.joined} if result.joined else {})


def _describe_split(
    split: SplitPlan, data: DataSettings, donors: CodedPhenotype | None
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "method": split.method,
        "by": data.split.by if split.method == "donor" else None,
        "search": DONOR_SEARCH if split.method == "donor" else None,
        "seed": data.split.seed,
        "cells": {name: int(np.sum(split.codes == code)) for name, code in _CODES.items()},
    }
    if donors is not None:
        described["donors"] = {
            name: [
                donors.values[donor]
                for donor in np.unique(donors.codes[split.codes == code])
                if donor >= 0
            ]
            for name, code in _CODES.items()
        }
    return described


def _describe_imbalance(
    codes: NDArray[np.int8],
    columns: Sequence[PhenotypeColumn],
    strata: Sequence[Codes],
    phenotypes: Collection[str],
) -> dict[str, Any]:
    """Distances (see `phenotype_distances`) of the phenotypes of held-out cells, and the worst case.

    Phenotypes left out of the store have none.
    """
    distances = phenotype_distances(codes, strata)
    imbalance = {
        name: {
            one.name: round(distance, 4)
            for one, distance in zip(columns, distances[code], strict=True)
            if one.name in phenotypes
        }
        for name, code in _CODES.items()
        if code != TRAIN and code in distances
    }
    cases = [
        {"split": split, "phenotype": name, "distance": distance}
        for split, of_split in imbalance.items()
        for name, distance in of_split.items()
    ]
    worst = max(
        cases, key=lambda one: (one["distance"], one["split"], one["phenotype"]), default=None
    )
    return {"imbalance": imbalance, "worst_imbalance": worst}
