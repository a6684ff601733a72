"""Devices and precisions: what is chosen, what is refused."""

import pytest
import torch

from core.errors import MachineError
from core.presets.schema import TrainSettings
from core.training import machine
from core.training.machine import (
    EncoderFlops,
    Machine,
    choose_machine,
    device_peak,
    mean_attended_length,
    peak_flops,
)
from tests.model.examples import make_cell_model


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("device", "precision", "chosen"),
    [
        ("auto", "auto", Machine("cpu", "no")),
        ("cpu", "fp32", Machine("cpu", "no")),
        ("cpu", "bf16", Machine("cpu", "bf16")),
    ],
)
def test_without_a_gpu_the_cpu_is_used(device, precision, chosen):
    assert choose_machine(TrainSettings(device=device, precision=precision)) == chosen


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(MachineError, match=rf"train\.device = '{device}', but this machine has no"):
        choose_machine(TrainSettings(device=device))


@pytest.mark.usefixtures("no_gpu")
def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(MachineError, match=r"train\.precision = 'fp16' needs a CUDA device"):
        choose_machine(TrainSettings(precision="fp16"))


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "no")])
def test_a_gpu_is_used_with_bf16_where_it_has_it(monkeypatch, has_bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert choose_machine(TrainSettings()) == Machine("cuda", precision)
    if not has_bf16:
        with pytest.raises(MachineError, match="this GPU has no bf16; use 'fp16'"):
            choose_machine(TrainSettings(precision="bf16"))


# A 12 x 768 encoder: per layer four d x d projections, two d x 4d products, biases, two norms.
BASE = EncoderFlops(parameters=12 * (12 * 768**2 + 13 * 768), layers=12, width=768)


def test_flops_per_token_are_those_counted_product_by_product():
    length, width, n_layers = 100, 64, 3
    layer_weights = 12 * width**2  # no biases: they multiply nothing
    products = 2 * layer_weights + 2 * 2 * length * width  # and scores, and weighted values
    forward_and_backward = 3 * n_layers * products
    flops = EncoderFlops(parameters=n_layers * layer_weights, layers=n_layers, width=width)
    assert flops.per_token(length) == forward_and_backward


def test_the_last_layer_is_counted_at_the_positions_that_are_read_alone():
    length, width, n_layers, read = 100, 64, 3, 0.25
    whole = 2 * 12 * width**2 + 2 * 2 * length * width
    # keys and values of all tokens; queries, output, feed-forward and attention where a head reads
    last = 2 * 2 * width**2 + read * (2 * 10 * width**2 + 2 * 2 * length * width)
    weights = 12 * width**2
    flops = EncoderFlops(n_layers * weights, n_layers, width, output_parameters=10 * width**2)
    assert flops.per_token(length, read) == 3 * ((n_layers - 1) * whole + last)
    network = make_cell_model("binned", layers=2).network
    found = EncoderFlops.of(network)
    last_layer = network.encoder_part.encoder.layers[-1]
    own = sum(p.numel() for p in last_layer.parameters())
    keys_and_values = 2 * found.width * (found.width + 1)
    assert found.output_parameters == own - keys_and_values


def test_a_bert_base_needs_0_623_gigaflops_per_token_at_1024():
    assert BASE.per_token(1024) == pytest.approx(0.623e9, rel=1e-3)


def test_long_cells_weigh_more_in_the_attended_length():
    assert mean_attended_length([7, 7, 7]) == 7
    assert mean_attended_length([1, 3]) == (1 + 9) / 4
    assert mean_attended_length([]) == 0


def test_utilisation_is_the_share_of_the_peak():
    peak = 989.4e12
    speed = 0.4 * peak / BASE.per_token(1024)
    assert BASE.utilisation(
        tokens_per_second=speed, attended_length=1024, peak=peak
    ) == pytest.approx(0.4)


def test_without_a_known_peak_or_an_encoder_there_is_no_utilisation():
    nothing = EncoderFlops(parameters=0, layers=0, width=64)
    assert BASE.utilisation(tokens_per_second=1e6, attended_length=9, peak=None) is None
    assert nothing.utilisation(tokens_per_second=1e6, attended_length=9, peak=1e12) is None


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4),
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("NVIDIA H100 NVL", "fp16", False, 835.5),
        ("NVIDIA H200", "no", True, 494.7),
        ("NVIDIA H200", "no", False, 67),
        ("NVIDIA GH200 480GB", "bf16", False, 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA L40S", "bf16", False, 362),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2),
        ("Tesla V100-SXM2-32GB", "no", True, 15.7),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name, precision, tf32, teraflops):
    assert peak_flops(name, precision, tf32=tf32) == teraflops * 1e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA A10G", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),
        ("Tesla V100-SXM2-32GB", "bf16"),
        ("", "bf16"),
    ],
)
def test_a_gpu_that_is_not_known_has_no_peak(name, precision):
    assert peak_flops(name, precision) is None


def test_the_peak_of_a_cpu_is_measured_once_and_kept(monkeypatch):
    cpu = torch.device("cpu")
    peak = device_peak(cpu, "no")
    assert peak is not None
    assert 1e8 < peak < 1e16
    assert device_peak(cpu, "no") == peak  # a second measurement would give another figure
    monkeypatch.setattr(machine, "_measure_peak", lambda precision: 0.5 * peak)
    assert device_peak(cpu, "no", again=True) == peak  # slowed by others
    monkeypatch.setattr(machine, "_measure_peak", lambda precision: 2 * peak)
    assert device_peak(cpu, "no") == peak
    assert device_peak(cpu, "no", again=True) == device_peak(cpu, "no") == 2 * peak
    monkeypatch.setattr(machine, "_peaks", {})
    assert device_peak(cpu, "fp16") is None
    assert device_peak(torch.device("meta"), "no") is None
