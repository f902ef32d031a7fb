"""What every test has in common."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of the session's own, unless one is named: tests leave nothing in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("LONGGAME_CACHE"):
            patch.setenv("LONGGAME_CACHE", str(tmp_path_factory.mktemp("longgame-cache")))
        yield
