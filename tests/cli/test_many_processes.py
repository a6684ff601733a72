"""Training in several processes, started by tfx and by accelerate, and killed ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from core.model.encoder import EncoderLayer
from core.runlog import RunReader
from core.training.checkpoints import latest_checkpoint
from core.training.launched import LAUNCHER
from core.training.processes import load_optimiser, load_weights, whole, whole_weights
from tfx_cli import launch

REPOSITORY = Path(__file__).parents[2]
FSDP2 = REPOSITORY / "presets" / "accelerate" / "fsdp2.yaml"


def start(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    stdout, stderr = process.communicate(timeout=240)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stdout, stderr


def losses_of(folder, split):
    return np.array([record["loss"] for record in RunReader(folder).metrics(split)])


@pytest.fixture
def virtual_ranks(tfx, tiny_preset_file, tmp_path):
    """Return the run of two virtual ranks in one process."""
    result = tfx("-q", "train", tiny_preset_file, "--run", "one", "--set", "train.virtual_ranks=2")
    assert result.code == 0, result.stderr
    return tmp_path / "runs" / "one"


#: Loaded by every process at its start, so that the command line itself stays the user's.
_THREADS_AT_THE_END = """
import atexit, sys
from pathlib import Path

@atexit.register
def report():
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in names if "gloo" in name or "store" in name]
    print(f"threads left: {left}" if left else "no thread left", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_two_processes_learn_what_one_does_and_stop_together(
    tfx, virtual_ranks, tiny_preset_file, tmp_path, own_folders, monkeypatch
):
    """Runs of two processes end as that of one; one of them is resumed, and stops at a signal.

    Threads left behind would now and then let a process that is done end as if it had failed.
    """
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_THREADS_AT_THE_END)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2,
              "--main_process_port", 0)  # fmt: skip
    train = ("-m", "tfx_cli", "train", "--processes", 2)
    for name, command in (("launched", (*launch, *train[:3])), ("two", train)):
        code, stdout, stderr = finish(
            start(tmp_path, *command, tiny_preset_file, "--run", name, "--json")
        )
        assert code == 0, stderr
        assert json.loads(stdout)["steps"] == 30  # one result, not two
        assert stderr.count("step 30: validation loss") == 1
        assert stderr.count("no thread left") >= 2
        assert "threads left" not in stderr
        run = tmp_path / "runs" / name
        assert RunReader(run).run["processes"] == 2
        for split in ("train", "validation"):
            expected = losses_of(virtual_ranks, split)
            np.testing.assert_allclose(losses_of(run, split), expected, atol=1e-5, rtol=0)

    process = start(tmp_path, *train, "runs/two", "--steps", 100_000)
    n_bytes = (run / "metrics.jsonl").stat().st_size
    while process.poll() is None and (run / "metrics.jsonl").stat().st_size == n_bytes:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, stdout, stderr = finish(process)
    assert (code, stdout) == (75, ""), stderr
    assert stderr.count("checkpoint saved; 'tfx train runs/two' continues from there") == 1
    assert "threads left" not in stderr
    step = int(latest_checkpoint(run / "checkpoints").name.removeprefix("step-"))
    on = tfx("train", "runs/two", "--steps", step + 3, "--json")
    assert on.code == 0, on.stderr
    assert on.json["steps"] == step + 3
    refused = tfx("-q", "train", "runs/two", "--set", "train.virtual_ranks=1", "--steps", step + 9)
    assert "its train.virtual_ranks = 2, not 1" in refused.stderr


@pytest.mark.slow
def test_a_fault_of_all_processes_is_told_once(tiny_preset_file, tmp_path):
    process = start(
        tmp_path, "-m", "tfx_cli", "train", tiny_preset_file, "--processes", 2,
        "--set", "train.batch_size=31",
    )  # fmt: skip
    code, _, stderr = finish(process)
    assert code == 2
    assert [line for line in stderr.splitlines() if line.startswith("Error:")] == [
        "Error: train.batch_size = 31 cells cannot be shared equally by 2 virtual ranks; give a multiple of 2"
    ]


