"""Fixtures for all tests: one small prepared store of simulated cells, and settled hypothesis."""

import hypothesis
import pytest

# No test depends on speed, and every run tries the same examples.
hypothesis.settings.register_profile("tfx", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tfx")


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """Return a store of 600 simulated cells with all five phenotypes; for reading only."""
    from tests.tiny_atlas import prepare_tiny_store

    return prepare_tiny_store(tmp_path_factory.mktemp("tiny-atlas") / "store")
