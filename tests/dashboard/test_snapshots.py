"""Every screen at five sizes and every state at one, letter by letter.

One dashboard is resized: starting one costs more than drawing one.
"""

import json
import time
from functools import partial

from tests.dashboard import run_states
from tests.dashboard.conftest import SIZES, is_kept, settled, shown, text_of
from tests.dashboard.run_states import N_STEPS, train_line, write_model, write_state
from tfx_cli.dashboard import start_screen
from tfx_cli.dashboard.base_screen import OpenRun


def _nan_loss(root):
    lines = [train_line(step) for step in range(5, 305, 5)]
    for line in lines[40:44]:
        line["loss"], line["nonfinite"] = None, ["loss"]
    folder = write_state(root, lines=lines)
    with (folder / "events.jsonl").open("ab") as file:
        for step in (205, 210):
            event = {"event": "nonfinite", "t": run_states.NOW - 100, "step": step, "rows": [1]}
            file.write(json.dumps(event).encode() + b"\n")
    return folder


def _torn(root):
    folder = write_state(root)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 305, "t\n[1, 2]\n{"step": 310')
    return folder


STOPPED = {"state": "stopped", "step": 150, "age": 90.0, "checkpoint": "step-00000150"}
STATES = {
    "starting": partial(write_state, state="starting", step=0, lines=[]),
    "running": write_state,
    "stale": partial(write_state, age=40.0),
    "crashed": partial(write_state, age=4000.0),
    "finished": partial(write_state, state="finished", step=N_STEPS, age=500.0, evaluated=True),
    "stopped": partial(write_state, **STOPPED),
    "failed": partial(write_state, state="failed", age=90.0, error="the disk is full"),
    "nan-loss": _nan_loss,
    "no-gpu": partial(write_state, gpu=False),
    "torn": _torn,
}


async def at_sizes(app, pilot, matches, name, sizes=SIZES):
    for width, height in sizes:
        if app.size != (width, height):
            await pilot.resize_terminal(width, height)
        await settled(app, pilot)
        until = time.monotonic() + 5  # a busy machine draws later; what is wrong stays wrong
        while not is_kept(app, name) and time.monotonic() < until:
            await pilot.pause(0.05)
        matches(app, name)


async def test_a_run_in_every_state(runs, open_app, matches):
    for state, make in STATES.items():
        make(runs).rename(runs / state)
    app = open_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        for state in STATES:
            app.post_message(OpenRun(f"runs/{state}"))
            await pilot.pause()
            sizes = SIZES if state == "running" else SIZES[:1]
            await at_sizes(app, pilot, matches, f"run-{state}", sizes)
            if state == "running":
                await pilot.press("space")
                await at_sizes(app, pilot, matches, "run-paused", SIZES[:1])
                await pilot.press("space")
            await pilot.press("escape")


async def test_panes_of_a_run(runs, open_app, matches):
    write_state(runs, state="finished", step=N_STEPS, age=500.0, evaluated=True)
    app = open_app("mine")
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        for pane in "234567":
            await pilot.press(pane)
            if pane == "2":
                await pilot.press("down")
            await at_sizes(app, pilot, matches, f"pane-{pane}")


async def test_runs_of_all_kinds(runs, open_app, matches):
    for number, make in enumerate(STATES.values()):
        folder = make(runs)
        folder.rename(runs / f"run-{number}")
    (runs / "foreign").mkdir()
    (runs / "foreign" / "run.json").write_text("[1, 2")
    (runs / "newer").mkdir()
    (runs / "newer" / "run.json").write_text('{"format": 99}')
    app = open_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        await pilot.press("v", "down", "v")
        await at_sizes(app, pilot, matches, "runs")


async def test_no_runs(runs, open_app, matches):
    app = open_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        assert "no runs yet: press n" in text_of(app)
        await at_sizes(app, pilot, matches, "no-runs")
        write_state(runs, state="finished", step=N_STEPS)
        await settled(app, pilot)
        assert app.focused is not None
        assert app.focused.id == "runs"  # keys are for the list, not for its hidden filter


