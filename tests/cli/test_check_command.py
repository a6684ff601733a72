import h5py
import numpy as np
import pytest

from core.doctor.check import MachineReport
from tests.cells.examples import ensembl, make_adata, write

CELLS = "builtin:atlas?cells=300&seed=0"


def test_fit_cells_are_reported_by_family_with_fixes(tfx):
    result = tfx("-q", "check", CELLS)
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("1 file, 300 cells x ")
    assert lines[-1].startswith("fit")
    families = [line for line in lines[4:-2] if line and not line.startswith(" ")]
    assert families == ["files", "matrix", "genes", "cells", "phenotypes", "donors", "cost"]
    assert any(line.strip().startswith("-> ") for line in lines)


def test_the_report_as_json_is_one_document_on_stdout(tfx):
    result = tfx("check", CELLS, "--json")
    document = result.json
    assert result.code == 0
    assert document["schema"] == "tfx.check/1"
    assert document["facts"]["cells"] == 300
    assert {row["level"] for row in document["rows"]} <= {"ok", "warn"}
    assert "reading cells" in result.stderr


def test_a_truncated_file_among_good_ones_is_named_and_exits_with_4(tfx, tmp_path):
    for number in range(3):
        write(make_adata(seed=number), tmp_path, f"cells_{number}.h5ad")
    path = tmp_path / "cells_1.h5ad"
    path.write_bytes(path.read_bytes()[:3_000])
    result = tfx("check", "cells_{0..2}.h5ad", "--json")
    assert result.code == 4
    failures = [row for row in result.json["rows"] if row["level"] == "fail"]
    assert [row["subject"] for row in failures] == ["cells_1.h5ad"]
    assert result.json["facts"]["cells"] == 120
    table = tfx("check", "cells_{0..2}.h5ad")
    assert table.code == 4
    assert table.stdout.splitlines()[-1].startswith("not fit: 1 failure")


def test_strict_exits_with_4_on_a_warning(tfx, tmp_path):
    write(make_adata(n_donors=2), tmp_path)
    assert tfx("check", "cells.h5ad").code == 0
    strict = tfx("check", "cells.h5ad", "--strict", "--json")
    assert (strict.code, strict.json["level"]) == (4, "warn")


def test_many_like_rows_are_shortened_in_the_table_only(tfx, tmp_path):
    for number in range(3):
        write(make_adata(seed=number), tmp_path, f"cells_{number}.h5ad")
    result = tfx("check", "cells_{0..12}.h5ad")
    assert "... and 5 more like it (--json lists all)" in result.stdout
    document = tfx("check", "cells_{0..12}.h5ad", "--json").json
    assert sum(row["level"] == "fail" for row in document["rows"]) == 10


@pytest.mark.parametrize("number_of_shared", [40, 30, 10])
def test_the_genes_of_a_run_are_compared_without_loading_it(tfx, tmp_path, number_of_shared):
    write(make_adata(), tmp_path)
    genes = ensembl(40, first=40 - number_of_shared)
    folder = tmp_path / "runs" / "old" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "run.json").write_text("{}")
    text = str(genes).replace("'", '"')
    (folder / "genes.json").write_text(f'{{"ids": {text}, "symbols": {text}}}')
    for model in ("old", "runs/old", "runs/old/model"):
        result = tfx("check", "cells.h5ad", "--model", model, "--json")
        (row,) = [row for row in result.json["rows"] if row["check"] == "model genes"]
        assert row["level"] == {40: "ok", 30: "warn", 10: "fail"}[number_of_shared]
        assert result.code == (4 if number_of_shared == 10 else 0)


def test_a_preset_is_checked_with_its_settings(tfx, tmp_path):
    adata = make_adata()
    adata.obs["treatment"] = ["a", "b"] * 30
    write(adata, tmp_path)
    preset = tmp_path / "mine.toml"
    preset.write_text('[data]\nfiles = "cells.h5ad"\n[data.phenotypes]\ntreatment = "treatment"\n')
    report = tfx("check", "mine.toml", "--set", "data.phenotypes.sex=false", "--json").json
    assert set(report["facts"]["phenotypes"]) >= {"treatment", "tissue"}
    assert "sex" not in report["facts"]["phenotypes"]


def test_nothing_is_written(tfx, tmp_path):
    write(make_adata(), tmp_path)
    tfx("check", "cells.h5ad", "--quick")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_file_of_another_kind_is_a_row_not_an_abort(tfx, tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["numbers"] = np.arange(3)
    result = tfx("check", "other.h5ad", "missing.h5ad", "--json")
    assert result.code == 4
    assert [row["subject"] for row in result.json["rows"]] == ["other.h5ad", "missing.h5ad"]


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
