"""Keys and flows: what a user does, and what then is on the screen or on disk."""

import asyncio
import contextlib
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.widgets import TabbedContent

from core.errors import ConfigurationError, MachineError
from core.files import write_json
from core.progress import ProgressEvent
from core.runlog.work import work_on
from tests.dashboard import run_states
from tests.dashboard.conftest import settled, shown, text_of
from tests.dashboard.run_states import N_STEPS, NOW, write_lines, write_model, write_state
from tfx_cli.dashboard import start_screen
from tfx_cli.dashboard.base_screen import DashboardScreen
from tfx_cli.dashboard.curve_view import SMOOTHING, CurveView
from tfx_cli.dashboard.dialogs import ConfirmDialog, HelpDialog
from tfx_cli.dashboard.generate_screen import GenerateScreen
from tfx_cli.dashboard.interactions_screen import InteractionsScreen
from tfx_cli.dashboard.keymap import KEYS, RESERVED_KEYS, bindings_of, read_key_overrides
from tfx_cli.dashboard.run_screen import RunScreen
from tfx_cli.dashboard.runs_screen import RunsScreen, run_colours
from tfx_cli.dashboard.start_screen import StartScreen, check_preset_values
from tfx_cli.dashboard.token_row import SAMPLED, UNSPECIFIED, TokenRow


@contextlib.asynccontextmanager
async def opened(app, size=(120, 40)):
    """Run the dashboard, and press keys."""
    async with app.run_test(size=size) as pilot:
        await settled(app, pilot)
        await pilot.pause(0.1)  # the first pane announces itself: not after a key was pressed
        yield pilot


def notes_of(app):
    return [note.message for note in app._notifications]


# -- the table of keys
def test_no_screen_has_a_key_twice_or_takes_a_terminals_own():
    for screen in ("runs", "run", "generate", "interactions", "start"):
        keys = [key for binding in bindings_of(screen) for key in binding.key.split(",")]
        assert len(keys) == len(set(keys))
        assert not RESERVED_KEYS.intersection(keys)


def footer_of(app):
    return text_of(app).splitlines()[-1].split("  ")


async def test_the_footer_shows_what_works_and_keys_move_as_everywhere(runs, open_app, monkeypatch):
    """In the focused part of each screen, within 80 columns."""
    for name in ("one", "two", "three"):
        folder = write_state(runs, name, state="finished", step=N_STEPS, evaluated=name == "one")
    write_model(folder.with_name("one"))
    (runs / "one" / "log.txt").write_text("".join(f"line {number} \n" for number in range(200)))
    (runs / "one" / "model" / "reference.safetensors").rename(runs / "kept")
    (runs / "kept").rename(runs / "one" / "model" / "reference.safetensors")
    app = open_app()
    sent_by(app, monkeypatch)

    async def seen(pilot, expected):
        wanted = expected.split("  ")
        for _ in range(100):
            found = [part.strip() for part in footer_of(app) if part.strip()]
            if found == wanted:
                break
            await pilot.pause(0.02)
        assert found == wanted

    async with opened(app, size=(80, 24)) as pilot:
        table = app.screen.query_one("#runs")
        await pilot.press("s")  # by name
        await pilot.press("G")
        assert table.cursor_row == 2
        await seen(pilot, "enter Open  v Overlay  / Filter  n New run  ? Help")
        await pilot.press("g", "g")
        assert table.cursor_row == 0
        await seen(pilot, "enter Open  v Overlay  / Filter  n New run  c Cells  ? Help")
        await pilot.press("j", "j", "k")
        assert table.cursor_row == 1
        for key in ("g", "j", "j", "enter"):  # typed faster than drawn
            app.simulate_key(key)
        await shown(app, pilot, "two  ✔ finished")
        assert app.screen.path == "runs/two"
        await pilot.press("escape", "k")
        await pilot.press("slash", *"on")
        await seen(pilot, "enter Keep the filter")
        await pilot.press("enter", "enter")
        await settled(app, pilot)
        await seen(pilot, "a Axis  y Log  s Smooth  x Values  e Eval  c Cells  i Genes  ? Help")
        await pilot.press("4")
        await seen(pilot, "/ Filter  e Eval  c Cells  i Genes  ? Help")
        await settled(app, pilot)
        log = app.screen.query_one("#log-lines")
        assert log.scroll_offset.y == log.max_scroll_y > 0
        await pilot.press("g")
        await pilot.pause()
        assert log.scroll_offset.y == 0
        await pilot.press("slash", *"line 17", "enter")
        await pilot.pause()
        assert "line 170" in text_of(app)
        assert "line 18 " not in text_of(app)
        await pilot.press("escape", "5")
        await settled(app, pilot)
        await pilot.press("slash", *"max_st", "enter")
        await pilot.pause()
        assert list(app.screen.query_one("#preset-table").rows) == ["train.max_steps"]
        await pilot.press("escape", "6")
        await settled(app, pilot)
        await seen(pilot, "e Eval  c Cells  i Genes  ? Help")
        await pilot.press("7")
        await seen(pilot, "/ Filter  o Order  a Axis  y Log  x Values  e Eval  c Cells  ? Help")
        await pilot.press("c")
        await seen(pilot, "enter Values  c Generate  ? Help")
        sex, _, cell_type = app.screen.query(TokenRow)
        await pilot.press("G")
        assert cell_type.has_focus
        await pilot.press("k", "k", "right", "right", "c")
        assert sex.value == "female"
        await seen(pilot, "enter Values  x Cancel  ? Help")
        made = {"event": "cells", "id": 1, "cells": 200, "profile": run_states.profile()}
        app.screen.take_event("runs/one", made)
        await seen(pilot, "enter Values  c Generate  f Flip token  w Save  / Find gene  ? Help")
        await pilot.press("slash", *"xis")
        await pilot.pause()
        genes = app.screen.query_one("#gene-table")
        assert [str(genes.get_row_at(row)[0]) for row in range(genes.row_count)] == ["XIST"]
        await pilot.press("escape")
        assert genes.row_count == 32
        await pilot.press("2")
        await seen(pilot, "enter Values  c Generate  f Flip token  w Save  ? Help")
        await pilot.press("question_mark")
        await pilot.pause()
        assert "Flip a token: the same cells with one phenotype changed" in text_of(app)


