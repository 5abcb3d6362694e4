"""Exemplars drawn in the tuner: kept, undone, brought back, and used by sample tiles and runs."""

import json
from contextlib import closing

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import test_concepts
from small_sams import small_sam3, small_tokenizer
from test_concepts import job_of, rectangle, same, saved, true_shapes

from workbench import Job, run
from workbench.errors import JobError, RunFolderError
from workbench.raster.crs import to_lonlat
from workbench.runs import choose
from workbench.runs.exemplars_by_hand import EXEMPLARS
from workbench.runs.plan import prepare
from workbench.runs.segment import segment
from workbench.segmenters.sam.extras import is_installed
from workbench.tuning.process import Finished, Planned, Stopped, TileDone
from workbench.widgets import AOIPicker, ThresholdTuner

models, raster = test_concepts.models, test_concepts.raster  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = {1: "house", 2: "wood"}


class InThisProcess:
    """In place of the process: does the work at once when it is told to go on."""

    def __init__(self, session):
        self.session, self.busy, self.segmenter, self.works = session, False, None, []
        session._background = self

    def get_ready(self, job):
        pass

    def start(self, work):
        self.works.append(work)
        self.busy = True

    def go_on(self):
        """Do what was asked for last."""
        hear, work = self.session._hear, self.works[-1]
        try:
            with closing(prepare(work.job, self.segmenter, work.tiles)) as plan:
                self.segmenter = plan.segmenter
                hear(Planned(plan.n_tiles, 0))
                known = plan.store.ledger()
                wanted = [part.index(tile) for part in plan.scenes for tile in part.tiles]
                for found, records in plan.store.read([i for i in wanted if i in known]):
                    for record in records:
                        mine = found.column("tile_row") == record.tile_row
                        mine &= found.column("tile_col") == record.tile_col
                        hear(TileDone(record, found.take(mine), stored=True))
                for tile in segment(plan):
                    hear(TileDone(tile.record, tile.candidates, stored=False))
            end = Finished(plan.folder)
        except (JobError, RunFolderError) as error:
            end = Stopped(str(error))
        self.busy = False
        hear(end)

    def cancel(self):
        self.busy = False
        self.session._hear(Stopped())

    def close(self):
        self.busy = False


def open_tuner(job):
    picker = AOIPicker(job.changed(interactive=True))
    process = InThisProcess(picker.session)
    tuner = ThresholdTuner(picker)
    tuner.process = process
    return tuner


@pytest.fixture
def job(raster, tmp_path):
    return job_of(raster, tmp_path / "run", interactive=True, classes=CLASSES)


@pytest.fixture
def tuner(models, job):
    tuner = open_tuner(job)
    yield tuner
    tuner.close()


def told(tuner, **message):
    tool = tuner.panel.tool
    tool._hear(tool, {"number": tool.number, **message}, [])


def drag(tuner, shape, beside=False):
    """Drag a box around a shape on the map."""
    crs = tuner.session.scenes[0].crs
    x0, y0, x1, y1 = shape.bounds
    lons, lats = to_lonlat(crs, np.array([x0, x1]), np.array([y0, y1]))
    told(tuner, kind="box", box=[lons[0], lats[0], lons[1], lats[1]], beside=beside)


def draw(tuner, *shapes, number=1, beside=False):
    """Choose a class, drag boxes of it, and end."""
    tuner.panel.teaching.palette.tool = number
    tuner.panel.exemplars.press()
    assert tuner.panel.tool.mode == "boxes"
    for shape in shapes:
        drag(tuner, shape, beside)
    told(tuner, kind="drop")
    assert not tuner.panel.tool.busy


