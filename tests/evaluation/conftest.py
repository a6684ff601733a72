"""Untrained models whose weights say something, and cells to ask them about."""

from dataclasses import replace

import pytest
import torch

from core.evaluation import predict
from core.presets.schema import MaskingSettings
from tests.tiny_atlas import build_model, tiny_preset

#: Leaves nothing to chance, so that batches of any size ask the same questions.
EVERYTHING = MaskingSettings(genes=1.0, phenotypes=1.0, unexpressed=0.0, unspecified=0.0)


@pytest.fixture(scope="module")
def models(tiny_store):
    """Return a function that gives an untrained model with weights that say something."""
    made = {}

    def get(kind="binned", layout="ranked", masking=EVERYTHING):
        if (kind, layout) not in made:
            preset = tiny_preset(encoding__kind=kind, encoding__layout=layout).preset
            model = build_model(preset, tiny_store, name="example")
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in model.network.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.1 * noise)
            made[kind, layout] = model
        return replace(made[kind, layout], masking=masking)

    return get


@pytest.fixture(scope="module")
def rows(tiny_store):
    return tiny_store.rows("validation")[:45]


@pytest.fixture
def small_batches(monkeypatch):
    """Return a function that sets the number of cells of a batch."""
    return lambda n_cells: monkeypatch.setattr(predict, "BATCH_SIZE", n_cells)
