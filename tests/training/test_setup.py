"""From preset and store to a model: what is fitted, what is refused, what starts where."""

import numpy as np
import pytest
import torch

from core.errors import ConfigurationError, DataError
from core.training.run_setup import class_weights
from core.training.state import make_optimiser
from core.training.virtual_ranks import RunCells
from tests.tiny_atlas import build_model, tiny_preset


def build(store, **options):
    return build_model(tiny_preset(**options).preset, store, name="example")


def training_cells(store, model):
    rows = store.rows("train")
    return store.read(rows, model.panel).toarray(), np.asarray(store.phenotype_codes[rows])


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_every_gene_starts_at_its_training_marginals(tiny_store, kind):
    model = build(tiny_store, encoding__kind=kind)
    expression, _ = training_cells(tiny_store, model)
    bins = model.values.encode(expression)
    counts = np.stack([(bins == b).sum(axis=0) for b in range(model.config.n_bins)], axis=1) + 1
    bias = model.network.encoder_part.gene_bias.weight.detach()
    if kind == "binary":
        bias = torch.cat([torch.zeros_like(bias), bias], dim=-1)
    found = torch.softmax(bias, dim=-1).numpy()
    np.testing.assert_allclose(found, counts / counts.sum(axis=1, keepdims=True), rtol=1e-5)


def test_the_reference_is_that_of_the_training_cells(tiny_store):
    model = build(tiny_store)
    expression, codes = training_cells(tiny_store, model)
    reference = model.reference
    assert reference.counts.sum() == len(codes)
    sex = list(tiny_store.phenotypes).index("sex")
    for code in range(2):
        cells = expression[codes[:, sex] == code]
        np.testing.assert_allclose(reference.means[code], cells.mean(axis=0), rtol=1e-4)
        detected = (model.values.encode(cells) > 0).mean(axis=0)
        np.testing.assert_allclose(reference.detection[code], detected, rtol=1e-5)
        assert reference.n_cells({sex: code}) == len(cells)
    assert (reference.bin_counts.sum(axis=1) == len(codes)).all()


def test_building_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(tiny_store):
    before = torch.get_rng_state()
    one, two = (build(tiny_store).network.state_dict() for _ in range(2))
    other = build(tiny_store, train__seed=1).network.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "encoder_part.embedding.value.weight"
    assert not torch.equal(one[name], other[name])


def test_the_card_and_the_origin_say_that_the_cells_are_simulated(tiny_store):
    assert build(tiny_store).provenance["simulated"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss__kind": "bce"}, r"'bce' does not fit encoding\.kind = 'binned'; use 'label_smoo"),
        ({"loss__kind": "regression"}, "'regression' does not fit"),
        ({"loss__kind": "gaussian", "encoding__kind": "binary"}, "'gaussian' does not fit"),
        ({"loss__kind": "bce", "encoding__kind": "continuous"}, "use 'regression', or 'auto'"),
        (
            {"loss__kind": "label_smoothing", "encoding__kind": "binary"},
            r"needs model\.head = 'joint'; use 'bce'",
        ),
        ({"encoding__max_length": 39}, r"max_length = 39 is too short: 32 genes.*need 40"),
        ({"model__head": "joint", "encoding__kind": "continuous"}, "needs bins"),
        ({"model__log_linear": True, "encoding__kind": "continuous"}, "needs bins"),
        ({"model__layers": 0}, "leaves no model"),
    ],
)
def test_presets_that_contradict_themselves_are_refused(tiny_store, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(tiny_store, **options)


def test_a_store_without_training_cells_is_refused(tiny_store, monkeypatch):
    monkeypatch.setattr(type(tiny_store), "rows", lambda *_: np.zeros(0, np.int64))
    with pytest.raises(DataError, match="no training cells"):
        build(tiny_store)


def test_a_filter_chooses_the_cells_a_model_is_fitted_to(tiny_store):
    preset = tiny_preset(data__where=["sex=female"]).preset
    rows = RunCells.of(preset, tiny_store).training
    assert np.array_equal(rows, tiny_store.select("sex=female", split="train"))
    assert 0 < len(rows) < len(tiny_store.rows("train"))
    model = build_model(preset, tiny_store, name="example")
    assert model.reference.counts.sum() == len(rows)
    assert model.reference.n_cells({0: 1}) == 0
    assert model.provenance["where"] == ["sex=female"]
    assert "where" not in build(tiny_store).provenance
    validation = RunCells.of(tiny_preset().preset, tiny_store).validation
    assert np.array_equal(validation, tiny_store.rows("validation"))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"no train cell matches data\.where = sex=none \(of \d+, 0 match sex=none\)"),
        ("validation", r"choose other cells, or set data\.split\.validation = 0"),
    ],
)
def test_a_filter_that_leaves_no_cell_is_refused(tiny_store, monkeypatch, split, message):
    select = type(tiny_store).select

    def select_here(store, cells, *, split):
        return select(store, cells, split=split) if split == here else store.rows(split)

    here = split
    monkeypatch.setattr(type(tiny_store), "select", select_here)
    with pytest.raises(DataError, match=message):
        RunCells.of(tiny_preset(data__where="sex=none").preset, tiny_store)


