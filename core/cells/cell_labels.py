"""Labels of the cells of all files together: phenotypes in codes, donors, and the split.

The vocabularies are learnt from training cells, so the split comes first; where donors are unknown
it is stratified by the labels, whose sorted values do not yet depend on it.
"""

from collections.abc import Collection, Sequence
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
    group_age_labels,
    read_labels,
    requested_phenotypes,
    suggest,
)
from core.cells.splits import (
    DONOR_SEARCH,
    TEST,
    TRAIN,
    VALIDATION,
    SplitPlan,
    held_out_shares,
    phenotype_distances,
    split_by_donor,
    split_stratified,
)
from core.cells.vocabulary import CodedPhenotype, code_phenotype, load_vocabulary, vocabulary_entry
from core.errors import DataError
from core.presets.schema import DataSettings
from core.random_streams import Stream, generator

__all__ = ["CellLabels", "read_cell_labels"]

_ROLE_CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True)
class CellLabels:
    """What obs says about every cell, cells in the order of the files.

    Attributes
    ----------
    phenotypes
        Name -> values, in header order.
    phenotype_codes
        (cells, phenotypes), in the smallest type that holds them.
    split
        See `SplitPlan`.
    donors, donor_names
        (cells,) codes and their names; None without a donor column.
    phenotype_report, left_out, split_report, notices
        For the store's report.
    """

    phenotypes: dict[str, list[str]]
    phenotype_codes: NDArray[np.signedinteger]
    split: SplitPlan
    donors: NDArray[np.signedinteger] | None
    donor_names: list[str] | None
    phenotype_report: dict[str, Any]
    left_out: dict[str, str]
    split_report: dict[str, Any]
    notices: list[str]


def read_cell_labels(
    data: DataSettings,
    names: Sequence[str],
    tables: Sequence[pd.DataFrame],
    roles: Sequence[str],
) -> CellLabels:
    """Read phenotypes and donors, split the cells, and give every label its code.

    Parameters
    ----------
    data
        The preset's data section.
    names, tables, roles
        Of each file: name, obs table, and the split it was given to ("all" to be dealt).

    Raises
    ------
    DataError
        A named column is absent, a named phenotype has fewer than two values, or no cell is left
        for training.
    """
    n_cells = [len(table) for table in tables]
    columns = requested_phenotypes(data)
    found: dict[str, list[Labels | None]] = {}
    for phenotype in columns:
        per_file = [
            read_labels(table, phenotype, where=name)
            for name, table in zip(names, tables, strict=True)
        ]
        grouped = phenotype.name == "age" and data.age_groups == "decade"
        found[phenotype.name] = group_age_labels(per_file) if grouped else per_file
    donors, donor_names = _read_donors(data, names, tables)
    strata = [
        code_phenotype(found[phenotype.name], n_cells, np.ones(sum(n_cells), bool)).codes
        for phenotype in columns
    ]
    split = _split(data, roles, n_cells, donors, strata)
    distances = phenotype_distances(split.codes, strata)
    imbalance = {
        _NAMES[code]: {
            phenotype.name: round(distance, 4)
            for phenotype, distance in zip(columns, of_split, strict=True)
        }
        for code, of_split in distances.items()
        if code != TRAIN
    }
    in_training = split.codes == TRAIN
    if not in_training.any():
        message = (
            f"{names[0]}: no cell is left for training; lower data.split.validation and test, or "
            f"add cells"
        )
        raise DataError(message)
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
            source = f"{data.vocabulary}" if entry is not None else names[0]
            message = (
                f"{source}: data.phenotypes.{phenotype.name} (obs column '{phenotype.column}') "
                f"{reason}, which a model cannot learn from; map another column or set "
                f"data.phenotypes.{phenotype.name} = false"
            )
            raise DataError(message)
        left_out[phenotype.name] = reason
    notices = [*split.notices, *_shared_donors(roles, n_cells, donors, donor_names)]
    unknown = [key for key in given if not _is_requested(key, columns)]
    if unknown:
        notices.append(f"{data.vocabulary}: {', '.join(unknown)} are no phenotypes of this preset")
    return CellLabels(
        phenotypes={name: result.values for name, result in coded.items()},
        phenotype_codes=_stack([result.codes for result in coded.values()], sum(n_cells)),
        split=split,
        donors=donors,
        donor_names=donor_names,
        phenotype_report={name: _describe(result, in_training) for name, result in coded.items()},
        left_out=left_out,
        split_report=_describe_split(split, data, donors, donor_names)
        | _describe_imbalance(imbalance, coded),
        notices=notices,
    )


def _split(
    data: DataSettings,
    roles: Sequence[str],
    n_cells: Sequence[int],
    donors: NDArray[np.signedinteger] | None,
    strata: Sequence[NDArray[np.signedinteger]],
) -> SplitPlan:
    """Give files their role, and deal the cells of the others to the splits that have no file."""
    of_files = np.array([_ROLE_CODES.get(role, TRAIN) for role in roles], dtype=np.int8)
    codes = np.repeat(of_files, n_cells)
    dealt = _cells_of(roles, n_cells, {"all"})
    shares = {
        split: share
        for split, share in held_out_shares(data.split).items()
        if _NAMES[split] not in roles
    }
    if not dealt.any() or not shares:
        return SplitPlan(codes, "files")
    rng = generator(data.split.seed, Stream.SPLIT)
    by_cell = data.split.by == "cells"
    notices: list[str] = []
    if donors is not None and not by_cell:
        by_donor = split_by_donor(
            donors[dealt], shares, rng, phenotypes=[part[dealt] for part in strata]
        )
        if by_donor is not None:
            codes[dealt] = by_donor
            unknown = int(np.sum(donors[dealt] == MISSING))
            if unknown:
                notices.append(f"{unknown} cells of unknown '{data.split.by}' are used to train")
            return SplitPlan(codes, "donor", notices)
        n_donors = len(np.unique(donors[dealt][donors[dealt] >= 0]))
        notices.append(
            f"obs column '{data.split.by}' has too few values ({n_donors}) to hold some out; single "
            f"cells are split, stratified by phenotype, so scores may flatter"
        )
    elif not by_cell:
        notices.append(
            f"there is no obs column '{data.split.by}'; single cells are split, stratified by "
            f"phenotype, so scores may flatter"
        )
    codes[dealt] = split_stratified([part[dealt] for part in strata], int(dealt.sum()), shares, rng)
    return SplitPlan(codes, "stratified", notices)