def found(tuner):
    """The shapes that the samples show, by class."""
    ordinals = [s.candidates.column("ordinal") // 1000 for s in tuner.session.samples]
    return set(np.concatenate([np.empty(0, int), *ordinals]).tolist())


def kept(tuner):
    return gpd.read_parquet(tuner.session.folder / EXEMPLARS)


ROOF, POOL, TREE = (true_shapes(kind)[0] for kind in ("roof", "pool", "tree"))


def test_a_box_is_kept_at_once_and_the_tiles_are_computed_with_it(tuner):
    panel, session = tuner.panel, tuner.session
    assert panel.exemplars.button.layout.display != "none"
    panel.teaching.palette.tool = 1
    panel.exemplars.press()
    assert "around: house" in panel.tool.said
    drag(tuner, ROOF)
    (row,) = kept(tuner).to_dict("records")
    assert (row["class_id"], row["unlike"]) == (1, False)
    assert row["geometry"].equals_exact(shapely.box(*ROOF.bounds), 0.05)
    assert session.job.exemplars == str(session.folder / EXEMPLARS)
    assert tuner.process.works == []  # somebody may draw another
    drag(tuner, TREE, beside=True)
    assert kept(tuner)["unlike"].tolist() == [False, True]
    told(tuner, kind="drop")
    tuner.process.go_on()
    assert len(session.samples) == 1  # the tile with the boxes
    assert found(tuner) == {1}
    shapes = json.loads(json.dumps(panel.exemplars.layer.data))["features"]
    lines = [len(one["geometry"]["coordinates"]) for one in shapes]
    assert lines == [1, 3]  # what is unlike is crossed out
    assert panel.exemplars.button.description == "Exemplars: 2"
    session.name_classes(CLASSES, {1: "#123456"})
    styles = [one["properties"]["style"] for one in panel.exemplars.layer.data["features"]]
    assert {style["color"] for style in styles} == {"#123456"}


def test_other_boxes_compute_all_samples_anew(tuner, models):
    draw(tuner, ROOF)
    tuner.process.go_on()
    tuner.panel.tiles.compute([(tuner.session.scenes[0].name, 1, 1)])
    tuner.process.go_on()
    first = tuner.session.samples
    assert len(first) == 2
    draw(tuner, TREE, number=2)
    assert tuner.session.samples == ()
    tuner.process.go_on()
    assert {s.record.index for s in first} == {s.record.index for s in tuner.session.samples}
    assert found(tuner) == {1, 2}


def test_undo_and_redo_bring_the_file_the_job_and_the_tiles(tuner):
    session = tuner.session
    draw(tuner, ROOF)
    tuner.process.go_on()
    draw(tuner, TREE, number=2)
    tuner.process.go_on()
    session.undo()
    assert kept(tuner)["class_id"].tolist() == [1]
    tuner.process.go_on()
    assert found(tuner) == {1}
    session.redo()
    assert kept(tuner)["class_id"].tolist() == [1, 2]
    tuner.process.go_on()
    assert found(tuner) == {1, 2}
    for _ in range(3):  # the tile is a step, too
        session.undo()
    assert len(kept(tuner)) == 0
    assert session.job.exemplars is None
    assert session.samples == ()
    for _ in range(3):
        session.redo()
    assert kept(tuner)["class_id"].tolist() == [1, 2]
    tuner.process.go_on()
    assert found(tuner) == {1, 2}


def test_what_earlier_boxes_have_found_does_not_come_in_late(tuner, monkeypatch):
    session, process = tuner.session, tuner.process
    draw(tuner, ROOF)
    process.go_on()
    (old,) = session.samples
    tuner.panel.tiles.compute([(session.scenes[0].name, 1, 1)])
    cancel = process.cancel

    def late():
        session._hear(TileDone(old.record, old.candidates, stored=False))
        cancel()

    monkeypatch.setattr(process, "cancel", late)
    draw(tuner, TREE, number=2)
    assert session.samples == ()
    assert len(process.works[-1].tiles) == 2
    process.go_on()
    assert found(tuner) == {1, 2}
    assert len(session.samples) == 2


def test_undo_while_boxes_are_drawn_takes_the_last_one(tuner):
    panel = tuner.panel
    panel.teaching.palette.tool = 1
    panel.exemplars.press()
    drag(tuner, ROOF)
    drag(tuner, POOL)
    told(tuner, kind="undo")
    assert len(kept(tuner)) == 1
    assert panel.tool.mode == "boxes"
    told(tuner, kind="redo")
    assert len(kept(tuner)) == 2
    x, y = POOL.centroid.x, POOL.centroid.y
    lon, lat = to_lonlat(tuner.session.scenes[0].crs, x, y)
    told(tuner, kind="point", point=[float(lon), float(lat)])
    (left,) = kept(tuner).geometry
    assert left.intersects(ROOF)


def test_judged_polygons_are_forgotten_and_undo_brings_them_back(tuner):
    draw(tuner, ROOF)
    tuner.process.go_on()
    session = tuner.session
    session.judged = {session.samples[0].record.index + (1000,): True}
    draw(tuner, POOL)
    assert session.judged == {}
    session.undo()
    assert len(session.judged) == 1


def test_a_restart_brings_them_back_from_the_store(tuner, job, models):
    draw(tuner, ROOF)
    tuner.process.go_on()
    tuner.session.let_go()
    computed = sum(model.computed for model in models)
    assert computed
    again = open_tuner(job)
    assert len(again.session.exemplars) == 1
    assert again.session.job.exemplars == tuner.session.job.exemplars
    again.process.go_on()
    assert len(again.session.samples) == 1
    assert sum(model.computed for model in models) == computed
    again.close()


def test_boxes_come_back_without_their_session_file(tuner, job):
    draw(tuner, ROOF)
    tuner.session.let_go()
    (tuner.session.folder / "session.json").unlink()
    again = open_tuner(job)
    assert again.session.job.exemplars == str(again.session.folder / EXEMPLARS)
    again.close()


def test_a_batch_run_of_the_saved_job_finds_the_same(tuner):
    session = tuner.session
    draw(tuner, ROOF)
    draw(tuner, TREE, number=2)
    tuner.process.go_on()
    sample = session.samples[0].candidates.table
    path = session.folder.with_name("saved.yaml")
    path.write_text(session.job.to_yaml(), encoding="utf-8")
    job = Job.from_yaml(path).changed(interactive=False)
    made = run(job)
    assert same(made.layer.geometry[made.layer["class_id"] == 1], true_shapes("roof"))
    assert same(made.layer.geometry[made.layer["class_id"] == 2], true_shapes("tree"))
    elsewhere = run(job.changed(out_dir=str(session.folder.with_name("elsewhere"))))
    assert len(elsewhere.layer) == len(made.layer)
    assert len(sample)


def test_boxes_of_a_file_stay_beside_those_that_are_drawn(models, raster, tmp_path):
    given = saved(tmp_path / "mine.gpkg", [TREE], crs=32633, class_id=[2])
    job = job_of(raster, tmp_path / "run", classes=CLASSES, exemplars=given)
    tuner = open_tuner(job)
    assert len(tuner.session.exemplars) == 1
    tuner.panel.tiles.compute([(tuner.session.scenes[0].name, 0, 0)])
    tuner.process.go_on()
    assert found(tuner) == {2}
    draw(tuner, ROOF)
    assert kept(tuner)["class_id"].tolist() == [2, 1]
    tuner.process.go_on()
    assert found(tuner) == {1, 2}
    tuner.session.undo()
    assert tuner.session.job.exemplars == given
    tuner.process.go_on()
    assert found(tuner) == {2}
    tuner.close()


def test_candidates_of_a_review_are_not_replaced(tuner):
    draw(tuner, ROOF)
    tuner.process.go_on()
    session = tuner.session
    made = run(session.job.changed(interactive=False))
    path = made.folder / "prelabels.gpkg"
    layer = gpd.read_file(path, layer="prelabels").assign(status="accepted")
    layer.to_file(path, layer="prelabels")
    draw(tuner, POOL)
    tuner.process.go_on()
    assert "reviewed labels, which this run would replace" in tuner.panel.message.value
    assert session.samples == ()


def test_verdicts_are_not_lost(tuner, monkeypatch):
    draw(tuner, ROOF)
    monkeypatch.setattr(type(tuner.session.verdicts), "__len__", lambda _: 3)
    draw(tuner, POOL)
    assert "Classes were given to 3 objects here" in tuner.panel.message.value
    assert len(kept(tuner)) == 1


def test_during_a_run_exemplars_stay_as_they_are(tuner):
    draw(tuner, ROOF)
    tuner.session._running = True
    draw(tuner, POOL)
    assert "A run is using these exemplars" in tuner.panel.message.value
    tuner.session._running = False
    assert len(kept(tuner)) == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (rectangle(30, 30, 1.2, 40), "The box is 1.2 × 40 pixels, and the model would not see it"),
        (rectangle(0, 0, 320, 200), "The box is 320 × 200 pixels, larger than a tile"),
        (rectangle(9000, 0, 20, 20), "There is no raster where you drew"),
    ],
)
def test_a_slip_is_told_and_not_kept(tuner, shape, message):
    panel = tuner.panel
    panel.teaching.palette.tool = 1
    panel.exemplars.press()
    drag(tuner, shape)
    assert message in panel.message.value
    assert panel.tool.mode == "boxes"
    assert not (tuner.session.folder / EXEMPLARS).exists()


