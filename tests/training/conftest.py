import pytest

from support.training import make_pool


@pytest.fixture
def pool():
    return make_pool()