def _read_donors(
    data: DataSettings, names: Sequence[str], tables: Sequence[pd.DataFrame]
) -> tuple[NDArray[np.signedinteger] | None, list[str] | None]:
    """Codes and names of donors over all files; a donor name means one donor wherever it stands."""
    if data.split.by == "cells":
        return None, None
    column = PhenotypeColumn("donor", data.split.by, explicit=False)
    files = [
        read_labels(table, column, where=name) for name, table in zip(names, tables, strict=True)
    ]
    if "by" in data.split.model_fields_set:
        for name, table, labels in zip(names, tables, files, strict=True):
            if labels is None:
                message = (
                    f"{name}: data.split.by names the obs column '{data.split.by}', which does not "
                    f"exist; use 'cells' to split single cells, or another column: "
                    f"{suggest(data.split.by, table.attrs.get('columns', map(str, table.columns)))}"
                )
                raise DataError(message)
    n_cells = [len(table) for table in tables]
    coded = code_phenotype(files, n_cells, np.ones(sum(n_cells), bool))
    if not coded.values:
        return None, None
    return coded.codes, coded.values


def _shared_donors(
    roles: Sequence[str],
    n_cells: Sequence[int],
    donors: NDArray[np.signedinteger] | None,
    donor_names: list[str] | None,
) -> list[str]:
    """Say if a file that is held out holds donors of the files that train."""
    if donors is None or donor_names is None:
        return []
    training = set(np.unique(donors[_cells_of(roles, n_cells, {"all", "train"})]).tolist())
    notices = []
    for role in ("validation", "test"):
        held_out = set(np.unique(donors[_cells_of(roles, n_cells, {role})]).tolist())
        if shared := sorted((held_out & training) - {MISSING}):
            shown = ", ".join(donor_names[donor] for donor in shared[:3])
            notices.append(
                f"data.{role}_files share {len(shared)} donors with data.files ({shown}"
                f"{', ...' if len(shared) > 3 else ''}), so scores may flatter"
            )
    return notices


def _cells_of(
    roles: Sequence[str], n_cells: Sequence[int], wanted: Collection[str]
) -> NDArray[np.bool_]:
    """(cells of all files,), whether their file has one of the roles."""
    return np.repeat(np.array([role in wanted for role in roles], dtype=bool), n_cells)


def _why_unfit(phenotype: PhenotypeColumn, result: CodedPhenotype) -> str:
    if not result.values:
        return f"has no known value in the training cells (column '{phenotype.column}')"
    elsewhere = ", ".join(repr(label) for label in list(result.unmapped)[:3])
    note = f" ({elsewhere} occurs in held-out cells only)" if elsewhere else ""
    return f"has one value only in the training cells, '{result.values[0]}'{note}"


def _is_requested(key: str, columns: Sequence[PhenotypeColumn]) -> bool:
    return any(key in (phenotype.name, phenotype.column) for phenotype in columns)


def _stack(columns: list[NDArray[np.signedinteger]], n_cells: int) -> NDArray[np.signedinteger]:
    if not columns:
        return np.empty((n_cells, 0), dtype=np.int8)
    return np.column_stack(columns)


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
    }


def _describe_split(
    split: SplitPlan,
    data: DataSettings,
    donors: NDArray[np.signedinteger] | None,
    donor_names: list[str] | None,
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "method": split.method,
        "by": data.split.by if split.method == "donor" else None,
        "search": DONOR_SEARCH if split.method == "donor" else None,
        "seed": data.split.seed,
        "cells": {name: int(np.sum(split.codes == code)) for code, name in _NAMES.items()},
    }
    if donors is not None and donor_names is not None:
        per_split = {
            name: np.unique(donors[(split.codes == code) & (donors >= 0)])
            for code, name in _NAMES.items()
        }
        described["donors"] = {
            name: [donor_names[donor] for donor in members] for name, members in per_split.items()
        }
    return described


def _describe_imbalance(
    imbalance: dict[str, dict[str, float]], phenotypes: Collection[str]
) -> dict[str, Any]:
    """Say how far the phenotypes of held-out cells are from those of all, and the worst case.

    The part of the split's cells that would need another label; phenotypes left out of the store
    are not told.
    """
    told = {
        split: {name: part for name, part in parts.items() if name in phenotypes}
        for split, parts in imbalance.items()
    }
    cases = [(part, split, name) for split, parts in told.items() for name, part in parts.items()]
    if not cases:
        return {"imbalance": told, "worst_imbalance": None}
    part, split, name = max(cases)
    return {
        "imbalance": told,
        "worst_imbalance": {"split": split, "phenotype": name, "distance": part},
    }
