"""Fixtures for all tests: one small prepared store of simulated cells, and settled hypothesis."""

import os
import signal

import hypothesis
import pytest

# Before torch is imported: on tiny tensors a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on speed, every run tries the same examples, and each leaves the fixtures as they were.
hypothesis.settings.register_profile(
    "tfx",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("tfx")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with the files that hold slow tests, so that all workers end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """Return a store of 600 simulated cells with all five phenotypes; for reading only."""
    import torch

    from tests.tiny_atlas import prepare_tiny_store

    # Ranking genes runs numba, which changes the number of threads for torch too.
    n_threads = torch.get_num_threads()
    store = prepare_tiny_store(tmp_path_factory.mktemp("tiny-atlas") / "store")
    torch.set_num_threads(n_threads)
    return store


@pytest.fixture
def own_folders(tmp_path):
    """Put a user's folders of the names of our packages into the folder of the test."""
    for name in ("core", "presets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"raise RuntimeError('the user's own {name}')\n"
        )


@pytest.fixture(scope="module")
def one_thread():
    """Compute on one thread: the order of sums, and so every bit, depends on their number.

    For a whole module at once, because its fixtures begin before those of a test.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
