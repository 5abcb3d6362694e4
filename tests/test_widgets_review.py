"""The panel of a review without a browser: what keys, clicks and buttons do."""

import json

import numpy as np
import pytest
import shapely
from known_objects import objects, write_labels
from known_runs import job_for, until, use_known_objects

from workbench import run
from workbench._support.palette import LABEL_STATUS_COLORS
from workbench.layer.files import read_layer
from workbench.raster.crs import to_lonlat
from workbench.review.job import ReviewJob
from workbench.review.read import STATUSES
from workbench.tuning.questions import Answer, Encoding, NoAnswer
from workbench.widgets import LayerReview
from workbench.widgets.overlay import Pressed
from workbench.widgets.shapes import ENCODING, NOTHING_YET


@pytest.fixture
def panel(tmp_path, monkeypatch):
    raster = write_labels(tmp_path / "scene.tif", objects((230, 330), 1))
    use_known_objects(monkeypatch)
    run(job_for(raster, tmp_path / "run", classes={1: "roof", 2: "tree"}))
    monkeypatch.setattr("workbench.runs.parameters.is_at_notebook", lambda: True)
    review = LayerReview(ReviewJob.create(run_dir=str(tmp_path / "run")))
    yield review.panel
    review.close()


def press(panel, keys):
    rows = []
    for key in keys:
        rows.append(panel.session.triage.row)
        panel.pressed(Pressed(key, None, -1))
    return rows


def layer_of(panel):
    return read_layer(panel.session.triage.gpkg)


def test_keys_answer_the_label_that_is_shown(panel):
    accepted, rejected, classed, refused, skipped = press(panel, "ar20 ")
    layer = layer_of(panel)
    assert layer["status"][[accepted, rejected, classed, refused, skipped]].tolist() == [
        "accepted", "rejected", "accepted", "rejected", "unreviewed",
    ]  # fmt: skip
    assert layer["class_id"][classed] == 2
    press(panel, "zz")
    assert layer_of(panel)["status"].value_counts()["unreviewed"] == len(layer) - 2
    assert panel.session.triage.row == classed
    press(panel, "7")
    assert "There is no class 7 in this run." in panel.message.value
    press(panel, "1")
    assert panel.message.value == ""


def test_the_map_shows_each_label_in_the_colour_of_its_status_or_class(panel):
    overlay = panel.overlay
    assert len(np.frombuffer(overlay.shown, "<u4")) == len(panel.session.triage)
    colours = [name for _, name, _ in overlay.class_colours]
    assert colours == [*STATUSES, "roof", "tree"]
    accepted, rejected, classed = press(panel, "ar2")
    kinds = np.frombuffer(overlay.kinds, np.uint8)
    assert [colours[kinds[row]] for row in (rejected, classed)] == ["rejected", "tree"]
    assert colours[kinds[accepted]] in ("accepted", "roof")  # the run may have given it a class
    assert overlay.class_colours[2][2] == LABEL_STATUS_COLORS["rejected"]
    assert overlay.selected == panel.session.triage.row
    palette = panel.labelling.palette
    assert not palette.editable
    assert [one["count"] for one in palette.classes][1] == 1
    assert palette.n_none == 1


def test_a_click_shows_what_lies_there_and_then_the_next(panel):
    triage = panel.session.triage
    shape = triage.labels.geometry.iloc[5].representative_point()
    lon, lat = to_lonlat(triage.labels.crs, np.array([shape.x]), np.array([shape.y]))
    rows = triage.at(shape.x, shape.y)
    panel.clicked(float(lon[0]), float(lat[0]), 5)
    assert triage.row == rows[0]
    panel.clicked(float(lon[0]), float(lat[0]), 5, again=True)
    assert triage.row == rows[1 % len(rows)]
    press(panel, "a")
    assert layer_of(panel)["status"][rows[1 % len(rows)]] == "accepted"


def test_buttons_decide_about_many_and_undo_takes_it_back(panel):
    n = len(panel.session.triage)
    panel.bar.value = 0.0
    assert f"({n:,})" in panel.above.description
    panel.above.click()
    assert (layer_of(panel)["status"] == "accepted").all()
    assert "All labels are reviewed" in panel.now.value
    assert panel.above.disabled
    assert panel.rest.disabled
    panel.toolbar._hear(panel.toolbar, {"kind": "undo"}, [])
    assert (layer_of(panel)["status"] == "unreviewed").all()
    _, _, here = panel.session.triage.tile_progress()
    panel.rest.click()
    assert (layer_of(panel)["status"] == "rejected").sum() == here
    assert panel.toolbar.can_undo


