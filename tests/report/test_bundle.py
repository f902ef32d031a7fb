"""The script of the charts: the same from a process beside as from this one."""

import sys

import pytest

from longgame.report import charts as bundle
from longgame.report import page as html
from longgame.report.charts import VERSION


@pytest.fixture
def fresh():
    for made in (bundle.begin_bundle, bundle.finish_bundle):
        made.cache_clear()
    yield
    for made in (bundle.begin_bundle, bundle.finish_bundle):
        made.cache_clear()


def test_the_script_begun_in_a_process_is_the_one_made_here(fresh, monkeypatch):
    here = bundle.make_bundle(VERSION)
    html.begin_bundle()
    monkeypatch.setattr(bundle, "make_bundle", None)  # the process's is used
    assert bundle.finish_bundle(VERSION) == here
    assert "</script" not in here.lower()


def test_a_process_that_ends_early_costs_nothing_but_time(fresh, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    html.begin_bundle()
    assert bundle.finish_bundle(VERSION) == bundle.make_bundle(VERSION)
