"""Every row of `tfx doctor`: what makes it ok, warn or fail."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from core.doctor.check import MachineReport, TerminalFacts, check_terminal
from core.doctor.compute import (
    ROUTES,
    DriverFacts,
    TorchFacts,
    check_attention,
    check_torch_and_driver,
    usable_devices,
)
from core.doctor.packages import (
    DISTRIBUTION,
    EXTRAS,
    TESTED_VERSIONS,
    check_extras,
    check_packages,
    check_python,
    lowest_versions,
)
from core.doctor.resources import (
    check_disk,
    check_memory,
    check_open_files,
    file_system_of,
    read_memory,
)
from core.findings import Finding
from core.model.attention import AttentionRoute

ROOT = Path(__file__).parents[2]


def levels(rows):
    return [row.level for row in rows]


def only(rows, level):
    (row,) = [row for row in rows if row.level == level]
    return row


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 99), "ok")]
)
def test_an_old_python_fails(version, level):
    (row,) = check_python(version)
    assert row.level == level
    assert bool(row.fix) == (level == "fail")


def test_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: pinned[name] for name in TESTED_VERSIONS} == TESTED_VERSIONS


def test_every_dependency_has_a_tested_version():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    requirements = re.findall(r'"([^"]+)"', block)
    assert set(lowest_versions(requirements)) == set(TESTED_VERSIONS)
    found = lowest_versions(["torch>=2.10", "textual==8.2.8", "x>=1,<2; extra == 'dev'"])
    assert found == {"torch": "2.10", "textual": "8.2.8"}


@pytest.mark.parametrize(
    ("installed", "level", "words"),
    [
        ({"torch": None}, "fail", "missing: torch"),
        ({"torch": "2.9.1"}, "fail", "torch 2.9.1 (needs 2.10)"),
        ({"torch": "99.0.0+cu130"}, "warn", "torch 99.0.0+cu130 (tested: "),
        ({"torch": "2.10.0"}, "ok", "packages are installed"),
    ],
)
def test_packages_are_compared_with_required_and_tested_versions(installed, level, words):
    versions = TESTED_VERSIONS | installed
    (row,), found = check_packages({"torch": "2.10"}, versions.get)
    assert (row.level, found["torch"]) == (level, installed["torch"])
    assert words in row.finding
    assert bool(row.fix) == (level != "ok")


def test_missing_extras_are_ok_and_name_the_command_that_installs_them():
    rows, found = check_extras({"wandb": "1.0"}.get)
    assert set(levels(rows)) == {"ok"}
    assert found["wandb"] == "1.0"
    for row in rows:
        assert (DISTRIBUTION in row.fix) == (row.check != "wandb")


def test_every_extra_of_the_package_is_listed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    declared = {
        re.split(r"[<>=~\[]", requirement)[0]: extra
        for extra, requirements in extras.items()
        if extra not in ("dev", "docs", "test")
        for requirement in requirements
    }
    assert {name: extra for name, (extra, _) in EXTRAS.items()} == declared


DRIVER = DriverFacts(("NVIDIA H100",), "550.54", (12, 4))
H100, T4, FUTURE = ("NVIDIA H100", (9, 0)), ("Tesla T4", (7, 5)), ("NVIDIA Z1", (15, 0))
SM = ("sm_75", "sm_80", "sm_90")


@pytest.mark.parametrize(
    ("torch_facts", "driver", "level", "words"),
    [
        (TorchFacts("2.13"), DriverFacts(), "ok", "no GPU"),
        (TorchFacts("2.13", has_mps=True), DriverFacts(), "ok", "Apple GPU"),
        (TorchFacts("2.13+cpu"), DRIVER, "warn", "a build without CUDA"),
        (TorchFacts("2.13", "13.0", SM), DRIVER, "fail", "supports CUDA 12.4 at most"),
        (TorchFacts("2.13", "12.4", SM), DRIVER, "fail", "torch does not"),
        (TorchFacts("2.13", "12.4", SM, (H100,)), DRIVER, "ok", "capability 9.0"),
        (TorchFacts("2.13", "12.4", SM, (T4,)), DRIVER, "warn", "no bf16"),
        (TorchFacts("2.13", "12.4", SM, (FUTURE,)), DRIVER, "fail", "was not built"),
    ],
)
def test_torch_its_cuda_and_the_driver_must_fit_together(
    monkeypatch, torch_facts, driver, level, words
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rows = check_torch_and_driver(torch_facts, driver)
    report = MachineReport.of(rows, {})
    assert report.level == level
    (row,) = [row for row in report.of_level(level) if words in row.finding]
    assert bool(row.fix) == (level != "ok")


def test_hidden_gpus_are_ok(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (row,) = check_torch_and_driver(TorchFacts("2.13", "12.4", SM), DRIVER)
    assert (row.level, row.fix) == ("ok", "unset it to use the GPU")


def test_the_cpu_computes_and_its_attention_routes_run():
    devices, rows = usable_devices()
    assert devices[0].type == "cpu"
    assert rows[0].level == "ok"
    attention = check_attention([torch.device("cpu")])
    assert [row.check for row in attention] == [f"{name} on cpu" for name in ROUTES]
    assert set(levels(attention)) == {"ok"}
    assert [row.check for row in attention if "chosen by 'auto'" in row.finding] == ["cpu on cpu"]
    not_here = [row.check for row in attention if row.finding.startswith("not available here: ")]
    assert not_here == ["varlen on cpu", "flash on cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_attention_routes_of_a_gpu_run():
    devices, rows = usable_devices()
    assert [device.type for device in devices] == ["cpu", "cuda"]
    assert "fail" not in levels([*rows, *check_attention(devices)])


def raising(*arguments):
    message = "no kernel image"
    raise RuntimeError(message)


@pytest.mark.parametrize(
    ("name", "attend", "level", "words"),
    [
        ("cpu", raising, "fail", "does not run (RuntimeError: no kernel image)"),
        ("sdpa", raising, "warn", "does not run (RuntimeError: no kernel image)"),
        ("cpu", lambda q, k, v, bounds, dropout: v, "fail", "is wrong"),
        ("eager", lambda q, k, v, bounds, dropout: v * float("nan"), "warn", "is wrong"),
    ],
)
def test_a_route_that_fails_is_worst_where_auto_chooses_it(monkeypatch, name, attend, level, words):
    from core.model import attention

    resolve = attention.resolve_attention

    def broken(wanted, **where):
        route = resolve(wanted, **where)
        return AttentionRoute(name, "", attend) if wanted == name else route

    monkeypatch.setattr(attention, "resolve_attention", broken)
    row = only(check_attention([torch.device("cpu")]), level)
    assert row.check == f"{name} on cpu"
    assert words in row.finding
    assert "'auto'" in row.fix or "another" in row.fix


@pytest.mark.parametrize(
    ("available", "level"), [(10**8, "fail"), (2 * 10**9, "warn"), (10**10, "ok")]
)
def test_little_memory_fails(available, level):
    assert levels(check_memory({"total": 10**11, "available": available})) == [level]


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr("core.doctor.resources._CGROUP_LIMIT", limit)
    monkeypatch.setattr("core.doctor.resources._CGROUP_USED", used)
    whole = read_memory()["total"]
    assert whole > 10**8
    limit.write_text("100000000\n")
    used.write_text("30000000\n")
    assert read_memory() == {"total": 10**8, "available": 7 * 10**7}
    limit.write_text("max\n")
    assert read_memory()["total"] == whole


@pytest.mark.parametrize(("soft", "level"), [(64, "fail"), (256, "warn"), (1024, "ok")])
def test_few_open_files_are_reported_with_the_command_that_helps(soft, level):
    (row,) = check_open_files(soft)
    assert row.level == level
    assert ("ulimit -n" in row.fix) == (level != "ok")


@pytest.mark.parametrize(
    ("kind", "free", "level", "words"),
    [
        ("ext4", 10**8, "fail", "GB free"),
        ("ext4", 5 * 10**9, "warn", "GB free"),
        ("nfs4", 10**12, "warn", "network file system"),
        ("tmpfs", 10**12, "warn", "a restart deletes them"),
        ("lustre", 10**12, "ok", "suited to large files"),
        ("", 10**12, "ok", "unknown kind"),
    ],
)
def test_the_disk_is_judged_by_room_and_kind(tmp_path, kind, free, level, words):
    rows, facts = check_disk(tmp_path / "a" / "runs", kind=kind, free=free)
    assert facts == {"folder": str(tmp_path), "file_system": kind, "free": free}
    assert MachineReport.of(rows, {}).level == level
    assert [row for row in rows if row.level == level and words in row.finding]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_kind_of_file_system_is_that_of_the_nearest_mount(monkeypatch, tmp_path):
    class Part:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = mountpoint, fstype

    parts = [Part(str(tmp_path), "nfs4"), Part("/", "ext4"), Part(str(tmp_path / "b"), "tmpfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda **which: parts)
    assert file_system_of(tmp_path / "a") == "nfs4"
    assert file_system_of(tmp_path.parent) == "ext4"


def test_a_file_system_without_locks_fails(monkeypatch, tmp_path):
    class NoLock:
        def __init__(self, path, timeout):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def acquire(self):
            pass

        def release(self):
            pass

    monkeypatch.setattr("filelock.FileLock", NoLock)
    row = only(check_disk(tmp_path, kind="ext4", free=10**12)[0], "fail")
    assert (row.check, "given twice" in row.finding) == ("locks", True)


GOOD_TERMINAL = TerminalFacts(
    is_terminal=True,
    encoding="utf-8",
    kind="xterm-256color",
    colours="truecolor",
    no_colour=False,
    columns=120,
    lines=40,
)


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({}, []),
        ({"encoding": "ascii"}, ["letters"]),
        ({"encoding": "no-such-code"}, ["letters"]),
        ({"kind": "dumb"}, ["colours"]),
        ({"kind": "dumb", "no_colour": True}, []),
        ({"columns": 40}, ["size"]),
        ({"lines": 10}, ["size"]),
        ({"is_terminal": False, "columns": 10, "kind": ""}, []),
    ],
)
def test_the_terminal_is_judged_by_what_it_can_show(change, warned):
    from dataclasses import replace

    rows = check_terminal(replace(GOOD_TERMINAL, **change))
    assert [row.check for row in rows if row.level == "warn"] == warned
    assert all(row.fix for row in rows if row.level == "warn")


def test_terminal_facts_are_read_from_the_stream_and_the_environment():
    found = TerminalFacts.read(sys.__stdout__, {"TERM": "screen", "NO_COLOR": "1"})
    assert (found.kind, found.no_colour, found.colours) == ("screen", True, "")


def test_a_report_is_as_bad_as_its_worst_row_and_in_order():
    rows = [Finding("warn", "disk", "b", "b"), Finding("fail", "python", "a", "a")]
    report = MachineReport.of(rows, {})
    assert report.level == "fail"
    assert [row.family for row in report.rows] == ["python", "disk"]
    assert MachineReport.of([], {}).level == "ok"
