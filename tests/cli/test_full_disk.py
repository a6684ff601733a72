"""A disk that is full while an .h5ad file is written: one sentence, exit code 3, and no file."""

import subprocess
import sys

import pytest

PROGRAM = """\
import resource, sys
import core.generation.generated_file
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from tfx_cli import app
sys.argv = ["tfx", *{arguments!r}]
app.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize(
    "what", [["-n", "300"], ["--from", "builtin:atlas?cells=300&seed=3", "--set", "sex=male"]]
)
def test_generated_cells_that_do_not_fit_are_one_sentence(tiny_run, tmp_path, what):
    arguments = ["-q", "generate", *what, "--run", str(tiny_run), "-o", "out.h5ad"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(limit=50_000, arguments=arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out.h5ad").exists()
