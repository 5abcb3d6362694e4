"""The tuner without a browser: what sliders, clicks and buttons do to job and map."""

import json
import time

import ipywidgets
import numpy as np
import pytest
from known_objects import KnownObjects
from known_runs import EXACT, until
from reviews import save_reviewed
from shapely.geometry import box, mapping

from workbench import Job, run
from workbench._support.text import area_text
from workbench.candidates.store import TileRecord
from workbench.candidates.table import Rules
from workbench.errors import WorkbenchError
from workbench.layer.files import read_layer
from workbench.raster.crs import to_lonlat
from workbench.tuning.preview import Fate
from workbench.tuning.process import Finished, Planned, Stopped, TileDone, TileUnderway
from workbench.widgets import AOIPicker, RunPanel, ThresholdTuner, cells
from workbench.widgets import tuner as tuner_module
from workbench.widgets.history import TUNED
from workbench.widgets.overlay import Flag
from workbench.widgets.quiet import QUIET_SECONDS


@pytest.fixture
def job(raster, tmp_path):
    exact = EXACT | {"simplify_m": 0.5, "min_area_px": 20}
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), interactive=True, **exact
    )  # fmt: skip


class Computed:
    """In place of the process: computes at once, in this thread, what the session asks for."""

    def __init__(self, session):
        self.session, self.asked, self.busy = session, [], False
        self.segmenter = KnownObjects(Rules(96, 96))
        session._background = self

    def get_ready(self, job):
        pass

    def start(self, work):
        self.asked.append(work)
        self.busy = True

    def answer(self):
        """Send the events of the last work."""
        session, work = self.session, self.asked[-1]
        wanted = work.tiles
        session._hear(Planned(len(wanted), 0))
        for part in session.area.parts:
            for tile in part.tiles:
                if part.index(tile) in wanted:
                    image, _ = part.scene.read(tile.window)
                    found = self.segmenter.propose(image).at_tile(tile.row, tile.col)
                    record = TileRecord(*part.index(tile), "ok", seconds=2.0)
                    session._hear(TileDone(record, found, stored=False))
        self.busy = False
        session._hear(Finished(session.folder))

    def cancel(self):
        self.busy = False
        self.session._hear(Stopped())

    def close(self):
        self.busy = False


@pytest.fixture
def tuner(job):
    picker = AOIPicker(job)
    computed = Computed(picker.session)
    tuner = ThresholdTuner(picker)
    tuner.computed = computed
    yield tuner
    tuner.close()


def click_on(tuner, x, y, place=-1):
    lon, lat = to_lonlat(tuner.session.scenes[0].crs, x, y)
    tuner.panel.clicked(float(lon), float(lat), place)


def sampled(tuner, n=3):
    tuner.panel.n_tiles.value = n
    tuner.panel.propose()
    tuner.computed.answer()
    return tuner


def shown(tuner):
    return np.frombuffer(tuner.panel.overlay.shown, "<u4")


def test_proposed_tiles_become_samples_and_polygons(tuner):
    assert "Click a tile" in tuner.panel.figures.value or not tuner.panel.figures.value
    sampled(tuner)
    assert len(tuner.session.samples) == 3
    outlines = tuner.panel.overlay.outlines
    n = len(np.frombuffer(outlines["rings"], "<u4"))
    assert 0 < len(shown(tuner)) <= n
    assert outlines["sequence"] == tuner.panel.overlay.for_sequence
    assert tuner.session.forecast.seconds_per_tile == 2.0