def test_scores_follow_a_few_answers(panel):
    session, triage = panel.session, panel.session.triage
    until(lambda: session.ranking is not None and session.ranking.is_done)
    before = triage.score.copy()
    for _ in range(12):
        large = triage.labels["area_m2"].iloc[triage.row] > triage.labels["area_m2"].median()
        press(panel, "1" if large else "r")
    until(lambda: not np.array_equal(triage.score, before))
    assert "your answers say" in panel._line(triage.row) or triage.row < 0
    until(lambda: panel.overlay.class_scores == triage.score.astype("<f4").tobytes())


def test_without_the_raster_labels_are_answered_and_the_order_stays(panel, tmp_path):
    session = panel.session
    until(lambda: session.ranking is not None and session.ranking.is_done)
    session.ranking._left.add(next(iter(session.ranking._index)))
    for scene in session.scenes:
        scene.close()
    (tmp_path / "scene.tif").unlink()
    press(panel, "a")
    until(lambda: session.notice or session.ranking.is_done)
    assert (layer_of(panel)["status"] == "accepted").sum() == 1


def give(panel, shape, kind="shape"):
    """Say that the browser has ended a shape of the working CRS."""
    crs = panel.session.triage.labels.crs
    degrees = shapely.transform(shape, lambda xy: np.column_stack(to_lonlat(crs, *xy.T)))
    hear(panel, {"kind": kind, "geometry": shapely.geometry.mapping(degrees)})


def hear(panel, message):
    panel.tool._hear(panel.tool, {**message, "number": panel.tool.number}, [])


def test_d_draws_a_label_with_the_class_that_was_given_last(panel):
    overlay, triage = panel.overlay, panel.session.triage
    press(panel, "2d")
    assert panel.tool.mode == "draw"
    panel._show_scores()  # something was learned meanwhile
    assert panel.now.value == "<b>new</b> · class tree"
    assert overlay.selected == -1
    hear(panel, {"kind": "drop"})
    assert overlay.selected == triage.row
    assert panel.now.value.startswith("<b>unreviewed</b>")
    press(panel, "d")
    press(panel, "a")  # keys belong to the tool
    assert "Finish the outline" in panel.message.value
    n, (x, y, *_) = len(triage), triage.labels.total_bounds
    give(panel, shapely.box(x + 3, y + 3, x + 8, y + 7))
    assert panel.message.value == ""
    assert panel.tool.mode == ""
    assert len(triage) == n + 1
    assert triage.row == overlay.selected == n
    for trait, size in ((overlay.shown, 4), (overlay.kinds, 1), (overlay.class_scores, 4)):
        assert len(trait) == size * (n + 1)
    label = layer_of(panel).iloc[n]
    assert (label["status"], label["class_id"]) == ("edited", 2)
    assert label.geometry.area == pytest.approx(20, rel=1e-5)
    press(panel, "1")
    assert layer_of(panel).iloc[n][["status", "class_id"]].tolist() == ["edited", 1]
    press(panel, "zz")
    assert len(layer_of(panel)) == len(triage) == n
    assert len(overlay.kinds) == n


def test_e_moves_corners_and_those_that_nobody_moved_stay_to_the_last_bit(panel):
    triage = panel.session.triage
    (row,) = press(panel, "e")
    assert panel.tool.mode == "edit"
    shape = triage.labels.geometry.iloc[row]
    # as JSON brings it to the browser and back
    geometry = json.loads(json.dumps(panel.tool.geometry))
    hear(panel, {"kind": "shape", "geometry": geometry})
    assert panel.tool.mode == ""
    assert not triage.past  # nobody has moved anything
    press(panel, "e")
    ring = geometry["coordinates"][0][0]
    ring[0] = ring[-1] = [ring[0][0] - 1e-7, ring[0][1] + 1e-7]  # a centimetre
    hear(panel, {"kind": "shape", "geometry": geometry})
    label = layer_of(panel).iloc[row]
    assert label["status"] == "edited"
    before, after = (set(map(tuple, shapely.get_coordinates(s))) for s in (shape, label.geometry))
    assert len(before - after) == len(after - before) == 1
    assert label["area_m2"] == pytest.approx(label.geometry.area, rel=1e-3)
    press(panel, "z")
    assert layer_of(panel).iloc[row].geometry.equals(shape)
    assert triage.status[row] == "unreviewed"


def test_a_bad_outline_is_refused_and_stays_to_be_mended(panel):
    triage = panel.session.triage
    x, y, *_ = triage.labels.total_bounds
    n = len(triage)
    press(panel, "d")
    give(panel, shapely.Polygon([(x, y), (x + 9, y + 9), (x + 9, y), (x, y + 6)]))
    assert "crosses itself" in panel.message.value
    assert panel.tool.mode == "edit"
    assert len(layer_of(panel)) == n
    give(panel, shapely.box(x, y, x + 9, y + 9))
    assert len(layer_of(panel)) == n + 1
    assert panel.message.value == ""
    press(panel, "e")
    hear(panel, {"kind": "drop"})
    assert panel.tool.mode == ""
    press(panel, "d")
    panel.toolbar._hear(panel.toolbar, {"kind": "undo"}, [])
    assert panel.tool.mode == ""
    assert len(layer_of(panel)) == n