def test_ids_are_unique_and_every_action_exists():
    assert len({key.id for key in KEYS}) == len(KEYS)
    screens = {
        "runs": RunsScreen, "run": RunScreen, "generate": GenerateScreen, "start": StartScreen,
        "interactions": InteractionsScreen,
    }  # fmt: skip
    from tfx_cli.dashboard.app import DashboardApp

    for key in KEYS:
        name = key.action.split("(")[0]
        if name.startswith("app."):
            assert hasattr(DashboardApp, f"action_{name.removeprefix('app.')}")
            continue
        owners = [screens[key.screen]] if key.screen != "everywhere" else list(screens.values())
        assert all(hasattr(owner, f"action_{name}") for owner in owners), key


def test_keys_can_be_changed_and_wrong_ones_are_refused(tmp_path):
    path = tmp_path / "keys.toml"
    environment = {"TFX_KEYS": str(path)}
    path.write_text('quit = "Q"\n[run]\nlog-axis = "l,L"\n[generate]\ndepth = "d"\n')  # an old id
    assert read_key_overrides(environment) == {
        "quit": "Q", "run.log-axis": "l,L", "generate.gene-counts": "d",
    }  # fmt: skip
    for text, message in (
        ('"run.log-axs" = "l"', "there is no key 'run.log-axs'; did you mean 'run.log-axis'"),
        ('quit = "ctrl+b"', r"ctrl\+b belongs to the terminal or tmux"),
        ("quit = 3", "must be a key such as"),
        ("quit = ", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_key_overrides(environment)
    path.unlink()
    with pytest.raises(ConfigurationError, match="there is no such file"):
        read_key_overrides(environment)
    assert read_key_overrides({}) == {}


async def test_a_key_of_the_user_works_and_the_help_shows_it(runs, open_app, tmp_path, monkeypatch):
    write_state(runs)
    (tmp_path / "keys.toml").write_text('run.log-axis = "l"\n')
    monkeypatch.setenv("TFX_KEYS", str(tmp_path / "keys.toml"))
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("l")
        assert app.screen.query_one("#loss", CurveView).window.is_log
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpDialog)
        assert re.search(r"│ +l +Log axis +run\.log-axis", text_of(app))


# -- runs
async def test_a_pane_chosen_while_another_comes_up_stays(runs, open_app):
    """Events and focus of the first pane come late on a busy machine."""
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        await settled(app, pilot)
        panes = app.screen.query_one("#panes", TabbedContent)
        curves = panes.get_tab("curves")
        await pilot.press("5")
        app.screen.query_one("#loss").focus()
        panes.post_message(TabbedContent.TabActivated(panes, curves))
        await settled(app, pilot)
        assert panes.active == "preset"
        assert "data.files" in text_of(app)
        assert app.focused.id == "preset-table"


async def test_overlay_pin_metric_and_filter(runs, open_app):
    for name in ("one", "two", "three"):
        write_state(runs, name)
    app = open_app()
    async with opened(app) as pilot:
        overlay = app.screen.query_one("#overlay", CurveView)
        await pilot.press("v", "down", "v")
        await settled(app, pilot)
        assert len(overlay.series) == 2
        assert "validation" in overlay.title
        names = [one.name for one in overlay.series]
        await pilot.press("up", "p")
        await settled(app, pilot)
        (pinned,) = [line.split()[1] for line in text_of(app).splitlines() if "◆" in line]
        assert [one.name for one in overlay.series] == [*sorted(set(names) - {pinned}), pinned]
        assert "◆" in text_of(app)
        await pilot.press("m")
        await settled(app, pilot)
        assert "train" in overlay.title
        await pilot.press("f", "t", "w")
        await pilot.pause()
        table = app.screen.query_one("#runs")
        assert [key.value for key in table.rows] == ["runs/two"]
        await pilot.press("escape")
        assert table.row_count == 3


async def test_a_long_name_is_cut_in_the_middle_and_hides_no_metric(runs, open_app):
    write_state(runs, "a" * 45 + "-learning-rate-0.002")

    app = open_app()
    async with opened(app) as pilot:
        for width, last in ((80, "2 min"), (140, "2 min ago +2 min")):
            await pilot.resize_terminal(width, 24)
            await settled(app, pilot)
            line = rf"aaa….*0\.002 +. running +300/400 +75% .*1\.1996 .*0\.689 .*{last}"
            for _ in range(200):  # a busy machine draws later
                if re.search(line, text_of(app)):
                    break
                await pilot.pause(0.02)
            assert re.search(line, text_of(app))


def test_colours_of_shown_runs_are_stable_and_differ():
    names = [f"runs/{number}" for number in range(30)]
    shown = names[5:19]
    colours = run_colours(shown, names)
    assert set(colours) == set(names)
    assert len({colours[name] for name in shown}) == len(shown)
    assert {name: colours[name] for name in shown[:9]} == run_colours(shown[:9], shown[:9])


async def test_an_unreadable_run_shows_why_instead_of_opening(runs, open_app):
    (runs / "newer").mkdir()
    (runs / "newer" / "run.json").write_text('{"format": 99}')
    app = open_app()
    async with opened(app) as pilot:
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, RunsScreen)
        assert "has format 99, this tfx reads up to 1: update tfx" in notes_of(app)[0]


