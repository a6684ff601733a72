"""Forward and losses of every configuration on tensors without data, which need no GPU.

They have a device and a shape: an operation on two devices raises, and so does whatever a GPU would have to be
waited for (`.item()`, a shape that depends on data). The backward pass needs a GPU: benchmarks/gpu.sh.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.model.attention import resolve_attention
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.losses import cell_loss, masked_loss
from core.presets.schema import LossSettings, MaskingSettings
from core.training.profiling import example_batch

PHENOTYPES = {"sex": ["female", "male"], "tissue": ["lung", "liver", "spleen"]}
EVERY_PART = {"log_linear": True, "log_linear_rank": 4, "library_size": True, "cell_summary": True}
SHAPES = [
    *(
        {"kind": kind, "layout": layout, **parts}
        for kind in ("binary", "binned", "continuous")
        for layout in ("ranked", "expressed")
        for parts in ({}, EVERY_PART)
        if not (kind == "continuous" and parts)
    ),
    *({"kind": kind, "head": "joint"} for kind in ("binary", "binned")),
    {"layers": 0, **EVERY_PART, "cell_summary": False},
    {"norm": "pre", "activation": "geglu", "initial_weights": "fan_in", "library_size": True},
    {"cell_states": 3, **EVERY_PART},
    {"attention": "eager", "attention_dropout": 0.1, "layout": "expressed"},
    {"cls_reconstruction": True, "cls_contrast": True},
    {"cls_reconstruction": True, "cls_contrast": True, "context_genes": 5, **EVERY_PART},
    {"encoder": "pooled", **EVERY_PART, "cell_summary": False},
    {"phenotypes": {}, **EVERY_PART},
]


@pytest.fixture(params=["meta", "cuda"])
def device(request):
    """Return a device without a GPU: tensors without data, or fake CUDA ones where torch was built with CUDA.

    A build for CPUs alone refuses fake CUDA tensors at the first index; "meta" is what it has instead.
    """
    if request.param == "meta":
        yield "meta"
        return
    if not torch.backends.cuda.is_built():
        pytest.skip("this build of torch has no CUDA, and refuses to index its fake tensors")
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield "cuda"


def config_of(kind="binned", layout="ranked", phenotypes=PHENOTYPES, **settings):
    shape = {"layers": 2, "hidden_size": 16, "heads": 2, "intermediate_size": 32, "dropout": 0.1}
    return TfxConfig(
        **shape | {"attention": "sdpa", "n_genes": 12, "longest_sequence": 16} | settings,
        n_bins=5 if kind == "binned" else 2,
        kind=kind,
        layout=layout,
        phenotype_names=list(phenotypes),
        phenotype_values=list(phenotypes.values()),
    )


def on_device(config, device):
    """Return a network and a batch of three cells on a device."""
    with torch.device(device):
        network = TfxModel(config).train()
        network.start()
    cpu, ragged = torch.device("cpu"), config.layout == "expressed"
    kind = {"device": cpu, "dtype": torch.float32, "dropout": config.attention_dropout}
    network._route = resolve_attention(config.attention, **kind, ragged=ragged)
    lengths = np.array([9, 12, 14]) if config.layout == "expressed" else np.array([16])
    masking = MaskingSettings(genes="uniform", phenotypes=0.5)
    batch = example_batch(config, masking, lengths, 4)
    return network, BatchTensors.on_host(batch).to(device)


@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda shape: " ".join(map(str, shape.values())) or "-"
)
def test_a_step_mixes_no_devices_and_waits_for_none(device, shape):
    config = config_of(**shape)
    network, batch = on_device(config, device)
    output = network(batch)
    for weights, weighting in (
        (None, "mean"),
        (torch.ones(sum(config.phenotype_sizes), device=device), "rate"),
    ):
        loss = LossSettings(weighting=weighting)
        logits = output.gene_logits, output.phenotype_logits
        total = masked_loss(*logits, batch, config, loss, weights).total
        total = total + cell_loss(output.cells, batch, config, loss)
        assert total.device.type == device
        assert total.shape == ()
        assert total.requires_grad
    network.eval()
    with torch.inference_mode():
        assert network(batch).gene_logits.device.type == device


@pytest.mark.parametrize(
    "loss", [{"kind": "gaussian"}, {"smoothing": 0.1, "phenotype_smoothing": 0.1}]
)
def test_every_loss_is_computed_on_the_device(device, loss):
    config = config_of()
    network, batch = on_device(config, device)
    output, settings = network(batch), LossSettings(**loss)
    logits = output.gene_logits, output.phenotype_logits
    assert masked_loss(*logits, batch, config, settings).total.device.type == device


def test_a_part_on_another_device_and_a_number_on_the_host_are_noticed(device):
    """The tests above can fail."""
    network, batch = on_device(config_of(), device)
    logits = network(batch).gene_logits
    with pytest.raises(Exception, match=r"item|data-dependent|DataDependent"):
        logits.sum().item()
    with pytest.raises(Exception, match=r"nonzero|shape|Dynamic"):
        logits[logits > 0]
    bias = network.encoder_part.gene_bias
    bias.weight = torch.nn.Parameter(torch.zeros(12, 5, device="cpu"))
    with pytest.raises(RuntimeError, match="device"):
        network(batch)
