"""Lanes: the same step however it is dealt, cut into parts, or run out of memory on the way."""

import numpy as np
import pytest
import torch

from core.errors import ConfigurationError, MachineError
from core.model.losses import masked_loss
from core.runlog import RunReader
from core.training.engine import train
from core.training.virtual_ranks import virtual_ranks_of_process
from tests.training.test_engine import metrics_of, short, stop_after, weights_of

#: Without dropout, which is drawn for each part anew.
PLAIN = {"model__dropout": 0.0, "train__max_steps": 8, "train__eval_steps": 8}


def losses_of(folder):
    return np.array([r["loss"] for r in RunReader(folder).metrics("train")])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_virtual_ranks_are_dealt_once_each(count):
    dealt = [virtual_ranks_of_process(6, index=index, count=count) for index in range(count)]
    assert sorted(
        virtual_rank for virtual_ranks, _ in dealt for virtual_rank in virtual_ranks
    ) == list(range(6))
    assert {total for _, total in dealt} == {6}
    assert virtual_ranks_of_process(None, index=count - 1, count=count) == ([count - 1], count)


def test_virtual_ranks_that_cannot_be_dealt_equally_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"train\.virtual_ranks = 4 cannot be dealt equally to 3"
    ):
        virtual_ranks_of_process(4, index=0, count=3)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("weighting", ["mean", "rate"])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_parts_add_up_to_the_step(tiny_store, tmp_path, layout, weighting, weights):
    options = PLAIN | {"loss__weighting": weighting, "loss__class_weights": weights}
    options["encoding__layout"] = layout
    train(short(**options), tiny_store, tmp_path / "whole")
    train(short(train__micro_batches=3, **options), tiny_store, tmp_path / "parts")
    np.testing.assert_allclose(
        losses_of(tmp_path / "parts"), losses_of(tmp_path / "whole"), atol=1e-5
    )


def test_a_run_of_two_virtual_ranks_learns_from_as_many_cells_per_step(tiny_store, tmp_path):
    train(short(train__virtual_ranks=2, **PLAIN), tiny_store, tmp_path / "run")
    train(short(**PLAIN), tiny_store, tmp_path / "one")
    events = [e["event"] for e in RunReader(tmp_path / "run").events()]
    assert events.count("eval") == 1
    assert losses_of(tmp_path / "run") != pytest.approx(losses_of(tmp_path / "one"))  # other cells
    assert losses_of(tmp_path / "run").mean() == pytest.approx(
        losses_of(tmp_path / "one").mean(), abs=0.2
    )


def test_a_resumed_run_keeps_its_virtual_ranks(tiny_store, tmp_path):
    train(short(train__virtual_ranks=2), tiny_store, tmp_path / "whole")
    with pytest.raises(Exception, match="stopped at step 5"):
        train(short(train__virtual_ranks=2), tiny_store, tmp_path / "parts", **stop_after(5))
    train(short(), tiny_store, tmp_path / "parts")
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")


# --------------------------------------------------------------------------- out of memory
def small_memory(monkeypatch, most_cells):
    """Let a device run out of memory on batches of more cells than that."""
    seen = []

    def hungry(genes, phenotypes, batch, *rest):
        if batch.n_cells > most_cells:
            message = "CUDA out of memory. Tried to allocate 2 GiB"
            raise torch.OutOfMemoryError(message)
        seen.append(batch.n_cells)
        return masked_loss(genes, phenotypes, batch, *rest)

    monkeypatch.setattr("core.training.step.masked_loss", hungry)
    return seen


def test_where_memory_runs_out_steps_are_cut_and_come_to_the_same(
    tiny_store, tmp_path, monkeypatch, caplog
):
    train(short(**PLAIN), tiny_store, tmp_path / "whole")
    seen = small_memory(monkeypatch, 5)
    train(short(**PLAIN), tiny_store, tmp_path / "cut")
    np.testing.assert_allclose(
        losses_of(tmp_path / "cut"), losses_of(tmp_path / "whole"), atol=1e-5
    )
    assert set(seen) == {4}
    assert len(seen) == 4 * 8
    events = RunReader(tmp_path / "cut").events()
    assert [e["micro_batches"] for e in events if e["event"] == "warning"] == [2, 4]
    assert "memory ran out: steps are computed in 4 parts from now on" in caplog.text


def test_a_resumed_run_remembers_the_parts(tiny_store, tmp_path, monkeypatch):
    small_memory(monkeypatch, 5)
    train(short(), tiny_store, tmp_path / "whole")
    with pytest.raises(Exception, match="stopped at step 6"):
        train(short(), tiny_store, tmp_path / "parts", **stop_after(6))
    train(short(), tiny_store, tmp_path / "parts")
    one, two = weights_of(tmp_path / "whole", 12), weights_of(tmp_path / "parts", 12)
    assert all(torch.equal(one[name], two[name]) for name in one)
    events = RunReader(tmp_path / "parts").events()
    assert sum("micro_batches" in e for e in events) == 2  # not run out of again


def test_a_cell_that_does_not_fit_ends_the_run(tiny_store, tmp_path, monkeypatch):
    small_memory(monkeypatch, 0)
    with pytest.raises(MachineError, match="a single cell of 40 tokens does not fit into memory"):
        train(short(), tiny_store, tmp_path / "run")
    assert RunReader(tmp_path / "run").status["state"] == "failed"


def test_another_runtime_error_is_not_taken_for_memory(tiny_store, tmp_path, monkeypatch):
    def fail(*_):
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr("core.training.step.masked_loss", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(short(), tiny_store, tmp_path / "run")
