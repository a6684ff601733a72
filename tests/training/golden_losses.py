"""The losses of the first 50 steps, for every encoding and layout: what no refactor may change.

A file per encoding and layout in ``golden/`` holds the per-step losses of a tiny model on the
simulated atlas, with the CPU and the torch version that gave them. After a change that is meant to
change them, write them anew from the root of the repository, on one machine, and say in the
change's message why they changed::

    python -m tests.training.golden_losses
"""

import json
import platform
import tempfile
from pathlib import Path

import torch

from core.runlog import RunReader
from core.training.engine import train
from tests.tiny_atlas import prepare_tiny_store, tiny_preset

GOLDEN = Path(__file__).with_name("golden")
CASES = [
    (kind, layout)
    for kind in ("binary", "binned", "continuous")
    for layout in ("ranked", "expressed")
]


def golden_file(kind, layout):
    return GOLDEN / f"{kind}-{layout}.json"


def this_machine():
    """Name what decides over the last bits: the CPU, its vector instructions, the torch version.

    Virtual machines hide the CPU's name ("AMD EPYC"), but not its family, model and stepping.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text(encoding="utf-8").partition("\n\n")[0]
        fields = {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in first.splitlines())
        }
        parts = ("model name", "cpu family", "model", "stepping")
        cpu = "/".join(fields.get(part, "") for part in parts)
    return {
        "cpu": cpu,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def run_losses(store, kind, layout, folder):
    """Train 50 steps and return the loss of each, read from metrics.jsonl."""
    resolved = tiny_preset(encoding__kind=kind, encoding__layout=layout)
    train(resolved, store, folder)
    return [record["loss"] for record in RunReader(folder).metrics("train")]


def main():
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = prepare_tiny_store(Path(scratch) / "store")
        torch.set_num_threads(1)  # after ranking the genes, where numba sets another number
        for kind, layout in CASES:
            losses = run_losses(store, kind, layout, Path(scratch) / f"{kind}-{layout}")
            record = this_machine() | {"losses": losses}
            text = json.dumps(record, indent=1) + "\n"
            golden_file(kind, layout).write_text(text, encoding="utf-8")
            print(f"{golden_file(kind, layout).name}: {losses[0]:.6f} ... {losses[-1]:.6f}")


if __name__ == "__main__":
    main()