def test_a_slider_changes_the_job_and_what_is_drawn(tuner):
    sampled(tuner, 15)
    before, sequence = len(shown(tuner)), tuner.panel.overlay.for_sequence
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.905
    assert tuner.job.pred_iou_thresh == 0.905
    assert 0 < len(shown(tuner)) < before
    assert tuner.panel.overlay.for_sequence == sequence  # no coordinates are sent again
    state = np.frombuffer(tuner.panel.plane.state, "u1")
    assert len(state) == tuner.panel.preview.n_candidates == len(tuner.panel.plane.points) / 8
    assert len(shown(tuner)) == (state == Fate.KEPT).sum()
    # the line in the plane and the slider are one
    tuner.panel.plane.pred_iou_thresh = 0.9
    assert tuner.panel.controls.of["pred_iou_thresh"].value == pytest.approx(0.9)
    assert tuner.job.pred_iou_thresh == pytest.approx(0.9)


def test_colours_and_legend_follow_the_samples(tuner, monkeypatch):
    monkeypatch.setattr("workbench._support.palette.FEWEST_SCORES", 5)
    assert tuner.panel.overlay.ramp[1][0] == 0.7
    sampled(tuner, 15)
    panel = tuner.panel
    scores = panel.preview.scores[panel.view.kept, 0]
    lows = [low for low, _ in panel.overlay.ramp]
    assert scores.min() < lows[1] < lows[-1] <= scores.max()
    assert f"{lows[1]:g}–{lows[2]:g}" in panel.legend.value
    panel.controls.of["pred_iou_thresh"].value = 0.905
    assert [low for low, _ in panel.overlay.ramp] == lows  # a polygon keeps its colour


def test_every_control_changes_its_parameter(tuner):
    sampled(tuner)
    values = {
        "pred_iou_thresh": 0.91, "stability_score_thresh": 0.93, "min_area_px": 100,
        "min_area_m2": 30.0, "max_area_m2": 400.0, "fill_holes_m2": 5.0, "min_solidity": 0.5,
        "simplify_m": 1.0, "planar": True,
    }  # fmt: skip
    assert set(values) == set(TUNED)
    for name, value in values.items():
        tuner.panel.controls.of[name].value = value
        assert getattr(tuner.job, name) == value
    view = tuner.panel.preview.look(tuner.job.thresholds, tuner.job.cleaning, tuner.job.offer)
    assert len(shown(tuner)) == len(view.kept)
    tuner.panel.controls.of["min_solidity"].value = 0
    assert tuner.job.min_solidity is None


def test_what_the_job_leaves_open_is_shown_and_stays_open(tuner):
    tuner.session.change(model="tiny", simplify_m=None)
    assert tuner.job.pred_iou_thresh is None
    assert tuner.panel.controls.of["pred_iou_thresh"].value == 0.65  # the model's own
    simplify = tuner.panel.controls.of["simplify_m"]
    assert {v: k for k, v in simplify.options}[simplify.value] == "one pixel"
    simplify.value = 0
    assert tuner.job.simplify_m == 0
    simplify.value = -1
    assert tuner.job.simplify_m is None
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.8
    tuner.panel.settings._reset()
    assert tuner.job.pred_iou_thresh is None
    assert tuner.panel.controls.of["pred_iou_thresh"].value == 0.65


def test_undo_flip_and_defaults(tuner):
    sampled(tuner)
    start = tuner.job
    tuner.panel.controls.of["min_area_px"].value = 100
    tuner.panel.controls.of["planar"].value = True
    tuner.panel.settings._keep()
    tuner.panel.controls.of["planar"].value = False
    tuner.panel.settings._flip()
    assert tuner.job.planar
    tuner.panel.settings._flip()
    assert not tuner.job.planar
    for _ in range(6):
        tuner.session.undo()
    assert tuner.job == start
    tuner.session.undo()  # the tiles
    assert not tuner.panel.toolbar.can_undo
    tuner.panel.settings._reset()
    usual = Job()
    assert all(getattr(tuner.job, name) == getattr(usual, name) for name in TUNED)
    assert tuner.job.source == start.source


