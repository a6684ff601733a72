"""`tfx dashboard` without a terminal, and what it must not import."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.dashboard.run_states import write_state
from tests.runlog.run_folders import write_run


@pytest.fixture
def base(tmp_path):
    return write_run(tmp_path / "runs" / "base")


def test_one_frame_is_drawn_as_svg(tfx, base, tmp_path):
    result = tfx("dashboard", "runs/base", "--once", "--svg", "frame.svg", "--size", "100x30")
    assert (result.code, result.stdout) == (0, "")
    text = "".join(ElementTree.parse(tmp_path / "frame.svg").getroot().itertext())
    shown = text.replace("\xa0", " ")
    assert "finished" in shown
    assert "mask accuracy" in shown
    assert "dashboard" in shown
    assert "url(" not in (tmp_path / "frame.svg").read_text().replace("url(#", "")  # no network


def test_keys_are_pressed_before_the_frame(tfx, base, tmp_path):
    tfx("dashboard", "base", "--once", "--svg", "frame.svg", "--keys", "5")
    text = "".join(ElementTree.parse(tmp_path / "frame.svg").getroot().itertext())
    assert "data.genes" in text


def test_the_metrics_as_json(tfx, base):
    write_state(base.parent, "other")
    (base.parent / "foreign").mkdir()
    (base.parent / "foreign" / "run.json").write_text("[]")
    document = tfx("dashboard", "base", "--once", "--json").json
    assert document["schema"] == "tfx.dashboard/1"
    assert {run["name"] for run in document["runs"]} == {"base", "other"}
    assert document["unreadable"][0]["name"] == "foreign"
    assert document["open"]["runs/base"]["metrics"]["validation"]["acc/sex"] == pytest.approx(0.7)


def test_once_without_a_form_is_a_table(tfx, base):
    result = tfx("dashboard", "--once")
    assert result.code == 0
    assert "base" in result.stdout


def test_no_runs_yet_is_no_fault(tfx, tmp_path):
    result = tfx("dashboard", "--once", "--json")
    assert (result.code, result.json["runs"]) == (0, [])


def test_a_wrong_file_of_keys_is_refused(tfx, base, monkeypatch, tmp_path):
    (tmp_path / "keys.toml").write_text('quit = "ctrl+a"')
    monkeypatch.setenv("TFX_KEYS", str(tmp_path / "keys.toml"))
    result = tfx("dashboard", "--once", "--svg", "x.svg")
    assert result.code == 2
    assert "belongs to the terminal or tmux" in result.stderr


def test_a_browser_needs_an_extra(tfx, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    monkeypatch.delitem(sys.modules, "tfx_cli.dashboard.web", raising=False)
    result = tfx("dashboard", "--web")
    assert result.code == 3
    assert "pip install 'transformerics[web]'" in result.stderr


def test_a_browser_with_the_printed_address_alone_is_served(base):
    aiohttp = pytest.importorskip("aiohttp", reason="a dependency of textual-serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tfx_cli", "dashboard", "--web", "--port", str(port)]
    server = subprocess.Popen(command, cwd=base.parent.parent, stderr=subprocess.PIPE, text=True)
    page = f"http://127.0.0.1:{port}"

    async def visit(token):
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:

            async def status(path, **headers):
                async with browser.get(page + path, headers=headers) as response:
                    return response.status

            assert await status("/") == 403
            assert await status("/?token=wrong") == 403
            assert await status(f"/?token={token}", Origin="http://example.org") == 403
            assert await status(f"/?token={token}", Host=f"example.org:{port}") == 403
            assert await status("/static/js/textual.js") == 403
            assert await status(f"/?token={token}") == 200  # which sets a cookie
            assert await status("/static/js/textual.js") == 200
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await browser.ws_connect(f"{page}/ws", origin="http://example.org")
            shown = b""
            async with browser.ws_connect(f"{page}/ws?width=100&height=30") as terminal:
                while b"finished" not in shown:
                    shown += (await terminal.receive_bytes(timeout=60)) or b""

    try:
        asyncio.run(visit(re.search(r"token=(\S+)", server.stderr.readline())[1]))
        busy = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (busy.returncode, busy.stderr.count("\n")) == (3, 1)
        assert f"--port {port} cannot be used" in busy.stderr
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
        server.stderr.close()


def test_the_dashboard_starts_without_what_is_heavy(base):
    """Drawing a frame imports neither torch nor anndata."""
    code = (
        "import sys; from tfx_cli.app import run\n"
        "code = run(['dashboard', 'runs/base', '--once', '--svg', 'x.svg'])\n"
        "heavy = {'torch', 'anndata', 'scanpy', 'pandas', 'sklearn', 'scipy'}\n"
        "import json; print(json.dumps([code, sorted(heavy & set(sys.modules))]))"
    )
    folder = base.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    assert json.loads(done.stdout) == [0, []]
