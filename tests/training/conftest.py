import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: the order of sums, and so every bit, depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