def test_to_undo_a_flip_gives_back_a_and_b(tuner):
    sampled(tuner)
    tuner.panel.settings._keep()
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.9
    tuner.panel.settings._flip()
    assert tuner.job.thresholds.pred_iou_thresh == 0.85
    tuner.session.undo()
    assert tuner.job.pred_iou_thresh == 0.9
    tuner.panel.settings._flip()
    assert tuner.job.thresholds.pred_iou_thresh == 0.85


def test_what_a_browser_rounds_changes_nothing(tuner):
    before = tuner.job
    tuner.panel.controls.of["stability_score_thresh"].value = 0.9199999999999999
    assert tuner.job is before


def test_one_drag_is_one_step_back(tuner):
    sampled(tuner)
    for value in (0.86, 0.87, 0.88, 0.89):
        tuner.panel.controls.of["pred_iou_thresh"].value = value
    tuner.session.undo()
    assert tuner.job.thresholds.pred_iou_thresh == 0.85


def test_presets_are_job_files(tuner, tmp_path):
    tuner.panel.controls.of["min_area_px"].value = 250
    tuner.panel.settings.preset.value = "small roofs"
    tuner.panel.settings._save_preset()
    path = tmp_path / "presets" / "small roofs.yaml"
    assert Job.from_yaml(path).min_area_px == 250
    assert "small roofs" in tuner.panel.settings.preset.options
    tuner.panel.settings._reset()
    tuner.panel.settings._load_preset()
    assert tuner.job.min_area_px == 250
    tuner.panel.settings.preset.value = "../elsewhere"
    tuner.panel.settings._save_preset()
    assert "alert" in tuner.panel.settings.message.value
    tuner.panel.settings.preset.value = "none such"
    tuner.panel.settings._load_preset()
    assert "no preset" in tuner.panel.settings.message.value
    assert "Saved: small roofs" in tuner.panel.settings.message.value
    tuner.panel.settings.preset.value = " "
    tuner.panel.settings._load_preset()
    assert "Choose a preset" in tuner.panel.settings.message.value


def test_a_click_explains_what_is_there(tuner):
    sampled(tuner)
    polygons = tuner.panel.view.polygons
    point = polygons.geometry.iloc[0].representative_point()
    click_on(tuner, point.x, point.y)
    assert "kept" in tuner.panel.verdicts.text.value
    tuner.panel.controls.of["pred_iou_thresh"].value = 1.0
    until(lambda: "is not above 1" in tuner.panel.verdicts.text.value)  # it follows the sliders
    until(lambda: tuner.panel.verdicts.alternatives.data.get("geometry", {}).get("coordinates"))


def test_judged_polygons_make_a_running_precision(tuner):
    sampled(tuner)
    polygons = tuner.panel.view.polygons.iloc[:2]
    for verdict, (_, polygon) in zip(("good", "bad"), polygons.iterrows(), strict=True):
        tuner.panel.judging.mode.value = verdict
        point = polygon.geometry.representative_point()
        click_on(tuner, point.x, point.y, int(tuner.panel.drawn.place[polygon["row"]]))
    assert "50%" in tuner.panel.figures.value
    flags = np.frombuffer(tuner.panel.overlay.flags, "u1")
    assert ((flags & Flag.GOOD) > 0).sum() == ((flags & Flag.BAD) > 0).sum() == 1
    assert sorted(tuner.session.judged.values()) == [False, True]


def test_advise_moves_the_sliders_by_the_verdicts(tuner):
    sampled(tuner)
    tuner.panel.advise()
    assert "at least one of each" in tuner.panel.message.value
    kept = tuner.panel.view.kept  # scores above 0.9 and below 0.92
    keys = {tuner.panel.preview.key(int(row)): n > 1 for n, row in enumerate(kept)}
    gone = ("another scene", 0, 0, 1)  # of a tile that is no sample any more
    tuner.session.judged = keys | {gone: False}
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.95
    assert not len(tuner.panel.view.kept)
    tuner.panel.advise()
    assert tuner.panel.controls.of["pred_iou_thresh"].value == tuner.job.pred_iou_thresh == 0.9
    assert f"of {len(keys) - 2} (0 before)" in tuner.panel.message.value
    assert "predicted IoU 0.950 → 0.900" in tuner.panel.message.value
    assert tuner.panel.view.kept.tolist() == kept.tolist()


