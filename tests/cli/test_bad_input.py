"""Bad input: one sentence on stderr, exit code 2 or 4, and nothing left behind."""

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from core.cells.store import Store
from tests.cells.examples import ensembl, log_normalised, make_adata, make_counts, write

#: What every case changes in a preset of well-formed cells.
PRESET = """\
[data]
files = "cells.h5ad"
genes = 10
[model]
layers = 1
hidden_size = 16
heads = 2
[train]
max_steps = 1
device = "cpu"
"""


def with_matrix(folder, change, **others):
    adata = make_adata(**others)
    dense = adata.X.toarray()
    adata.X = change(dense)
    write(adata, folder)


def spoil(value):
    def change(dense):
        dense[30, 7] = value
        return sparse.csr_matrix(dense)

    return change


def missing(folder):
    pass


def not_an_h5ad(folder):
    (folder / "cells.h5ad").write_text("cell,gene,count\n")


def an_empty_file(folder):
    (folder / "cells.h5ad").touch()


def another_hdf5(folder):
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file["numbers"] = np.arange(3)


def truncated(folder):
    write(make_adata(), folder)
    path = folder / "cells.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_cells(folder):
    write(make_adata()[:0].copy(), folder)


def no_genes(folder):
    write(make_adata()[:, :0].copy(), folder)


def only_zeros(folder):
    with_matrix(folder, lambda dense: sparse.csr_matrix(dense * 0))


def negative(folder):
    with_matrix(folder, spoil(-3))


def not_a_number(folder):
    with_matrix(folder, spoil(np.nan))


def infinite(folder):
    with_matrix(folder, spoil(np.inf))


def a_fraction_among_counts(folder):
    """Beyond the first look, which takes 512 cells."""

    def change(dense):
        dense[600, 7] = 1.5
        return sparse.csr_matrix(dense)

    with_matrix(folder, change, n_cells=700)


def normalised_not_logged(folder):
    with_matrix(folder, lambda dense: dense / dense.sum(axis=1, keepdims=True) * 1e4)


def duplicate_genes(folder):
    adata = make_adata()
    adata.var_names = [*ensembl(39), ensembl(1)[0]]
    write(adata, folder)


def files_without_shared_genes(folder):
    adata = make_adata()
    write(adata, folder)
    adata.var_names = ensembl(40, first=1000)
    write(adata, folder, "more.h5ad")


def counts_and_log_values(folder):
    write(make_adata(), folder)
    adata = make_adata(seed=1)
    adata.X = log_normalised(make_counts(seed=1)).astype(np.float32)
    write(adata, folder, "more.h5ad")


def one_sex(folder):
    adata = make_adata()
    adata.obs["sex"] = "female"
    write(adata, folder)


def well_formed(folder):
    write(make_adata(), folder)


def vocabulary_of_nonsense(folder):
    well_formed(folder)
    (folder / "values.json").write_text('{"sex": "female"')


BOTH = "data.files=['cells.h5ad', 'more.h5ad']"

