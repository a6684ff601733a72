"""Counted without data, beside what autograd really keeps of the same step."""

import numpy as np
import pytest
import torch

from core.encoding.values import ValueEncoder
from core.model.attention import resolve_attention
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.losses import masked_loss
from core.training.machine import Machine
from core.training.profiling import activation_bytes, batch_activation_bytes, example_batch
from core.training.run_setup import make_config
from tests.tiny_atlas import tiny_preset

PHENOTYPES = {"sex": ["f", "m"], "cell_type": [str(number) for number in range(20)]}
N_GENES = 300
RAGGED = {"encoding__layout": "expressed"}
RAGGED_CASES = ("expressed", "padded in buckets")
CASES = {
    "ranked": {},
    "short cells, whose weights are kept": {"data__genes": 60},
    "wide": {"model__hidden_size": 256, "model__layers": 1},
    "without dropout": {"model__dropout": 0.0},
    "expressed": RAGGED,
    "bf16": {"train__precision": "bf16"},
    "bf16, expressed": RAGGED | {"train__precision": "bf16"},
    "padded in buckets": RAGGED | {"model__attention": "sdpa"},
    "written out, with dropout": {"model__attention": "eager", "model__attention_dropout": 0.1},
    "pre-norm, gated": {"model__norm": "pre", "model__activation": "geglu"},
    "numbers": {"encoding__kind": "continuous"},
    "joint head": {"model__head": "joint"},
    "log_linear": {"model__log_linear": True, "masking__genes": "uniform"},
}


def described(n_cells=12, **options):
    """Return the arguments of both ways of counting."""
    preset = tiny_preset(**{"data__genes": N_GENES, "model__hidden_size": 64, **options}).preset
    values = ValueEncoder(preset.encoding.kind, np.linspace(0.1, 8, preset.encoding.bins - 1))
    config = make_config(preset, PHENOTYPES, n_genes=preset.data.genes, values=values)
    machine = Machine("cpu", "bf16" if preset.train.precision == "bf16" else "no")
    ragged = preset.encoding.layout == "expressed"
    route = resolve_attention(
        preset.model.attention,
        device=torch.device("cpu"),
        dtype=machine.dtype,
        dropout=preset.model.attention_dropout,
        ragged=ragged,
    )
    lengths = np.arange(40, N_GENES) if ragged else np.array([preset.data.genes + 5])
    batch = example_batch(config, preset.masking, lengths, n_cells)
    return config, preset.loss, machine, route, batch


def really_kept(config, loss, machine, batch):
    network = TfxModel(config)
    network.start()
    network.train()
    own = {p.data_ptr() for p in (*network.parameters(), *network.buffers())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tensors = BatchTensors.from_arrays(batch)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=machine.precision == "bf16"):
            output = network(tensors)
        total = masked_loss(
            output.gene_logits, output.phenotype_logits, tensors, config, loss
        ).total
    total.backward()
    return sum(kept.values())


@pytest.mark.parametrize("case", CASES)
def test_what_is_counted_is_what_is_kept(case):
    config, loss, machine, route, batch = described(**CASES[case])
    counted = batch_activation_bytes(config, loss, machine, route, batch)
    assert counted == pytest.approx(really_kept(config, loss, machine, batch), rel=0.02)


def test_a_pooled_encoder_is_counted_without_knowing_which_genes_are_expressed():
    options = {"model__encoder": "pooled", "model__log_linear": True, "model__log_linear_rank": 0}
    config, loss, machine, route, batch = described(masking__genes="uniform", **options)
    counted = batch_activation_bytes(config, loss, machine, route, batch)
    kept = really_kept(config, loss, machine, batch)
    assert kept <= counted < 1.5 * kept


def test_more_layers_and_cells_keep_more_but_more_weights_do_not():
    one = batch_activation_bytes(*described(model__layers=1))
    two = batch_activation_bytes(*described(model__layers=2))
    three = batch_activation_bytes(*described(model__layers=3))
    assert three - two == pytest.approx(two - one, rel=0.01)
    assert batch_activation_bytes(*described(24)) == pytest.approx(
        2 * batch_activation_bytes(*described(12)), rel=0.05
    )


def test_a_gpu_is_foreseen_where_there_is_none():
    """Its kernels keep no attention weights, whatever the dropout; the eager route does."""
    config, loss, _, _, batch = described(model__dropout=0.0)
    for precision in ("no", "bf16"):
        machine = Machine("cuda", precision)
        route = resolve_attention(
            "sdpa", device=torch.device("cuda"), dtype=machine.dtype, dropout=0.0, ragged=True
        )
        plain = batch_activation_bytes(config, loss, machine, route, batch)
        config.attention_dropout = 0.1
        assert batch_activation_bytes(config, loss, machine, route, batch) == plain
        eager = resolve_attention(
            "eager", device=torch.device("cuda"), dtype=machine.dtype, dropout=0.1, ragged=True
        )
        weights = config.layers * config.heads * 12 * (N_GENES + 5) ** 2
        kept = batch_activation_bytes(config, loss, machine, eager, batch)
        assert kept - plain > weights * machine.dtype.itemsize
        config.attention_dropout = 0.0


@pytest.mark.parametrize("case", ["ranked", "expressed", "bf16", "padded in buckets"])
@pytest.mark.parametrize("n_cells", [300, 100.5, 1])
def test_cells_that_are_not_counted_add_as_much_as_those_that_are(case, n_cells, monkeypatch):
    monkeypatch.setattr("core.training.profiling._COUNTED_TOKENS", 20_000)
    monkeypatch.setattr("core.training.profiling.KEPT_BYTES", 2**20)
    options = CASES[case] | {"masking__genes": 0.15}
    config, _, machine, route, batch = described(round(n_cells), **options)
    preset = tiny_preset(**options).preset
    lengths = np.arange(40, N_GENES) if case in RAGGED_CASES else np.array([N_GENES + 5])
    forecast = activation_bytes(preset, config, machine, route, lengths, n_cells)
    every_one = batch_activation_bytes(config, preset.loss, machine, route, batch)
    assert forecast == pytest.approx(every_one, rel=0.03)


def test_attention_weights_are_kept_up_to_a_limit(monkeypatch):
    """Both the kernel and its replacement."""
    config, loss, machine, route, batch = described()
    every_one = batch_activation_bytes(config, loss, machine, route, batch)
    for module in ("core.model.attention", "core.training.profiling"):
        monkeypatch.setattr(f"{module}.KEPT_BYTES", 2**20)
    some = batch_activation_bytes(config, loss, machine, route, batch)
    assert some < every_one - 2**20
    assert some == pytest.approx(really_kept(config, loss, machine, batch), rel=0.1)
