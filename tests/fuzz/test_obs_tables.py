"""Whatever obs holds, `tfx init` makes a valid preset with its columns."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from core.cells.draft_toml import choose_sizes, write_draft
from core.cells.obs_columns import find_columns
from core.cells.preset_draft import ColumnNote, DraftFacts
from core.presets.loading import ResolvedPreset

N_CELLS = 40
NAMES = st.sampled_from(
    ["sex", "Gender", "tissue", "organ", "cell_type", "celltype", "CellType", "age", "Age (years)",
     "development_stage", "disease", "condition", "treatment", "dose", "donor_id", "donor", "sample",
     "batch", "leiden", "n_genes", "region", "a b", "[CLS]", "é", "x\ny", "", "x.y", "data"]
) | st.text(max_size=6)  # fmt: skip
LABELS = st.sampled_from(
    ["a", "b", "unknown", "NaN", "", "73", "12.5", "T cell", "é", "x\ny", None]
)


@st.composite
def columns(draw):
    kind = draw(
        st.sampled_from(["labels", "category", "bool", "int", "float", "nullable", "empty"])
    )
    if kind == "labels":
        return draw(st.lists(LABELS, min_size=N_CELLS, max_size=N_CELLS))
    if kind == "category":
        values = draw(st.lists(LABELS, min_size=1, max_size=5))
        return pd.Categorical([values[cell % len(values)] for cell in range(N_CELLS)])
    if kind == "bool":
        return np.arange(N_CELLS) % draw(st.integers(1, 3)) == 0
    if kind == "int":
        return np.arange(N_CELLS) % draw(st.integers(1, N_CELLS))
    if kind == "float":
        return np.where(np.arange(N_CELLS) % 3 == 0, np.nan, draw(st.floats(width=32)))
    if kind == "nullable":
        return pd.array([None, 1, 2, 3] * (N_CELLS // 4), dtype="Int64")
    return [None] * N_CELLS


TABLES = st.dictionaries(NAMES, columns(), max_size=6).map(
    lambda made: pd.DataFrame(made, index=pd.RangeIndex(N_CELLS))
)


@given(tables=st.lists(TABLES, min_size=1, max_size=2))
def test_any_obs_makes_a_preset(tables):
    found = find_columns(tables)
    names = [one.name for one in (*found.phenotypes, *found.single)]
    assert len(set(names)) == len(names)
    assert all(len(one.values) >= 2 for one in found.phenotypes)
    used = [one.column for one in found.phenotypes]
    assert len(set(used)) == len(used)
    assert all(column in table.columns for column in used for table in tables)
    facts = DraftFacts(
        files=["a.h5ad"], n_files=1, n_cells=N_CELLS, n_genes=20, matrix="X", values="counts",
        gene_ids="var_names", split_note="",
        split_by="cells" if found.donors is None else found.donors.column,
        phenotypes=[ColumnNote(one.name, one.column, ", ".join(one.values)) for one in found.phenotypes],
        left_out=[ColumnNote(one.name, one.column, "") for one in found.single],
        further=[ColumnNote(one.name, one.column, "") for one in found.further],
        partial=found.partial,
    )  # fmt: skip
    text = write_draft(facts, choose_sizes(N_CELLS, 20, "cpu"), path="x.toml", device="cpu")
    written = ResolvedPreset.from_toml(text).preset.data.phenotypes
    assert written == {one.name: one.column for one in found.phenotypes} | {
        one.name: False for one in found.single
    }
