"""Colours: each has one owner, so that it means the same on the map, in QGIS and in the report."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

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


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.55, 0.72), (0.96, 0.995), (0.985, 1.0)])
def test_a_layer_has_five_classes_of_about_its_own_fifths(low, high):
    scores = np.random.default_rng(1).uniform(low, high, 2000)
    classes = palette.confidence_classes(scores)
    lows = [bound for bound, _ in classes]
    assert [color for _, color in classes] == [c for _, c in palette.CONFIDENCE_CLASSES]
    assert lows == sorted(set(lows)) == [round(bound, 3) for bound in lows]
    assert lows[0] == 0
    counts = np.bincount(np.digitize(scores, lows[1:]), minlength=5)
    assert counts.min() > 0.1 * len(scores)
    assert counts.max() < 0.35 * len(scores)
    # scores that are missing change nothing
    assert palette.confidence_classes([*scores, np.nan]) == classes
    labels = palette.confidence_labels(classes)
    assert labels[0] == f"below {lows[1]:g}"
    assert labels[-1] == f"{lows[-1]:g} and above"


def test_bounds_are_round_numbers():
    scores = np.linspace(0.5, 1, 101) + 0.0013
    lows = [low for low, _ in palette.confidence_classes(scores)]
    assert lows == [0, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize(
    "scores", [[], [0.5] * 19, np.linspace(0.5, 1, 19), [0.9] * 500, [np.nan] * 500]
)
def test_few_or_equal_scores_have_the_fixed_classes(scores):
    assert palette.confidence_classes(scores) == palette.CONFIDENCE_CLASSES
