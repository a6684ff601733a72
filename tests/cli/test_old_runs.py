"""A run of tfx 0.1.0, with old preset keys and tensor names, is shown and resumed."""

import shutil
from pathlib import Path

from core.cells.store import Store
from core.model.folder import CellModel
from core.runlog import RunReader

RELEASE = Path(__file__).parents[1] / "training" / "releases" / "0.1.0"


def test_a_run_of_release_0_1_0_is_shown_and_resumed(tfx, tmp_path):
    run = tmp_path / "runs" / "small"
    shutil.copytree(RELEASE / "small", run)
    before = RunReader(RELEASE / "small")
    shutil.copy(RELEASE / "small.toml", tmp_path)
    prepared = tfx("prepare", "small.toml")
    assert prepared.code == 0, prepared.stderr
    assert Store.open(tmp_path / before.run["store"]).manifest.key == before.run["store_key"]

    shown = tfx("runs", "show", "runs/small")
    assert shown.code == 0, shown.stderr
    assert "finished, step 40 of 40" in shown.stdout
    assert "tfx 0.1.0" in shown.stdout

    resumed = tfx("train", "runs/small", "--steps", "60")
    assert resumed.code == 0, resumed.stderr
    assert "resumed at step 40" in resumed.stderr
    after = RunReader(run)
    assert (after.status["state"], after.status["step"]) == ("finished", 60)
    assert after.metrics("validation")[:2] == before.metrics("validation")
    assert [record["step"] for record in after.metrics("validation")] == [20, 40, 60]
    config = (run / "config.toml").read_text(encoding="utf-8")
    assert "virtual_ranks = 2" in config
    assert "log_linear_steps = 10" in config
    assert "skeleton" not in config
    assert "log_linear.couplings.weight" in CellModel.load(run / "model").network.state_dict()
