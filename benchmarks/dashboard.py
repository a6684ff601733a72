"""What the dashboard costs: redraws by number of points, live runs, long lists, its start.

    python benchmarks/dashboard.py [--quick] [--json]

Baselines are the budgets that the design set (1e6 points in 30 ms; 2 Hz over 1e5 records below 10 %
of a core and 150 MB; 50 runs in 1 s; a window in 1 s). Runs are written as training writes them, 1e5 lines of 12 metrics.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from textual.app import App, ComposeResult

import tfx_cli.dashboard
from core.files import write_json
from core.runlog.json_lines import to_line
from tfx_cli.dashboard.curve_view import CurveView
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.workspace import Workspace

PHENOTYPES = ("sex", "tissue", "cell_type", "age", "disease")


def write_run(folder, n_lines, *, now, state="running"):
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"format": 1, "started": now - 100, "device": "cpu"})
    write_json(folder / "status.json", {
        "state": state, "heartbeat": now, "started": now - 100, "step": n_lines * 10,
        "total": n_lines * 10, "host": platform.node(), "pid": 1,
    })  # fmt: skip
    lines = []
    for number in range(1, n_lines + 1):
        step = 10 * number
        record = {
            "step": step, "t": now - n_lines + number, "split": "train",
            "loss": 1 + math.exp(-number / n_lines) + 0.1 * math.sin(number), "lr": 1e-3,
            "loss/genes": 0.7, "loss/phenotypes": 0.4, "grad_norm": 0.3, "mfu": 0.5, "wait": 0.01,
            "cells_per_second": 260.0, "tokens_per_second": 69_000.0, "epoch": number / 100,
        }  # fmt: skip
        lines.append(to_line(record))
        if number % 50 == 0:
            results = {f"acc/{name}": 0.5 + 0.1 * math.sin(number / 500) for name in PHENOTYPES}
            lines.append(to_line({**record, "split": "validation", "acc/genes": 0.7, **results}))
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    write_json(folder / "eval.json", {})
    return folder


class OneCurve(App[None]):
    CSS_PATH = Path(tfx_cli.dashboard.__file__).with_name("styles.tcss")

    def __init__(self, n_points):
        super().__init__()
        x = np.arange(n_points, dtype=float)
        rng = np.random.default_rng(0)
        self.series = [
            Series("train", x, np.exp(-3 * x / n_points) + 0.1 * rng.standard_normal(n_points),
                        0, is_noisy=True)
        ]  # fmt: skip

    def compose(self) -> ComposeResult:
        yield CurveView("loss")


def redraw(n_points, n_times):
    """Return the milliseconds of full redraws at 120 x 40: the least and the median."""
    times = []

    async def run():
        app = OneCurve(n_points)
        async with app.run_test(size=(120, 40)) as pilot:
            view = app.query_one(CurveView)
            for _ in range(n_times):
                view.show(app.series)
                begun = time.perf_counter()
                for row in range(view.size.height):
                    view.render_line(row)
                times.append(1e3 * (time.perf_counter() - begun))
            await pilot.pause()

    asyncio.run(run())
    return {"points": n_points, "least_ms": min(times), "median_ms": statistics.median(times)}


LIVE = """
import asyncio, json, os, sys, time
from pathlib import Path
import psutil
from tfx_cli.dashboard.app import DashboardApp
root, seconds, step = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
app = DashboardApp(root, run=root / "long", refresh=2.0)
async def run():
    async with app.run_test(size=(140, 45)) as pilot:
        begun = time.perf_counter()
        while app.views_taken < 3:
            await asyncio.sleep(0.1)
        opened = time.perf_counter() - begun
        process = psutil.Process()
        file = (root / "long" / "metrics.jsonl").open("ab", buffering=0)
        number, before, wall = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - wall < seconds:
            number += 1
            line = {"step": step + 10 * number, "t": time.time(), "split": "train", "loss": 1.0,
                    "grad_norm": 0.3, "cells_per_second": 260.0}
            file.write(json.dumps(line).encode() + b"\\n")
            await asyncio.sleep(0.25)
        used = (time.process_time() - before) / (time.perf_counter() - wall)
        print(json.dumps({"cpu_share": used, "rss": process.memory_info().rss, "opened_s": opened}))
asyncio.run(run())
"""


def live(root, n_lines, seconds):
    """Watch a run of many lines that grows, at 2 Hz; the writer's cost is included."""
    write_run(root / "long", n_lines, now=time.time())
    done = subprocess.run(
        [sys.executable, "-c", LIVE, str(root), str(seconds), str(10 * n_lines)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"lines": n_lines, **json.loads(done.stdout.splitlines()[-1])}


def listing(root, n_runs, n_lines):
    for number in range(n_runs):
        write_run(root / f"run-{number}", n_lines, now=time.time())
    workspace = Workspace(root)
    begun = time.perf_counter()
    workspace.poll()
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    workspace.poll()
    return {
        "runs": n_runs, "lines_each": n_lines, "first_s": first,
        "again_s": time.perf_counter() - begun,
    }  # fmt: skip


def start(root, n_times):
    """Return the seconds from the command to the first frame, of a folder of one run."""
    times = []
    for _ in range(n_times):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tfx_cli", "dashboard", str(root), "--once", "--svg",
             str(root / "x.svg")],
            check=True, capture_output=True,
        )  # fmt: skip
        times.append(time.perf_counter() - begun)
    return {"least_s": min(times), "median_s": statistics.median(times)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer points and seconds")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    n_lines, seconds = (10_000, 5.0) if arguments.quick else (100_000, 30.0)
    sizes = (1_000, 10_000, 100_000) if arguments.quick else (1_000, 10_000, 100_000, 1_000_000)
    machine = {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "load_average": psutil.getloadavg()[0],
    }  # fmt: skip
    results = {"machine": machine, "redraws": [redraw(size, 15) for size in sizes]}
    print("| points | least | median |\n|---|---|---|")
    for one in results["redraws"]:
        print(f"| {one['points']:,} | {one['least_ms']:.1f} ms | {one['median_ms']:.1f} ms |")
    with tempfile.TemporaryDirectory() as folder:
        results["live"] = live(Path(folder) / "live", n_lines, seconds)
        results["list"] = listing(Path(folder) / "list", 50, n_lines // 10)
        write_run(Path(folder) / "one" / "run", 1_000, now=time.time())
        results["start"] = start(Path(folder) / "one", 5)
    one, many = results["live"], results["list"]
    print(f"\nlive, 2 Hz, {one['lines']:,} lines: {one['cpu_share']:.1%} of a core, "
          f"{one['rss'] / 1e6:.0f} MB, opened in {one['opened_s']:.1f} s")  # fmt: skip
    print(f"{many['runs']} runs of {many['lines_each']:,} lines: {many['first_s']:.2f} s, then "
          f"{many['again_s']:.3f} s")  # fmt: skip
    print(f"command to frame: {results['start']['least_s']:.2f} s at best, median "
          f"{results['start']['median_s']:.2f} s")  # fmt: skip
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
