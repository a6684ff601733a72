"""`tfx doctor`: through the entry point."""

from core.doctor.check import MachineReport


def test_a_fit_machine_is_described_and_nothing_is_left(tfx, tmp_path):
    result = tfx("-q", "doctor", "--json")
    assert (result.code, result.stderr) == (0, "")
    report = result.json
    assert report["schema"] == "tfx.doctor/1"
    assert report["level"] in ("ok", "warn")
    families = dict.fromkeys(row["family"] for row in report["rows"])
    assert tuple(families) == MachineReport.FAMILIES
    assert report["facts"]["torch"]["version"]
    assert report["facts"]["memory"]["available"] > 0
    assert not list(tmp_path.iterdir())


def test_a_machine_that_is_not_fit_exits_with_3_and_says_what_to_do(tfx, monkeypatch):
    def broken():
        message = "libcudart.so.13: cannot open shared object file"
        raise ImportError(message)

    monkeypatch.setattr("core.doctor.compute.read_torch", broken)
    result = tfx("doctor")
    assert result.code == 3
    assert "cannot be imported (ImportError: libcudart.so.13" in result.stdout
    assert "-> install torch again" in result.stdout
    assert "not fit: 1 failure" in result.stdout
    assert "Traceback" not in result.stderr