# ---------------------------------------------------------------------------------- launching
def test_only_the_launcher_starts_processes(tfx, tiny_preset_file, monkeypatch):
    launched = []
    monkeypatch.setattr(
        "tfx_cli.train_command.launch", lambda *arguments: launched.append(arguments) or 7
    )
    arguments = ["train", str(tiny_preset_file), "--processes", "2", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["tfx", *arguments])
    assert tfx(*arguments).code == 7
    assert launched == [(arguments, 2)]
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    result = tfx(*arguments, "--set", "train.batch_size=31")
    assert (result.code, len(launched)) == (2, 1)


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [([0, 0], 0), ([75, 75], 75), ([2, 2], 2), ([1, 4], 4), ([0, 3], 3), ([-9, -9], 1)],
)
def test_the_exit_code_is_that_of_whoever_knows_why(monkeypatch, tmp_path, codes, wanted):
    """The second process ends first; the first, if it fails by that, knows nothing."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"code = {codes}[int(os.environ['RANK'])]\n"
        "time.sleep(0.5 if os.environ['RANK'] == '0' else 0)\n"
        "os.kill(os.getpid(), 9) if code < 0 else sys.exit(code)\n"
    )
    popen = subprocess.Popen

    def run_script(_, **options):
        return popen([sys.executable, script], **options)

    monkeypatch.setattr(launch.subprocess, "Popen", run_script)
    assert launch.launch([], 2) == wanted


def test_a_process_notices_that_its_launcher_has_died(monkeypatch):
    assert not launch.launcher_is_gone()
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert not launch.launcher_is_gone()
    monkeypatch.setenv(LAUNCHER, "1" if os.getppid() != 1 else "2")
    assert launch.launcher_is_gone()


# ------------------------------------------------------------------------------------- FSDP 2
@pytest.mark.slow
def test_the_configuration_for_fsdp2_is_one_and_names_our_layers(tmp_path):
    """What accelerate makes of our file, told by the process that it launches."""
    script = tmp_path / "tells.py"
    script.write_text(
        "import json, os\n"
        "from accelerate.utils import FullyShardedDataParallelPlugin\n"
        "plugin = FullyShardedDataParallelPlugin()\n"
        "if os.environ['RANK'] == '0':\n"
        "    print(json.dumps([os.environ['ACCELERATE_USE_FSDP'], os.environ['WORLD_SIZE'],\n"
        "        plugin.fsdp_version, plugin.reshard_after_forward,\n"
        "        plugin.transformer_cls_names_to_wrap]))\n"
    )
    process = start(
        tmp_path, "-m", "accelerate.commands.launch", "--config_file", FSDP2,
        "--main_process_port", 0, script,
    )  # fmt: skip
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert json.loads(stdout) == ["true", "2", 2, True, [EncoderLayer.__name__]]


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_weights_and_optimiser_are_saved_whole_and_come_back(one_process_group):
    """What a checkpoint holds is the same with and without shards, and either loads the other."""

    def learnt(*, sharded):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        mesh = dist.init_device_mesh("cpu", (1,))
        if sharded:
            fully_shard(network[0], mesh=mesh)
            fully_shard(network, mesh=mesh)
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(3):
            network(torch.arange(8.0).reshape(2, 4)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return network, optimiser

    plain, sharded = learnt(sharded=False), learnt(sharded=True)
    states = [(whole_weights(n), whole(o.state_dict())) for n, o in (plain, sharded)]
    for other in states[1][0].values():
        assert type(other) is torch.Tensor
    torch.testing.assert_close(states[1], states[0])
    for (network, optimiser), (weights, state) in zip((plain, sharded), states[::-1], strict=True):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        load_weights(network, weights)
        load_optimiser(optimiser, state)
        torch.testing.assert_close(whole_weights(network), weights)
        torch.testing.assert_close(whole(optimiser.state_dict()), state)
