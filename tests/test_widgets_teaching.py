"""Teaching classes in the tuner, without a browser: clicks and keys, and what they lead to."""

import numpy as np
import pytest
import shapely
from known_objects import write_labels
from known_runs import EXACT, use_known_objects
from test_learning_run import CLASSES, FIELD, NONE, ROOF, kind_of, town
from test_widgets_tuner import Computed

from workbench import Job, run
from workbench.learning.verdicts import VERDICTS
from workbench.raster.crs import to_lonlat
from workbench.tuning.expect import expectation
from workbench.tuning.questions import Answer
from workbench.widgets import AOIPicker, ThresholdTuner
from workbench.widgets.classes import label_of
from workbench.widgets.overlay import FADED, REFUSED, UNSAID, Pressed
from workbench.widgets.palette import LOOK


@pytest.fixture
def job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", town())
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), interactive=True,
        classes=CLASSES, **EXACT,
    )  # fmt: skip


def opened(job):
    """A tuner with all tiles of the scene as samples."""
    picker = AOIPicker(job)
    computed = Computed(picker.session)
    tuner = ThresholdTuner(picker)
    tuner.computed = computed
    if not computed.asked:
        tuner.panel.n_tiles.value = 64
        tuner.panel.propose()
    computed.answer()
    return tuner


@pytest.fixture
def tuner(job):
    tuner = opened(job)
    yield tuner
    tuner.close()


def rows_of(tuner, kind):
    """Shown rows whose object is of a kind, by the place of their middle in the raster."""
    preview, labels = tuner.panel.preview, town()
    rows = []
    for row in tuner.panel.view.kept.tolist():
        middle = preview.outline(row).iloc[0].representative_point()
        column, line = ~tuner.session.scenes[0].transform @ (middle.x, middle.y)
        number = labels[int(line), int(column)]
        if number and kind_of(number) == kind:
            rows.append(row)
    return rows


def middle_of(tuner, row):
    middle = tuner.panel.preview.outline(row).iloc[0].representative_point()
    lon, lat = to_lonlat(tuner.session.scenes[0].crs, middle.x, middle.y)
    return float(lon), float(lat)


def press(tuner, key, row):
    """Press a key with the mouse on the polygon of a row."""
    place = int(tuner.panel.drawn.place[row])
    tuner.panel.pressed(Pressed(key, middle_of(tuner, row), place))


def click(tuner, row, again=False):
    lon, lat = middle_of(tuner, row)
    tuner.panel.clicked(lon, lat, int(tuner.panel.drawn.place[row]), again)


def byte_of(tuner, trait, row):
    return getattr(tuner.panel.overlay, trait)[int(tuner.panel.drawn.place[row])]


