"""Whatever is done to an h5ad file, its cells are read, or one DataError says what is wrong."""

import contextlib
from contextlib import closing

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.checks.check import check_data
from core.cells.preset_draft import look_at_files
from core.cells.reading import open_source
from core.errors import DataError
from core.presets.schema import DataSettings
from tests.cells.examples import make_adata


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "cells.h5ad"
    adata = make_adata(n_cells=30, n_genes=12, n_donors=5)
    adata.layers["counts"] = adata.X.tocsc()
    adata.obs["age_years"] = np.linspace(20, 80, 30)
    adata.raw = adata
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "cells.h5ad"


def read_everything(path):
    """Read the file as every command does that takes one."""
    with contextlib.suppress(DataError):
        source = open_source(path)
        with closing(source):
            for matrix in source.matrices():
                with contextlib.suppress(DataError):
                    source.var(matrix)
                    source.stored(matrix)
                    for chunk in source.chunks(matrix, 7):
                        assert chunk.shape[0] <= 7
            source.obs_columns(["sex", "age_years"])
            assert len(source.obs) == source.n_cells
    check_data(DataSettings.model_validate({"files": str(path)})).to_dict()
    with contextlib.suppress(DataError):
        look_at_files([str(path)])


#: What the parts of an AnnData file are, and what could stand in their place.
PARTS = [
    "X", "X/data", "X/indices", "X/indptr", "layers", "layers/counts", "layers/counts/indices",
    "obs", "obs/_index", "obs/sex", "obs/sex/codes", "obs/sex/categories", "obs/age_years", "var",
    "var/_index", "var/feature_name", "raw", "raw/X", "raw/X/indptr", "raw/var", "uns",
]  # fmt: skip
ARRAYS = [
    np.arange(3), np.arange(-5, 5), np.zeros(0), np.zeros((2, 3)), np.array(7),
    np.full(40, np.nan), np.full(40, 2**40), np.full(40, -1), np.ones(100, bool),
    np.array([b"x"] * 30), np.array(["é", "x"] * 15, dtype=h5py.string_dtype()),
    np.zeros((30, 12)), np.zeros((30, 11)),
]  # fmt: skip


@given(data=st.data())
def test_damaged_parts(template, place, data):
    place.write_bytes(template.read_bytes())
    with h5py.File(place, "r+") as file:
        for _ in range(data.draw(st.integers(1, 2))):
            damage_part(file, data)
    read_everything(place)


def damage_part(file, data):
    name = data.draw(st.sampled_from([part for part in PARTS if part in file]))
    kind = data.draw(st.sampled_from(["delete", "array", "group", "attribute", "no attribute"]))
    if kind in ("delete", "array", "group"):
        attributes = dict(file[name].attrs)
        del file[name]
        if kind == "array":
            file[name] = ARRAYS[data.draw(st.integers(0, len(ARRAYS) - 1))]
        elif kind == "group":
            file.create_group(name)
        if kind != "delete" and data.draw(st.booleans()):
            file[name].attrs.update(attributes)
    elif kind == "attribute":
        choices = sorted(file[name].attrs) or ["encoding-type"]
        value = data.draw(st.sampled_from(["", "x", "../../x", 1, 0.5, True]))
        file[name].attrs[data.draw(st.sampled_from(choices))] = value
    elif len(file[name].attrs):
        del file[name].attrs[data.draw(st.sampled_from(sorted(file[name].attrs)))]


@given(share=st.floats(0, 1), magic=st.binary(max_size=8))
def test_a_file_cut_off_or_with_another_beginning(template, place, share, magic):
    """As a copy that stopped leaves it.

    Not single bits: within HDF5's own structures some of them make its library loop for ever, which
    no caller can stop.
    """
    content = template.read_bytes()
    place.write_bytes(content[: int(share * len(content))])
    read_everything(place)
    place.write_bytes(magic + content[len(magic) :])
    read_everything(place)