GENERATING = {
    "idle": [],
    "loading": [{"event": "loading"}],
    "drawing": [{"event": "loading"}, {"event": "progress", "id": 1, "done": 50, "total": 200}],
    "result": [{"event": "cells", "id": 1, "cells": 200, "seconds": 1.25,
                "output": "cells.h5ad", "profile": run_states.profile()}],
    "refused": [{"event": "error", "id": 1, "message": "this model knows no sex '[x]'"}],
    "failed": [{"event": "exit", "code": 3, "message": "the generating process ended with exit code 3"}],
}  # fmt: skip


async def test_generating_in_every_state(runs, open_app, matches, monkeypatch):
    write_model(write_state(runs, state="finished", step=N_STEPS))
    app = open_app("mine")
    monkeypatch.setattr(app, "send_to_generator", lambda run, record: None)
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        for state, events in GENERATING.items():
            await pilot.press("c", "right", "right", "down", "right", "right", "right")
            if state != "idle":
                await pilot.press("c")
            for event in events:
                app.screen.take_event("runs/mine", event)
            sizes = SIZES if state == "result" else SIZES[:1]
            await at_sizes(app, pilot, matches, f"generate-{state}", sizes)
            app.screen.is_busy = False
            app.screen.sets.clear()  # the next screen is a new one
            await pilot.press("escape")


async def test_panes_of_generated_cells(runs, open_app, matches, monkeypatch):
    write_model(write_state(runs, state="finished", step=N_STEPS))
    app = open_app("mine")
    monkeypatch.setattr(app, "send_to_generator", lambda run, record: None)
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        await pilot.press("c", "right", "right")
        for number, (key, shift) in enumerate((("c", 0.0), ("f", 0.7)), start=1):
            await pilot.press(key)
            made = run_states.profile(shift)
            made["pairs"] = run_states.pairs(run_states.profile(), shift)
            event = {"event": "cells", "id": number, "cells": 200, "seconds": 1.0,
                     "profile": made}  # fmt: skip
            app.screen.take_event("runs/mine", event)
        for pane in "2345":
            await pilot.press(pane)
            await at_sizes(app, pilot, matches, f"cells-{pane}")


async def test_interactions_of_a_run(runs, open_app, matches):
    folder = write_state(runs, state="finished", step=N_STEPS)
    write_model(folder)
    run_states.write_results(folder)

    app = open_app("mine")
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        await pilot.press("i")
        for pane in "12":
            await pilot.press(pane)
            await at_sizes(app, pilot, matches, f"interactions-{pane}")


async def test_a_new_run(runs, open_app, matches, monkeypatch, tmp_path):
    (tmp_path / "mine.toml").write_text('# My cells.\n[data]\nfiles = ["mine.h5ad"]\n')

    async def forecast(*_):
        return {
            "seconds": {"run": 360.0}, "memory": {"programs": 7.4e8}, "memory_available": 2.3e10,
            "files": {"checkpoints": 3.2e7}, "tokens": {"steps": 3000, "epochs": 10.1},
            "verdict": "ok", "machine": {"device": "cpu"}, "timing": "measured", "notes": [],
        }  # fmt: skip

    monkeypatch.setattr(start_screen, "forecast", forecast)
    monkeypatch.setattr(start_screen, "FORECAST_DELAY", 0.01)
    app = open_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        await settled(app, pilot)
        await pilot.press("n", "down")
        app.screen.query_one("#changes").value = "train.max_steps=500"
        await shown(app, pilot, "about 6 min")
        await at_sizes(app, pilot, matches, "new-run")
        await pilot.press("question_mark")
        await at_sizes(app, pilot, matches, "help")


async def test_a_window_without_room_says_so(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    async with app.run_test(size=(59, 30)) as pilot:
        for size in ((59, 30), (100, 15), (20, 5)):
            await pilot.resize_terminal(*size)
            await settled(app, pilot)
            shown = " ".join(text_of(app).split())
            assert shown.startswith("The dashboard needs 60 columns and 16 rows")