def teach(tuner, n=6):
    """Say of some objects what they are; returns their rows by kind."""
    shown = {kind: rows_of(tuner, kind) for kind in (ROOF, FIELD, NONE)}
    said = {kind: rows[:: len(rows) // n][:n] for kind, rows in shown.items()}  # from all tiles
    for kind, rows in said.items():
        for row in rows:
            press(tuner, str(kind), row)
    while tuner.panel.teaching.describe_one(tuner.panel.preview):
        pass  # else the thread of the quiet moments does it, sooner or later
    tuner.panel.display.draw()
    return said


def test_keys_teach_two_classes_and_all_polygons_take_their_colour(tuner):
    assert tuner.panel.overlay.colour_by == "confidence"
    roofs = rows_of(tuner, ROOF)
    said = teach(tuner)
    overlay = tuner.panel.overlay
    assert overlay.colour_by == "class"
    assert [number for number, _, _ in overlay.class_colours] == [ROOF, FIELD]
    assert [byte_of(tuner, "said", row) for row in said[ROOF]] == [0] * 6
    assert [byte_of(tuner, "said", row) for row in said[FIELD]] == [1] * 6
    assert [byte_of(tuner, "said", row) for row in said[NONE]] == [REFUSED] * 6
    assert byte_of(tuner, "said", roofs[-1]) == UNSAID
    kinds = [byte_of(tuner, "kinds", row) for row in roofs]
    assert np.mean(np.array(kinds) == 0) > 0.95
    assert byte_of(tuner, "kinds", said[NONE][0]) == FADED
    assert [one["count"] for one in tuner.panel.teaching.palette.classes] == [6, 6]
    assert tuner.panel.teaching.palette.n_none == 6


def test_the_same_key_again_takes_a_verdict_back(tuner):
    row = rows_of(tuner, ROOF)[0]
    press(tuner, "1", row)
    assert len(tuner.session.verdicts) == 1
    press(tuner, "2", row)
    assert list(tuner.session.verdicts.said.values()) == [FIELD]
    press(tuner, "2", row)
    assert len(tuner.session.verdicts) == 0


def test_a_key_without_a_class_or_without_an_object_says_so(tuner):
    row = rows_of(tuner, ROOF)[0]
    press(tuner, "7", row)
    assert "There is no class 7" in tuner.panel.message.value
    tuner.panel.pressed(Pressed("1", None, -1))
    assert "Nothing is pointed at" in tuner.panel.message.value
    assert len(tuner.session.verdicts) == 0


def test_a_click_says_the_class_of_the_palette(tuner):
    tuner.panel.teaching.palette.tool = FIELD
    row = rows_of(tuner, FIELD)[0]
    click(tuner, row)
    assert list(tuner.session.verdicts.said.values()) == [FIELD]
    click(tuner, row, again=True)  # nothing else lies there
    assert len(tuner.session.verdicts) == 0
    tuner.panel.judging.mode.value = "good"
    assert tuner.panel.teaching.palette.tool == LOOK


def test_verdicts_survive_a_restart_and_come_back_accepted(tuner, job, monkeypatch):
    teach(tuner)
    path = tuner.session.folder / VERDICTS
    assert path.exists()
    assert tuner.session.job.examples == [str(path)]
    tuner.panel.teaching.learn()
    tuner.panel.display.draw()
    kept = tuner.panel.teaching._classes.kept
    tuned = {tuner.panel.preview.key(int(row)) for row in kept}
    polygons = tuner.panel.teaching._classes.drawn
    seam = {row for frame in polygons for row in frame["row"][frame["seam"]]}
    clear = {tuner.panel.preview.key(int(row)) for row in kept if row not in seam}
    tuner.close()
    again = opened(job)  # as after a restart of the kernel
    try:
        assert again.computed.asked[0].tiles  # the tiles of the verdicts, without being asked
        assert len(again.session.verdicts) == 18
        assert again.panel.overlay.colour_by == "class"
        again_job = again.session.job
    finally:
        again.close()
    use_known_objects(monkeypatch)
    layer = run(again_job).layer
    assert (layer["status"] == "accepted").sum() >= 11  # two may be one object, seen twice
    assert set(layer["class_id"]) == {ROOF, FIELD}
    assert layer["class_score"].between(0, 1).all()
    ids = {f"{s}/r{r}c{c}/{o}" for s, r, c, o in clear}
    assert len(ids) > 10
    assert ids <= set(layer["id"])  # what you tune is what you get
    assert len(tuned) >= len(layer)


def test_a_file_that_is_not_ours_is_kept_and_named(job, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / VERDICTS).write_bytes(b"something else")
    picker = AOIPicker(job)
    Computed(picker.session)
    tuner = ThresholdTuner(picker)
    try:
        assert "holds no verdicts that this version can read" in tuner.panel.message.value
        assert (folder / VERDICTS).read_bytes() == b"something else"
    finally:
        tuner.close()


def test_next_asks_for_what_is_least_certain_and_a_key_answers(tuner):
    teach(tuner)
    for _ in range(3):
        tuner.panel.go_to_next()
        row = tuner.panel.teaching.target
        assert row >= 0
        n = len(tuner.session.verdicts)
        tuner.panel.pressed(Pressed("0", None, -1))
        assert len(tuner.session.verdicts) == n + 1
        assert byte_of(tuner, "said", row) == REFUSED


def test_classes_can_be_renamed_recoloured_and_added(tuner, job):
    palette = tuner.panel.teaching.palette
    wanted = [dict(one) for one in palette.classes]
    wanted[0] |= {"name": "  big   roof ", "color": "#123456"}
    tuner.panel.teaching._edit(wanted)
    assert tuner.session.job.classes == {ROOF: "big roof", FIELD: "field"}
    tuner.panel.teaching._add()
    assert tuner.session.job.classes[3] == "class 3"
    tuner.panel.teaching._edit([dict(palette.classes[0]) | {"name": " "}])
    assert "needs a name" in tuner.panel.message.value
    assert tuner.session.job.classes[ROOF] == "big roof"
    tuner.close()
    again = opened(job.changed(classes={1: "object"}))  # the cell's own classes
    assert again.session.job.classes == {1: "big roof", 2: "field", 3: "class 3"}
    assert again.panel.teaching.palette.classes[0]["color"] == "#123456"
    again.close()


def test_five_thousand_candidates_take_their_colour_at_once(tuner):
    """The time itself is measured in a benchmark; here only that nothing is sent twice."""
    teach(tuner)
    sequence = tuner.panel.overlay.for_sequence
    press(tuner, "1", rows_of(tuner, ROOF)[8])
    assert tuner.panel.overlay.for_sequence == sequence  # no coordinates again


def test_words_say_what_helps(tuner):
    classes = CLASSES
    said = tuner.session
    assert "press 1 (roof)" in " ".join(expectation(said.verdicts, classes, None))
    press(tuner, "1", rows_of(tuner, ROOF)[0])
    assert "press 0" in tuner.panel.teaching.text.value
    teach(tuner, 7)
    assert tuner.panel.teaching.learn()
    text = tuner.panel.teaching.text.value
    assert "verdicts on" in text
    assert "roof: about " in text
    assert "more of" in text
    assert not tuner.panel.teaching.learn()  # nothing new


def test_an_object_that_is_not_shown_is_reached_by_clicking_again(tuner):
    """A whole with its part: the first click means what is shown, the next one the other."""
    panel = tuner.panel
    panel.controls.of["pred_iou_thresh"].value = 0.9
    hidden = [
        row for row in range(panel.preview.n_candidates)
        if panel.view.fate[row] == 0 and shapely.area(panel.preview.outline(row).iloc[0]) > 5
    ]  # fmt: skip
    assert hidden
    lon, lat = middle_of(tuner, hidden[0])
    panel.clicked(lon, lat, -1)
    assert panel.teaching.target == hidden[0]
    assert panel.overlay.selected == -1
    assert panel.hidden.data["type"] == "Feature"  # outlined, though it is not drawn
    panel.pressed(Pressed("1", None, -1))
    assert len(tuner.session.verdicts) == 1


def test_tab_and_the_wheel_go_through_all_that_lies_there_and_back(tuner):
    """Where nothing is shown the stored candidates are offered, the smallest first."""
    panel = tuner.panel
    panel.controls.of["pred_iou_thresh"].value = 1.0
    assert not len(panel.view.kept)
    outlines = [panel.preview.outline(row).iloc[0] for row in range(panel.preview.n_candidates)]
    pairs = [
        (one, other) for one in range(len(outlines)) for other in range(len(outlines))
        if shapely.area(outlines[one]) * 2 < shapely.area(outlines[other])
        and outlines[other].contains(outlines[one].representative_point())
    ]  # fmt: skip
    small = pairs[0][0]
    lon, lat = middle_of(tuner, small)
    panel.clicked(lon, lat, -1)
    n = panel.overlay.alternatives
    assert n > 1
    rows = [panel.teaching.target]
    for _ in range(n):
        panel.clicked(lon, lat, -1, again=1)
        rows.append(panel.teaching.target)
        assert panel.hidden.data["type"] == "Feature"  # outlined under the pointer
    areas = [shapely.area(outlines[row]) for row in rows[:-1]]
    assert areas == sorted(areas)
    assert rows[-1] == rows[0]
    panel.clicked(lon, lat, -1, again=-1)
    assert panel.teaching.target == rows[-2]
    panel.pressed(Pressed("1", None, -1))  # what is missing is labelled
    assert len(tuner.session.verdicts) == 1


def give(tuner, shape):
    """Say that the browser has ended a shape of the working CRS."""
    crs, tool = tuner.session.scenes[0].crs, tuner.panel.tool
    degrees = shapely.transform(shape, lambda xy: np.column_stack(to_lonlat(crs, *xy.T)))
    message = {"kind": "shape", "geometry": shapely.geometry.mapping(degrees)}
    tool._hear(tool, {**message, "number": tool.number}, [])


def corner(tuner):
    """A triangle that no candidate shows."""
    x, y = tuner.session.scenes[0].transform @ (110, 90)
    return shapely.Polygon([(x, y), (x + 9, y - 1), (x + 3, y - 12)])


def by_hand(tuner):
    return tuner.session.by_hand.frame


def test_d_draws_a_shape_of_the_palettes_class_and_undo_takes_it_away(tuner):
    tuner.panel.pressed(Pressed("d", None, -1))
    assert "Choose a class" in tuner.panel.message.value
    tuner.panel.teaching.palette.tool = FIELD
    tuner.panel.pressed(Pressed("d", None, -1))
    assert tuner.panel.tool.mode == "draw"
    give(tuner, shapely.affinity.scale(shapely.box(0, 0, 1, 1), 0, 0))
    assert "has no area" in tuner.panel.message.value
    assert tuner.panel.tool.mode == "edit"
    give(tuner, corner(tuner))
    assert tuner.panel.message.value == ""
    assert tuner.panel.tool.mode == ""
    assert by_hand(tuner)["class_id"].tolist() == [FIELD]
    assert by_hand(tuner).geometry.iloc[0].area == pytest.approx(corner(tuner).area, rel=1e-6)
    assert len(tuner.session.verdicts) == 0  # no candidate shows it
    assert len(tuner.panel.shapes.layer.data["features"]) == 1
    tuner.session.undo()
    assert tuner.panel.shapes.layer.data["features"] == []
    tuner.session.redo()
    assert len(by_hand(tuner)) == 1


def test_numbers_give_a_shape_by_hand_another_class_or_take_it_away(tuner):
    tuner.panel.teaching.palette.tool = FIELD
    tuner.panel.pressed(Pressed("d", None, -1))
    give(tuner, corner(tuner))
    middle = corner(tuner).representative_point()
    lon, lat = to_lonlat(tuner.session.scenes[0].crs, middle.x, middle.y)
    place = (float(lon), float(lat))
    id = by_hand(tuner)["id"].iloc[0]
    tuner.panel.pressed(Pressed("1", place, -1))
    assert by_hand(tuner)[["id", "class_id"]].to_numpy().tolist() == [[id, ROOF]]
    tuner.panel.pressed(Pressed("e", place, -1))
    give(tuner, shapely.affinity.translate(corner(tuner), 2, 0))
    assert by_hand(tuner)["id"].tolist() == [id]
    moved = by_hand(tuner).geometry.iloc[0].centroid.x - corner(tuner).centroid.x
    assert moved == pytest.approx(2, abs=1e-5)
    tuner.panel.pressed(Pressed("0", place, -1))
    assert len(by_hand(tuner)) == 0


def answer_next(tuner, shape):
    """Let the model answer the next click with a shape, and keep that."""
    asking, tool = tuner.session.asking, tuner.panel.tool
    asking.ask = lambda clicks, hear: hear(Answer(1, shape, 0.9))
    crs, middle = tuner.session.scenes[0].crs, shape.representative_point()
    lon, lat = map(float, to_lonlat(crs, middle.x, middle.y))
    for message in ({"kind": "ask", "points": [[lon, lat, 1]], "box": None},
                    {"kind": "keep", "again": False}):  # fmt: skip
        tool._hear(tool, {**message, "number": tool.number}, [])


def test_p_and_m_make_and_mend_shapes_as_d_and_e_do(tuner):
    tuner.panel.pressed(Pressed("p", None, -1))
    assert "Choose a class" in tuner.panel.message.value
    tuner.panel.teaching.palette.tool = FIELD
    tuner.panel.pressed(Pressed("p", None, -1))
    assert "`classic` takes no clicks" in tuner.panel.message.value
    tuner.session.asking.get_ready = lambda: None
    tuner.panel.pressed(Pressed("p", None, -1))
    first = shapely.multipolygons([corner(tuner)])
    answer_next(tuner, first)
    assert tuner.panel.message.value == ""
    assert by_hand(tuner)["class_id"].tolist() == [FIELD]
    assert by_hand(tuner).geometry.iloc[0].equals(first)
    assert tuner.panel.overlay.pointed == 0  # keys mean what is under the mouse, this shape
    id, middle = by_hand(tuner)["id"].iloc[0], first.representative_point()
    lon, lat = to_lonlat(tuner.session.scenes[0].crs, middle.x, middle.y)
    tuner.panel.pressed(Pressed("m", (float(lon), float(lat)), -1))
    assert tuner.panel.tool.mode == "correct"
    answer_next(tuner, shapely.affinity.scale(first, 1.5, 1.5))
    assert by_hand(tuner)["id"].tolist() == [id]
    assert by_hand(tuner).geometry.iloc[0].area == pytest.approx(2.25 * first.area)
    tuner.session.undo()
    assert by_hand(tuner).geometry.iloc[0].equals(first)
    row = rows_of(tuner, ROOF)[0]
    press(tuner, "m", row)
    outline = tuner.panel.preview.outline(row).iloc[0]
    answer_next(tuner, outline)
    assert by_hand(tuner)["label"].iloc[-1] == label_of(tuner.panel.preview, row)
    assert len(tuner.session.verdicts) == 1


def test_e_moves_corners_and_the_run_has_this_shape_in_place_of_the_candidates(
    tuner, job, monkeypatch
):
    teach(tuner)
    roofs = rows_of(tuner, ROOF)
    row = next(row for row in roofs if byte_of(tuner, "said", row) == UNSAID)
    before = len(tuner.session.verdicts)
    tuner.panel.teaching.palette.tool = ROOF
    press(tuner, "e", row)
    assert tuner.panel.tool.mode == "edit"
    outline = tuner.panel.preview.outline(row).iloc[0]
    moved = shapely.affinity.translate(outline, 1.2, 0.7)
    give(tuner, moved)
    assert len(tuner.session.verdicts) == before + 1  # it teaches its class
    shown = np.frombuffer(tuner.panel.overlay.shown, "<u4")
    assert row not in tuner.panel.drawn.rows[shown]
    tuner.close()
    again = opened(job)  # as after a restart of the kernel
    try:
        (id,) = again.session.by_hand.frame["id"]
        assert len(again.panel.shapes.layer.data["features"]) == 1
        again_job = again.session.job
    finally:
        again.close()
    use_known_objects(monkeypatch)
    layer = run(again_job).layer
    label = layer.set_index("id").loc[id]
    assert (label["status"], label["class_id"]) == ("edited", ROOF)
    assert label["geometry"].hausdorff_distance(moved) < 1e-6
    near = layer[layer.intersects(moved.buffer(-0.6))]
    assert near["id"].tolist() == [id]