def test_a_filter_of_unknown_labels_is_refused_before_training(tiny_store):
    with pytest.raises(
        ConfigurationError, match=r"data\.where tisue=lung: .*did you mean 'tissue'"
    ):
        build(tiny_store, data__where=["tisue=lung"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__genes": 31}, "has other genes than this preset's panel"),
        ({"model__hidden_size": 16}, r"has other shapes than the \[model\] section"),
    ],
)
def test_start_from_a_model_that_does_not_fit_is_refused(tiny_store, tmp_path, options, message):
    build(tiny_store).save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=message):
        build(tiny_store, model__start_from=str(tmp_path / "model"), **options)


def test_balanced_class_weights_are_inverse_frequencies_of_mean_1(tiny_store):
    model = build(tiny_store)
    _, codes = training_cells(tiny_store, model)
    assert class_weights(codes, model.config, "none") is None
    weights = class_weights(codes, model.config, "balanced").numpy()
    first = 0
    for slot, size in enumerate(model.config.phenotype_sizes):
        own = weights[first : first + size]
        known = codes[:, slot][codes[:, slot] >= 0]
        counts = np.bincount(known, minlength=size)
        total = own * counts
        np.testing.assert_allclose(total[counts > 0], len(known) / size, rtol=1e-5)
        if (counts > 0).all():
            assert own[known].mean() == pytest.approx(1.0, rel=1e-5)
        first += size


def test_the_optimiser_decays_matrices_alone_and_knows_every_parameter_once(tiny_store):
    settings = {"train__weight_decay": 0.02, "train__log_linear_learning_rate": 0.007}
    parts = {"model__log_linear": True, "model__library_size": True}
    preset = tiny_preset(**parts, **settings).preset
    model = build_model(preset, tiny_store, name="example")
    groups = make_optimiser(model.network, preset.train).param_groups
    assert [group["weight_decay"] for group in groups] == [0.02, 0.0, 0.3, 0.02]
    assert [group["lr"] for group in groups] == [2e-3, 2e-3, 0.007, 2e-3]
    decayed, plain, log_linear, size = ({id(p) for p in group["params"]} for group in groups)
    named = {n: p for n, p in model.network.named_parameters() if p.requires_grad}
    assert len(decayed) + len(plain) + len(log_linear) + len(size) == len(named)
    for name, parameter in named.items():
        if name.startswith("log_linear"):
            assert id(parameter) in log_linear, name
        elif name.startswith("library_size"):
            assert id(parameter) in size, name
        elif parameter.ndim == 1 or name.endswith(
            (".identity.weight", ".value.weight", "gene_bias.weight")
        ):
            assert id(parameter) in plain, name
        else:
            assert id(parameter) in decayed, name


def test_the_summary_begins_at_components_but_for_a_classifier(tiny_store):
    """A centred start: what the genes of training cells add up to is zero on average, in every place."""

    def mean_summary(**options):
        model = build(tiny_store, model__cell_summary=True, **options)
        expression, _ = training_cells(tiny_store, model)
        bins = model.values.encode(expression)
        table = model.network.encoder_part.embedding.summary.weight.detach().numpy()
        rows = table.reshape(len(model.panel), model.config.n_bins, -1)
        return np.abs(rows[np.arange(len(model.panel)), bins].sum(axis=1).mean(axis=0)).max()

    assert mean_summary() < 1e-4
    classifier = {"train__task": "classification", "classification__column": "cell_type"}
    assert mean_summary(**classifier) > 1e-2
