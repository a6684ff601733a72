"""Hours of work on a bad machine: training, stopping, going on, generating, scoring, with faults.

    python benchmarks/soak.py                       an hour
    python benchmarks/soak.py --minutes 5 --seed 1
    python benchmarks/soak.py --quick --json        one cycle of few faults; last line a JSON object
    python benchmarks/soak.py --pairs 200           only two trainings at once, as often as that

Each cycle trains a run from its beginning to its end through random faults, then generates (killed
half-way, and again), scores, and lists it. The faults: SIGKILL and SIGTERM at any moment, SIGKILL inside
the write of a checkpoint, a disk that takes no more bytes of a file, lines and files torn after a crash,
a clock that jumps by up to a year either way, calls of the file system that fail now and then. A store
with changed or missing bytes must be refused, or trained on as if it were whole. Two trainings of one
preset, begun at the same moment, must become two runs, or one where the name was given. Then weights,
optimiser, model, history and cells are held, byte by byte, against those of a run that nobody disturbed.
No command may end in a traceback or an exit code that is not its own.

Every command is a fork of one process that has imported everything and computed nothing, so that an
hour holds hundreds of faults. Linux only.
"""

import argparse
import errno
import faulthandler
import fcntl
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from kill_loop import MOMENTS, contents  # noqa: E402 - beside this file

PRESET = """\
[data]
files = "builtin:atlas?cells=600&seed=0"
genes = 32
[encoding]
bins = 6
edges = "gene_quantile"
threshold = 0.0
[masking]
genes = "uniform"
[model]
layers = 1
hidden_size = 32
heads = 4
log_linear = {log_linear}
log_linear_rank = 8
[train]
max_steps = {steps}
batch_size = 16
eval_steps = 20
eval_cells = 40
save_steps = 8
log_steps = 4
device = "cpu"
precision = "fp32"
[generate]
steps = 4
"""
#: Exit codes that tell of a fault in the user's words; any other is a finding.
EXPECTED = {
    "kill": {-signal.SIGKILL, 0},
    "write": {-signal.SIGKILL, 0},
    "term": {75, 130, 0, -signal.SIGTERM},  # before the command listens, nothing is there to save
    "disk": {0, 3, -signal.SIGKILL},
    "torn": {-signal.SIGKILL, 0},
    "clock": {-signal.SIGKILL, 0},
    "files": {0, 1, 2, 3, 4},  # whatever the call was for, in a sentence
    "store": {0, 4},
    "none": {0},
    "refused": {0, 2, 3},  # one of two that were given the same name
}
FAULTS = ("kill", "write", "term", "disk", "torn", "clock", "files")
GENERATE = ("generate", "--sex", "female", "-n", "300", "--seed", "7")
#: A command hangs that takes longer, unless it computes: less processor time than this in that time means that it waits.
_PATIENCE, _MOST_PATIENCE = 120.0, 900.0
_WAITS = 0.5
#: Bytes that a command may print: a list of runs is longer after an hour than a pipe holds by default.
_MOST_PRINTED = 2**20


