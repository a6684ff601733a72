"""A classifier: what it is shown, what of it learns, how its cells are drawn, and what it begins with."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.cells.one_vs_rest import OneVsRest
from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.tokens import MASK, TokenSpace
from core.encoding.values import ValueEncoder
from core.errors import ConfigurationError, DataError, MachineError, TrainingInterrupted
from core.evaluation.held_out import evaluate_held_out
from core.evaluation.predict import predict_phenotypes
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.presets.loading import ResolvedPreset, resolve_preset
from core.presets.schema import MaskingSettings
from core.runlog import RunReader
from core.training.engine import train
from core.training.run_setup import check_preset
from core.training.start_weights import _translated, take_shape_of_start
from core.training.virtual_ranks import RunCells, balanced_epochs
from tests.tiny_atlas import TINY_ATLAS, build_model, tiny_preset
from tests.training.test_engine import assert_same_run, stop_after

VALUES = {"sex": ("f", "m"), "tissue": ("lung", "blood", "skin"), "cell_type": ("a", "b")}
SHORT = {"train__max_steps": 12, "train__eval_steps": 5, "train__save_steps": 4}
SHORT |= {"train__batch_size": 16}


def classifier(column="cell_type", **options):
    return tiny_preset(
        train__task="classification",
        classification__column=column,
        **{name.replace("of__", "classification__"): value for name, value in options.items()},
    )


@pytest.fixture(scope="module")
def pretrained(tiny_store, tmp_path_factory):
    """Return the folder of a short masked run."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    train(tiny_preset(**SHORT, encoding__edges="gene_quantile"), tiny_store, folder)
    return folder


# ---------------------------------------------------------------------------- what it is shown
def encoder(*, given=(), layout="ranked"):
    tokens = TokenSpace(VALUES, 6, 3, layout=layout, classified="cell_type", given=given)
    values = ValueEncoder("binned", np.array([0.5, 1.5], np.float32))
    return BatchEncoder(tokens, values, max_length=tokens.required_length)


def some_cells(n_cells=64):
    from scipy import sparse

    rng = np.random.default_rng(1)
    expression = sparse.csr_matrix(rng.poisson(1.0, (n_cells, 6)).astype(np.float32))
    codes = np.stack([rng.integers(0, len(v), n_cells) for v in VALUES.values()], axis=1)
    return expression, codes.astype(np.int32)


def batches_of(own, expression, codes):
    """Encode cells in every way that batches are made."""
    masking = MaskingSettings(genes=0.3, phenotypes=0.0, unspecified=0.2, drop_phenotypes=0.5)
    all_shown = np.full(codes.shape, Show.VALUE, dtype=np.int8)
    nothing = np.zeros((len(codes), 6), dtype=bool)
    yield own.masked(expression, codes, masking, np.random.default_rng(0))
    yield own.visible(expression, codes, [], np.random.default_rng(0))
    yield own.visible(expression, codes, list(VALUES), np.random.default_rng(0))
    if own.tokens.layout == "ranked":
        yield own.ranked(expression.toarray(), codes, all_shown, nothing)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("given", [(), ("tissue",)])
def test_the_class_never_is_in_the_input_whoever_makes_the_batch(layout, given):
    own = encoder(given=given, layout=layout)
    expression, codes = some_cells()
    other = codes.copy()
    other[:, 2] = 1 - other[:, 2]  # every cell of the other class
    slot = own.tokens.first_slot + 2
    for one, two in zip(
        batches_of(own, expression, codes), batches_of(own, expression, other), strict=True
    ):
        assert np.array_equal(one.token_id, two.token_id)
        assert np.array_equal(one.value, two.value)
        assert np.array_equal(one.cu_seqlens, two.cu_seqlens)
        assert np.array_equal(one.phenotype_target, 1 - two.phenotype_target)
        assert set(one.value[one.token_id == slot].tolist()) == {MASK}


def test_of_the_others_only_those_that_are_given_are_shown():
    expression, codes = some_cells()
    own = encoder(given=("tissue",))
    batch = own.visible(expression, codes, [], np.random.default_rng(0))
    unspecified = own.tokens.not_specified
    sex = batch.value[batch.token_id == own.tokens.first_slot]
    tissue = batch.value[batch.token_id == own.tokens.first_slot + 1]
    assert set(sex.tolist()) == {int(unspecified[0])}
    assert np.array_equal(tissue, unspecified[1] + 1 + codes[:, 1])


