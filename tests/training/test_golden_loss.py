"""Fifty seeded steps reproduce the committed losses; see `golden_losses` on how to renew them."""

import json

import numpy as np
import pytest

from .golden_losses import CASES, golden_file, run_losses, this_machine


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_fifty_steps_give_the_committed_losses(tiny_store, tmp_path, kind, layout):
    """Bit for bit on the CPU and torch version of the file, within 1e-4 of the loss elsewhere."""
    golden = json.loads(golden_file(kind, layout).read_text(encoding="utf-8"))
    wanted = golden.pop("losses")
    losses = run_losses(tiny_store, kind, layout, tmp_path / "run")
    assert len(losses) == 50
    if golden == this_machine():
        assert losses == wanted
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_the_committed_losses_are_those_of_a_model_that_learns(kind, layout):
    losses = json.loads(golden_file(kind, layout).read_text(encoding="utf-8"))["losses"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.02
