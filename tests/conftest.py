"""Fixtures and marks that all tests share."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Set before torch is imported. The models of the tests are so small that more threads only wait for each other."""
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine must not fail a property

TESTS = Path(__file__).parent
SLOW_FOLDERS = {"benchmarks", "studies"}
"""Tests of what is not in the package; `make test` leaves them out, but for those marked `quick`."""


def pytest_collection_modifyitems(items):
    for item in items:
        quick = item.get_closest_marker("quick") is not None
        if not quick and SLOW_FOLDERS & set(item.path.relative_to(TESTS).parts):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Take what all test files import out of garbage collections: every training starts with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def volatile():
    """No test turns the power off, so none waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache for this session, unless one is named: tests leave nothing in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("LONGGAME_CACHE"):
            patch.setenv("LONGGAME_CACHE", str(tmp_path_factory.mktemp("longgame-cache")))
        yield
