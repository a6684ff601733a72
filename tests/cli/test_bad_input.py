"""Bad input to every command: one sentence on stderr, the right exit code, nothing left behind."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import pytest

from core.cells.store import Store
from tests.cells.examples import ensembl, make_adata, write
from tests.cli import bad_files as bad
from tests.cli.refusals import refused
from tfx_cli.app import COMMANDS

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


BOTH = "data.files=['cells.h5ad', 'more.h5ad']"

#: name: (files, changes of the preset, exit code, words of the sentence)
CASES = {
    "a missing file": (bad.missing, [], 4, ["cells.h5ad: no such file"]),
    "not an h5ad": (bad.not_an_h5ad, [], 4, ["cells.h5ad: not an h5ad file"]),
    "an empty file": (bad.an_empty_file, [], 4, ["cells.h5ad", "h5ad file"]),
    "another HDF5 file": (bad.another_hdf5, [], 4, ["an HDF5 file but not an h5ad (no obs and var)"]),
    "a truncated h5ad": (bad.truncated, [], 4, ["cells.h5ad: truncated: "]),
    "a folder": (bad.missing, ["data.files=."], 4, [".: a folder, not an h5ad file"]),
    "a glob of nothing": (bad.missing, ["data.files=*.h5ad"], 4, ["*.h5ad"]),
    "a missing shard": (bad.well_formed, ["data.files=cells{,_2}.h5ad"], 4, ["cells_2.h5ad"]),
    "no cells": (bad.no_cells, [], 4, ["cells.h5ad: holds no cells"]),
    "no genes": (bad.no_genes, [], 4, ["cells.h5ad: holds no genes"]),
    "only zeros": (bad.only_zeros, [], 4, ["cells.h5ad: X holds only zeros"]),
    "a negative value": (bad.negative, [], 4, ["negative", "cell30 (row 30)", ensembl(8)[7]]),
    "NaN": (bad.not_a_number, [], 4, ["NaN or infinite", "cell30 (row 30)", ensembl(8)[7]]),
    "infinity": (bad.infinite, [], 4, ["NaN or infinite", "cell30 (row 30)", ensembl(8)[7]]),
    "a fraction among counts": (bad.a_fraction_among_counts, [], 4,
                                ["X holds 1.5 (not a whole number among counts)", "cell17 (row 17)"]),
    "values of unknown scale": (bad.values_of_unknown_scale, [], 4,
                                ["X holds values of an unknown scale", "--values"]),
    "counts and logs in one matrix": (bad.counts_and_logs_in_one_matrix, [], 4,
                                      ["is not a whole number, others are"]),
    "TPM": (bad.tpm, [], 4, ["X holds log1p of TPM or other fractional counts", "'log'"]),
    "values that are not what the preset says": (bad.missing, ["data.files=builtin:atlas?cells=60",
                                                 "data.values=log"], 4, ["data.values = 'log'"]),
    "scaled real cells": (bad.missing, ["data.files=builtin:pbmc68k", "data.matrix=X"], 4,
                          ["X holds scaled (negative values)", "'raw'"]),
    "a matrix that is not there": (bad.well_formed, ["data.matrix=layers/count"], 4,
                                   ["no matrix 'layers/count' (data.matrix)"]),
    "no such gene column": (bad.well_formed, ["data.gene_ids=feature"], 4, ["feature", "feature_name"]),
    "no shared genes": (bad.files_without_shared_genes, [BOTH], 4, ["the 2 files share no gene"]),
    "counts and log values": (bad.counts_and_log_values, [BOTH], 4,
                              ["all files must hold the same kind of values"]),
    "a file named twice": (bad.well_formed, ["data.files=['cells.h5ad', './cells.h5ad']"], 2,
                           ["listed twice"]),
    "an absent phenotype column": (bad.well_formed, ["data.phenotypes.cell_type=celltype"], 4,
                                   ["'celltype', which does not exist; did you mean 'cell_type'"]),
    "a phenotype of one value": (bad.one_sex, ["data.phenotypes.sex=sex"], 4,
                                 ["data.phenotypes.sex", "one value only", "'female'"]),
    "an absent split column": (bad.well_formed, ["data.split.by=donor"], 4,
                               ["data.split.by names the obs column 'donor'", "'donor_id'"]),
    "a vocabulary that is not there": (bad.well_formed, ["data.vocabulary=values.json"], 4,
                                       ["values.json"]),
    "a vocabulary of nonsense": (bad.vocabulary_of_nonsense, ["data.vocabulary=values.json"], 4,
                                 ["values.json"]),
    "no training cells": (bad.well_formed, ["data.split.by=cells", "data.split.test=0.5",
                                        "data.split.validation=0.5"], 2,
                          ["must leave cells for training"]),
    "an unknown built-in": (bad.missing, ["data.files=builtin:pbmc"], 2, ["builtin:pbmc", "pbmc68k"]),
    "a built-in of no cells": (bad.missing, ["data.files=builtin:atlas?cells=0"], 2, ["cells"]),
    "an unknown key": (bad.well_formed, ["data.phenotypez.sex=sex"], 2,
                       ["--set data.phenotypez.sex=sex: data.phenotypez: unknown key", "'phenotypes'"]),
    "a wrong type": (bad.well_formed, ["train.batch_size=many"], 2, ["--set train.batch_size=many"]),
    "a value out of range": (bad.well_formed, ["data.genes=0"], 2, ["--set data.genes=0"]),
    "two lengths": (bad.well_formed, ["train.epochs=2", "train.max_steps=2"], 2,
                    ["give max_steps or epochs, not both"]),
    "heads that do not fit": (bad.well_formed, ["model.heads=3"], 2,
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
    "a log-linear part without bins": (["model.log_linear=true", "encoding.kind=continuous"], 2,
                                ["model.log_linear needs bins and a split head"]),
    "no layers": (["model.layers=0"], 2, ["model.layers = 0 leaves no model"]),
}  # fmt: skip


# ---------------------------------------------------------------------------- other commands
def nothing(folder):
    """Leave the folder empty."""


def files(folder):
    """Make well-formed cells, a preset of them, a text, a preset of nonsense."""
    bad.well_formed(folder)
    (folder / "mine.toml").write_text(PRESET)
    (folder / "notes.txt").write_text("hello\n")
    (folder / "odd.toml").write_text("[data]\nfiles = 3\n")


def a_run(folder):
    """Make files beside the finished run, which `with_run` copies."""
    files(folder)


def a_broken_model(folder):
    files(folder)
    path = folder / "runs" / "tiny" / "model" / "config.json"
    path.write_text(path.read_text().replace("32", "33"))


def a_model_of_nonsense(folder):
    files(folder)
    (folder / "runs" / "tiny" / "model" / "tfx.json").write_text("{")


def a_model_without_facts(folder):
    files(folder)
    (folder / "runs" / "tiny" / "model" / "tfx.json").unlink()


def a_model_without_genes(folder):
    files(folder)
    (folder / "runs" / "tiny" / "model" / "genes.json").unlink()


def a_run_without_model(folder):
    files(folder)
    shutil.rmtree(folder / "runs" / "tiny" / "model")


def a_run_without_store(folder):
    files(folder)
    path = folder / "runs" / "tiny" / "model" / "tfx.json"
    path.write_text(re.sub(r'"store": ".*?"', '"store": "gone"', path.read_text()))


def a_run_without_preset(folder):
    files(folder)
    (folder / "runs" / "tiny" / "config.toml").unlink()


def a_run_of_nonsense(folder):
    files(folder)
    (folder / "runs" / "tiny" / "run.json").write_text("[1, 2]")


def a_run_of_the_future(folder):
    files(folder)
    (folder / "runs" / "tiny" / "run.json").write_text('{"format": 99}')


def pipes(folder):
    """Make files, and pipes that nobody writes to, beside them and in a run."""
    files(folder)
    for name in ("pipe.toml", "pipe.json"):
        os.mkfifo(folder / name)
    (folder / "runs" / "piped").mkdir(parents=True)
    os.mkfifo(folder / "runs" / "piped" / "run.json")


def a_model_of_pipes(folder):
    files(folder)
    path = folder / "runs" / "tiny" / "model" / "tfx.json"
    path.unlink()
    os.mkfifo(path)


def long_names(folder):
    """Make cells with a label, and with a gene, of more characters than a model holds."""
    adata = make_adata()
    adata.obs["tissue"] = ["x" * 2_000, "lung"] * 30
    write(adata, folder, "labels.h5ad")
    adata = make_adata()
    adata.var_names = ["G" * 2_000, *adata.var_names[1:]]
    write(adata, folder, "genes.h5ad")


ATLAS = "builtin:atlas?cells=20&seed=3"
RUNS = (a_run, a_broken_model, a_model_of_nonsense, a_model_without_facts, a_model_without_genes, a_run_without_model, a_run_without_store,
        a_run_without_preset, a_run_of_nonsense, a_run_of_the_future, a_model_of_pipes)  # fmt: skip

#: (what lies in the folder, command line, exit code, words of the sentence)
COMMAND_LINES = [
    (nothing, "nothing", 2, "no such command 'nothing'"),
    (nothing, "trian base", 2, "no such command 'trian'; did you mean 'train'?"),
    (nothing, "--nothing", 2, "no such option: --nothing"),
    (nothing, "presets list --jsno", 2, "--json"),
    # check
    (nothing, "check", 2, "missing argument"),
    (files, "check mine.toml cells.h5ad", 2, "'mine.toml' is a preset; give either"),
    (files, "check odd.toml", 2, "odd.toml:2: data.files: must be a string or a list"),
    (files, "check cells.h5ad --model nowhere", 4, "nowhere: not a model folder"),
    (files, "check cells.h5ad --config nowhere.toml", 2, "nowhere.toml: cannot be read"),
    (files, "check cells.h5ad --config notes.txt", 2, "notes.txt:1: not valid TOML"),
    (files, "check cells.h5ad --set nonsense", 2, "--set nonsense: must be KEY=VALUE"),
    (files, "check cells.h5ad --set =3", 2, "--set =3: must be KEY=VALUE"),
    (files, "check builtin:atlass", 2, "did you mean 'builtin:atlas'?"),
    (a_model_without_genes, "check cells.h5ad --model tiny", 4, "genes.json is missing"),
    (pipes, "check cells.h5ad --config pipe.toml", 2, "pipe.toml: cannot be read (it is a pipe, a device"),
    (files, "check 'x_{1..1000000000}.h5ad'", 2, "its braces name more than 100,000 files"),
    (files, "check cells.h5ad --set data." + "a." * 5_000 + "a=1", 2, "must be KEY=VALUE"),
    (files, "check cells.h5ad --set model.layers={" + "a." * 5_000 + "a=1}", 2, "must be a whole number"),
    (files, "check 'a\x1b]52;c;aGk=\x07.h5ad' --set x=1", 2, "unknown key"),
    *((files, f"check cells.h5ad --set 'data.phenotypes.{name}=sex'", 2, words) for name, words in (
        ('""', "a phenotype needs a name"), ('" a"', "without blanks around it"),
        ("synthetic", "generated cells have a column 'synthetic' of their own"),
        ("library_size", "generated cells have a column 'library_size'"),
        ("_index", "generated cells have a column '_index'"), ('"a/b"', "has no '/', '='"), ('"."', "has no '/', '='"), ('"a\\u001b"', "or control character"),
        ("sex_probability", "predicted cells have columns of this ending"),
        ("x" * 101, "the name of a phenotype has at most 100 characters"),
    )),
    # prepare
    (long_names, "prepare labels.h5ad", 4, "has 2,000 characters ('xxx"),
    (long_names, "prepare genes.h5ad", 4, "the name of a gene in var_names has 2,000 characters ('GGG"),
    (pipes, "prepare cells.h5ad --set data.vocabulary=pipe.json", 4, "pipe.json: cannot be read (it is a pipe"),
    (files, "prepare cells.h5ad -o mine.toml", 2, "mine.toml: exists and is not a store"),
    (a_run, "prepare cells.h5ad -o runs/tiny", 2, "runs/tiny: exists and is not a store"),
    (files, "prepare cells.h5ad -o notes.txt/x", 3, "notes.txt/x: the store cannot be written"),
    (files, "prepare cells.h5ad --workers 0", 2, "--workers: must be greater than or equal to 1"),
    (files, "prepare cells.h5ad --dask nonsense", 3, "nonsense: no Dask scheduler answers there"),
    (a_run, "prepare runs/tiny --verify", 4, "runs/tiny: not a store (no manifest.json)"),
    (nothing, "prepare", 2, "missing argument"),
    (nothing, "prepare --overwrit x", 2, "--overwrite"),
    (files, "prepare mine.toml cells.h5ad", 2, "'mine.toml' is a preset; give either"),
    (nothing, "prepare nowhere -o nowhere --verify", 4, "not a store"),
    (files, "prepare cells.h5ad --set data.genes=99999999999999999999", 2, "too large for a 64-bit"),
    # stores
    (nothing, "stores list nowhere", 2, "there is no folder 'nowhere'"),
    (a_run, "stores delete nowhere", 2, "there is no store 'nowhere' in 'stores'"),
    # train
    (nothing, "train", 2, "missing argument 'PRESET | RUN'"),
    (nothing, "train runs/nowhere", 2, "'runs/nowhere' is neither a file nor a preset name"),
    (files, "train cells.h5ad", 2, "'cells.h5ad' names cells, and tfx train needs a preset; write one by 'tfx init cells.h5ad'"),
    (files, "train mine.toml --steps 3 --epochs 3", 2, "give max_steps or epochs, not both"),
    (files, "train mine.toml --batch-size 0", 2, "--batch-size: train.batch_size: must be at least 1"),
    (files, "train mine.toml --seed -1", 2, "--seed: train.seed: must be at least 0"),
    (a_run, "train runs/tiny --seed 7 --steps 40", 2, "its train.seed = 0, not 7"),
    (files, "train mine.toml --set data.genes_file=none.txt", 2, "--set data.genes_file=none.txt: none.txt cannot be read (No such file"),
    (files, "train mine.toml extra", 2, "too many arguments: extra"),
    (files, "train a.h5ad b.h5ad", 2, "write one by 'tfx init a.h5ad b.h5ad'"),
    (files, "predict runs/one a.h5ad -o x.csv", 2, "'tfx predict a.h5ad --run runs/one'"),
    (files, "embed a.h5ad b.h5ad -o x.h5ad", 2, "tfx embed takes one file"),
    (files, "generate runs/one -o x.h5ad", 2, "the run is an option: --run runs/one"),
    (files, "generate a.h5ad -o x.h5ad", 2, "is an option: --from a.h5ad"),
    (files, "runs show one two", 2, "'tfx runs compare one two' compares runs"),
    (files, "train mine.toml --steps 0", 2, "--steps: train.max_steps: must be at least 1"),
    (files, "train mine.toml --device tpu", 2, "train.device: must be 'auto', 'cpu'"),
    (files, "train mine.toml --run ../escape", 2, "--run ../escape: use letters"),
    (files, "train mine.toml --run ''", 2, "in the name of a run"),
    (a_run, "train mine.toml --run tiny", 2, "--run tiny: runs/tiny exists"),
    (files, "train mine.toml --set name=../../x", 2, "--set name=../../x: must be letters, digits"),
    (files, "train mine.toml --set data.store=notes.txt", 2, "notes.txt: exists and is not a store"),
    (files, "train mine.toml --set data.where=sex", 2, "'sex' is no condition; write NAME=VALUE"),
    (files, "train mine.toml --set train.precision=fp16", 3, "needs a CUDA device"),
    (files, "train mine.toml --set model.attention=flash", 3, "'flash' cannot run here: "),
    (files, "train mine.toml --set train.virtual_ranks=3", 2, "cannot be shared equally by 3 virtual ranks"),
    (files, "train mine.toml --set train.trackers=nothing", 2, "must be a list of 'tensorboard'"),
    (files, "train mine.toml --set train.learning_rate=1e400", 2, "must be a finite number"),
    (a_run, "train runs/tiny", 2, "runs/tiny is finished; evaluate it by"),
    (a_run, "train tiny", 2, "runs/tiny is finished; evaluate it by"),
    (a_run, "train runs/tiny --set train.learning_rte=1", 2, "did you mean 'learning_rate'"),
    (a_run, "train runs/tiny --steps 10", 2, "runs/tiny has done 30 steps already"),
    (a_run, "train runs/tiny --run again", 2, "runs/tiny continues under its own name"),
    (a_run, "train runs/tiny --set model.layers=3", 2, "its model.layers = 1, not 3"),
    (a_run_without_preset, "train runs/tiny --steps 40", 2, "config.toml cannot be read"),
    (a_run_of_nonsense, "train runs/tiny", 2, "'runs/tiny' is not a run folder"),
    (a_run_of_the_future, "train runs/tiny", 2, "has format 99, this tfx reads up to"),
    (pipes, "train pipe.toml", 2, "'pipe.toml' is neither a file nor a preset name"),
    (pipes, "train runs/piped", 2, "'runs/piped' is a folder, not a preset file"),
    (files, "train mine.toml --set 'data.files=a\x1b]52;c.h5ad'", 4, "a\\x1b]52;c.h5ad: no such file"),
    # eval
    (nothing, "eval", 2, "there are no runs in 'runs'; make one with 'tfx train PRESET'"),
    (a_run, "eval nowhere", 2, "there is no run 'nowhere' in 'runs'; the newest is 'tiny'"),
    (a_run, "eval tinny", 2, "there is no run 'tinny' in 'runs'; did you mean 'tiny'?"),
    (a_run, "eval tiny notes.txt", 2, "'notes.txt' names no file of cells"),
    (a_run, "eval tiny nowhere.h5ad", 4, "nowhere.h5ad: no such file; check the path"),
    (a_run, "eval tiny cells.h5ad", 4, "only 0 of the model's 32 genes are in the file"),
    (a_run, f"eval tiny '{ATLAS}' --label planet=organ", 2, "the model does not know a phenotype 'planet'"),
    (a_run, f"eval tiny '{ATLAS}' --label tissue=organ", 4, "'organ'"),
    (a_run, "eval tiny --label tissue=organ", 2, "--label: held-out cells have theirs in the store"),
    (a_run, "eval tiny cells.h5ad --split test", 2, "--split: FILES are scored whole"),
    (a_run, "eval tiny cells.h5ad --where sex=male", 2, "--where: FILES are scored whole"),
    (a_run, "eval cells.h5ad tiny", 2, "'tiny' names no file of cells"),
    (a_run, "eval tiny --split moon", 2, "--split: 'moon' is not one of 'test', 'validation'"),
    (a_run, "eval tiny --where tissue", 2, "'tissue' is no condition; write NAME=VALUE"),
    (a_run, "eval tiny --where tissue=moon", 2, "has no tissue 'moon'; it has blood, heart"),
    (a_run, "eval tiny --where planet=moon", 2, "has no phenotype 'planet'"),
    (a_run, "eval tiny --where sex=femal", 2, "has no sex 'femal'; did you mean 'female'"),
    (a_run, "eval tiny --where sex=none", 4, "no test cell matches --where sex=none (of "),
    (a_run, "eval tiny --max-cells 0", 2, "--max-cells: must be greater than or equal to 1"),
    (a_run, "eval tiny -o notes.txt/new", 2, "--output notes.txt/new: notes.txt is not a folder"),
    (a_run, "eval tiny -o notes.txt", 2, "--output notes.txt is a file; give a folder"),
    (a_run, "eval tiny --device tpu", 2, "--device: 'tpu' is not one of 'auto', 'cpu'"),
    (a_broken_model, "eval tiny", 4, "config.json was altered or damaged (its checksum differs)"),
    (a_model_of_nonsense, "eval tiny", 4, "tfx.json: cannot be read"),
    (a_model_without_facts, "eval tiny", 4, "not a model folder"),
    (a_run_without_model, "eval tiny", 4, "has no model yet"),
    (a_run_without_store, "eval tiny", 4, "gone: the store of runs/tiny/model is not there; name its new place by --store"),
    (a_run_without_preset, "eval tiny", 4, "config.toml cannot be read"),
    # predict
    (files, "predict cells.h5ad", 2, "missing option '--output' / '-o'"),
    (nothing, "predict cells.h5ad -o out.h5ad", 2, "there are no runs in 'runs'"),
    (a_run, "predict cells.h5ad -o out.txt", 2, "labelled cells are written as .h5ad, .zarr or .csv"),
    (a_run, "predict cells.h5ad -o .", 2, "--output . is a folder"),
    (a_run, "predict cells.h5ad -o cells.h5ad", 2, "--output cells.h5ad exists"),
    (a_run, "predict cells.h5ad -o notes.txt/out.h5ad", 2, "notes.txt is not a folder"),
    (a_run, "predict nowhere.h5ad -o out.h5ad", 4, "nowhere.h5ad: no such file"),
    (a_run, "predict notes.txt -o out.h5ad", 4, "notes.txt: not an h5ad file"),
    (a_run, "predict cells.h5ad -o out.h5ad", 4, "only 0 of the model's 32 genes are in the file"),
    (a_run, "predict cells.h5ad -o out.h5ad --run nowhere", 2, "there is no run 'nowhere'"),
    (a_run, "predict cells.h5ad -o out.h5ad --unsure-below 7", 2, "less than or equal to 1"),
    (a_run, "predict cells.h5ad -o out.h5ad --unsure-at 95", 2, "less than or equal to 1"),
    (a_run, "predict cells.h5ad -o out.h5ad --unsure-at 0.9 --unsure-below 0.5", 2, "not both"),
    (a_run, "eval tiny --cross-validate cells", 2, "--cross-validate: 'cells' is not"),
    (a_run, "eval tiny cells.h5ad --cross-validate donors", 2, "FILES: cannot be used with"),
    (a_run, "eval tiny --generated cells.h5ad --unsure-at 0.9", 2, "--unsure-at: cannot be used"),
    (a_run, "predict cells.h5ad -o out.h5ad --plot x.jpg", 2, "figures are written as .png, .pdf or .svg"),
    (a_run, "predict cells.h5ad -o out.h5ad --markers XIST", 2, "--markers: belongs to --plot"),
    (a_run, f"predict '{ATLAS}' -o out.csv --majority tisue", 4, "--majority tisue names an obs column that does not exist; did you mean 'tissue'"),
    (a_run, "predict cells.h5ad -o out.h5ad --matrix layers/none", 4, "no matrix 'layers/none'"),
    (a_run, "predict cells.h5ad -o out.h5ad --gene-ids none", 4, "the var column 'none', which"),
    (a_run, f"predict '{ATLAS}' -o out.csv --label planet", 2, "the model has no phenotype 'planet'"),
    (a_run, f"predict '{ATLAS}' -o out.csv --label tisue", 2, "did you mean 'tissue'"),
    (a_run, f"predict '{ATLAS}' -o out.csv --label tissue=tisue", 4, "did you mean 'tissue'"),
    (a_run, f"predict '{ATLAS}' -o out.csv --device mps", 3, "--device 'mps'"),
    (a_run, f"predict '{ATLAS}' -o out.csv --label tissue=organ", 4, "the obs column 'organ', which"),
    (a_run, f"predict '{ATLAS}' -o out.csv --label tissue=sex", 4, "knows none of the labels of"),
    (a_broken_model, f"predict '{ATLAS}' -o out.h5ad", 4, "config.json was altered or damaged"),
    (a_model_without_genes, f"predict '{ATLAS}' -o out.h5ad", 4, "genes.json is missing"),
    # embed
    (a_run, "embed cells.h5ad -o out.csv", 2, "embedded cells are written as .h5ad"),
    (a_run, f"embed '{ATLAS}' -o out.h5ad --from nowhere", 2, "--from nowhere: an embedding is taken"),
    (a_run, f"embed '{ATLAS}' -o out.h5ad --from tisue", 2, "did you mean 'tissue'"),
    (a_run, f"embed '{ATLAS}' -o out.h5ad --denoise a/b", 2, "has no '/'"),
    (a_run, f"embed '{ATLAS}' -o out.h5ad --denoise X_tfx", 2, "--key has this name in obsm"),
    (a_run, "embed cells.h5ad -o out.h5ad --denoise x", 4, "only 0 of the model's 32 genes"),
    (a_broken_model, f"embed '{ATLAS}' -o out.h5ad", 4, "config.json was altered or damaged"),
    # interactions
    (a_run, "interactions", 2, "missing option '--output'"),
    (a_run, "interactions -o e.txt", 2, "interactions are written as .csv, .parquet"),
    (a_run, "interactions -o e.csv -o ./e.csv", 2, "two files have the same name"),
    (a_run, "interactions -o e.csv --genes XIST,XISTT", 2, "did you mean XIST"),
    (a_run, "interactions -o e.csv --genes XIST,FOS", 2, "and the model has 32 genes; train with data.include_genes"),
    (a_run, "interactions -o e.csv --genes XIST", 2, "give two genes at least"),
    (a_run, "interactions -o e.csv --regulators none.txt", 4, "none.txt: cannot be read"),
    (a_run, "interactions -o e.csv --genes XIST,FOS --regulators x", 2, "give one of them"),
    (a_run, "interactions -o e.csv --known notes.txt", 4, "--known notes.txt: has the columns"),
    (a_run, "interactions -o e.csv --contrast sex=female", 2, "two of its values"),
    (a_run, "interactions -o e.csv --contrast sex=female,Female", 2, "both values are 'female'"),
    (a_run, "interactions -o e.csv --contrast sex=female,mail", 2, "did you mean 'male'"),
    (a_run, "interactions -o e.csv --contrast planet=a,b", 2, "has no phenotype 'planet'"),
    (a_run, "interactions -o e.csv --where tissue=kidney,cell_type=hepatocyte", 4, "no cell matches --where"),
    (a_run, "interactions -o e.csv --where tissue=lungs", 2, "did you mean 'lung'"),
    (a_run, "interactions -o e.csv --where 'cell_type=mast cell'", 4, "cells are too few for a network"),
    (a_run, "interactions -o e.csv --where donor=sim-donor-01", 4, "of one donor"),
    (a_run, "interactions tiny notes -o e.csv", 2, "'notes' names no file of cells"),
    (a_run, "interactions -o e.csv --values log", 2, "name a file of cells"),
    # perturb
    (a_run, "perturb --knock-out XIST", 2, "missing option '--output'"),
    (a_run, "perturb -o p.h5ad", 2, "name what to change: --knock-out GENE"),
    (a_run, "perturb --knock-out XIST -o p.txt", 2, "perturbations are written as .h5ad or .csv"),
    (a_run, "perturb --knock-out XIST -o p.csv -o ./p.csv", 2, "two files have the same name"),
    (a_run, "perturb --knock-out XISTT -o p.h5ad", 2, "did you mean XIST"),
    (a_run, "perturb --knock-out FOS -o p.h5ad", 2, "and the model has 32 genes; train with data.include_genes"),
    (a_run, "perturb --knock-out XIST --over-express XIST -o p.h5ad", 2, "is set already"),
    (a_run, "perturb --set-gene XIST=6 -o p.h5ad", 2, "bins of this model are 0 (not expressed) to 5"),
    (a_run, "perturb --set-gene XIST=much -o p.h5ad", 2, "must be GENE=BIN"),
    (a_run, "perturb --set-gene XIST=1 --set-gene XIST=2 -o p.h5ad", 2, "has a bin already"),
    (a_run, "perturb --knock-out RPS4Y1 --where sex=female -o p.h5ad", 4, "and a perturbation needs 10"),
    (a_run, "perturb --knock-out XIST --where tissue=lungs -o p.h5ad", 2, "did you mean 'lung'"),
    (a_run, "perturb --knock-out XIST --where tissue=kidney,cell_type=hepatocyte -o p.h5ad", 4, "no cell matches"),
    (a_run, "perturb --knock-out XIST --where donor=sim-donor-01 -o p.h5ad", 4, "of one donor"),
    (a_run, "perturb --screen disease=normal --knock-out XIST -o s.csv", 2, "changes every gene by itself"),
    (a_run, "perturb --screen disease=normal -o s.h5ad", 2, "screens are written as .csv"),
    (a_run, "perturb --screen disease -o s.csv", 2, "is no condition"),
    (a_run, "perturb --screen disease=norml -o s.csv", 2, "did you mean 'normal'"),
    (a_run, "perturb --screen planet=mars -o s.csv", 2, "has no phenotype 'planet'"),
    (a_run, "perturb a.h5ad b.h5ad --knock-out XIST -o p.h5ad", 2, "give one file of cells"),
    (a_run, "perturb --knock-out XIST --values log -o p.h5ad", 2, "name a file of cells"),
    # generate
    (nothing, "generate", 2, "there are no runs in 'runs'"),
    (a_run, "generate --sxe female", 2, "no such option: --sxe; did you mean"),
    (a_run, "generate -n 0", 2, "cannot generate 0 cells; request 1 or more"),
    (a_run, "generate -n 99999999999999", 2, "cannot generate 99,999,999,999,999 cells"),
    (a_run, "generate --tissue lungs", 2, "runs/tiny: this model knows no tissue 'lungs'; did you mean 'lung'?"),
    (a_run, "generate --sex ''", 2, "--sex: the value is empty"),
    (a_run, "generate --sex female --phenotype sex=male", 2, "sex is already 'female'"),
    (a_run, "generate --phenotype sex", 2, "--phenotype sex: must be NAME=VALUE"),
    (a_run, "generate --phenotype planet=mars", 2, "this model has no phenotype 'planet'"),
    *((a_run, f"generate {line}", 2, words) for line, words in (
        ("--from cells.h5ad", "--from needs what to change"), ("--set sex=femal", "did you mean 'female'"),
        ("--label sex=gender", "name it by --from"),
    )),
    *((a_run, f"generate --from '{ATLAS}' {line}", 2, words) for line, words in (
        ("--set sex", "must be NAME=VALUE"), ("--set sex=femal", "did you mean 'female'"),
        ("--set sexx=female", "no phenotype 'sexx'"), ("--set sex=male --set sex=female", "already 'male'"),
        ("--set sex=male -n 3", "does not take -n"), ("--set sex=male --guidance 1", "not take --guidance"),
        ("--set sex=male --decode bins", "--decode bins"), ("--set sex=male --tissue lung", "not take a phen"),
        ("--set sex=male --label sex", "must be NAME=COLUMN"),
        ("--set sex=male --label sx=a", "phenotype 'sx'"),
    )),
    (a_run, "generate --from gone.h5ad --set sex=male", 4, "gone.h5ad: no such file"),
    (a_run, "generate -o out.csv", 2, "cells are written as .h5ad; name it out.h5ad"),
    (a_run, "generate -o cells.h5ad", 2, "--output cells.h5ad exists"),
    (a_run, "generate -o .", 2, "--output . is a folder; give a file name"),
    (a_run, "generate -o cells", 2, "name it cells.h5ad"),
    (a_run, "generate -o notes.txt/new/x.h5ad", 2, "notes.txt is not a folder"),
    (a_run, "generate --plot out.jpg", 2, "--plot out.jpg: pictures are written as .png, .pdf or .svg"),
    (a_run, "generate --markers NONE", 2, "runs/tiny: 1 of 1 marker genes are no genes of the model: NONE"),
    (a_run, "generate --plot notes.txt/x.png", 2, "--plot notes.txt/x.png: notes.txt is not a"),
    (a_run, "generate --steps 0", 2, "steps must be at least 1 (got 0)"),
    (a_run, "generate --steps many", 2, "--steps: must be a valid integer"),
    (a_run, "generate --schedule", 2, "'--schedule' requires an argument"),
    (a_run, "generate --temperature inf", 2, "temperature must be a finite number (got inf)"),
    (a_run, "generate --guidance nan", 2, "guidance must be a finite number (got nan)"),
    (a_run, "generate --seed 99999999999999999999", 2, "--seed: must be less than or equal to"),
    (a_run, "generate --run cells.h5ad", 2, "there is no run 'cells.h5ad'"),
    (a_run, "generate --serve --plot x.png", 2, "--serve takes its requests from stdin"),
    (a_broken_model, "generate -n 2", 4, "config.json was altered or damaged"),
    (a_run_without_model, "generate -n 2", 4, "has no model yet"),
    (a_run, "generate -n " + "9" * 400, 2, "cells, which would fill about"),
    (a_run, "generate --library-size 1e30", 2, "from 1 to 1,000,000,000"),
    (a_run, "generate --tissue '\x1b]52;c;aGk=\x07\u202e'", 2, "knows no tissue '\\x1b]52;c;aGk=\\x07\\u202e'"),
    (a_run, "generate --tissue " + "x" * 100_000, 2, "characters left out"),
    (a_model_of_pipes, "generate -n 2", 4, "tfx.json: cannot be read"),
    # eval of generated cells
    (a_run, "eval --generated nowhere.h5ad", 4, "nowhere.h5ad: no such file"),
    (a_run, "eval --generated cells.h5ad", 4, "cells.h5ad has no provenance"),
    (a_run, "eval --classes sex", 2, "--classes: needs --generated"),
    (a_run, "eval --generated cells.h5ad --split test", 2, "--split: cannot be used with --generated"),
    # export
    (a_run, "export", 2, "missing option '--hub'"),
    (nothing, "export --hub new", 2, "there are no runs in 'runs'"),
    (a_run, "export --hub notes.txt", 2, "--hub notes.txt is a file; give a folder"),
    (a_run, "export --hub runs/tiny/model --overwrite", 2, "is the model itself; choose another folder"),
    (a_run, "export --hub new --name a/b/c", 2, "--name a/b/c: use letters, digits"),
    (a_run, "export --hub new --licence ''", 2, "give an id such as cc-by-4.0"),
    (a_broken_model, "export --hub new", 4, "config.json was altered or damaged"),
    # dashboard
    (nothing, "dashboard", 2, "the dashboard needs a terminal"),
    (a_run, "dashboard nowhere", 2, "there is no run 'nowhere'"),
    (a_run, "dashboard --once --json nowhere", 2, "there is no run 'nowhere'"),
    (a_run, "dashboard --refresh 0", 2, "--refresh: must be greater than or equal to 0.1"),
    (a_run, "dashboard --theme pink", 2, "--theme: 'pink' is not one of"),
    (a_run, "dashboard --svg x.svg", 2, "--svg draws one frame: give --once too"),
    (a_run, "dashboard tinny --once", 2, "did you mean 'tiny'?"),
    (a_run, "dashboard --once --svg x.png", 2, ".svg"),
    (a_run, "dashboard --once --svg x.svg --size 3", 2, "--size 3: columns x rows"),
    (a_run, "dashboard --once --svg x.svg --size 5x900", 2, "of 20x5 to 400x200"),
    (a_run, "dashboard --once --svg notes.txt/x.svg", 2, "notes.txt is not a folder"),
    # runs
    (nothing, "runs list nowhere", 2, "there is no folder 'nowhere'"),
    (a_run, "runs list runs/tiny", 2, "'runs/tiny' is a run itself"),
    (a_run, "runs list --state happy", 2, "--state happy: there is no such state"),
    (a_run, "runs list --state crash", 2, "no such state; did you mean 'crashed'?"),
    (a_run, "runs list --sort happy", 2, "--sort: 'happy' is not one of"),
    (nothing, "runs show", 2, "there are no runs in 'runs'"),
    (a_run, "runs show --events -1", 2, "--events: must be greater than or equal to 0"),
    (a_run_of_nonsense, "runs show runs/tiny", 2, "it has no readable run.json"),
    *((a_run, f"runs {line} tinny", 2, "there is no run 'tinny' in 'runs'; did you mean 'tiny'?")
      for line in ("show", "export", "compare tiny")),
    (a_run_of_the_future, "runs show tiny", 2, "has format 99, this tfx reads up to"),
    (pipes, "runs show piped", 2, "there is"),
    (a_run, "runs compare tiny", 2, "give two different runs or more"),
    (a_run, "runs compare tiny runs/tiny", 2, "give two different runs or more"),
    (a_run, "runs compare tiny nowhere", 2, "there is no run 'nowhere'"),
    (a_run, "runs export tiny -o out.txt", 2, "'out.txt': its ending must name the format"),
    (a_run, "runs export tiny -o - --format parquet", 2, "Parquet cannot be printed"),
    (a_run, "runs export tiny -o - --json", 2, "give --format json"),
    (a_run, "runs export tiny --split moon", 2, "has no metrics of that split"),
    (a_run, "runs export tiny -o notes.txt/x.csv", 3, "'notes.txt/x.csv' cannot be written"),
    # presets
    (nothing, "presets listt", 2, "no such command 'listt'; did you mean 'list'?"),
    (nothing, "presets show nowhere", 2, "'nowhere' is neither a file nor a preset name"),
    (nothing, "presets values", 2, "there are no runs in 'runs'"),
    (a_run, "presets values tinny", 2, "did you mean 'tiny'?"),
    (files, "presets show notes.txt", 2, "notes.txt:1: not valid TOML"),
    (files, "presets show .", 2, "'.' is a folder, not a preset file"),
    (files, "presets show base --set a=1", 2, "--set a=1: unknown key"),
    (files, "presets validate odd.toml", 2, "odd.toml:2: data.files: must be a string or a list"),
    (nothing, "presets schema --format xml", 2, "--format: 'xml' is not one of"),
    (pipes, "presets import pipe.json", 4, "pipe.json cannot be read (it is a pipe, a device or a socket"),
    # init
    (long_names, "init genes.h5ad", 4, "the name of a gene in var_names has 2,000 characters"),
    (nothing, "init", 2, "missing argument 'FILES...'"),
    (nothing, "init nowhere.h5ad", 4, "nowhere.h5ad: no such file"),
    (files, "init notes.txt", 4, "notes.txt: not an h5ad file"),
    (files, "init cells.h5ad cells.h5ad", 2, "cells.h5ad: listed twice"),
    (files, "init cells.h5ad -o mine.toml", 2, "--output mine.toml exists; choose another name"),
    (files, "init cells.h5ad -o x.txt", 2, "presets are written as .toml; name it x.toml"),
    (files, "init nowhere.h5ad -o .", 2, "--output ."),
    (files, "init cells.h5ad -o notes.txt/x.toml", 2, "notes.txt is not a folder"),
    (files, "init cells.h5ad --device tpu", 2, "--device: 'tpu' is not one of"),
    (files, "init cells.h5ad --genes none.txt", 4, "--genes none.txt: cannot be read"),
    (files, "init cells.h5ad --set data.gene=1", 2, "--set data.gene=1: unknown key; did you mean 'genes'?"),
    (files, "init cells.h5ad --set data.genes=many", 2, "--set data.genes: must be a whole number (got 'many')"),
    (files, "init cells.h5ad --set model.heads=5 --device cpu", 2, "hidden_size must be a multiple of heads"),
    (files, "init '*.nothing'", 4, "*.nothing: no file matches this pattern"),
    (bad.truncated, "init cells.h5ad", 4, "cells.h5ad: truncated: "),
    (bad.values_of_unknown_scale, "init cells.h5ad", 4, "X holds values of an unknown scale"),
    # docs
    (nothing, "docs trainin", 2, "there is no page 'trainin'; did you mean 'training'?"),
    # doctor
    (nothing, "doctor extra", 2, "too many arguments: extra"),
    (nothing, "doctor --nothing", 2, "no such option: --nothing"),
]  # fmt: skip


@dataclass(frozen=True)
class BadInput:
    """What lies in the folder, what is typed, and what must be answered."""

    make: Callable[[Path], None]
    arguments: list[str]
    code: int
    words: list[str]


def all_bad_input():
    """Give the whole table: cells and presets by both commands that read them, then all others."""
    for name, (make, changes, code, words) in CASES.items():
        for command in ("prepare", "train"):
            line = [command, "bad.toml", *options(changes)]
            yield pytest.param(BadInput(make, line, code, words), id=f"{command}: {name}")
    for make, line, code, words in COMMAND_LINES:
        case = BadInput(make, shlex.split(line), code, [words])
        yield pytest.param(case, id=f"{line} [{make.__name__}]")


def everything(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def options(changes):
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.parametrize("case", all_bad_input())
def test_bad_input_is_one_sentence_and_leaves_nothing(tfx, tmp_path, case, request):
    (tmp_path / "bad.toml").write_text(PRESET)
    if case.make in RUNS:
        request.getfixturevalue("tiny_run")
    case.make(tmp_path)
    before = everything(tmp_path)
    result = tfx("-q", *case.arguments)
    refused(result, case.code, *case.words)
    assert everything(tmp_path) == before


def test_the_table_holds_bad_input_of_every_command():
    told = {line.split()[0] for _, line, _, _ in COMMAND_LINES}
    assert {command.name for command in COMMANDS} <= told


#: What contradicts itself, or names what is not there, is refused before a store is made.
REFUSED_BEFORE_PREPARING = {
    "no layers",
    "a loss of another encoding",
    "a log-linear part without bins",
    "a gene the cells lack",
    "a model to start from",
}


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_a_model_that_cannot_be_made_leaves_no_run(tfx, tmp_path, case):
    changes, code, words = TRAINING_CASES[case]
    (tmp_path / "bad.toml").write_text(PRESET)
    bad.well_formed(tmp_path)
    result = tfx("-q", "train", "bad.toml", *options(changes))
    refused(result, code, *words)
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
    refused(result, 2, "bad.toml:2")


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_preset_that_is_not_there_is_refused_with_the_nearest(tfx, tmp_path, command):
    result = tfx("-q", command, "bsae")
    refused(result, 2, "'bsae' is neither a file nor a preset name", "'base'")
    assert not list(tmp_path.iterdir())


def test_progress_before_the_sentence_is_no_second_fault(tfx, tmp_path):
    """Without --quiet the sentence is the last line, after the narration."""
    (tmp_path / "bad.toml").write_text(PRESET)
    bad.a_fraction_among_counts(tmp_path)
    result = tfx("train", "bad.toml")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert errors == result.stderr.splitlines()[-1:]
    assert "Traceback" not in result.stderr
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_obs == 700  # the file is as it was