#: name: (files, changes of the preset, exit code, words of the sentence)
CASES = {
    "a missing file": (missing, [], 4, ["cells.h5ad: no such file"]),
    "not an h5ad": (not_an_h5ad, [], 4, ["cells.h5ad: not an h5ad file"]),
    "an empty file": (an_empty_file, [], 4, ["cells.h5ad", "h5ad file"]),
    "another HDF5 file": (another_hdf5, [], 4, ["an HDF5 file but not an h5ad (no obs and var)"]),
    "a truncated h5ad": (truncated, [], 4, ["cells.h5ad: damaged or truncated h5ad file"]),
    "a folder": (missing, ["data.files=."], 4, [".: a folder, not an h5ad file"]),
    "a glob of nothing": (missing, ["data.files=*.h5ad"], 4, ["*.h5ad"]),
    "a missing shard": (well_formed, ["data.files=cells{,_2}.h5ad"], 4, ["cells_2.h5ad"]),
    "no cells": (no_cells, [], 4, ["cells.h5ad: holds no cells"]),
    "no genes": (no_genes, [], 4, ["cells.h5ad: holds no genes"]),
    "only zeros": (only_zeros, [], 4, ["cells.h5ad: X holds only zeros"]),
    "a negative value": (negative, [], 4, ["negative", "cell30 (row 30)", ensembl(8)[7]]),
    "NaN": (not_a_number, [], 4, ["NaN or infinite", "cell30 (row 30)", ensembl(8)[7]]),
    "infinity": (infinite, [], 4, ["NaN or infinite", "cell30 (row 30)", ensembl(8)[7]]),
    "a fraction among counts": (a_fraction_among_counts, [], 4,
                                ["X holds 1.5 (not a whole number among counts)", "cell600"]),
    "normalised, not logged": (normalised_not_logged, [], 4, ["X holds normalised, not logged"]),
    "scaled real cells": (missing, ["data.files=builtin:pbmc68k", "data.matrix=X"], 4,
                          ["X holds scaled (negative values)", "'raw'"]),
    "a matrix that is not there": (well_formed, ["data.matrix=layers/count"], 4,
                                   ["no matrix 'layers/count' (data.matrix)"]),
    "duplicate genes": (duplicate_genes, [], 4, ["cells.h5ad", ensembl(1)[0]]),
    "no such gene column": (well_formed, ["data.gene_ids=feature"], 4, ["feature", "feature_name"]),
    "no shared genes": (files_without_shared_genes, [BOTH], 4, ["the 2 files share no gene"]),
    "counts and log values": (counts_and_log_values, [BOTH], 4,
                              ["all files must hold the same kind of values"]),
    "a file named twice": (well_formed, ["data.files=['cells.h5ad', './cells.h5ad']"], 2,
                           ["listed twice"]),
    "an absent phenotype column": (well_formed, ["data.phenotypes.cell_type=celltype"], 4,
                                   ["'celltype', which does not exist; did you mean 'cell_type'"]),
    "a phenotype of one value": (one_sex, ["data.phenotypes.sex=sex"], 4,
                                 ["data.phenotypes.sex", "one value only", "'female'"]),
    "an absent split column": (well_formed, ["data.split.by=donor"], 4,
                               ["data.split.by names the obs column 'donor'", "'donor_id'"]),
    "a vocabulary that is not there": (well_formed, ["data.vocabulary=values.json"], 4,
                                       ["values.json"]),
    "a vocabulary of nonsense": (vocabulary_of_nonsense, ["data.vocabulary=values.json"], 4,
                                 ["values.json"]),
    "no training cells": (well_formed, ["data.split.by=cells", "data.split.test=0.5",
                                        "data.split.validation=0.5"], 2,
                          ["must leave cells for training"]),
    "an unknown built-in": (missing, ["data.files=builtin:pbmc"], 2, ["builtin:pbmc", "pbmc68k"]),
    "a built-in of no cells": (missing, ["data.files=builtin:atlas?cells=0"], 2, ["cells"]),
    "an unknown key": (well_formed, ["data.phenotypez.sex=sex"], 2,
                       ["--set data.phenotypez.sex=sex: data.phenotypez: unknown key", "'phenotypes'"]),
    "a wrong type": (well_formed, ["train.batch_size=many"], 2, ["--set train.batch_size=many"]),
    "a value out of range": (well_formed, ["data.genes=0"], 2, ["--set data.genes=0"]),
    "two lengths": (well_formed, ["train.epochs=2", "train.max_steps=2"], 2,
                    ["give max_steps or epochs, not both"]),
    "heads that do not fit": (well_formed, ["model.heads=3"], 2,
                              ["hidden_size must be a multiple of heads (got 16 and 3)"]),
}  # fmt: skip

#: Faults that show only when a model is made of whole, well-formed cells.
TRAINING_CASES = {
    "max_length too short": (["encoding.max_length=15"], 2,
                             ["encoding.max_length = 15 is too short", "need 18",
                              "lower data.genes to 7"]),
    "a gene the cells lack": (["data.include_genes=['GENE99']"], 4, ["GENE99"]),
    "a loss of another encoding": (["loss.kind=regression"], 2,
                                   ["loss.kind = 'regression' does not fit encoding.kind"]),
    "edges of another number": (["encoding.edges=[1.0, 2.0]"], 2,
                                ["encoding.edges has 2 numbers", "needs 9"]),
    "no edge file": (["encoding.edges=edges.json"], 4, ["cannot read edges.json"]),
    "a model to start from": (["model.start_from=nowhere"], 2,
                              ["model.start_from: nowhere is no folder"]),
    "a skeleton without bins": (["model.skeleton=true", "encoding.kind=continuous"], 2,
                                ["model.skeleton needs bins and a split head"]),
    "no layers": (["model.layers=0"], 2, ["model.layers = 0 leaves no model"]),
}  # fmt: skip


