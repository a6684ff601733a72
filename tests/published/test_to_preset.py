"""Runs of PolyGene and PerturbGene as presets: every option is read, converted, and in the documented table."""

import json
import re
from pathlib import Path

import pytest

from core.errors import ConfigurationError, DataError
from core.presets.catalogue import list_presets
from core.presets.loading import resolve_preset, resolve_text
from core.published.commands import OPTIONS, read_arguments, read_file
from core.published.to_preset import to_preset

PAGE = Path(__file__).parents[2] / "docs" / "published-models.md"
POLYGENE = {
    "model_name": "bert", "phenotypic_tokens_file": "data/phenotypic_vocab", "n_epochs": 100,
    "train_batch_size": 9, "eval_batch_size": 5, "learning_rate": 2e-5, "hidden_size": 64,
    "num_hidden_layers": 12, "num_attention_heads": 12, "shard_size": 10000,
    "train_data_path": "file:///data/Tabula_Sapiens_ranked_{0..43}.h5ad",
    "eval_data_path": "file:///data/Tabula_Sapiens_ranked_47.h5ad",
    "output_dir": "checkpoints/all_but_age", "max_length": 2440, "n_highly_variable_genes": 2432,
    "save_steps": 0.01, "expression_max_value": 10.0, "expression_min_value": 0.0,
    "threshold": 0.1, "mlm_probability": 0.15, "phenotypic_mlm_probability": 0.5, "num_bins": 10,
    "sequence_types": ["sex", "tissue", "cell_type", "disease"], "binary_expression": False,
    "device": "cuda",
}  # fmt: skip
PERTURBGENE = """
accelerate launch --mixed_precision=bf16 --num_processes=1 --num_machines 1 --dynamo_backend no \\
-m perturbgene.main \\
--bin_edges 0.1 \\
--pretrained_model_path 'perturbgene/model_configs/distilbert_base.json' \\
--shard_size 10000 \\
--eval_data_paths '/data/Tabula_Sapiens_ranked_47.h5ad' \\
--max_length 1024 --num_top_genes 58604 --vocab_path 'phenotypic_tokens_map.json' \\
--included_phenotypes cell_type sex tissue --use_flash_attn --per_device_eval_batch_size 256 \\
--dataloader_num_workers 4 --output_dir 'output_v3_base' \\
mlm \\
--gene_mask_prob 0.15 --phenotype_mask_prob 0.5 \\
--train_data_paths '/data/Tabula_Sapiens_ranked_{0..43}.h5ad' \\
--num_hidden_layers 12 --num_attention_heads 12 --per_device_train_batch_size 128 \\
--learning_rate 1e-4 --weight_decay 5e-2 --warmup_ratio 0.1 --num_train_epochs 10 \\
--eval_steps 1000 --save_steps 8000
"""
#: The least that a run is told.
LEAST = {
    "PolyGene": {"train_data_path": "cells_{0..3}.h5ad", "n_highly_variable_genes": 64},
    "PerturbGene": {"train_data_paths": ["cells_{0..3}.h5ad"], "num_top_genes": 64},
}
#: Values of options for which 3 is none, and what they need beside them.
SAMPLES = {
    "sequence_types": ["sex", "age"], "filter_phenotypes": {"tissue": ["lung", "a, b"]},
    "label": "tissue", "phenotype_category": "development_stage", "binary_label": "[T_cell]",
    "included_phenotypes": ["sex"], "bin_edges": [0.1, 2.0], "mixed_precision": "bf16",
    "dynamo_backend": "inductor", "output_dir": "out/my run", "eval_data_paths": ["held.h5ad"],
    "train_data_paths": ["some.h5ad"], "train_data_path": "some.h5ad", "max_length": 300,
    "eval_data_path": "held.h5ad", "vocab_path": "v.json", "pretrained_model_path": "runs/first",
    "bin_edges_path": "edges.json", "model_arch": "distilbert", "threshold": 0.25,
    "mlm_probability": 0.25, "phenotypic_mlm_probability": 0.25, "gene_mask_prob": 0.25,
    "phenotype_mask_prob": 0.25, "warmup_ratio": 0.25,
}  # fmt: skip
BESIDE = {
    "binary_label": {"phenotype_category": "cell_type"},
    "balanced_dataset": {"phenotype_category": "cell_type"},
    "gradient_accumulation_steps": {"per_device_train_batch_size": 8},
    "num_processes": {"per_device_train_batch_size": 8},
    "save_steps": {"train_batch_size": 8},
    "threshold": {"num_bins": 2},
}


