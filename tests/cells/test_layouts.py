"""Files as AnnData has written them since 0.5: the same cells are seen as `anndata` itself sees."""

from contextlib import closing

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from core.cells.annotated_copy import annotated_copy
from core.cells.reading import open_source

N = 14  # cells, and genes of X: the shape does not tell CSR from CSC
MATRICES = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}


def make_cells(store):
    """X, a layer, and raw with more genes; a column of every kind that every layout can hold."""
    rng = np.random.default_rng(7)
    values = rng.poisson(1.0, (N, N + 3)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(
                rng.choice(["T cell", "é"], N), categories=["B cell", "T cell", "é"]
            ),
            "cluster": pd.Categorical(rng.choice([3, 10, 7], N)),
            "name": [f"name {i}" for i in range(N)],
            "age": np.arange(N),
            "score": np.linspace(0, 1, N),
            "doublet": np.arange(N) % 3 == 0,
        },
        index=[f"cell{i}" for i in range(N)],
    )
    var = pd.DataFrame(
        {"symbol": [f"G{i}" for i in range(N + 3)]}, index=[f"ENSG{i:011d}" for i in range(N + 3)]
    )
    whole = anndata.AnnData(store(values), obs=obs, var=var)
    cells = whole[:, :N].copy()
    cells.raw = whole
    cells.X = store(values[:, :N])
    cells.layers["counts"] = store(values[:, :N] * 2)
    cells.uns["facts"] = {"answer": 42}
    return cells


def today(cells, path):
    cells.write_h5ad(path)
    return path


def with_missing(cells, path):
    """Missing labels of every kind, numbers and truth values with a mask, text with a mask."""
    mask = np.arange(N) % 4 == 0
    cells.obs["cell_type"] = cells.obs["cell_type"].where(~mask)
    cells.obs["truth"] = pd.Categorical(np.arange(N) % 2 == 0)
    cells.obs["whole"] = pd.array(np.where(mask, None, np.arange(N)), dtype="Int64")
    cells.obs["maybe"] = pd.array(np.where(mask, None, np.arange(N) > 5), dtype="boolean")
    cells.obs["text"] = pd.array(np.where(mask, None, cells.obs["name"]), dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        cells.write_h5ad(path, convert_strings_to_categoricals=False)
    return path


def newest(cells, path):
    """As anndata 0.13 writes with pandas 3: all text is an array with a mask, the names too."""
    cells.write_h5ad(path, convert_strings_to_categoricals=False)

    def mask_text(_name, item):
        for key in list(item) if isinstance(item, h5py.Group) else []:
            one = item[key]
            if one.attrs.get("encoding-type") == "string-array":
                text = one[:]
                del item[key]
                masked = item.create_group(key)
                masked.attrs.update(
                    {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"}
                )
                for part, values, kind in (
                    ("values", text, "string-array"),
                    ("mask", np.zeros(len(text), bool), "array"),
                ):
                    masked[part] = values
                    masked[part].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})

    with h5py.File(path, "r+") as file:
        for table in ("obs", "var", "raw/var"):
            mask_text(table, file[table])
            for column in list(file[table].values()):
                mask_text("", column)
    return path


def fixed_attributes(cells, path):
    """As HDF5.jl writes: attributes of fixed length, which h5py gives as bytes."""
    cells.write_h5ad(path)

    def fix(_name, item):
        for key, value in dict(item.attrs).items():
            texts = np.atleast_1d(value)
            if texts.dtype == object or isinstance(value, str):
                longest = max([len(str(one).encode()) for one in texts] or [1])
                del item.attrs[key]
                item.attrs.create(key, value, dtype=h5py.string_dtype(length=max(longest, 1)))

    with h5py.File(path, "r+") as file:
        fix("", file)
        file.visititems(fix)
    return path


def version_0_7(cells, path):
    """Tables of version 0.1.0: codes that refer to their categories in a group beside them."""
    with anndata.settings.override(allow_write_nullable_strings=False):
        cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for table in ("obs", "var", "raw/var"):
            group = file[table]
            group.attrs["encoding-version"] = "0.1.0"
            for name in list(group.attrs["column-order"]):
                if not isinstance(group[name], h5py.Group):
                    continue
                codes, labels = group[name]["codes"][:], group[name]["categories"][:]
                del group[name]
                group[name] = codes
                kept = group.require_group("__categories").create_dataset(name, data=labels)
                kept.attrs["ordered"] = False
                group[name].attrs["categories"] = kept.ref
    return path


def version_0_6(cells, path, text=None):
    """Tables are structured arrays, their categories are in uns, raw has a dot in its name."""
    text = h5py.string_dtype() if text is None else text

    def table(of):
        columns = {"index": of.index.to_numpy(object)}
        for name in of:
            values = of[name]
            is_category = isinstance(values.dtype, pd.CategoricalDtype)
            columns[name] = values.cat.codes.to_numpy() if is_category else values.to_numpy()
        kinds = [(name, text if v.dtype == object else v.dtype) for name, v in columns.items()]
        rows = np.zeros(len(of), dtype=kinds)
        for name, values in columns.items():
            is_fixed = rows.dtype[name].kind == "S"
            rows[name] = np.char.encode(values.astype(str), "utf-8") if is_fixed else values
        return rows

    def matrix(file, key, values):
        if not sparse.issparse(values):
            file[key] = values
            return
        group = file.create_group(key)
        group.attrs.update({"h5sparse_format": values.format, "h5sparse_shape": values.shape})
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(values, part)

    with h5py.File(path, "w") as file:
        matrix(file, "X", cells.X)
        matrix(file, "raw.X", cells.raw.X)
        if text == h5py.string_dtype():  # 0.5 had no layers
            matrix(file, "layers/counts", cells.layers["counts"])
        for key, of in (("obs", cells.obs), ("var", cells.var), ("raw.var", cells.raw.var)):
            file.create_dataset(key, data=table(of))
        file["obsm"] = np.zeros(N, dtype=[("X_pca", np.float32, (2,))])
        file["uns/facts/answer"] = 42
        for name in ("cell_type", "cluster"):
            labels = cells.obs[name].cat.categories.to_numpy()
            kind = text if labels.dtype == object else labels.dtype
            labels = (
                np.char.encode(labels.astype(str), "utf-8") if text == "S20" == kind else labels
            )
            file.create_dataset(f"uns/{name}_categories", data=labels.astype(kind))
    return path