def test_a_batch_run_makes_no_widgets(tmp_path, monkeypatch):
    made = LayerReview(ReviewJob.create(run_dir=str(tmp_path)))
    assert made.panel is None
    assert json.dumps(made._repr_mimebundle_()) == json.dumps({"text/plain": LayerReview.text})


def asked_of(panel):
    """What is asked of the model from now on: clicks, and who hears the answer."""
    asked, asking = [], panel.session.asking
    asking.get_ready = lambda: None
    asking.ask = lambda clicks, hear: asked.append((clicks, hear))
    return asked


def click(panel, *points, box=None):
    """Say that the browser has these clicks: XY in the working CRS, and whether on the object."""
    crs = panel.session.triage.labels.crs
    degrees = [[*map(float, to_lonlat(crs, x, y)), on] for x, y, on in points]
    if box is not None:
        (west, east), (south, north) = to_lonlat(crs, np.array(box[::2]), np.array(box[1::2]))
        box = [west, south, east, north]
    hear(panel, {"kind": "ask", "points": degrees, "box": box})


def test_p_outlines_what_was_missed_by_clicks_and_enter_keeps_it(panel):
    triage, tool, asked = panel.session.triage, panel.tool, asked_of(panel)
    n, (x, y, *_) = len(triage), triage.labels.total_bounds
    press(panel, "2p")
    assert tool.mode == "prompt"
    assert panel.now.value == "<b>new</b> · class tree"
    assert panel.overlay.selected == -1
    hear(panel, {"kind": "keep", "again": False})
    assert tool.said == NOTHING_YET
    click(panel, (x + 4, y + 4, 1))
    click(panel, (x + 4, y + 4, 1), (x + 9, y + 9, 0), box=(x, y, x + 8, y + 9))
    (_, late), (clicks, answer) = asked
    assert clicks.points == pytest.approx(np.array([[x + 4, y + 4], [x + 9, y + 9]]), abs=1e-3)
    assert clicks.on_object.tolist() == [True, False]
    assert clicks.box == pytest.approx(np.array([x, y, x + 8, y + 9]), abs=1e-2)
    assert clicks.shape is None
    late(Answer(1, shapely.multipolygons([shapely.box(0, 0, 1, 1)]), 0.5))
    assert tool.geometry == {}  # it was about the first click alone
    answer(Encoding(2))
    assert tool.said == ENCODING
    hear(panel, {"kind": "keep", "again": True})  # sooner than the answer
    assert len(layer_of(panel)) == n
    shape = shapely.multipolygons([shapely.box(x + 3, y + 3, x + 8, y + 7)])
    answer(Answer(2, shape, 0.9))
    label = layer_of(panel).iloc[n]
    assert (label["status"], label["class_id"]) == ("edited", 2)
    assert label.geometry.equals(shape)  # to the last bit: it was not in the browser
    assert tool.mode == "prompt"  # for the next one
    hear(panel, {"kind": "drop"})
    press(panel, "z")
    assert len(layer_of(panel)) == n


def test_m_mends_the_label_that_is_shown_and_it_keeps_its_id(panel):
    triage, tool, asked = panel.session.triage, panel.tool, asked_of(panel)
    before = layer_of(panel)
    (row,) = press(panel, "m")
    shape = triage.labels.geometry.iloc[row]
    assert tool.mode == "correct"
    assert panel.overlay.selected == row
    was = tool.geometry
    middle = shape.representative_point()
    click(panel, (middle.x, middle.y, 0))
    ((clicks, answer),) = asked
    assert clicks.shape.equals(shape)
    answer(NoAnswer(1, "The raster is gone."))
    assert tool.said == "The raster is gone."
    click(panel)  # the click is taken back
    assert (tool.geometry, tool.said) == (was, "")
    click(panel, (middle.x, middle.y, 0))
    smaller = shape.buffer(-0.6, join_style="mitre")
    smaller = shapely.multipolygons(shapely.get_parts(smaller))
    asked[-1][1](Answer(2, smaller, 0.9))
    hear(panel, {"kind": "keep", "again": False})
    assert tool.mode == ""
    label = layer_of(panel).iloc[row]
    assert (label["id"], label["status"]) == (before.iloc[row]["id"], "edited")
    assert label.geometry.equals(smaller)
    press(panel, "z")
    assert layer_of(panel).iloc[row].geometry.equals(shape)


def test_a_layer_of_a_model_without_prompts_says_so(panel):
    press(panel, "p")
    assert "The model `classic` takes no clicks" in panel.message.value
    assert panel.tool.mode == ""