def test_only_what_is_unlike_is_not_used_yet(tuner):
    draw(tuner, TREE, beside=True)
    assert "shows only what is not of class 1" in tuner.panel.message.value
    assert tuner.session.job.exemplars is None
    assert tuner.process.works == []
    draw(tuner, ROOF)
    assert tuner.session.job.exemplars is not None
    tuner.process.go_on()
    assert found(tuner) == {1}


def test_what_is_of_no_class_is_unlike_all(tuner):
    draw(tuner, ROOF)
    draw(tuner, TREE, number=0)
    assert kept(tuner)[["class_id", "unlike"]].to_numpy().tolist() == [[1, False], [0, True]]


def test_a_class_is_chosen_first(tuner):
    tuner.panel.exemplars.press()
    assert "Choose a class in the palette first" in tuner.panel.message.value
    assert not tuner.panel.tool.busy


def test_a_tile_without_anything_to_find_says_what_to_do(tuner):
    tuner.panel.propose()
    assert "finds only what it is shown" in tuner.panel.message.value
    assert tuner.process.works == []


def test_other_models_offer_no_exemplars(job):
    tuner = open_tuner(job.changed(model="classic", pred_iou_thresh=None))
    assert tuner.panel.exemplars.button.layout.display == "none"
    with pytest.raises(Exception, match="`classic` takes no exemplars; `sam3` does"):
        tuner.panel.exemplars.begin()
    tuner.close()