def imported(run):
    return resolve_text(to_preset(run), where=Path("imported.toml")).preset


def of_json(tmp_path, record):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return read_file(path)


def differences(one, two, *, but):
    ours, theirs = one.model_dump(), two.model_dump()
    return {
        f"{section}.{key}": (value, theirs[section][key])
        for section, values in ours.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != theirs[section][key] and f"{section}.{key}" not in but
    }


def test_polygenes_configuration_is_its_preset(tmp_path):
    preset = imported(of_json(tmp_path, POLYGENE))
    bundled = resolve_preset("polygene-2432-binned").preset
    assert preset.name == "all_but_age"
    where = {"data.files", "data.validation_files", "data.test_files", "data.split"}
    assert differences(preset, bundled, but=where) == {}
    assert preset.data.files == ["/data/Tabula_Sapiens_ranked_{0..43}.h5ad"]


def test_perturbgenes_command_is_its_preset(tmp_path):
    path = tmp_path / "run_training.sh"
    path.write_text(f"cd ..\n#python main.py --bin_edges 3\n{PERTURBGENE}\n#cd ..\n", "utf-8")
    preset = imported(read_file(path))
    bundled = resolve_preset("perturbgene-1024-base").preset
    where = {"data.files", "data.validation_files", "data.test_files", "data.split",
             "data.vocabulary", "train.precision", "loss.phenotype_weight"}  # fmt: skip
    assert differences(preset, bundled, but=where) == {}
    assert preset.train.precision == "bf16"
    assert preset.loss.phenotype_weight == pytest.approx(0.009, rel=0.05)
    assert preset.data.vocabulary == "phenotypic_tokens_map.json"


def test_a_classification_against_the_rest():
    words = [word.strip("'") for word in PERTURBGENE.replace("\\\n", " ").split()]
    words.remove("tissue")
    at = words.index("mlm")
    asked = ["cls", "--phenotype_category", "tissue", "--binary_label", "[lung]"]
    preset = imported(read_arguments([*words[:at], *asked, *words[at + 5 :]]))
    assert preset.classified == "tissue"
    assert preset.classification.positive == "lung"
    assert preset.classification.given == ["cell_type", "sex"]
    assert preset.loss.class_weights == "balanced"
    assert preset.model.head == "split"


def test_what_is_asked_cannot_be_given_too():
    words = ["--num_top_genes", "9", "--included_phenotypes", "tissue", "cls",
             "--phenotype_category", "tissue", "--train_data_paths", "a.h5ad"]  # fmt: skip
    with pytest.raises(ConfigurationError, match="given must not name the column"):
        imported(read_arguments(words))


def test_an_inference_configuration_keeps_its_filter(tmp_path):
    record = {
        "pretrained_model_name_or_path": "checkpoint", "train_data_path": "a.h5ad",
        "n_highly_variable_genes": 2432,
        "filter_phenotypes": {"tissue": ["muscle tissue", "spleen"], "development_stage": "40"},
    }  # fmt: skip
    preset = imported(of_json(tmp_path, record))
    assert preset.data.where == ["tissue=muscle tissue,spleen", "age=40"]


def test_a_polygene_without_room_for_a_header_has_none(tmp_path):
    record = {"train_data_path": "a.h5ad", "n_highly_variable_genes": 128, "max_length": 130,
              "num_bins": 2, "binary_expression": True, "threshold": 0.5}  # fmt: skip
    preset = imported(of_json(tmp_path, record))
    assert not any(preset.data.phenotypes.values())
    assert (preset.encoding.kind, preset.encoding.threshold) == ("binary", 0.5)
    assert (preset.model.head, preset.loss.kind) == ("split", "bce")


