"""The environment in which all pages are made: escaped, strict, and with the tests that the templates ask of tables."""

from __future__ import annotations

import jinja2

from longgame.report.tables import Table


def template_environment() -> jinja2.Environment:
    """Templates of the package; what is put into one is text, and a name that nobody gave is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("longgame.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["with_meanings"] = _has_meanings
    environment.tests["with_aside"] = _has_aside
    return environment


def _has_meanings(table: Table) -> bool:
    return len({column.meaning for column in table.columns if column.meaning and not column.aside}) > 1


def _has_aside(table: Table) -> bool:
    return any(column.aside for column in table.columns)