async def test_cells_can_be_generated_from_the_list(runs, open_app):
    write_model(write_state(runs))
    app = open_app()
    async with opened(app) as pilot:
        await pilot.press("c")
        await pilot.pause()
        assert isinstance(app.screen, GenerateScreen)
        await pilot.press("escape")
        assert isinstance(app.screen, RunsScreen)


# -- one run
async def test_the_window_of_the_curves(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        panel = app.screen.query_one("#loss", CurveView)
        other = app.screen.query_one("#accuracy", CurveView)
        assert panel.visible_range == (5.0, 300.0)
        await pilot.press("plus")
        assert panel.visible_range == other.visible_range == (152.5, 300.0)
        await pilot.press("left")
        assert panel.visible_range == pytest.approx((137.75, 285.25))
        await pilot.press("x")
        assert panel.window.crosshair == pytest.approx(285.25)
        assert "at step 285" in text_of(app)
        await pilot.press("left")
        assert panel.window.crosshair < 285
        await pilot.press("0")
        assert (panel.window.zoom, panel.window.crosshair) == (None, None)
        await pilot.press("minus")
        assert panel.window.zoom is None
        for _ in range(len(SMOOTHING)):
            before = panel.window.smoothing
            await pilot.press("s")
        assert panel.window.smoothing == (before + 1) % len(SMOOTHING)
        await pilot.press("y")
        assert panel.window.is_log
        assert not other.window.is_log


async def test_the_mouse_zooms_and_reads_out(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        panel = app.screen.query_one("#loss", CurveView)
        await pilot.click("#loss", offset=(30, 5))
        await pilot.pause()
        assert panel.window.crosshair is not None
        await pilot.click("#loss", offset=(30, 5))
        await pilot.pause()
        assert panel.window.crosshair is None
        panel.post_message(CurveView.Moved(panel.zoomed(0.5, 100.0)))
        await pilot.pause()
        assert panel.visible_range[0] <= 100 <= panel.visible_range[1]
        assert app.screen.query_one("#accuracy", CurveView).window.zoom == panel.window.zoom


async def test_a_paused_view_does_not_change_while_data_arrive(runs, open_app):
    folder = write_state(runs, step=200)
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("space")
        assert "view paused" in text_of(app)
        lines = [run_states.train_line(step) for step in range(205, 305, 5)]
        with (folder / "metrics.jsonl").open("ab") as file:
            write = b"".join(map(run_states.to_line, lines))
            file.write(write)
        await settled(app, pilot)
        panel = app.screen.query_one("#loss", CurveView)
        assert panel.x_range == (5.0, 200.0)
        await pilot.press("space")
        await pilot.pause()
        assert panel.x_range == (5.0, 300.0)


async def test_reference_marks_are_those_of_the_chosen_phenotype(runs, open_app):
    write_state(runs, state="finished", step=N_STEPS, evaluated=True)
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("2")
        await pilot.pause()
        await pilot.press("down")
        await settled(app, pilot)
        shown = text_of(app)
        assert "loses" in shown  # 0.82 against logistic regression's 0.85
        assert "T cell [naive]" in shown
        await pilot.press("1")
        await settled(app, pilot)
        marks = app.screen.query_one("#accuracy", CurveView).marks
        assert [(mark.name, mark.y) for mark in marks] == [
            ("majority", 0.36), ("logistic_regression", 0.85), ("no encoder", 0.7),
        ]  # fmt: skip


async def test_metrics_of_every_pane_can_be_copied(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    lines = ("train loss", "phenotype\tmask accuracy", "NVIDIA H200", "attention: varlen",
             "train.max_steps = 400  # --steps")  # fmt: skip
    async with opened(app) as pilot:
        for pane, line in enumerate(lines, start=1):
            await pilot.press(str(pane))
            await settled(app, pilot)
            await pilot.press("C")
            assert line in app.clipboard
            await pilot.press("escape")


async def test_a_run_that_somebody_else_started_is_stopped_only_if_confirmed(
    runs, open_app, monkeypatch
):
    stopped = []
    monkeypatch.setattr("tfx_cli.dashboard.app.process_to_stop", lambda status: status["pid"])
    monkeypatch.setattr("tfx_cli.dashboard.app.send_stop", stopped.append)
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("t")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmDialog)
        assert "was not started by this dashboard (process 4321)" in text_of(app)
        await pilot.press("enter")  # the button 'no' has the focus
        await pilot.pause()
        assert stopped == []
        await pilot.press("t")
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
        assert stopped == [4321]


@pytest.mark.parametrize(
    ("state", "key", "message"),
    [
        ("finished", "t", "this run is not running"),
        ("running", "t", "the run is on node-7: stop it there by 'kill -TERM 4321'"),
        ("running", "u", "this run is running"),
        ("finished", "u", "finished; for more steps: tfx train runs/mine --steps N"),
    ],
)
async def test_what_cannot_be_done_is_explained(state, key, message, runs, open_app):
    write_state(runs, state=state)
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press(key)
        await pilot.pause()
        assert message in notes_of(app)[0]


# -- text from data


HOSTILE = ("[CLS] [NO_SEX] [/] a[b ]]", "[bold red]x[/bold red] [/", "[link=x]y[/link]")


@pytest.mark.parametrize("text", HOSTILE)
async def test_brackets_of_data_appear_as_they_are(text, runs, open_app):
    folder = write_state(runs, state="failed", error=text, evaluated=True)
    write_model(folder)
    model = folder / "model" / "config.json"
    model.write_text(model.read_text().replace("B cell", text))
    write_lines(folder / "events.jsonl", [{"event": "warning", "t": NOW, "reason": text}])
    (folder / "log.txt").write_text(text + "\n")
    app = open_app("mine")
    async with opened(app, size=(200, 50)) as pilot:
        assert text in text_of(app).splitlines()[0]
        await pilot.press("4")
        await settled(app, pilot)
        await settled(app, pilot)  # the pane has come up, and then has been filled
        assert text_of(app).count(text) >= 3  # bar, event, log
        await pilot.press("c")
        await pilot.pause()
        row = list(app.screen.query(TokenRow))[2]
        row.choice = 0
        await pilot.pause()
        assert f"‹ {text} ›" in text_of(app)
        await pilot.press("down", "down", "enter")
        await pilot.pause()
        listed = [line for line in text_of(app).splitlines() if "real cells" in line]
        assert any(text in line for line in listed)


@settings(max_examples=15)
@given(st.text(st.sampled_from("[]/abc= #@\\'\""), min_size=1, max_size=12).map(str.strip))
def test_any_bracketed_text_is_shown_verbatim_by_a_token(text):
    row = TokenRow("phenotype", [text, "other"], label_width=10)
    row.set_reactive(TokenRow.choice, 0)
    shown = row.render().plain.partition("‹ ")[2].partition(" ›")[0]
    assert shown == (text if len(text) <= 8 else text[:7] + "…")  # the room of a row without a size


# -- control tokens
async def test_the_picker_counts_real_cells_for_what_is_chosen(runs, open_app):
    write_model(write_state(runs))
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("c")
        await pilot.pause()
        assert "847 of 847 training cells: any cell" in text_of(app)
        sex, tissue, cell_type = app.screen.query(TokenRow)
        assert sex.choice == SAMPLED
        await pilot.press("right")
        assert sex.choice == UNSPECIFIED
        assert "unspecified [NO_SEX]" in text_of(app)
        await pilot.press("right")
        assert sex.value == "female"
        assert cell_type.counts == {"B cell": 500, "T cell [naive]": 40}
        await pilot.press("down", "right", "right", "right", "down", "right", "right")
        await pilot.pause()
        assert (tissue.value, cell_type.value) == ("lung", "B cell")
        assert "0 of 847 training cells" in text_of(app)
        assert "0 real cells match" in text_of(app)


def sent_by(app, monkeypatch):
    sent = []
    monkeypatch.setattr(app, "send_to_generator", lambda run, record: sent.append(record))
    return sent


async def test_a_request_and_its_command_follow_the_picker(runs, open_app, monkeypatch):
    write_model(write_state(runs))
    app = open_app("mine")
    sent = sent_by(app, monkeypatch)
    async with opened(app) as pilot:
        await pilot.press("c", "right", "right", "down", "right")
        app.screen.query_one("#field-cells").value = "50"
        app.screen.query_one("#field-guidance").value = "0.5"
        await pilot.press("c")
        (request,) = sent
        assert request["request"] == {"sex": "female", "tissue": "[NO_TISSUE]"}
        assert request["cells"] == 50
        assert (request["steps"], request["guidance"], request["seed"]) == (16, 0.5, 0)
        await pilot.press("c")
        assert len(sent) == 1  # one at a time
        app.screen.take_event("runs/mine", {"event": "cells", "id": 1, "cells": 50, "profile": {}})
        await pilot.press("C")
        assert shlex.split(app.clipboard)[:8] == [
            "tfx", "generate", "--run", "runs/mine", "--sex", "female", "--tissue", "[NO_TISSUE]",
        ]  # fmt: skip


async def test_a_number_that_is_none_is_refused_before_anything_starts(runs, open_app, monkeypatch):
    write_model(write_state(runs))
    app = open_app("mine")
    sent = sent_by(app, monkeypatch)
    async with opened(app) as pilot:
        await pilot.press("c")
        app.screen.query_one("#field-steps").value = "1e"
        app.screen.action_go()
        await pilot.pause()
        assert sent == []
        assert "steps: '1e' is not a number" in notes_of(app)


async def test_one_flipped_token_shows_which_genes_move(runs, open_app, monkeypatch):
    write_model(write_state(runs))
    app = open_app("mine")
    sent = sent_by(app, monkeypatch)
    async with opened(app) as pilot:
        await pilot.press("c", "right", "right", "c")
        event = {"event": "cells", "cells": 200}
        app.screen.take_event("runs/mine", {**event, "id": 1, "profile": run_states.profile()})
        await pilot.press("f")
        unchanged = {name: sent[0][name] for name in ("request", "seed", "cells", "steps")}
        assert sent[-1] == sent[-1] | unchanged | {"set": {"sex": "male"}}
        made = run_states.profile()
        made |= {"pairs": run_states.pairs(made, 0.7)}
        app.screen.take_event("runs/mine", {**event, "id": 2, "profile": made})
        await pilot.pause()
        table = app.screen.query_one("#moved-table")
        first, second = ([str(cell) for cell in table.get_row_at(row)] for row in (0, 1))
        assert (first[0], first[3], first[5][:2]) == ("XIST", "-0.70", "* ")
        assert (second[0], second[3], second[5][:2]) == ("GENE3", "+0.04", "  ")
        assert "female → male, all else equal" in text_of(app)
        assert re.search(r"\* 1 of 32 genes exceed the\s+noise floor", text_of(app))
        await pilot.press("C")
        assert "--sex female --set sex=male -n 200" in app.clipboard
        await pilot.press("escape")
        await pilot.press("f")  # of the cells before the flip, again
        assert sent[-1] == sent[-1] | unchanged | {"set": {"sex": "male"}}
        app.screen.take_event("runs/mine", {"event": "cancelled", "id": 3})
        await pilot.press("b")
        await pilot.pause()
        assert "A: female" in text_of(app)
        assert "flips a token: the same cells" in str(app.screen.query_one("#moved-text").content)


async def test_generated_sets_stay_and_leaving_asks_before_it_discards_them(
    runs, open_app, monkeypatch
):
    write_model(write_state(runs))
    app = open_app("mine")
    sent = sent_by(app, monkeypatch)
    async with opened(app) as pilot:
        await pilot.press("c", "right", "right", "c")
        Path(sent[0]["output"]).write_bytes(b"cells")
        event = {"event": "cells", "cells": 200, "output": sent[0]["output"]}
        await pilot.press("escape")
        assert isinstance(app.screen, RunScreen)
        # They arrive while another screen is shown.
        app._take_event("runs/mine", {**event, "id": 1, "profile": run_states.profile()})
        await pilot.press("c")
        await settled(app, pilot)
        assert "A female  200 cells, not saved" in text_of(app)
        assert "XIST" in text_of(app)
        await pilot.press("escape", "q")
        await pilot.pause()
        assert "1 generated set is not saved" in text_of(app)
        await pilot.press("n", "c", "w", "enter")
        await settled(app, pilot)
        assert Path("female.h5ad").read_bytes() == b"cells"
        assert "A female  200 cells, saved female.h5ad" in text_of(app)
        await pilot.press("w")
        await pilot.pause()
        assert "A is saved as female.h5ad" in text_of(app)
        assert app.screen.query_one("Input").value == "female-2.h5ad"
        await pilot.press("escape", "q")
        await pilot.pause()
        assert app._exit
    assert not Path(sent[0]["output"]).parent.exists()


async def test_events_of_an_older_request_are_left_out(runs, open_app, monkeypatch):
    write_model(write_state(runs))
    app = open_app("mine")
    sent_by(app, monkeypatch)
    async with opened(app) as pilot:
        await pilot.press("c", "c")
        app.screen.take_event("runs/mine", {"event": "cells", "id": 7, "cells": 1, "profile": {}})
        assert app.screen.is_busy
        await pilot.press("x")
        app.screen.take_event("runs/mine", {"event": "cancelled", "id": 1})
        await pilot.pause()
        assert not app.screen.is_busy
        assert "cancelled" in text_of(app)


async def test_cells_are_saved_whole_and_nothing_is_overwritten(
    runs, open_app, monkeypatch, tmp_path
):
    write_model(write_state(runs))
    app = open_app("mine")
    sent = sent_by(app, monkeypatch)
    (tmp_path / "taken.h5ad").write_text("precious")
    ended = []
    async with opened(app) as pilot:
        await pilot.press("c", "right", "right", "w")
        assert "generate first (c)" in notes_of(app)[0]
        await pilot.press("c")
        made = Path(sent[0]["output"])
        made.write_bytes(b"cells")
        event = {"event": "cells", "id": 1, "cells": 1, "output": str(made), "profile": {}}
        app.screen.take_event("runs/mine", event)
        await pilot.press("w")
        await pilot.pause()
        box = app.screen.query_one("Input")
        assert box.value == "female.h5ad"
        for name, fault in (
            ("taken.h5ad", "exists"), ("cells.txt", "must end in .h5ad"), ("no/x.h5ad", "no folder"),
        ):  # fmt: skip
            box.value = name
            await pilot.press("enter")
            await pilot.pause()
            assert fault in text_of(app)
        box.value = "mine.h5ad"
        await pilot.press("enter")
        await pilot.pause()
        assert (tmp_path / "mine.h5ad").read_bytes() == b"cells"
        assert (tmp_path / "taken.h5ad").read_text() == "precious"
        monkeypatch.setattr("os._exit", ended.append)
        app._hang_up()  # as where the window of the terminal is closed
        assert ended == [129]
        assert not made.parent.exists()


async def test_a_run_without_a_model_is_explained(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.press("c")
        await pilot.pause()
        assert "no model to generate with" in text_of(app)
        await pilot.press("c")
        await pilot.pause()
        assert "no model to generate with" in notes_of(app)[0]
        await pilot.press("escape")
        assert isinstance(app.screen, RunScreen)


# -- a new run
def test_a_preset_is_checked_as_it_is_changed():
    good = check_preset_values("base", "train.max_steps=7 data.genes=64")
    assert (good.is_valid, good.name) == (True, "base")
    assert [line.split() for line in good.lines][:2] == [
        ["data.genes", "64,", "changed", "(the", "preset", "has", "256)"],
        ["train.max_steps", "7,", "changed", "(the", "preset", "has", "3000)"],
    ]
    bad = check_preset_values("base", "train.max_step=7")
    assert not bad.is_valid
    assert "did you mean" in " ".join(bad.lines)
    assert not check_preset_values("base", "data.genes='3").is_valid
    assert not check_preset_values("no-such-preset", "").is_valid


async def test_a_run_is_started_from_a_preset_that_holds(runs, open_app, monkeypatch, tmp_path):
    (tmp_path / "wrong.toml").write_text("# My cells.\n[train]\nlearning_rate = -1\n")
    write_state(runs, "base")
    app = open_app()
    started, forecasts, cancelled = [], [], []

    class Launch:
        path = "runs/base-2"

    def start(*arguments):
        started.append(arguments)
        return Launch()

    async def forecast(preset, name, assignments, root):
        forecasts.append((preset, list(assignments)))
        if preset == "pbmc68k":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(preset)
                raise
        if preset == "classify":
            raise MachineError("runs/base has no model")
        return {
            "seconds": {"run": 360.0}, "memory": {"programs": 6e8}, "memory_available": 2e10,
            "files": {"model": 3e7}, "tokens": {"steps": 9, "epochs": 0.1}, "verdict": "tight",
            "machine": {"device": "cpu"}, "timing": "measured", "notes": ["a [note]"],
        }  # fmt: skip

    def choose(preset):
        options = app.screen.query_one("#presets")
        options.highlighted = options.get_option_index(preset)

    async with opened(app) as pilot:
        monkeypatch.setattr(app.processes, "start", start)
        monkeypatch.setattr(start_screen, "forecast", forecast)
        monkeypatch.setattr(start_screen, "FORECAST_DELAY", 0.05)
        await pilot.press("n")
        await shown(app, pilot, "✖ not valid")
        screen = app.screen
        assert isinstance(screen, StartScreen)
        assert "wrong.toml:3:train.learning_rate:mustbegreaterthan0" in "".join(
            text_of(app).split()
        )
        assert re.search(r"wrong +My cells", text_of(app))  # the user's own are first
        assert "perturbgene-128-base" not in text_of(app)
        await pilot.press("f5")
        assert (started, forecasts) == ([], [])
        choose("published")
        await pilot.press("enter")
        await pilot.pause()
        assert "perturbgene-128-base" in text_of(app)
        choose("base")
        await shown(app, pilot, "about 6 min, 600 MB of memory (20 GB free), 30 MB of disk")
        assert "$ tfx train base --run base-2" in text_of(app)
        assert "! memory or disk is tight" in text_of(app)
        assert "note: a [note]" in text_of(app)
        choose("classify")
        await shown(app, pilot, "no estimate: runs/base has no model")
        choose("pbmc68k")
        await shown(app, pilot, "estimating time and memory; F6 cancels")
        await pilot.pause(0.1)
        await pilot.press("f6")
        await shown(app, pilot, "no estimate; F6 makes one")
        assert cancelled == ["pbmc68k"]
        choose("base")
        screen.query_one("#changes").value = "train.max_steps=9 model.dropout=0.2"
        await shown(app, pilot, "--set model.dropout=0.2")
        assert re.search(r"train.max_steps +9, changed \(the preset has 3000\)", text_of(app))
        assert re.search(r"model.dropout +0.2, changed", text_of(app))
        await pilot.press("f5")
        await pilot.pause()
        changes = ["train.max_steps=9", "model.dropout=0.2"]
        assert started == [("base", "base-2", changes, Path("runs"))]
        assert isinstance(app.screen, RunScreen)


# -- the window
async def test_themes_change_and_no_colour_is_needed(runs, open_app, monkeypatch):
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:
        before = text_of(app)
        seen = {app.theme}
        for _ in range(4):
            await pilot.press("T")
            await settled(app, pilot)
            seen.add(app.theme)
            assert text_of(app) == before  # colours are never the only sign
        assert seen == {"tfx-dark", "tfx-light", "tfx-colour-blind", "tfx-mono"}


async def test_every_key_is_offered_by_the_command_palette(runs, open_app):
    write_state(runs)
    app = open_app("mine")
    async with opened(app):
        listed = [command.title for command in app.get_system_commands(app.screen)]
        assert sum("Quit" in title for title in listed) == 1
        assert {"Log axis", "Stop: save a checkpoint and end", "Generate cells of the model"} <= {
            *listed
        }
        (quitting,) = [one for one in app.get_system_commands(app.screen) if "Quit" in one.title]
        assert quitting.help == "key q"


async def test_a_reading_that_fails_is_shown_and_the_dashboard_continues(
    runs, open_app, monkeypatch
):
    write_state(runs)
    app = open_app("mine")
    async with opened(app) as pilot:

        def fail(wanted, **_):
            raise RuntimeError(wanted, "odd [file]")

        monkeypatch.setattr(app._workspace, "poll", fail)
        app.poll_soon()
        for _ in range(100):
            await pilot.pause(0.01)
            if notes_of(app):
                break
        assert "odd [file]" in notes_of(app)[0]
        assert isinstance(app.screen, DashboardScreen)


# -- keeping runs
async def test_runs_are_sorted_by_key_and_header_and_columns_are_chosen(runs, open_app):
    for name, step in (("one", 300), ("two", 100), ("three", 200)):
        folder = write_state(runs, name, step=step)
        text = (folder / "config.toml").read_text()
        (folder / "config.toml").write_text(text.replace("0.001", f"0.{step}"))
    app = open_app()
    async with opened(app) as pilot:
        table = app.screen.query_one("#runs")

        def names():
            return [Path(key.value).name for key in table.rows]

        await pilot.press("s")  # nothing was chosen: the first column
        assert names() == ["one", "three", "two"]
        await pilot.press("S")
        assert names() == ["two", "three", "one"]
        assert "run ▾" in text_of(app)
        head = next(line for line in text_of(app).splitlines() if "step" in line)
        await pilot.click("#runs", offset=(head.index("step") + 1, 0))
        await settled(app, pilot)
        assert names() == ["one", "three", "two"]
        assert "step ▴" in text_of(app)
        await pilot.press("o")
        await settled(app, pilot)
        await pilot.pause()
        assert "train, learning_rate" in text_of(app)
        assert "train, max_steps" not in text_of(app)  # the same in all
        options = app.screen.query_one("SelectionList")
        for name in options.selected:
            options.deselect(name)
        options.select("train.learning_rate")
        await pilot.press("enter")
        await settled(app, pilot)
        assert re.search(r"run +learning_rate|run +train", text_of(app))
        assert [str(cell) for cell in table.get_row_at(0)][1:] == ["one", "0.300"]
    later = open_app()  # the choices are kept
    async with opened(later) as pilot:
        table = later.screen.query_one("#runs")
        assert [str(cell) for cell in table.get_row_at(0)][1:] == ["one", "0.300"]
        names = [Path(key.value).name for key in table.rows]
        assert names == ["one", "three", "two"]  # by steps, as before


async def test_runs_are_renamed_tagged_and_deleted_after_asking(runs, open_app):
    write_state(runs, "old", state="finished")
    write_state(runs, "taken", state="finished")
    app = open_app()
    async with opened(app) as pilot:
        await pilot.press("s", "r")
        await pilot.pause()
        box = app.screen.query_one("Input")
        assert box.value == "old"
        for name, fault in (("taken", "taken exists"), ("a b", "use letters, digits")):
            box.value = name
            await pilot.press("enter")
            await pilot.pause()
            assert fault in text_of(app)
        box.value = "new"
        await pilot.press("enter")
        await settled(app, pilot)
        assert {path.name for path in runs.iterdir()} == {"new", "taken"}
        await pilot.press("t", *"good", "enter")
        await settled(app, pilot)
        assert "good" in text_of(app)
        await pilot.press("f", *"nothing", "enter")
        assert "no run matches 'nothing'" in text_of(app)
        app.screen.query_one("#filter").value = "good"
        await settled(app, pilot)
        await pilot.press("d")
        await pilot.pause()
        assert "Move runs/new to runs/.trash?" in text_of(app)
        await pilot.press("n", "d", "y")
        await settled(app, pilot)
        assert (runs / ".trash" / "new" / "run.json").is_file()
        assert {path.name for path in runs.iterdir()} == {".trash", "taken"}


async def test_a_run_that_is_prepared_is_on_the_screen_and_u_resumes_once(
    runs, open_app, monkeypatch, tmp_path
):
    (runs / "coming").mkdir()
    write_state(runs, state="stopped")
    app = open_app("mine")
    resumed = []

    class Stub:
        is_running = True
        path, command = "runs/mine", "train"

    def resume(path, root):
        resumed.append(path)
        return Stub()

    async with opened(app) as pilot:
        monkeypatch.setattr(app.processes, "resume", resume)
        await pilot.press("u", "u")
        await settled(app, pilot)
        await pilot.press("u")
        assert resumed == ["runs/mine"]
        assert "mine is being resumed" in notes_of(app)
        with work_on(runs / "mine", "resuming", clock=lambda: NOW) as report:
            report(ProgressEvent("reading training cells", 1, 4))
            await settled(app, pilot)
            assert "resuming  reading training cells  ██░░░░░░░░ 25%" in text_of(app)
            await pilot.press("u")
            assert "this run is resuming" in notes_of(app)
        assert len(resumed) == 1
        with work_on(runs / "coming", "preparing", clock=lambda: NOW) as report:
            report(ProgressEvent("reading cells", 3, 4))
            (runs / "coming" / "output.txt").write_text("$ tfx train x\nreading 4 files\n")
            await pilot.press("escape")
            await settled(app, pilot)
            assert re.search(r"coming +. preparing +75%", text_of(app))
            await pilot.press("s", "up", "enter")
            await settled(app, pilot)
            assert "coming  ◌ preparing  reading cells" in text_of(app)
            assert "reading 4 files" in text_of(app)


async def test_a_run_is_evaluated_and_the_report_is_read_in_place(runs, open_app, monkeypatch):
    folder = write_state(runs, state="finished", step=N_STEPS)
    app = open_app("mine")
    begun = []
    async with opened(app) as pilot:
        monkeypatch.setattr(app.processes, "evaluate", lambda path, root: begun.append(path))
        await pilot.press("e")
        assert "there is no model to evaluate yet" in notes_of(app)
        write_model(folder)
        await pilot.press("e", "6")
        assert begun == ["runs/mine"]
        await settled(app, pilot)
        assert "No evaluation yet: e scores the run" in text_of(app)
        run_states.write_evaluation(folder)
        (folder / "eval-cells").mkdir()
        write_json(
            folder / "eval-cells" / "report.json",
            {"title": "cells.h5ad", "verdict": ["Met: 14 of 16."]},
        )
        await settled(app, pilot)
        assert re.search(r"cell_type +0 +0.820 / 0.810 +0.850 / 0.840", text_of(app))
        matrix = text_of(app).splitlines()
        first = next(n for n, line in enumerate(matrix) if "predicted as (columns)" in line)
        assert re.search(r"monocyte ─+┐", matrix[first + 1])
        assert matrix[first + 1].index("┐") == matrix[first + 7].index("75") + 1  # its own column
        assert "accuracy by confidence" in text_of(app)
        await pilot.press("G")
        await settled(app, pilot)
        assert "Generated cells: cells.h5ad" in text_of(app)
        assert "- Met: 14 of 16." in text_of(app)


async def test_edges_are_found_and_results_are_read_in_place(runs, open_app, monkeypatch):
    folder = write_state(runs, state="finished", step=N_STEPS)
    write_model(folder)
    app = open_app("mine")
    begun = []

    def launch(path, arguments, root):
        begun.append(arguments)

    def said(name):
        return str(app.screen.query_one(f"#{name}").render())

    async with opened(app) as pilot:
        monkeypatch.setattr(app.processes, "_launch", launch)
        await pilot.press("i")
        await settled(app, pilot)
        assert "No results yet. Choose a context" in text_of(app)
        sex, _, cell_type = app.screen.query(TokenRow)
        await pilot.press("right", "j", "j", "right")
        assert (sex.value, cell_type.value) == ("female", "B cell")
        await pilot.pause()
        assert "sex=female,cell_type=B cell: 500 training cells" in text_of(app)
        await pilot.press("b")
        await pilot.press("down", "down", "enter")  # of tissue, which has two values
        await pilot.pause()
        assert "contrast tissue=blood,lung: 500 and 0 training cells" in said("match")
        assert "too few" in said("match")
        await pilot.press("i")
        await pilot.pause()
        run = str(folder.absolute())
        (words,) = begun
        assert words[:2] == ["interactions", run]
        options = dict(zip(words[2:6:2], words[3:6:2], strict=True))
        assert options == {
            "--where": "sex=female,cell_type=B cell",
            "--contrast": "tissue=blood,lung",
        }
        files = [Path(word) for word in words if word.startswith(f"{run}/interactions/")]
        assert [file.suffix for file in files] == [".csv", ".graphml"]
        run_states.write_results(folder)
        with work_on(folder, "finding edges", clock=lambda: NOW) as listener:
            listener(ProgressEvent("perturbing genes", 16, 32))
            await settled(app, pilot)
            assert re.search(r"◌ finding edges +perturbing genes .* 50%", text_of(app))
            assert "t Stop" in text_of(app)
        await settled(app, pilot)
        assert "CCL4 CXCL8 +0.550 positive 0.009 *" in " ".join(text_of(app).split())  # the newest
        assert "weights: Spearman within class, a simple measure" in said("about")
        sex.choice = cell_type.choice = SAMPLED
        await pilot.press("b", "enter")  # no contrast
        await pilot.pause()
        assert "weights: the model's effects" in said("about")  # of all cells
        app.screen.query_one("#results").focus()
        await pilot.press("2")
        await pilot.pause()
        assert re.search(r"CXCL8 +\+\+  *\+\+ *\+", text_of(app))
        await pilot.press("j")
        await pilot.pause()
        assert re.search(r"sex = male +0.400 → 0.650  \+0.250  q 0.01 \*", text_of(app))
        await pilot.press("1", "j")
        await pilot.pause()
        assert "knock-out of every gene: sex=male, all cells: 500 cells" in said("about")
        assert re.search(r"GENE \[old\] +1.500 +-0.300", text_of(app))
        await pilot.press("escape")
        assert isinstance(app.screen, RunScreen)


async def test_all_metrics_are_panels_over_steps_cells_or_hours_with_events(runs, open_app):
    folder = write_state(runs)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(f"{text}batch_size = 32  # default\n")
    machine = {"cpu_percent": 50.0, "process_memory": 2e9, "wait": 0.1}
    write_lines(
        folder / "system-node-7.jsonl", [{"t": NOW - age, **machine} for age in (380, 200, 110)]
    )
    app = open_app("mine")
    async with opened(app) as pilot:
        await pilot.resize_terminal(165, 45)
        loss = app.screen.query_one("#loss", CurveView)
        assert {mark.sign for mark in loss.events} == {"▪", "★"}
        assert [mark.x for mark in loss.events if mark.sign == "▪"] == [100, 200, 300]
        await pilot.press("7")
        await settled(app, pilot)
        assert "gradient norm" in text_of(app)
        await pilot.press("slash", *"acc")
        await settled(app, pilot)
        assert "gradient norm" not in text_of(app)
        assert "accuracy of cell_type" in text_of(app)
        await pilot.press("escape", "1", "a")
        await settled(app, pilot)
        assert loss.x_name == "cells"
        assert loss.x_range == (5 * 32, 300 * 32)
        await pilot.press("a", "3")
        await settled(app, pilot)
        assert loss.x_name == "hours"
        assert loss.x_range == pytest.approx((0, 295 / 3600), abs=1e-3)
        use = app.screen.query_one("#use", CurveView)
        (cpu,) = use.series
        assert (cpu.name, cpu.y.tolist()) == ("CPU", [50.0, 50.0, 50.0])
        first = NOW - N_STEPS + 5
        assert cpu.x == pytest.approx([(NOW - age - first) / 3600 for age in (380, 200, 110)])
