"""Pictures of a review, against what the review was."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_runs import run_of_15_tiles
from matplotlib.colors import to_hex
from reviews import drawn, with_rows

from workbench.layer.report.map import figure_png
from workbench.review.changes import changes
from workbench.review.charts import draw_change_map, draw_changes, summary_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of known objects."""
    return run_of_15_tiles(tmp_path_factory.mktemp("charts"))


@pytest.fixture
def reviewed(finished):
    """Labels of which two are accepted, one rejected, reshaped, deleted and added each."""
    labels = finished.layer.copy()
    labels.loc[[0, 1], "status"] = "accepted"
    labels.loc[2, "status"] = "rejected"
    labels.loc[3, "geometry"] = shapely.MultiPolygon([labels.geometry[3].envelope])
    x, y = labels.total_bounds[:2]
    new = drawn(shapely.box(x, y, x + 9, y + 9), labels)
    nothing = drawn(shapely.MultiPolygon(), labels, id="drawn/2")
    return gpd.GeoDataFrame(with_rows(labels.drop(index=4), new, nothing), crs=labels.crs)


def test_the_map_shows_each_change_where_it_is(finished, reviewed):
    told = changes(reviewed, finished.layer)
    figure = draw_change_map(told, reviewed, finished)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    n = len(finished.layer)
    assert texts == [
        f"unreviewed ({n - 5})", "rejected (1)", "deleted (1)", "accepted (2)", "edited (1)",
        "added (1)", "its shape before",
    ]  # fmt: skip
    colors = [to_hex(patch.get_edgecolor()) for patch in legend.get_patches()]
    collections = figure.axes[0].collections
    shown = {to_hex(c.get_edgecolor()[0]): c.get_paths() for c in collections if len(c.get_fc())}
    assert list(shown) == colors
    (gone,) = shown[colors[2]]
    assert gone.get_extents().bounds == pytest.approx(
        shapely.box(*finished.layer.geometry[4].bounds).bounds[:2]
        + tuple(np.ptp(np.reshape(finished.layer.geometry[4].bounds, (2, 2)), axis=0))
    )
    (before,) = collections[-1].get_paths()  # dotted: the shape that was edited
    assert len(before.vertices) == shapely.get_num_coordinates(finished.layer.geometry[3])


def test_names_of_classes_are_shown_as_they_are_and_all_count(finished):
    names = [r"cost $\bad{$", "建物", *(f"class {n}" for n in range(20))]
    labels = finished.layer.iloc[np.arange(2 * len(names)) % len(finished.layer)]
    labels = labels.assign(
        id=[f"n{i}" for i in range(len(labels))],
        status="accepted",
        class_id=pd.array([i // 2 for i in range(len(labels))], "Int64"),
    )
    figure = draw_changes(changes(labels, labels), dict(enumerate(names)))
    assert figure_png(figure)
    (axes,) = [axes for axes in figure.axes if axes.get_title("left") == "by class"]
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert len(shown) == 12
    assert shown[-1] == "11 others"
    assert sum(int(text.get_text()) for text in axes.texts) == len(labels)


def test_a_review_of_nothing_has_pictures_too(finished):
    nothing = finished.layer[:0]
    told = changes(nothing, nothing)
    assert draw_change_map(told, nothing, finished).legends == []
    assert draw_changes(told, {}).axes
    assert summary_of(told).loc["kept of those reviewed", "value"] == "–"


def test_the_map_shows_where_the_run_ends(finished, reviewed):
    told = changes(reviewed, finished.layer)
    aoi = shapely.box(*finished.layer.total_bounds).buffer(-5)

    def outlines(of):
        paths = [
            path.get_extents().bounds
            for collection in draw_change_map(told, reviewed, of).axes[0].collections
            for path in collection.get_paths()
        ]
        x0, y0, x1, y1 = aoi.bounds
        return sum(np.allclose(b, (x0, y0, x1 - x0, y1 - y0)) for b in paths)

    assert outlines(finished) == 0
    assert outlines(replace(finished, aoi=aoi)) == 2  # white on dark