class Soak:
    """One folder, in which runs are trained and disturbed."""

    def __init__(self, folder: Path, *, steps: int, seed: int, log_linear: bool) -> None:
        self.folder, self.steps = folder, steps
        self.rng = random.Random(seed)
        self.listen = -1
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        #: Runs that trained on a full disk, which may cost them lines of metrics (docs/run-format.md).
        self.filled: set[str] = set()
        text = PRESET.format(steps=steps, log_linear=str(log_linear).lower())
        (folder / "soak.toml").write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------------- commands

    def start(
        self,
        *arguments: str,
        file_limit: int | None = None,
        clock: float = 0.0,
        failing: random.Random | None = None,
    ) -> int:
        """Begin a command in a process of its own; return its number."""
        self.listen, say = os.pipe()  # not a file: the limit on files would silence it
        fcntl.fcntl(say, fcntl.F_SETPIPE_SZ, _MOST_PRINTED)  # read when the command has ended
        child = os.fork()
        if child:
            os.close(say)
            return child
        try:
            code = 99
            os.chdir(self.folder)
            sys.argv = ["tfx", *arguments]
            os.dup2(say, 1)
            os.dup2(say, 2)
            faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if clock:
                real = time.time
                time.time = lambda: real() + clock
            from tfx_cli.app import run

            if failing is not None:
                _let_files_fail(failing)
            code = run(["-q", *arguments])
        except BaseException:  # noqa: BLE001 - told by its traceback, whatever it is
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def finish(
        self,
        child: int,
        fault: str,
        what: str,
        *,
        seconds: float | None = None,
        within: Path | None = None,
    ) -> int:
        """Wait for a command, disturb it after some seconds, and judge how it ended.

        With ``within``, the folder of a run, the seconds count from when its metrics grow: within the
        steps, however long a busy machine takes to start. A fault "write" waits for a checkpoint
        that is being written.
        """
        signals = {"term": signal.SIGTERM}
        growing = within / "metrics.jsonl" if within is not None else None
        before = _size(growing)
        sent = seconds is None or fault in ("none", "disk", "files")
        begun, patience, computed_before = time.monotonic(), _PATIENCE, 0.0
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            passed = time.monotonic() - begun
            if growing is not None and _size(growing) > before:
                begun, passed, growing = time.monotonic(), 0.0, None
            due = not sent and growing is None and passed > (seconds or 0.0)
            if due and (fault != "write" or any(within.glob(MOMENTS["checkpoint"]))):
                os.kill(child, signals.get(fault, signal.SIGKILL))
                sent = True
            if passed > patience:
                computed = sum(psutil.Process(child).cpu_times()[:2])
                patience += _PATIENCE
                if computed - computed_before < _WAITS or patience > _MOST_PATIENCE:
                    os.kill(child, signal.SIGUSR2)  # prints the stack of every thread
                    time.sleep(1.0)
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    stack = "\n".join(self.said().splitlines()[-60:])
                    self.findings.append(f"{what} under {fault} hung for {passed:.0f} s: {stack}")
                    return -signal.SIGKILL
                computed_before = computed
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        said = self.said()
        if code not in EXPECTED[fault] or "Traceback" in said or "this is a fault of tfx" in said:
            self.findings.append(f"{what} under {fault} ended with {code}: {said.strip()[-400:]}")
        if fault not in ("none", "refused"):
            self.counts[fault] += 1
            self.endings[f"{what}, {fault}: {code}"] += 1
        return code

    def said(self) -> str:
        """What the last command printed; it has ended."""
        with os.fdopen(self.listen, "rb") as pipe:
            return pipe.read(_MOST_PRINTED).decode(errors="replace")

    def do(self, *arguments: str) -> None:
        """Run a command that nobody disturbs."""
        self.finish(self.start(*arguments), "none", " ".join(arguments[:2]))

    # ------------------------------------------------------------------------- training

    def status(self, name: str) -> dict[str, object]:
        from core.runlog.reader import RunReader

        folder = self.folder / "runs" / name
        return RunReader(folder).status if (folder / "run.json").exists() else {}

    def train(self, name: str, n_faults: int) -> None:
        """Train a run through faults, then let it end."""
        for number in range(n_faults):
            fault = FAULTS[number % len(FAULTS)]
            if self.status(name).get("state") == "finished":
                return
            file_limit = self.rng.choice([0, 3_000, 40_000, 150_000]) if fault == "disk" else None
            clock = self.rng.uniform(-1, 1) * 3.2e7 if fault == "clock" else 0.0
            if fault in ("disk", "files"):
                self.filled.add(name)
            failing = random.Random(self.rng.random()) if fault == "files" else None
            if fault == "torn":
                self.tear(name)
            arguments = self.train_arguments(name)
            child = self.start(*arguments, file_limit=file_limit, clock=clock, failing=failing)
            within = fault == "write" or self.rng.random() < 0.75
            self.finish(
                child,
                fault,
                "train",
                seconds=self.rng.uniform(0.0, 0.15 if within else 3.0),
                within=self.folder / "runs" / name if within else None,
            )
        for _ in range(3):  # a disk that was full may have ended the last attempt early
            if self.status(name).get("state") != "finished":
                self.do(*self.train_arguments(name))

    def train_arguments(self, name: str) -> tuple[str, ...]:
        run = self.folder / "runs" / name
        if (run / "run.json").exists():
            return ("train", f"runs/{name}")
        return ("train", "soak.toml", "--run", name)

    def tear(self, name: str) -> None:
        """Leave files as a crash of the machine does: lines cut, a checkpoint's bytes lost."""
        run = self.folder / "runs" / name
        for path in (run / "metrics.jsonl", run / "events.jsonl"):
            if path.exists() and self.rng.random() < 0.7:
                with path.open("ab") as stream:
                    stream.write(b'{"step": 12, "t": 1')
        status = run / "status.json"
        if status.exists() and self.rng.random() < 0.5:
            status.write_bytes(status.read_bytes()[:20])
        saved = sorted((run / "checkpoints").glob("step-*/weights.safetensors"))
        if len(saved) > 1 and self.rng.random() < 0.7:
            os.truncate(saved[-1], saved[-1].stat().st_size // 2)

    # ------------------------------------------------------------------------- two at once

    def train_two(self, number: int) -> None:
        """Begin two trainings of one preset at the same moment, with seeds that tell them apart."""
        is_named = number % 4 == 3
        name = f"pair{number}"
        arguments = ["train", "soak.toml", "--set", "train.max_steps=2", "--set"]
        target = ["--run", name] if is_named else ["--set", f"name={name}"]
        begun = [
            (seed, self.start(*arguments, f"train.seed={seed}", *target), self.listen)
            for seed in (1, 2)
        ]
        codes = []
        for seed, child, listen in begun:
            self.listen = listen
            fault = "refused" if is_named else "none"
            codes.append((self.finish(child, fault, f"train, seed {seed} of two"), seed))
        runs = sorted((self.folder / "runs").glob(f"{name}*"))
        trained = sorted(seed for code, seed in codes if code == 0)
        if len(trained) != 2 - is_named or len(runs) != len(trained):
            self.findings.append(f"{name}: ended with {codes}, and made {[r.name for r in runs]}")
        seeds = [self.seed_of(run) for run in runs]
        if sorted(seeds) != trained:
            self.findings.append(f"{name}: runs of seeds {seeds} were made by {trained}")
        self.counts["two at once"] += 1

    def seed_of(self, run: Path) -> int:
        """Return the seed of a run; -1 if its files are not all of one run of two steps."""
        from core.model.folder import CellModel
        from core.runlog.reader import RunReader, read_values

        reader = RunReader(run)
        said = {int(word.partition("=")[2]) for word in reader.run["argv"] if "seed=" in word}
        said |= {read_values(run)["train.seed"], CellModel.load(run / "model").provenance["seed"]}
        steps = [(line["split"], line["step"]) for line in reader.metrics()]
        starts = [event for event in reader.events() if event["event"] == "start"]
        is_one = len(said) == 1 and len(starts) == 1 and len(steps) == len(set(steps))
        return said.pop() if is_one and reader.status["state"] == "finished" else -1

    # ------------------------------------------------------------------------- a damaged store

    def train_on_damage(self, name: str) -> None:
        """Train on a store with changed or missing bytes: refused, or the run of the whole store."""
        store = next((self.folder / "stores").glob("soak-*/manifest.json")).parent
        path = self.rng.choice([path for path in sorted(store.iterdir()) if path.stat().st_size])
        whole = path.read_bytes()
        changed = bytearray(whole)
        if self.rng.random() < 0.3:
            del changed[self.rng.randrange(len(whole)) :]
        else:
            changed[self.rng.randrange(len(whole))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(changed)
        code = self.finish(self.start("train", "soak.toml", "--run", name), "store", "train")
        path.write_bytes(whole)
        runs = self.folder / "runs"
        if code == 0 and contents(runs / name, self.steps) != contents(runs / "whole", self.steps):
            self.findings.append(f"{name}: another run, on a store with a damaged {path.name}")

    # ------------------------------------------------------------------------- what is made of it

    def use(self, name: str, *, disturbed: bool) -> None:
        """Generate cells (killed half-way, on a full disk, and again), score and list the run."""
        out = f"{name}.h5ad"
        arguments = (*GENERATE, "--run", f"runs/{name}", "-o", out)
        if disturbed:
            child = self.start(*arguments)
            self.finish(child, "kill", "generate", seconds=self.rng.uniform(0.05, 0.8))
            if not (self.folder / out).exists():
                child = self.start(*arguments, file_limit=self.rng.choice([0, 2_000, 50_000]))
                self.finish(child, "disk", "generate")
        if not (self.folder / out).exists():
            self.do(*arguments)
        self.do("eval", f"runs/{name}", "--baselines", "none", "--max-cells", "20")
        self.do("runs", "list", "--json")
        self.do("runs", "show", name, "--json")
        self.do("runs", "export", name, "-o", f"{name}.csv")
        self.do("dashboard", "--once", "--json")

    def compare(self, name: str, whole: str) -> None:
        """Hold a disturbed run and its cells against an undisturbed one's."""
        runs = self.folder / "runs"
        state = self.status(name).get("state")
        if state != "finished":
            self.findings.append(f"{name}: is {state}, and not finished")
            return
        one, other = contents(runs / whole, self.steps), contents(runs / name, self.steps)
        if name in self.filled and not _has_only_lines_of(other["metrics"], one["metrics"]):
            self.findings.append(f"{name}: metrics say what no undisturbed run does")
        parts = [part for part in one if part != "metrics" or name not in self.filled]
        self.findings += [f"{name}: {part} differs" for part in parts if one[part] != other[part]]
        if self.cells(name) != self.cells(whole):
            self.findings.append(f"{name}: the generated cells differ")
        left = [path.name for path in (runs / name).rglob("*") if "partial" in path.name]
        if left:
            self.findings.append(f"{name}: {left} was left behind")

    def cells(self, name: str) -> bytes:
        import anndata

        adata = anndata.read_h5ad(self.folder / f"{name}.h5ad")
        return bytes(adata.X.toarray().tobytes() + adata.obs.to_csv().encode())


def _has_only_lines_of(history: bytes, whole: bytes) -> bool:
    """Tell whether every line of a history is one of the whole one."""
    known = json.loads(whole)
    return all(line in known for line in json.loads(history))


def _let_files_fail(rng: random.Random) -> None:
    """Let one in a hundred calls of the file system fail, as on a network that is down for a moment."""

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def of_late(*arguments: Any, **named: Any) -> Any:
            if rng.random() < 0.01:
                code = rng.choice((errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOSPC))
                raise OSError(code, os.strerror(code), str(arguments[0]))
            return call(*arguments, **named)

        return of_late

    for name in ("open", "write", "fsync", "replace", "rename", "mkdir"):
        setattr(os, name, failing(getattr(os, name)))


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments")
    parser.add_argument("--pairs", type=int, help="only so many pairs of trainings at once")
    parser.add_argument("--quick", action="store_true", help="one cycle of one fault of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    # Imported once, before the forks; nothing is computed here.
    import core.evaluation.held_out
    import core.generation.generated_file
    import core.training.engine  # noqa: F401

    deadline = time.monotonic() + 60 * arguments.minutes
    cycles = 0
    with tempfile.TemporaryDirectory() as name:
        quick = (
            arguments.quick or arguments.pairs
        )  # nothing to fit before the first step: most of a short run
        soak = Soak(
            Path(name), steps=200 if quick else 600, seed=arguments.seed, log_linear=not quick
        )
        if not arguments.pairs:
            soak.train("whole", 0)
            soak.use("whole", disturbed=False)
        for number in range(arguments.pairs or 0):
            if not soak.findings:
                soak.train_two(number)
        while (
            not arguments.pairs
            and not soak.findings
            and (cycles == 0 or time.monotonic() < deadline)
        ):
            run = f"run{cycles}"
            soak.train_two(cycles)
            soak.train_on_damage(f"damaged{cycles}")
            soak.train(run, len(FAULTS) if arguments.quick else 4 * len(FAULTS))
            if not soak.findings:
                soak.use(run, disturbed=True)
                soak.compare(run, "whole")
            cycles += 1
            if arguments.quick:
                break
            print(f"cycle {cycles}: {sum(soak.counts.values())} faults, nothing lost", flush=True)
    for ending, number in sorted(soak.endings.items()):
        print(f"{number:5d}  {ending}")
    result = {"cycles": cycles, "faults": dict(soak.counts), "findings": soak.findings}
    told = ", ".join(f"{number} x {fault}" for fault, number in soak.counts.items())
    print(f"{cycles} cycles; {told}: " + ("; ".join(soak.findings) or "nothing lost"))
    if arguments.json:
        print(json.dumps(result))
    return int(bool(soak.findings))


if __name__ == "__main__":
    sys.exit(main())