def everything(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_one_sentence(result, code, words):
    assert (result.code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, "one sentence, one line"
    assert "unexpected" not in result.stderr
    for word in words:
        assert word in result.stderr


def options(changes):
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(tfx, tmp_path, command, case):
    make, changes, code, words = CASES[case]
    (tmp_path / "bad.toml").write_text(PRESET)
    make(tmp_path)
    before = everything(tmp_path)
    result = tfx("-q", command, "bad.toml", *options(changes))
    assert_one_sentence(result, code, words)
    assert everything(tmp_path) == before


#: What contradicts itself, or names what is not there, is refused before a store is made.
REFUSED_BEFORE_PREPARING = {
    "no layers",
    "a loss of another encoding",
    "a skeleton without bins",
    "a gene the cells lack",
    "a model to start from",
}


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_a_model_that_cannot_be_made_leaves_no_run(tfx, tmp_path, case):
    changes, code, words = TRAINING_CASES[case]
    (tmp_path / "bad.toml").write_text(PRESET)
    well_formed(tmp_path)
    result = tfx("-q", "train", "bad.toml", *options(changes))
    assert_one_sentence(result, code, words)
    assert not (tmp_path / "runs").exists()
    if case in REFUSED_BEFORE_PREPARING:
        assert not (tmp_path / "stores").exists()
        return
    (store,) = (tmp_path / "stores").iterdir()  # whole, and used by the next attempt
    assert Store.open(store).n_cells == 60
    (tmp_path / "edges.json").unlink(missing_ok=True)
    assert tfx("-q", "train", "bad.toml").code == 0
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [store.name]


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_the_faults_of_a_preset_are_listed_at_once_each_with_its_line(tfx, tmp_path, command):
    text = PRESET.replace("layers = 1", "layer = 1").replace('device = "cpu"', 'device = "tpu"')
    (tmp_path / "bad.toml").write_text(text + "[trian]\n")
    result = tfx("-q", command, "bad.toml")
    assert (result.code, result.stdout) == (2, "")
    head, *faults = result.stderr.splitlines()
    assert head == "Error:"
    assert len(faults) == 3
    for line, key, words in (
        (5, "model.layer", "did you mean 'layers'?"),
        (10, "train.device", "cpu"),
        (11, "trian", "did you mean 'train'?"),
    ):
        (fault,) = [fault for fault in faults if fault.startswith(f"bad.toml:{line}: {key}")]
        assert words in fault
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_preset_that_is_no_toml_names_the_line(tfx, tmp_path, command):
    (tmp_path / "bad.toml").write_text("[data]\nfiles = \n")
    result = tfx("-q", command, "bad.toml")
    assert_one_sentence(result, 2, ["bad.toml:2"])


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_preset_that_is_not_there_is_refused_with_the_nearest(tfx, tmp_path, command):
    result = tfx("-q", command, "bsae")
    assert_one_sentence(result, 2, ["'bsae' is neither a file nor a preset name", "'base'"])
    assert not list(tmp_path.iterdir())


def test_a_label_unknown_to_the_model_is_refused_with_the_nearest(tfx, tiny_run, tmp_path):
    before = everything(tmp_path)
    result = tfx("-q", "generate", "--tissue", "lungs")
    assert_one_sentence(result, 2, ["this model knows no tissue 'lungs'; did you mean 'lung'?"])
    assert everything(tmp_path) == before


def test_progress_before_the_sentence_is_no_second_fault(tfx, tmp_path):
    """Without --quiet the sentence is the last line, after the narration."""
    (tmp_path / "bad.toml").write_text(PRESET)
    a_fraction_among_counts(tmp_path)
    result = tfx("train", "bad.toml")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert errors == result.stderr.splitlines()[-1:]
    assert "Traceback" not in result.stderr
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_obs == 700  # the file is as it was
