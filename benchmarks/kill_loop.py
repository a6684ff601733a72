"""A run killed again and again, at random moments, ends with the weights of one never killed.

    python benchmarks/kill_loop.py                 30 kills, about six minutes on two cores
    python benchmarks/kill_loop.py --quick --json  6 kills; last line one JSON object

Every attempt is a process of its own, ended by SIGKILL: a third of them at any moment (starting,
fitting, training, evaluating), a third inside the write of a checkpoint (its temporary folder was
just seen), a third inside the write of the model folder. Then the run may finish, and its weights,
its model folder and its metrics are compared byte by byte with those of a run of the same preset that
nobody disturbed. Ends with 1 where they differ.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRESET = """\
[data]
files = "builtin:atlas?cells=2000&seed=0"
genes = 64
[encoding]
layout = "{layout}"
[masking]
genes = "uniform"
[model]
layers = 2
hidden_size = 32
heads = 4
[train]
max_steps = {steps}
batch_size = 16
learning_rate = 1e-3
ema = 0.99
eval_steps = 25
eval_cells = 64
save_steps = 10
log_steps = 10
device = "cpu"
precision = "fp32"
"""
#: What tells the time, and no two runs alike.
CLOCKS = {"t", "cells_per_second", "tokens_per_second", "wait", "mfu"}
MOMENTS = {"any": None, "checkpoint": "checkpoints/.step-*.partial-*", "model": ".model.*"}


def start(folder: Path, target: str, *options: str) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tfx_cli", "-q", "train", target, *options],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"training ended with {process.returncode}: {errors.decode()}")


def kill(process: "subprocess.Popen[bytes]", run: Path, moment: str, rng: random.Random) -> str:
    """Kill a process at a moment of a kind; say where it was, or "finished" if it was faster."""
    pattern, metrics = MOMENTS[moment], run / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + 60
    if moment == "any" and rng.random() < 0.3:  # while it starts
        deadline = time.monotonic() + rng.uniform(0.5, 6)
    else:
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.stat().st_size > before:
                break
            time.sleep(0.002)
        deadline = time.monotonic() + rng.uniform(0.0, 1.5)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if pattern is not None:
        seen = False
        while process.poll() is None and not seen:
            seen = next(run.glob(pattern), None) is not None
        time.sleep(rng.uniform(0, 0.004))
    if process.poll() is not None:
        return "finished"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in run.rglob(".*") if "partial" in path.name or "old" in path.name]
    return f"{moment}: {'left ' + left[0].split('-')[0] if left else 'nothing left over'}"


def contents(run: Path, steps: int) -> dict[str, bytes]:
    """What must be equal: weights, optimiser and progress, the model, the history without clocks."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from core.runlog import RunReader

    def plain(value: object) -> object:
        """Bytes of tensors; pickle's own bytes depend on which objects are shared."""
        if torch.is_tensor(value):
            return value.numpy().tobytes().hex()
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)

    checkpoint = run / "checkpoints" / f"step-{steps:08d}"
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    records = RunReader(run).metrics()
    history = [{k: v for k, v in record.items() if k not in CLOCKS} for record in records]
    return {
        "weights": (checkpoint / "weights.safetensors").read_bytes(),
        "optimiser and progress": json.dumps(plain(state)).encode(),
        "model folder": (run / "model" / "model.safetensors").read_bytes(),
        "metrics": json.dumps(history).encode(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=None)
    parser.add_argument("--layout", default="ranked", choices=["ranked", "expressed"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    n_kills = arguments.kills or (6 if arguments.quick else 30)
    steps = 100 * n_kills
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = PRESET.format(steps=steps, layout=arguments.layout)
        (folder / "killed.toml").write_text(text, encoding="utf-8")
        print(f"undisturbed: {steps} steps ...", flush=True)
        finish(start(folder, "killed.toml", "--run", "whole"))
        run, where = folder / "runs" / "parts", []
        while len(where) < n_kills:
            is_begun = (run / "run.json").exists()
            process = (
                start(folder, "runs/parts")
                if is_begun
                else start(folder, "killed.toml", "--run", "parts")
            )
            moment = list(MOMENTS)[len(where) % 3]
            found = kill(process, run, moment, rng)
            process.stderr.close()
            if found == "finished":
                print(f"finished after {len(where)} kills: too few steps for more")
                break
            saved = sorted((run / "checkpoints").glob("step-*"))
            where.append(found)
            last = saved[-1].name if saved else "no checkpoint"
            print(f"kill {len(where):2d}  {found:<36}  goes on from {last}", flush=True)
            if not is_begun and not (run / "run.json").exists() and run.exists():
                for path in run.iterdir():
                    path.unlink()
                run.rmdir()  # nothing but a lock
        else:
            finish(start(folder, "runs/parts"))
        one, other = contents(folder / "runs" / "whole", steps), contents(run, steps)
        differing = [part for part in one if one[part] != other[part]]
    within = sum("nothing" not in found for found in where)
    print(
        f"{len(where)} kills, {within} of them inside a write: "
        + (f"DIFFERENT: {', '.join(differing)}" if differing else "the same to the bit")
    )
    if arguments.json:
        print(json.dumps({"kills": len(where), "inside_writes": within, "differing": differing}))
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
