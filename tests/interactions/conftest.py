import pytest


@pytest.fixture(autouse=True, scope="module")
def all_on_one_thread(one_thread):
    """Run every test of this folder on one thread."""
