"""What launchers leave in the environment: one sentence where it makes no sense, and no endless waiting."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from core.errors import ConfigurationError, MachineError
from core.training import processes
from core.training.launched import hidden_variables, launched_process
from core.training.machine import Machine

MEETING = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CPU = Machine("cpu", "no")


@pytest.fixture
def environment(monkeypatch):
    """Set variables, of an environment without any of a launcher."""
    prefixes = ("ACCELERATE_", "OMPI_", "PMI_", "WORLD_", "RANK", "LOCAL_", "MASTER_", "TFX_LAUN")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is not a whole number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE='' in the environment is not a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
        ({"RANK": "1.5"}, "RANK='1.5'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT='99999'"),
        ({"TFX_LAUNCHER": "me"}, "TFX_LAUNCHER='me'"),
        ({"TFX_LAUNCHER": "17"}, "TFX_LAUNCHER in the environment without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "but no RANK and no LOCAL_RANK and no MASTER_ADDR and no MASTER_P"),
        ({"WORLD_SIZE": "2", **MEETING, "MASTER_ADDR": ""}, "but no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", **MEETING, "RANK": "2"}, "RANK=2 in the environment, but WORLD_SIZE"),
        ({"RANK": "1"}, "RANK=1 in the environment, but WORLD_SIZE is 1"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4 in the environment"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2 in the environment"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE='many'"),
    ],
)
def test_variables_that_make_no_sense_are_one_sentence(environment, variables, words):
    environment(**variables)
    with pytest.raises(ConfigurationError) as error:
        launched_process()
    assert words in str(error.value)
    assert "unset" in str(error.value)


def test_one_process_of_a_launcher_is_one_process(environment):
    environment(WORLD_SIZE="1", OMPI_COMM_WORLD_SIZE="1", PMI_SIZE="0", **MEETING)
    environment(LOCAL_RANK="-1")
    process = launched_process()
    assert (process.rank, process.count, process.address) == (0, 1, "")
    with hidden_variables(process):
        assert not {"WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"} & set(os.environ)
    assert os.environ["LOCAL_RANK"] == "-1"


def test_variables_of_mpi_do_not_reach_accelerate_beside_another_launcher(environment):
    environment(WORLD_SIZE="2", OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="3", **MEETING)
    process = launched_process()
    assert (process.rank, process.count, process.address) == (0, 2, "127.0.0.1:29500")
    with hidden_variables(process):
        assert "OMPI_COMM_WORLD_RANK" not in os.environ
        assert os.environ["WORLD_SIZE"] == "2"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.micro_batches"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "train.micro_batches"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "train.precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "train.compile"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:0", "train.device"),
        ("ACCELERATE_USE_CPU", "perhaps", "train.device"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "fsdp2.yaml"),
        ("ACCELERATE_USE_SAGEMAKER", "1", "fsdp2.yaml"),
    ],
)
def test_a_variable_of_accelerate_that_would_change_the_result_is_refused(
    environment, name, value, key
):
    environment(**{name: value})
    with pytest.raises(ConfigurationError) as error:
        processes.check_accelerate_variables(CPU)
    assert f"{name}={value} in the environment" in str(error.value)
    assert key in str(error.value)


def test_what_accelerate_sets_by_default_is_fit_and_recorded(environment):
    defaults = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "false",
    }
    environment(**defaults)
    processes.check_accelerate_variables(CPU)
    assert processes.recorded_variables() == dict(sorted(defaults.items()))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_whose_peers_do_not_come_ends_with_one_sentence(environment, monkeypatch, rank):
    monkeypatch.setattr(processes, "MEETING_SECONDS", 1.0)
    environment(WORLD_SIZE="2", **{**MEETING, "RANK": rank, "MASTER_PORT": free_port()})
    with pytest.raises(MachineError, match=r"the processes did not meet at 127\.0\.0\.1:"):
        processes.meet_processes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_its_peers(number):
    program = (
        "from core.training.processes import meet_processes\n"
        "print('waiting', flush=True)\n"
        "meet_processes()\n"
    )
    variables = {"WORLD_SIZE": "2", **MEETING, "RANK": "1", "MASTER_PORT": free_port()}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.3)
        process.send_signal(number)
        process.wait(timeout=20)
    assert process.returncode == -number


def test_processes_that_come_meet(environment):
    """The other one comes later, in a process of its own."""
    environment(WORLD_SIZE="2", **{**MEETING, "MASTER_PORT": free_port()})
    program = "from core.training.processes import meet_processes; meet_processes()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "RANK": "1", "LOCAL_RANK": "1"}
    ) as other:
        processes.meet_processes()
        assert other.wait(timeout=30) == 0
    processes.leave_processes()