def test_a_click_beside_the_samples_adds_the_tile(tuner):
    part = tuner.session.area.parts[0]
    left, bottom, right, top = part.scene.window_polygon(part.tiles[7].core).bounds
    click_on(tuner, (left + right) / 2, (bottom + top) / 2)
    assert tuner.computed.asked[-1].tiles == {part.index(part.tiles[7])}
    # a second one waits for the first
    left, bottom, right, top = part.scene.window_polygon(part.tiles[0].core).bounds
    click_on(tuner, (left + right) / 2, (bottom + top) / 2)
    assert len(tuner.computed.asked) == 1
    tuner.computed.answer()
    assert tuner.computed.asked[-1].tiles == {part.index(part.tiles[0])}
    tuner.computed.answer()
    assert len(tuner.session.samples) == 2


def test_cancelling_says_so_and_a_failed_tile_too(tuner):
    tuner.panel.propose()
    tuner.panel.tiles.cancel()
    assert "Cancelled" in tuner.panel.message.value
    assert tuner.panel.tiles.widget.layout.display == "none"
    tuner.panel.propose()
    record = TileRecord("scene", 0, 1, "failed", error="OSError: <no luck>")
    tuner.session._hear(TileDone(record, None, stored=False))
    assert "r0c1 failed: OSError: &lt;no luck&gt;" in tuner.panel.message.value
    assert tuner.session.samples == ()


def test_tiles_that_are_asked_for_during_a_run_follow_it(tuner):
    panel = RunPanel(tuner).panel
    panel.start()
    run_of_all = tuner.computed.asked[-1]
    tuner.panel.propose()
    assert "follow" in tuner.panel.message.value
    assert tuner.computed.asked[-1] is run_of_all
    tuner.session.cancel()
    assert tuner.computed.asked[-1].tiles is not None
    tuner.computed.answer()
    assert len(tuner.session.samples) == 4
    panel.close()


def test_cleared_while_computing_is_cleared(tuner):
    sampled(tuner)
    tuner.panel.n_tiles.value = 6
    tuner.panel.propose()
    tuner.panel.tiles.clear()
    assert not tuner.session.busy
    assert tuner.session.samples == ()


def test_what_fails_while_events_come_is_said_and_the_next_are_heard(tuner, monkeypatch):
    tuner.panel.propose()
    monkeypatch.setattr(tuner.session, "sample_of", lambda event: 1 / 0)
    tuner.computed.answer()
    assert "ZeroDivisionError" in tuner.panel.message.value
    assert not tuner.session.busy
    monkeypatch.undo()
    sampled(tuner)
    assert len(tuner.session.samples) == 3


