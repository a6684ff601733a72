"""Devices and precisions: what is chosen, what is refused."""

import pytest
import torch

from core.errors import MachineError
from core.presets.schema import TrainSettings
from core.training.machine import Machine, choose_machine


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
