import pytest


@pytest.fixture(autouse=True, scope="module")
def all_on_one_thread(one_thread):
    """Run every test of this folder on one thread."""


@pytest.fixture(scope="module")
def finished(tiny_store, tmp_path_factory):
    """Return the folder, result and progress events of a short run that nothing disturbed."""
    from core.training.engine import train
    from tests.training.test_engine import short

    folder = tmp_path_factory.mktemp("runs") / "finished"
    events = []
    result = train(short(), tiny_store, folder, on_progress=events.append)
    return folder, result, events