def test_cls_predicts_for_every_cell_and_no_gene_is_a_target():
    expression, codes = some_cells()
    for batch in batches_of(encoder(), expression, codes):
        assert np.array_equal(batch.phenotype_position, batch.cu_seqlens[:-1])
        assert np.array_equal(batch.phenotype_cell, np.arange(len(codes)))
        assert np.array_equal(batch.phenotype_target, codes[:, 2])
        assert len(batch.gene) == len(batch.gene_position) == len(batch.gene_target) == 0


def test_genes_are_masked_as_regularisation():
    expression, codes = some_cells()
    masked = next(batches_of(encoder(), expression, codes))
    genes = masked.value[masked.token_id >= encoder().tokens.first_gene]
    masked_of_a_cell = set((genes.reshape(-1, 6) == MASK).sum(axis=1).tolist())
    assert masked_of_a_cell in ({1}, {2}), "0.3 of six genes, rounded at random"


# --------------------------------------------------------------------------------- what learns
def test_a_classifier_learns_from_scratch_and_is_scored_beside_baselines(tiny_store, tmp_path):
    steps = {"train__max_steps": 150, "train__learning_rate": 5e-3, "train__eval_cells": 67}
    genes = ["XIST", "RPS4Y1"]
    preset = classifier("sex", data__include_genes=genes, model__layers=1, **steps)
    result = train(preset, tiny_store, tmp_path / "run")
    assert result.validation["acc/sex"] > 0.9
    assert result.validation["f1/sex"] > 0.9
    scores = {"loss", "loss/phenotypes", "acc/sex", "f1/sex", "gain/sex", "score"}
    assert set(result.validation) == scores
    model = CellModel.load(result.model)
    methods = ("majority", "nearest_neighbours")
    report, gene_rows = evaluate_held_out(
        model, tiny_store, "test", loss=preset.preset.loss, baselines=methods
    )
    assert list(report.phenotypes) == ["sex"]
    assert set(report.phenotypes["sex"]) == {"model", *methods}
    assert (report.genes, report.gene_rates, gene_rows) == (None, None, [])
    assert report.phenotypes["sex"]["model"].accuracy > 0.8


def encoder_weights(folder):
    weights = load_file(folder / "model" / "model.safetensors")
    return {n: w for n, w in weights.items() if n.startswith("encoder_part.encoder.")}


@pytest.mark.parametrize(("kind", "learns"), [("full", True), ("frozen", False), ("lora", True)])
def test_what_of_the_encoder_learns(kind, learns, pretrained, tiny_store, tmp_path):
    if kind == "lora":
        pytest.importorskip("peft")
    preset = classifier(model__start_from=str(pretrained), of__encoder=kind, **SHORT)
    train(preset, tiny_store, tmp_path / "run")
    before, after = encoder_weights(pretrained), encoder_weights(tmp_path / "run")
    assert before.keys() == after.keys(), "a model folder has plain weights"
    linear = [n for n in before if n.endswith("weight") and "norm" not in n]
    same = [torch.equal(before[name], after[name]) for name in linear]
    assert not any(same) if learns else all(same)
    if kind == "lora":
        norm = "encoder_part.encoder.layers.0.attention_norm.weight"
        assert torch.equal(before[norm], after[norm])


