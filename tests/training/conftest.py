import pytest
import torch

from support.training import make_pool


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """Matrices this small only lose by being shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pool():
    return make_pool()