def test_a_tile_underway_shows_how_far_it_is_and_what_there_is_of_it(tuner):
    tuner.panel.n_tiles.value = 1
    tuner.panel.propose()
    (index,) = tuner.computed.asked[-1].tiles
    part = tuner.session.area.parts[0]
    (tile,) = (t for t in part.tiles if part.index(t) == index)
    image, _ = part.scene.read(tile.window)
    found = tuner.computed.segmenter.propose(image).at_tile(tile.row, tile.col)
    some = found.take(np.arange(len(found) // 2))
    record = TileRecord(*index, "ok")
    hear = tuner.session._hear
    hear(Planned(1, 0))
    hear(TileUnderway(0.25))
    assert tuner.panel.tiles.progress.value >= 0.25
    hear(TileUnderway(0.5, record, some))
    assert [len(sample.candidates) for sample in tuner.session.samples] == [len(some)]
    assert len(shown(tuner)) == len(tuner.panel.view.kept)
    hear(TileUnderway(0.75, record, found.take(np.arange(len(found) - 1))))
    assert len(tuner.session.samples) == 1
    tuner.panel.tiles.cancel()
    assert tuner.session.samples == ()  # half a tile is no sample to tune on
    tuner.panel.propose()
    tuner.computed.answer()
    assert [len(sample.candidates) for sample in tuner.session.samples] == [len(found)]
    assert tuner.session.samples[0].whole


def test_work_ahead_draws_nothing_else_and_spares_later_sliders(tuner):
    sampled(tuner)
    deadline = time.monotonic() + 20
    everything = tuner.panel.preview.n_candidates
    while sum(map(len, tuner.panel.drawn.frames)) < everything - 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    sequence, n = tuner.panel.overlay.for_sequence, len(shown(tuner))
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.5
    assert len(shown(tuner)) >= n
    assert tuner.panel.overlay.for_sequence == sequence


def test_what_is_on_the_map_is_what_the_run_writes(tuner, monkeypatch, known_objects_only):
    sampled(tuner, 15)
    clear = tuner.panel.view.polygons[~tuner.panel.view.polygons["seam"]]
    assert len(clear) >= 2
    layer = run(tuner.job).layer.set_index("id")
    for polygon in clear.itertuples():
        ordinal = f"scene/r{polygon.tile_row}c{polygon.tile_col}/{polygon.ordinal}"
        assert layer.loc[ordinal, "geometry"] == polygon.geometry


def test_at_rest_seams_are_merged_and_a_slider_sends_no_coordinates(tuner, known_objects_only):
    sampled(tuner, 15)
    panel = tuner.panel
    alone = panel.preview.look(tuner.job.thresholds, tuner.job.cleaning, tuner.job.offer)
    until(lambda: panel.view.merged is not None and panel.drawn._merged is panel.view.merged)
    # a merged polygon can be judged
    whole = int(panel.view.merged["row"].iloc[-1])
    tuner.session.judged = {panel.preview.key(whole): True}
    panel._show_judged()
    assert "100%" in panel.figures.value
    tuner.session.judged = {}
    layer = run(tuner.job).layer
    assert len(alone.kept) > len(panel.view.kept) == len(shown(tuner)) == len(layer)
    assert len(np.frombuffer(panel.overlay.outlines["rings"], "<u4")) > len(alone.kept)
    until(lambda: "dashed" not in panel.figures.value)
    sequence = panel.overlay.for_sequence
    panel.controls.of["pred_iou_thresh"].value = 0.905
    assert panel.overlay.for_sequence == sequence or panel.view.merged is not None


def test_two_tuners_of_two_jobs_do_not_disturb_each_other(tuner, job, tmp_path):
    picker = AOIPicker(job.changed(out_dir=str(tmp_path / "other")))
    Computed(picker.session)
    other = ThresholdTuner(picker)
    try:
        tuner.panel.controls.of["pred_iou_thresh"].value = 0.97
        assert other.job.thresholds.pred_iou_thresh == 0.85
    finally:
        other.close()


def test_in_batch_nothing_is_made(job):
    tuner = ThresholdTuner(AOIPicker(job.changed(interactive=False)))
    assert tuner.panel is None
    assert RunPanel(tuner).panel is None


# ---------------------------------------------------------------------------------- the run panel


@pytest.fixture
def in_cell(monkeypatch):
    """Say in which cell of a notebook the next widgets are made."""
    monkeypatch.setattr(cells, "_of_cells", {})
    monkeypatch.setattr(cells, "_shown_in_cells", {})
    return lambda name: monkeypatch.setattr(cells, "_cell", lambda: name)


@pytest.fixture
def panel(tuner):
    panel = RunPanel(tuner).panel
    yield panel
    panel.close()


def test_the_command_and_the_job_file_follow_the_sliders(panel, tuner, tmp_path):
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.91
    assert "-p pred_iou_thresh 0.91" in panel.file.copy.text
    assert f"-p out_dir {tmp_path / 'run'}" in panel.file.copy.text
    assert "interactive" not in panel.file.copy.text
    panel.file.save()
    saved = Job.from_yaml(tmp_path / "run-job.yaml")
    assert saved.pred_iou_thresh == 0.91
    assert f"-f {tmp_path / 'run-job.yaml'} --log-output" in panel.file.copy.text
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.92
    assert "-p pred_iou_thresh 0.92" in panel.file.copy.text
    # papermill begins with the notebook's cell: what is the usual value, but not there, is named
    tuner.session.given = tuner.job
    tuner.panel.settings._reset()
    assert "{pred_iou_thresh: null}" in panel.file.copy.text
    # a file does not keep a scheduler, because that is trusted code
    tuner.session.change(scheduler="tcp://10.0.0.1:8786")
    panel.file.save()
    assert (
        f"-f {tmp_path / 'run-job.yaml'} -p scheduler tcp://10.0.0.1:8786" in panel.file.copy.text
    )
    panel.file.path.value = "/proc/no/such/place.yaml"
    panel.file.save()
    assert "cannot be written" in panel.message.value


def test_to_save_a_job_whose_run_folder_is_reviewed_warns(panel, tuner, known_objects_only):
    result = run(tuner.job)
    (result.folder / "prelabels.gpkg").unlink()
    save_reviewed(result.layer.assign(status="accepted"), result.folder / "prelabels.gpkg")
    panel.file.save()
    assert f"{len(result.layer)} reviewed labels" in panel.message.value
    assert panel.message.value.index("Saved") < panel.message.value.index("reviewed")


def test_a_run_shows_its_tiles_its_failures_and_its_layer(panel, tuner, known_objects_only):
    panel.start()
    session = tuner.session
    assert panel.run_button.disabled
    assert session._background.asked[-1].tiles is None
    part = session.area.parts[0]
    session._hear(Planned(15, 13))
    tile = part.tiles[0]
    image, _ = part.scene.read(tile.window)
    found = KnownObjects(Rules(96, 96)).propose(image).at_tile(tile.row, tile.col)
    session._hear(TileDone(TileRecord("scene", 0, 0, "ok"), found, stored=False))
    assert panel.progress.value == pytest.approx(14 / 15)
    assert panel.overlay.outlines
    bad = TileRecord("scene", 0, 4, "failed", error="OSError: <no luck>")
    session._hear(TileDone(bad, None, stored=False))
    assert "scene/r0c4: OSError: &lt;no luck&gt;" in panel.failures.value
    result = run(session.job)
    session._background.busy = False
    session._hear(Finished(result.folder, "1 of 15 tiles failed"))
    assert "1 of 15" in panel.message.value
    assert str(result.folder) in panel.result.value
    assert not panel.run_button.disabled
    assert len(np.frombuffer(panel.overlay.shown, "<u4")) == len(result.layer)
    assert len(read_layer(result.folder / "prelabels.parquet")) == len(result.layer)
    panel.tune()
    assert len(session._background.asked[-1].tiles) == 15


def test_the_cell_of_a_panel_that_runs_again_goes_on_with_the_run(tuner, in_cell):
    in_cell("run")
    first = RunPanel(tuner)
    first.panel.start()
    tuner.session._hear(Planned(15, 13))
    again = RunPanel(tuner)
    panel = again.panel
    assert panel is first.panel
    assert panel.widget.comm is not None
    assert panel.run_button.disabled
    assert not panel.cancel_button.disabled
    tile = tuner.session.area.parts[0].tiles[0]
    record = TileRecord("scene", tile.row, tile.col, "empty")
    tuner.session._hear(TileDone(record, None, stored=False))
    assert panel.progress.value == pytest.approx(14 / 15)
    tuner.session.cancel()
    assert "14 of 15 tiles are stored" in panel.message.value
    again.take_away()


def test_the_cell_of_a_tuner_that_runs_again_goes_on_with_its_tiles(tuner, in_cell):
    in_cell("tuner")
    first = ThresholdTuner(tuner)
    first.panel.propose()
    again = ThresholdTuner(tuner)
    assert again.panel is first.panel
    assert again.panel.tiles.widget.layout.display == "flex"
    tuner.computed.answer()
    assert len(again.session.samples) == 4
    assert again.panel.tiles.widget.layout.display == "none"
    again.take_away()


def test_a_tuner_that_was_closed_comes_back_when_its_cell_runs_again(tuner, in_cell):
    in_cell("tuner")
    first = ThresholdTuner(tuner)
    widget = first.panel.widget
    first.close()
    assert first.panel is None
    assert widget.comm is None
    with pytest.raises(WorkbenchError, match="Run its cell again"):
        RunPanel(first)
    again = ThresholdTuner(tuner)
    assert again.panel.widget.comm is not None
    again.take_away()


def test_widgets_of_an_area_that_ran_again_say_so_and_old_ones_are_closed(job, in_cell):
    in_cell("area")
    picker = AOIPicker(job)
    in_cell("tuner")
    tuner = ThresholdTuner(picker)
    in_cell("area")
    n = len(ipywidgets.widgets.widget._instances)
    pickers = [AOIPicker(job) for _ in range(3)]
    assert "Run this cell again" in tuner.panel.message.value
    assert len(ipywidgets.widgets.widget._instances) == n
    in_cell("tuner")
    other = ThresholdTuner(pickers[-1])  # another session: another panel, and the old one is closed
    assert tuner.panel is None
    assert other.panel.widget.comm is not None
    other.take_away()
    pickers[-1].close()


def test_a_cancelled_run_says_what_is_there(panel, tuner):
    panel.start()
    tuner.session._hear(Planned(15, 2))
    tuner.session.cancel()
    assert "2 of 15 tiles are stored" in panel.message.value
    assert not panel.run_button.disabled
    assert panel.cancel_button.disabled


def test_an_area_that_cannot_be_used_is_refused_with_its_reason(panel, tuner):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    tuner.session.change(aoi=square)
    panel.start()
    assert "does not intersect" in panel.message.value
    assert json.loads(json.dumps(tuner.job.aoi)) == square


def test_examples_that_cannot_be_read_are_named_in_the_tuner(tuner, tmp_path):
    sampled(tuner)
    tuner.session.change(examples=str(tmp_path / "roofs.gpkg"))
    assert "roofs.gpkg: no such file" in tuner.panel.teaching.text.value


# ---------------------------------------------------------------- undo, B beside it, the list


def test_undo_brings_cleared_tiles_and_judgements_back(tuner):
    sampled(tuner)
    tiles = tuner.session.tiles
    key = tuner.panel.preview.key(int(tuner.panel.view.kept[0]))
    tuner.session.judged = {key: True}
    tuner.panel.tiles.clear()
    assert tuner.session.samples == ()
    tuner.session.undo()
    assert tuner.session.tiles == tiles
    assert tuner.computed.asked[-1].tiles == tiles  # from the store, in a real session
    tuner.computed.answer()
    assert {sample.record.index for sample in tuner.session.samples} == tiles
    flags = np.frombuffer(tuner.panel.overlay.flags, "u1")
    assert ((flags & Flag.GOOD) > 0).sum() == 1
    tuner.session.undo()
    assert tuner.session.judged == {}
    assert not (np.frombuffer(tuner.panel.overlay.flags, "u1") & Flag.GOOD).any()


@pytest.mark.parametrize("share", [1.0, 0.1])  # of the scene, in an area that was drawn later
def test_tiles_of_an_earlier_session_are_computed_again(tuner, job, share):
    sampled(tuner)
    session = tuner.session
    tiles = session.tiles
    left, bottom, right, top = session.scenes[0].bounds
    x = left + share * (right - left)
    lon, lat = to_lonlat(session.scenes[0].crs, [left, x], [bottom, top])
    session.change(aoi=mapping(box(lon[0], lat[0], lon[1], lat[1])))
    tuner.close()
    picker = AOIPicker(job)
    computed = Computed(picker.session)
    again = ThresholdTuner(picker)
    assert computed.asked[-1].tiles == tiles
    assert not again.panel.toolbar.can_undo
    again.close()


@pytest.mark.parametrize("back", [False, True])
def test_the_model_is_loaded_ahead_once_what_is_back_has_been_drawn(tuner, job, monkeypatch, back):
    monkeypatch.setattr(tuner_module, "AHEAD_SECONDS", 60)
    if back:
        sampled(tuner)
    samples, asked = tuner.session.samples, []
    tuner.close()
    picker = AOIPicker(job)
    Computed(picker.session).get_ready = lambda job: asked.append(job)
    picker.session.read_stored = lambda tiles: samples
    again = ThresholdTuner(picker)
    assert len(again.session.samples) == len(samples) == (3 if back else 0)
    time.sleep(QUIET_SECONDS + 0.5)
    assert len(asked) == (0 if back else 1)
    again.close()


def test_setting_b_is_shown_on_a_second_map(tuner):
    sampled(tuner, 15)
    beside = tuner.panel.beside
    assert beside.switch.disabled
    tuner.panel.settings._keep()
    here = len(shown(tuner))
    tuner.panel.controls.of["pred_iou_thresh"].value = 0.905
    beside.switch.value = True
    assert beside.widget.layout.display == "flex"
    assert len(np.frombuffer(beside.drawn.overlay.shown, "<u4")) == here > len(shown(tuner))
    assert beside.scene_map.map.zoom == tuner.panel.scene_map.map.zoom
    tuner.panel.settings._flip()
    assert len(np.frombuffer(beside.drawn.overlay.shown, "<u4")) < here == len(shown(tuner))
    beside.switch.value = False
    assert beside.widget.layout.display == "none"


def test_a_row_of_the_list_is_what_keys_mean(tuner):
    sampled(tuner)
    panel = tuner.panel
    row = int(panel.view.kept[1])
    place = int(panel.drawn.place[row])
    panel.list._handle_custom_msg(
        {"kind": "go", "row": place, "sequence": panel.overlay.for_sequence}, []
    )
    assert panel.teaching.target == row
    assert panel.overlay.selected == place
    panel.go_to(place + 1, panel.overlay.for_sequence - 1)  # a list of polygons that are gone
    assert panel.teaching.target == row


def test_figures_are_written_as_people_write_them():
    assert [area_text(m2) for m2 in (4.25, 12.4, 16_400.0, 2_500_000.0)] == [
        "4.2 m²", "12 m²", "1.64 ha", "2.50 km²",
    ]  # fmt: skip


def test_advice_that_changes_nothing_says_what_to_do_next(tuner):
    sampled(tuner)
    kept = tuner.panel.view.kept
    keys = [tuner.panel.preview.key(int(row)) for row in kept]
    tuner.session.judged = {key: n != 1 for n, key in enumerate(keys)}
    before = tuner.job
    tuner.panel.advise()
    told = tuner.panel.message.value
    if tuner.job == before:
        assert "The sliders stay" in told
        assert "Next:" in told
    assert "of 100" in told.lower()
    assert "F1" not in told


def test_a_run_that_ended_with_its_kernel_is_told_in_the_run_panel(tuner):
    tuner.session.interrupted = True
    panel = RunPanel(tuner).panel
    assert "A run was under way when the kernel ended. 0 tiles are stored" in panel.message.value
    panel.close()


def test_an_earlier_run_has_its_links_at_once(tuner, known_objects_only):
    result = run(tuner.job)
    panel = RunPanel(tuner).panel
    assert panel.links.folder == str(result.folder)
    panel.close()
