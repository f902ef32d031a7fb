"""What an audit leaves behind: no paths of the machine in pages and adapters, no folders in the temporary directory."""

from __future__ import annotations

import json

import pytest
import yaml

from longgame.models.adaptation import adapt
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.report.layout import report_layout
from longgame.report.render import html_page, markdown, markdown_card
from support.chat_model import chat_tokenizer, save
from tests.report.conftest import make_card, make_recipe, make_results, make_run


def test_an_adapter_names_no_folder_of_the_machine(tmp_path):
    folder = save(tmp_path / "model", chat_tokenizer())
    spec = ModelSpec(name=str(folder))
    adaptation = adapt(load_model(spec).model, spec, 0)
    (tmp_path / "adapter").mkdir()
    adaptation.save(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["base_model_name_or_path"] == "model"
    adaptation.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/somebody/data", "…/data"),
        ("~/data", "…/data"),
        ("scores:/home/somebody/s.csv", "scores:…/s.csv"),
        ("/home/somebody/p.py:Mine", "…/p.py:Mine"),
        ("judge:/home/somebody/judge.yaml", "judge:…/judge.yaml"),
        ("https://host/somewhere", "https://host/somewhere"),
        ("data/local", "data/local"),
        ("hub:owner/name", "hub:owner/name"),
    ],
)
def test_a_page_shows_no_folder_of_the_machine(value, shown):
    results = make_results()
    recipe = make_recipe().replace({"data.data_dir": value})
    layout = report_layout(make_run(results, recipe, make_card(results)), trials=0)
    source = markdown(layout)
    assert f"data_dir: {yaml.safe_dump(shown, allow_unicode=True).splitlines()[0]}" in source
    for text in (source, html_page([layout])):
        assert "somebody" not in text


def test_no_page_or_card_shows_the_folder_of_a_model():
    results = make_results()
    recipe = make_recipe().replace({"model.name": "/home/somebody/ckpt-900"})
    layout = report_layout(make_run(results, recipe, make_card(results)), trials=0)
    for text in (markdown(layout), markdown_card(layout), html_page([layout])):
        assert "somebody" not in text
        assert "…/ckpt-900" in text