def test_merged_low_rank_additions_predict_the_same(pretrained, tiny_store, tmp_path):
    pytest.importorskip("peft")
    preset = classifier(
        model__start_from=str(pretrained), of__encoder="lora", **(SHORT | {"train__max_steps": 4})
    )
    result = train(preset, tiny_store, tmp_path / "run")
    resolved = take_shape_of_start(preset).preset
    network = build_model(resolved, tiny_store, name="x").network
    weights = load_file(tmp_path / "run/checkpoints/step-00000004/weights.safetensors")
    assert any("lora_B" in name and weights[name].any() for name in weights)
    network.load_state_dict(weights)
    saved = CellModel.load(result.model)
    rows = tiny_store.rows("test")[:8]
    cells, codes = tiny_store.read(rows, saved.panel), tiny_store.phenotype_codes[rows]
    arrays = saved.batches.visible(cells, codes, ["cell_type"], np.random.default_rng(0))
    batch = BatchTensors.from_arrays(arrays)
    with torch.inference_mode():
        trained = network.eval()(batch).phenotype_logits
        loaded = saved.network(batch).phenotype_logits
    torch.testing.assert_close(trained, loaded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_stopped_classifier_resumes_bit_for_bit(kind, pretrained, tiny_store, tmp_path):
    if kind == "lora":
        pytest.importorskip("peft")
    options = {"of__encoder": kind, "of__sampling": "balanced", "of__mask_genes": 0.2} | SHORT
    preset = classifier(model__start_from=str(pretrained), **options)
    train(preset, tiny_store, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        train(preset, tiny_store, tmp_path / "stopped", **stop_after(6))
    written = (tmp_path / "stopped/config.toml").read_text(encoding="utf-8")
    train(ResolvedPreset.from_toml(written), tiny_store, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# ------------------------------------------------------------------------- what it begins with
def test_genes_bins_and_shape_come_from_the_model_it_begins_with(pretrained, tiny_store):
    options = {"data.files": [TINY_ATLAS], "train.task": "classification"}
    options |= {"classification.column": "cell_type", "model.start_from": str(pretrained)}
    bare = resolve_preset(None, options=options)
    resolved = take_shape_of_start(bare)
    assert resolved.provenance["model.layers"] == "model.start_from"
    model = build_model(resolved.preset, tiny_store, name="x")
    start = CellModel.load(pretrained / "model")
    assert model.panel.ids == start.panel.ids
    assert np.array_equal(model.values.edges, start.values.edges)
    mine, theirs = model.network.state_dict(), start.network.state_dict()
    for name in ("encoder.layers.1.feed_forward_in.weight", "embedding.identity.weight"):
        assert torch.equal(mine[f"encoder_part.{name}"], theirs[f"encoder_part.{name}"])


def test_another_shape_than_that_of_the_initial_model_is_refused(pretrained):
    preset = classifier(model__start_from=str(pretrained), model__layers=3)
    with pytest.raises(ConfigurationError, match=r"model\.layers = 3 \(2 there\)"):
        take_shape_of_start(preset)


def test_embeddings_are_matched_by_name_where_values_differ(pretrained, tiny_store):
    preset = classifier(
        "sex", model__start_from=str(pretrained), of__positive="female", of__given=["tissue"]
    )
    model = build_model(take_shape_of_start(preset).preset, tiny_store, name="x")
    start = CellModel.load(pretrained / "model")
    ours, theirs = model.config.tokens, start.config.tokens
    assert model.config.phenotypes["sex"] == ["female", "not female"]
    table = "encoder_part.embedding.value.weight"
    mine, other = model.network.state_dict()[table], start.network.state_dict()[table]
    sex, their_sex = int(ours.not_specified[0]), int(theirs.not_specified[0])
    female = start.config.phenotypes["sex"].index("female")
    assert torch.equal(mine[sex + 1], other[their_sex + 1 + female])
    assert not (other == mine[sex + 2]).all(dim=1).any(), "'not female' is new"
    tissue, their_tissue = int(ours.not_specified[1]), int(theirs.not_specified[1])
    n_tissues = len(start.config.phenotypes["tissue"])
    assert torch.equal(
        mine[tissue : tissue + n_tissues + 1], other[their_tissue : their_tissue + n_tissues + 1]
    )


# ------------------------------------------------------------------------------ whose cells
def test_one_value_against_the_rest_leaves_missing_labels_missing(tiny_store):
    seen = OneVsRest(tiny_store, "tissue", "Lung")  # as `--label` would spell it
    values = tiny_store.phenotypes["tissue"]
    assert seen.phenotypes["tissue"] == ["lung", "not lung"]
    assert seen.phenotypes["cell_type"] == tiny_store.phenotypes["cell_type"]
    before, after = np.asarray(tiny_store.phenotype_codes), np.asarray(seen.phenotype_codes[:])
    lung = values.index("lung")
    assert np.array_equal(after[:, 1] == 0, before[:, 1] == lung)
    assert np.array_equal(after[:, 1] < 0, before[:, 1] < 0)
    assert np.array_equal(np.delete(after, 1, axis=1), np.delete(before, 1, axis=1))
    rows = np.array([3, 1, 7])
    assert np.array_equal(seen.phenotype_codes[rows, 1], after[rows, 1])
    assert np.array_equal(seen.where("tissue=blood"), tiny_store.where("tissue=blood"))


def test_one_vs_rest_trains_and_predicts(tiny_store, tmp_path):
    preset = classifier("tissue", of__positive="lung", **SHORT)
    result = train(preset, tiny_store, tmp_path / "run")
    model = CellModel.load(result.model)
    predicted = predict_phenotypes(model, tiny_store, tiny_store.rows("test")[:5])
    assert {name: part.shape for name, part in predicted.items()} == {"tissue": (5, 2)}
    report, _ = evaluate_held_out(
        model, tiny_store, "test", loss=preset.preset.loss, baselines=("majority",)
    )
    assert report.phenotypes["tissue"]["model"].values == ("lung", "not lung")
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert "A classifier of single cells by tissue (lung or not lung)" in card
    assert "predicted: tissue; shown, where known: none" in card
    assert "Generated cells" not in card


def test_a_balanced_epoch_has_as_many_cells_of_each_value(tiny_store):
    preset = classifier(of__sampling="balanced").preset
    rows = tiny_store.rows("train")
    cells = RunCells.of(preset, tiny_store)
    draw = balanced_epochs(preset, cells)
    first, second = draw(0), draw(1)
    codes = np.asarray(tiny_store.phenotype_codes[first, 2])
    counts = np.bincount(codes)
    assert len(first) == len(rows)
    assert counts.max() - counts.min() <= 1
    assert np.all(np.diff(first) >= 0)
    assert np.array_equal(first, draw(0))
    assert not np.array_equal(first, second)
    assert balanced_epochs(classifier().preset, cells) is None


def test_cells_without_a_label_are_left_out(tiny_store, monkeypatch, tmp_path):
    codes = np.array(tiny_store.phenotype_codes)
    codes[::3, 2] = -1
    monkeypatch.setattr(tiny_store, "phenotype_codes", codes)
    train(classifier(**SHORT), tiny_store, tmp_path / "run")
    card = CellModel.load(tmp_path / "run/model").reference
    assert card.counts.sum() == (codes[tiny_store.rows("train"), 2] >= 0).sum()


# ------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model__head": "joint"}, "use model.head = 'split'"),
        ({"of__encoder": "frozen"}, "name it as model.start_from"),
        ({"of__encoder": "lora"}, "name it as model.start_from"),
        ({"of__sampling": "balanced", "train__tokens_per_batch": 4096}, "give train.batch_size"),
    ],
)
def test_contradictions_are_refused_before_cells_are_read(options, said):
    with pytest.raises(ConfigurationError, match=said):
        check_preset(classifier(**options).preset)


def test_lora_without_peft_says_what_to_install(pretrained, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    preset = classifier(model__start_from=str(pretrained), of__encoder="lora")
    with pytest.raises(MachineError, match=r"pip install 'transformerics\[lora\]'"):
        check_preset(take_shape_of_start(preset).preset)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"column": "tissue", "of__positive": "lungs"}, "did you mean 'lung'"),
        ({"column": "bulk_labels"}, "is no phenotype of"),
        ({"of__given": ["tisue"]}, "did you mean 'tissue'"),
    ],
)
def test_what_the_cells_do_not_have_is_refused(options, said, tiny_store, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        train(classifier(**options), tiny_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cells_of_one_value_are_refused(tiny_store, tmp_path):
    with pytest.raises(DataError, match="a classification needs two"):
        train(classifier("tissue", data__where=["tissue=lung"]), tiny_store, tmp_path / "run")


def test_metrics_of_a_run_name_accuracy_and_macro_f1(pretrained, tiny_store, tmp_path):
    train(classifier(**SHORT), tiny_store, tmp_path / "run")
    last = [r for r in RunReader(tmp_path / "run").metrics() if r["split"] == "validation"][-1]
    assert {"acc/cell_type", "f1/cell_type"} <= last.keys()
    record = json.loads((tmp_path / "run/model/config.json").read_text(encoding="utf-8"))
    assert record["classified"] == "cell_type"


def test_the_summary_of_a_model_is_taken_gene_by_gene(tiny_store, tmp_path):
    train(tiny_preset(**SHORT, model__cell_summary=True), tiny_store, tmp_path / "first")
    start = CellModel.load(tmp_path / "first/model")
    fewer = start.panel.take(range(4, 32))  # as of cells that lack four of the genes
    preset = take_shape_of_start(
        classifier(model__start_from=str(tmp_path / "first"), model__cell_summary=True)
    ).preset
    model = build_model(preset, tiny_store, name="x")
    model.panel, model.network = (
        fewer,
        type(model.network)(type(model.config)(**(model.config.to_diff_dict() | {"n_genes": 28}))),
    )
    taken = _translated(start, model)["encoder_part.embedding.summary.weight"]
    table = start.network.state_dict()["encoder_part.embedding.summary.weight"]
    assert torch.equal(taken, table[4 * 10 :])
