"""A real dashboard in a real terminal (tmux), driven by keys: from a preset to saved cells."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import TINY_TOML

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]


class Terminal:
    """A window of tmux, of a server of its own."""

    def __init__(self, folder):
        self._socket = str(folder / "tmux")
        environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        environment.pop("TMUX", None)
        command = f"'{sys.executable}' -m tfx_cli dashboard; echo ended with $?; sleep 600"
        subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", "new-session", "-d", "-s", "t",
             "-x", "120", "-y", "40", "-c", str(folder), command],
            check=True, env=environment,
        )  # fmt: skip

    def _tmux(self, *arguments):
        return subprocess.run(
            ["tmux", "-S", self._socket, *arguments], check=True, capture_output=True, text=True
        ).stdout

    def press(self, *keys):
        for key in keys:
            self._tmux("send-keys", "-t", "t", key)

    def type(self, text):
        self._tmux("send-keys", "-l", "-t", "t", text)

    @property
    def text(self):
        return self._tmux("capture-pane", "-p", "-t", "t")

    def wait_for(self, text, seconds=120, below=""):
        """Wait until a text is on the screen, under a label where one is given."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if text in self.text.partition(below)[2] if below else text in self.text:
                return
            time.sleep(0.2)
        raise AssertionError(f"'{text}' did not appear in:\n{self.text}")

    @property
    def shown_modes(self):
        """Whether the alternate screen is on, and whether the mouse is requested."""
        return self._tmux("display", "-p", "-t", "t", "#{alternate_on} #{mouse_any_flag}").split()

    @property
    def dashboard(self):
        """The process of the dashboard."""
        shell = self._tmux("display", "-p", "-t", "t", "#{pane_pid}").strip()
        children = subprocess.run(
            ["pgrep", "-P", shell], check=True, capture_output=True, text=True
        ).stdout
        return int(children.split()[0])

    def close(self):
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False)


@pytest.fixture
def terminal(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_a_killed_dashboard_leaves_a_clean_terminal(terminal):
    terminal.wait_for("no runs yet: press n")
    assert terminal.shown_modes == ["1", "1"]
    os.kill(terminal.dashboard, signal.SIGTERM)
    terminal.wait_for("ended with 0")
    assert terminal.shown_modes == ["0", "0"]


def test_a_dashboard_whose_terminal_is_gone_ends(terminal):
    terminal.wait_for("no runs yet: press n")
    process = terminal.dashboard
    terminal.close()
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(process)


def test_start_watch_stop_resume_generate_and_save(terminal, tmp_path):
    terminal.wait_for("no runs yet: press n")
    terminal.press("n")
    terminal.wait_for("tiny.toml")
    terminal.wait_for("$ tfx train tiny.toml --run tiny")
    terminal.press("Enter")
    terminal.wait_for("type its name")  # else the first letters go to the list
    terminal.type("first")  # in place of the proposed name, which is selected
    terminal.wait_for("first\n", below="name of the run")
    terminal.press("Tab")
    terminal.wait_for("type changes")
    terminal.type("train.max_steps=3000 train.eval_steps=20 train.save_steps=1000")
    terminal.wait_for("train.max_steps=3000")
    terminal.wait_for("train.save_steps=1000", below="$ tfx train")
    terminal.press("F5")

    terminal.wait_for("● running")
    terminal.wait_for("commonest bin")  # the first evaluation
    terminal.press("t")  # started here: no confirmation
    terminal.wait_for("■ stopped")
    assert list((tmp_path / "runs/first/checkpoints").glob("step-*"))
    terminal.press("u")
    terminal.wait_for("● running")
    terminal.press("4")
    terminal.wait_for("resume")
    terminal.press("t")
    terminal.wait_for("■ stopped")

    terminal.press("c")
    terminal.wait_for("training cells: any cell")
    terminal.press("Right", "Right")
    terminal.wait_for("sex = female")
    terminal.press("c")
    terminal.wait_for("✔ 200 cells")
    assert "XIST" in terminal.text
    terminal.press("f")
    terminal.wait_for("female → male, all else equal")
    terminal.press("w")
    terminal.wait_for("enter saves")
    terminal.press("Enter")
    terminal.wait_for("saved male.h5ad")

    from anndata import read_h5ad

    cells = read_h5ad(tmp_path / "male.h5ad")
    assert set(cells.obs["sex"]) == {"male"}
    assert cells.obs["synthetic"].all()
    terminal.press("Escape")
    terminal.wait_for("■ stopped")  # else escape and q were one key
    terminal.press("q")
    terminal.wait_for("1 generated set is not saved")
    terminal.press("y")
    terminal.wait_for("ended with 0")
    leftover = subprocess.run(["pgrep", "-f", "generate --serve --run runs/first"], check=False)
    assert leftover.returncode == 1
