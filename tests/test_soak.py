"""One cycle of the soak: `benchmarks/soak.py` runs for an hour."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits the size of files")
def test_a_run_through_faults_is_the_undisturbed_run():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "soak.py", "--quick", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["findings"] == []
    kinds = {"kill", "write", "term", "disk", "torn", "clock", "files", "store", "two at once"}
    assert set(result["faults"]) == kinds