def test_a_batch_job_must_say_what_to_find():
    with pytest.raises(JobError, match="finds only what it is told to"):
        Job.create(model="sam3", interactive=False)
    job = Job.create(model="sam3", interactive=True)
    with pytest.raises(JobError, match="finds only what it is told to"):
        choose.segmenter_for(job, {})


def test_damaged_exemplars_are_not_written_over(job, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / EXEMPLARS).write_bytes(b"nothing")
    tuner = open_tuner(job)
    draw(tuner, ROOF)
    assert "holds no exemplars that this version can read" in tuner.panel.message.value
    assert (folder / EXEMPLARS).read_bytes() == b"nothing"
    tuner.close()


def test_another_window_is_not_written_over(tuner):
    draw(tuner, ROOF)
    other = kept(tuner).assign(class_id=2)
    other.to_parquet(tuner.session.folder / EXEMPLARS)
    draw(tuner, POOL)
    assert "was changed by another window" in tuner.panel.message.value
    assert kept(tuner)["class_id"].tolist() == [2]


@pytest.mark.skipif(
    not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
)
def test_sam3_is_loaded_once_and_its_run_has_what_the_tuner_shows(raster, tmp_path, monkeypatch):
    small_sam3().save_pretrained(tmp_path / "sam3")
    small_tokenizer(tmp_path / "sam3")
    from workbench.segmenters.sam import concepts

    loaded, load = [], concepts.load_sam3
    monkeypatch.setattr(concepts, "load_sam3", lambda folder: loaded.append(1) or load(folder))
    job = job_of(
        raster, tmp_path / "run", classes=CLASSES, checkpoint=str(tmp_path / "sam3"),
        tile_size=256, pred_iou_floor=0, pred_iou_thresh=0.01, interactive=True,
    )  # fmt: skip
    tuner = open_tuner(job)
    draw(tuner, ROOF)
    tuner.process.go_on()
    one = tuner.session.samples[0].candidates
    draw(tuner, TREE, beside=True)
    tuner.process.go_on()
    other = tuner.session.samples[0].candidates
    assert len(loaded) == 1
    assert not one.table.equals(other.table)  # what is unlike counts
    made = run(tuner.session.job.changed(interactive=False))
    stored = pd.concat(pd.read_parquet(path) for path in (made.folder / "candidates").glob("*"))
    here = stored[(stored["tile_row"] == 0) & (stored["tile_col"] == 0)]
    assert here["rle"].tolist() == other.table.column("rle").to_pylist()
    tuner.close()