def test_edges_are_read_from_the_file_that_a_script_names(tmp_path):
    (tmp_path / "bin_edges_v1.txt").write_text("0.1 1.5 3.0", encoding="utf-8")
    script = tmp_path / "vast.sh"
    script.write_text(
        "python -m perturbgene.main --bin_edges $(< perturbgene/bin_edges_v1.txt) "
        "--num_top_genes 9 mlm --train_data_path a.h5ad --mlm_probability 0.2",
        encoding="utf-8",
    )
    preset = imported(read_file(script))
    assert (preset.encoding.edges, preset.encoding.bins) == ([0.1, 1.5, 3.0], 4)
    assert preset.masking.genes == 0.2, "an older name of the option"


def documented(system):
    text = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (part,) = [one for one in section if one.startswith(f"Options of {system}")]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {
        re.findall(r"`([^`]+)`", names)[0]: (
            tuple(re.findall(r"`([^`]+)`", names)[1:]), tuple(re.findall(r"`([^`]+)`", keys)),
            note.strip(),
        )
        for names, keys, note in rows
    }  # fmt: skip


@pytest.mark.parametrize("system", OPTIONS)
def test_the_page_has_every_option_and_no_other(system):
    expected = {one.name: (one.aliases, one.ours, one.note) for one in OPTIONS[system]}
    assert documented(system) == expected


@pytest.mark.parametrize(
    ("system", "name"), [(system, one.name) for system in OPTIONS for one in OPTIONS[system]]
)
def test_every_option_of_the_page_is_imported(system, name, tmp_path):
    (option,) = [one for one in OPTIONS[system] if one.name == name]
    value = SAMPLES.get(name, True if option.takes == "nothing" else 3)
    beside = {} if (system, name) == ("PerturbGene", "save_steps") else BESIDE.get(name, {})
    run = of_json(tmp_path, LEAST[system] | beside | {name: value})
    assert run.system == system
    text = to_preset(run)
    origins = resolve_text(text, where=tmp_path / "imported.toml").provenance
    if not option.ours:
        assert f"#   {name}: {option.note}" in text
    for key in option.ours:
        inside = [origin for one, origin in origins.items() if one.startswith(f"{key}.")]
        assert "default" not in (inside or [origins[key]]), key


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bin_edge", "3"], "'bin_edge' is not an option of PolyGene"),
        (["--num_top_genes", "9", "--bin_edgs", "3"], "did you mean 'bin_edges'?"),
        (["--num_top_genes", "--max_length", "9"], "--num_top_genes lacks its value"),
        (["--num_top_genes", "many", "--train_data_paths", "a"], "must be a whole number"),
        (["--num_top_genes", "9"], "train_data_paths is missing"),
        (["--num_top_genes", "9", "--train_data_paths", "a", "--included_phenotypes", "colour"],
         "included_phenotypes names 'colour'"),
        (["--num_top_genes", "9", "--train_data_paths", "a", "--bin_edges", "x"],
         "bin_edges must be numbers"),
        (["--num_top_genes", "9", "cls", "--train_data_paths", "a"],
         "a classification needs phenotype_category"),
        (["--num_top_genes", "9", "--train_data_paths", "a", "--mixed_precision", "fp8"],
         "mixed_precision must be fp16, bf16 or no"),
        (["python", "main.py"], "there are no options to import"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_imported(words, said):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        imported(read_arguments(words))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("{", ConfigurationError, "is not valid JSON"),
        ('{"metadata": 3}', ConfigurationError, "expected an object of options"),
        ("echo hello\n", ConfigurationError, "holds no command with options"),
        ("a.py --x\nb.py --x\n", ConfigurationError, "holds 2 commands with options"),
        ("a.py --bin_edges $(< gone.txt)\n", ConfigurationError, "takes words from gone.txt"),
        ("a.py --bin_edges 'x\n", ConfigurationError, "does not end"),
    ],
)
def test_a_file_that_cannot_be_imported(text, kind, said, tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=re.escape(said)):
        read_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path / "gone.json")


def test_the_presets_of_the_page_are_bundled():
    names = {one.name for one in list_presets()}
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"tfx train ((?:polygene|perturbgene)-[\w-]+\w)", text))
    assert named
    for name in named:  # "polygene-classify-..." stands for all of these
        assert any(one == name or one.startswith(f"{name}-") for one in names), name