def version_0_5(cells, path):
    """Text has a fixed length and is ASCII."""
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"é": "e"})
    return version_0_6(cells, path, text="S20")


def zarr_store(version, *, sharded=False):
    def write(cells, path):
        path = path.with_suffix(".zarr")
        with anndata.settings.override(zarr_write_format=version, auto_shard_zarr_v3=sharded):
            cells.write_zarr(path)
        return path

    return write


LAYOUTS = {
    "0.5": version_0_5,
    "0.6": version_0_6,
    "0.7": version_0_7,
    "fixed attributes": fixed_attributes,
    "missing": with_missing,
    "0.13 with pandas 3": newest,
    "today": today,
    "zarr 2": zarr_store(2),
    "zarr 3": zarr_store(3),
    "zarr 3 sharded": zarr_store(3, sharded=True),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
#: On versions of formats, which are the subject here.
pytestmark = pytest.mark.filterwarnings("ignore")


def read(path):
    return (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)


def labels(column):
    return ["missing" if pd.isna(value) else value for value in column.astype(object)]


@layouts
@pytest.mark.parametrize("kind", MATRICES)
def test_the_cells_are_those_that_anndata_sees(tmp_path, layout, kind):
    path = layout(make_cells(MATRICES[kind]), tmp_path / "cells.h5ad")
    expected = read(path)
    with closing(open_source(path)) as source:
        assert source.obs_columns([]).attrs["columns"] == list(expected.obs)
        assert source.n_cells == expected.n_obs
        assert list(source.obs_names) == list(expected.obs_names)
        some = source.obs_columns(["cluster", "cell_type", "name", "absent"])
        assert list(some) == ["cell_type", "cluster", "name"]
        for name in expected.obs:
            assert labels(source.obs_columns([name])[name]) == labels(expected.obs[name])
        pd.testing.assert_frame_equal(source.obs, expected.obs, check_index_type=False)
        assert source.uns("facts")["answer"] == 42
        assert source.uns("absent") is None
        matrices = {"X": expected.X, "raw": expected.raw.X}
        matrices |= {f"layers/{name}": expected.layers[name] for name in expected.layers if name}
        assert sorted(source.matrices()) == sorted(matrices)
        for name, values in matrices.items():
            var = expected.raw.var if name == "raw" else expected.var
            pd.testing.assert_frame_equal(source.var(name), var, check_index_type=False)
            assert source.stored(name).by_columns == (kind == "csc")
            rows = sparse.vstack(list(source.chunks(name, 5, start=1))).toarray()
            values = values.toarray() if sparse.issparse(values) else values
            np.testing.assert_array_equal(rows, values[1:])


@pytest.mark.parametrize(
    ("layout", "ending"),
    [
        *(
            (layout, ".zarr" if name.startswith("zarr") else ".h5ad")
            for name, layout in LAYOUTS.items()
        ),
        (with_missing, ".zarr"),
        (zarr_store(2), ".h5ad"),
    ],
    ids=[*LAYOUTS, "missing to zarr", "zarr to h5ad"],
)
def test_a_copy_keeps_what_was_there_and_has_what_was_added(tmp_path, layout, ending):
    path = layout(make_cells(sparse.csr_matrix), tmp_path / "cells.h5ad")
    before = read(path)
    columns = {"tfx_sex": pd.Categorical(["male", "female"] * (N // 2)), "p": np.linspace(0, 1, N)}
    target = tmp_path / f"copy{ending}"
    with annotated_copy(str(path), target) as copy:
        copy.check_free("obs/tfx_sex", "obsm/X_tfx", remedy="")
        copy.add_obs(columns)
        write = copy.add_array("obsm/X_tfx", (N, 3))
        for first in range(0, N, 5):
            write(
                slice(first, min(first + 5, N)), np.full((min(5, N - first), 3), first, np.float32)
            )
        copy.add_facts("tfx_prediction", {"step": 3, "model": "m"})
    after = read(target)
    for name, values in columns.items():
        assert labels(after.obs.pop(name)) == labels(pd.Series(values))
    assert after.uns.pop("tfx_prediction") == {"step": 3, "model": "m"}
    np.testing.assert_array_equal(after.obsm.pop("X_tfx")[:, 1], np.arange(N) // 5 * 5)
    for key in ("obs", "var"):
        pd.testing.assert_frame_equal(
            getattr(after, key), getattr(before, key), check_index_type=False
        )
    assert set(after.uns) == set(before.uns)
    assert set(after.obsm) == set(before.obsm)
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(after.raw.X.toarray(), before.raw.X.toarray())
    assert set(after.layers) == set(before.layers)
