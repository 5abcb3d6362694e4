"""Colours: each has one owner, so that it means the same on the map, in QGIS and in the report."""

import re
from pathlib import Path
from typing import get_args

import workbench
from workbench._support import palette
from workbench.layer.schema import Status
from workbench.review.changes import CHANGES

PACKAGE = Path(workbench.__file__).parent
# lines and labels of one chart, which mean nothing elsewhere
GREYS = {"#555555", "#333333", "#888888"}


def test_no_module_but_the_palette_names_a_colour_that_means_something():
    for room in ("layer", "review", "runs", "evaluation"):
        for path in (PACKAGE / room).rglob("*.py"):
            found = set(re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")))
            assert found <= GREYS, path


def test_each_status_and_each_change_has_a_colour():
    assert set(palette.LABEL_STATUS_COLORS) == set(get_args(Status))
    assert set(palette.CHANGE_CHART_COLORS) == set(palette.CHANGE_MAP_COLORS) == set(CHANGES)
    assert set(palette.TILE_STATUS_COLORS) == set(palette.TILE_CHART_COLORS)
