"""What is read stands out from what is behind it (WCAG 2.2: text ≥ 4.5 : 1, marks of charts ≥ 3 : 1)."""

import re

import altair as alt
import pandas as pd
import pytest
import vl_convert

from longgame.report.charts import GREY, PALETTE, ink_on_cividis
from longgame.report.page import render_html


def luminance(red, green, blue):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red / 255, green / 255, blue / 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rgb(colour):
    if colour.startswith("rgb"):
        return [int(number) for number in re.findall(r"\d+", colour)]
    digits = colour.lstrip("#")
    return [int(digits[place : place + 2], 16) for place in (0, 2, 4)]


def contrast(one, other):
    low, high = sorted((luminance(*rgb(one)), luminance(*rgb(other))))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "rgb(255, 255, 255)") == pytest.approx(21)


@pytest.fixture(scope="module")
def themes(card, results, recipe, environment):
    page = render_html(card, results, recipe, environment)
    found = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", page)]
    assert len(found) == 2  # light, dark
    return found


def test_every_colour_of_text_is_legible_on_every_background_light_and_dark(themes):
    for colours in themes:
        backgrounds = {name for name in colours if name in ("paper", "panel")}
        texts = set(colours) - backgrounds - {"line"}
        assert backgrounds == {"paper", "panel"}
        assert {"ink", "soft", "good", "bad", "accent"} <= texts
        for text in texts:
            for behind in backgrounds:
                assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)


def test_marks_of_charts_stand_out_from_the_page_light_and_dark(themes):
    for colours in themes:
        for mark in (*PALETTE, GREY):
            assert contrast(mark, colours["paper"]) >= 3, (mark, colours["paper"])


def test_numbers_in_heat_maps_are_legible_on_every_shade():
    values = pd.DataFrame({"value": [step / 50 for step in range(51)]})
    base = alt.Chart(values).encode(alt.X("value:O"))
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    cells = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=None))
    text = base.mark_text().encode(text="value:Q", color=ink_on_cividis("value", 0.0, 1.0))
    svg = vl_convert.vegalite_to_svg(alt.layer(cells, text).to_dict())
    shades = re.findall(r'<path aria-label="value: [^>]*fill="(rgb\([^"]*\))"', svg)
    inks = re.findall(r'<text aria-label="value: [^>]*fill="(#\w{6})"', svg)
    assert len(shades) == len(inks) == 51
    assert set(inks) == {"#000000", "#ffffff"}
    for ink, shade in zip(inks, shades, strict=True):
        assert contrast(ink, shade) >= 4.5, (ink, shade)
