"""What a review asks of its run: each cause that stops advice is told, with what to do."""

import json
import shutil
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_runs import run_of_15_tiles
from reviews import save_reviewed
from shapely.affinity import translate

from workbench import run
from workbench.errors import DatasetError, ExamplesError, JobError, ReviewError
from workbench.layer.cores import home_in
from workbench.learning.examples import PERSON, read_examples
from workbench.review.examples import learn_from
from workbench.review.job import ReviewJob
from workbench.review.next_job import (
    advise_run,
    forget_advice,
    labelled_area_of_run,
    write_advised_job,
)
from workbench.review.workflow import export_run, review
from workbench.runs.job import Job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of known objects in 15 tiles."""
    return run_of_15_tiles(tmp_path_factory.mktemp("reviewing"))


@pytest.fixture
def advise(finished, tmp_path):
    """Advise by a reference (by default all labels of the run) and a labelled area."""

    def advised(reference=None, area=None, of=finished):
        reference = finished.layer if reference is None else reference
        parameters = {"reference": str(tmp_path / "reference.gpkg")}
        reference.to_file(parameters["reference"])
        if area is not None:
            parameters["labelled_area"] = str(tmp_path / "area.gpkg")
            gpd.GeoSeries([area], crs=of.layer.crs).to_file(parameters["labelled_area"])
        return advise_run(ReviewJob.create(run_dir=str(of.folder), **parameters), of, of.layer)

    return advised


def test_the_labelled_area_may_be_invalid(finished, advise):
    left, bottom, right, top = finished.tiles.total_bounds
    bow_tie = shapely.Polygon([(left, bottom), (right, top), (right, bottom), (left, top)])
    whole = advise(area=shapely.box(left, bottom, right, top))
    assert 0 < advise(area=bow_tie).n_reference < whole.n_reference == len(finished.layer)


def test_tiles_that_only_touch_the_labelled_area_do_not_count(finished, advise):
    fullest = finished.tiles.sort_values("n_polygons")
    two = shapely.union_all(fullest.geometry[-2:].to_numpy())
    assert advise(area=two).n_tiles == 2


def test_tiles_that_failed_do_not_count(finished, advise):
    everything = shapely.box(*finished.tiles.total_bounds)
    failed = finished.tiles["status"].where(finished.tiles.index > 0, "failed")
    without = replace(finished, tiles=finished.tiles.assign(status=failed))
    assert advise(area=everything, of=without).n_tiles == len(finished.tiles) - 1


def test_each_cause_has_its_remedy(finished, advise, tmp_path):
    away = finished.layer.translate(5000)
    with pytest.raises(ReviewError, match=r"reference .* lies outside the run: its bounds are 50"):
        advise(finished.layer.set_geometry(away))
    with pytest.raises(ReviewError, match=r"labelled_area .* lies outside the run"):
        advise(area=translate(shapely.box(*finished.tiles.total_bounds), 5000))
    corner = finished.tiles.geometry[0].centroid.buffer(1)
    with pytest.raises(ReviewError, match=r"labelled_area .* reaches into 1 of 15 tiles"):
        advise(area=corner)
    with pytest.raises(ReviewError, match=r"labels of reference .* lie in 1 of 15 tiles"):
        advise(finished.layer[:1])
    with pytest.raises(ReviewError, match="0 of 15 tiles are fully reviewed"):
        advise_run(ReviewJob.create(run_dir=str(finished.folder)), finished, finished.layer)
    moved = shutil.copytree(finished.folder, tmp_path / "moved")
    shutil.rmtree(moved / "candidates")
    with pytest.raises(
        ReviewError, match=r"candidates lacks \d+ of \d+ labelled tiles.*run folder"
    ):
        advise(of=replace(finished, folder=moved))


def test_a_complete_review_counts_everywhere(finished):
    job = ReviewJob.create(run_dir=str(finished.folder))
    accepted = finished.layer.assign(status="accepted")
    assert advise_run(job, finished, accepted).n_tiles == len(finished.tiles)


def test_degrees_are_no_reason_to_warn(finished, tmp_path):
    path = tmp_path / "degrees.gpkg"
    finished.layer.to_crs(4326).to_file(path)
    job = ReviewJob.create(run_dir=str(finished.folder), labelled_area=str(path))
    assert len(labelled_area_of_run(job, finished)) == len(finished.layer)


def test_a_file_without_polygons_is_refused_with_what_to_do(finished, tmp_path):
    def read(name):
        job = ReviewJob.create(run_dir=str(finished.folder), labelled_area=str(tmp_path / name))
        labelled_area_of_run(job, finished)

    with pytest.raises(ReviewError, match=r"area .*nowhere\.gpkg: no such file\. Check the path"):
        read("nowhere.gpkg")
    gpd.GeoSeries([shapely.Point(1, 2)], crs=4326).to_file(tmp_path / "points.gpkg")
    with pytest.raises(ReviewError, match=r"points\.gpkg has no polygons\. Give"):
        read("points.gpkg")


def test_one_tile_is_no_question_of_reviewing_more(finished):
    one = replace(finished, tiles=finished.tiles[:1])
    accepted = finished.layer.assign(status="accepted")
    with pytest.raises(ReviewError, match=r"this run has only one\. Run with a tile_size below 96"):
        advise_run(ReviewJob.create(run_dir=str(finished.folder)), one, accepted)


def judged_in_turn(finished, rows):
    """Accept the better half of these labels of the run, and reject the worse one."""
    rows = sorted(rows, key=lambda row: -finished.layer["confidence"][row])
    status = finished.layer["status"].copy()
    status[rows[: len(rows) // 2]] = "accepted"
    status[rows[len(rows) // 2 :]] = "rejected"
    return finished.layer.assign(status=status)


def test_decisions_count_where_they_were_made(finished, tmp_path):
    home = home_in(finished.tiles, finished.layer)
    # one label of each tile waits, so that no tile is fully reviewed
    rows = [row for row in range(len(home)) if home[row] in home[row + 1 :]]
    assert len(rows) >= 2
    labels = judged_in_turn(finished, rows)
    job = ReviewJob.create(run_dir=str(finished.folder), out_dir=str(tmp_path / "review"))
    advice = advise_run(job, finished, labels)
    assert (advice.n_good, advice.n_bad) == (len(rows) // 2, len(rows) - len(rows) // 2)
    path, _ = write_advised_job(job, finished, labels, advice)
    assert Job.from_yaml(path).thresholds == advice.advised


def test_one_tile_that_is_fully_reviewed_gives_advice(finished):
    home = home_in(finished.tiles, finished.layer)
    fullest = np.bincount(home[home >= 0]).argmax()
    rows = np.flatnonzero(home == fullest).tolist()
    assert len(rows) >= 2
    one = replace(finished, tiles=finished.tiles[fullest : fullest + 1].reset_index(drop=True))
    job = ReviewJob.create(run_dir=str(finished.folder))
    advice = advise_run(job, one, judged_in_turn(finished, rows))
    assert advice.n_good + advice.n_bad == len(rows)


def test_examples_need_no_tile_that_is_fully_reviewed(finished, tmp_path):
    home = home_in(finished.tiles, finished.layer)
    rows = [row for row in range(len(home)) if home[row] in home[row + 1 :]]
    labels = judged_in_turn(finished, rows)
    job = ReviewJob.create(run_dir=str(finished.folder), out_dir=str(tmp_path))
    examples = learn_from(job, finished, labels).examples
    assert set(examples.class_id) == {0, 1}
    assert set(examples.frame["label"]) <= set(labels["id"][rows])
    assert len(set(examples.frame["label"])) > 0.8 * len(rows)
    # what waits for review is not taken for something else
    assert set(examples.frame["said_by"]) == {PERSON}


def test_one_tile_that_is_fully_reviewed_gives_examples(finished, tmp_path):
    home = home_in(finished.tiles, finished.layer)
    fullest = np.bincount(home[home >= 0]).argmax()
    rows = np.flatnonzero(home == fullest).tolist()
    one = replace(finished, tiles=finished.tiles[fullest : fullest + 1].reset_index(drop=True))
    job = ReviewJob.create(run_dir=str(finished.folder), out_dir=str(tmp_path))
    examples = learn_from(job, one, judged_in_turn(finished, rows)).examples
    assert set(examples.class_id) == {0, 1}


def test_the_advised_job_names_no_scheduler(finished, tmp_path):
    job = ReviewJob.create(run_dir=str(finished.folder), out_dir=str(tmp_path / "review"))
    accepted = finished.layer.assign(status="accepted")
    on_cluster = replace(finished, job=finished.job.changed(scheduler="tcp://gone:8786"))
    advice = advise_run(job, on_cluster, accepted)
    path, _ = write_advised_job(job, on_cluster, accepted, advice)
    assert Job.from_yaml(path).scheduler is None
    (path.with_name("advice.png")).write_bytes(b"")
    assert forget_advice(job.folder) == " Removed advice.png and job.yaml of an earlier review."
    assert not list(path.parent.iterdir())
    assert forget_advice(job.folder) == ""


def test_the_default_class_of_a_review_is_for_labels_without_one(finished, tmp_path):
    two = replace(finished, job=finished.job.changed(classes={1: "roof", 2: "road"}))
    accepted = finished.layer.assign(status="accepted")

    def exported(of, **parameters):
        job = ReviewJob.create(
            run_dir=str(of.folder), out_dir=str(tmp_path), chip_size=64, val=0, test=0, **parameters
        )
        folder = export_run(job, of, accepted).folder
        content = json.loads((folder / "annotations/instances_train.json").read_text())
        return {annotation["category_id"] for annotation in content["annotations"]}

    with pytest.raises(DatasetError, match="`-p default_class 1`"):
        exported(two)
    assert exported(two, default_class=2) == {2}
    of_the_run = replace(two, job=two.job.changed(default_class=1))
    assert exported(of_the_run) == {1}
    assert exported(of_the_run, default_class=2) == {2}


def test_shares_that_leave_nothing_for_training_are_refused_at_once(finished):
    with pytest.raises(
        JobError,
        match=r"val \(0\.5\) and test \(0\.5\) leave nothing for train: choose shares that add up",
    ):
        ReviewJob.create(run_dir=str(finished.folder), val=0.5, test=0.5)


def test_one_call_writes_and_tells_all_that_a_review_gives(finished, tmp_path):
    labels = finished.layer.assign(status="accepted")
    labels.loc[::3, "status"] = "rejected"
    job = ReviewJob.create(
        run_dir=str(finished.folder),
        reviewed=str(save_reviewed(labels[1:], tmp_path / "reviewed.gpkg")),
        out_dir=str(tmp_path / "review"),
        chip_size=64,
    )
    found = review(job)
    assert found.folder == tmp_path / "review"
    assert len(found.labels) == len(labels) - 1
    assert len(found.changes.pictures) == 2
    assert found.changes.table["value"]["deleted"] == "1"
    assert found.thresholds.pictures[0] == (found.folder / "advice.png").read_bytes()
    assert "F1" in found.thresholds.text
    assert "On tiles held out they give: about " in found.classes.text
    assert found.classes.table.loc["1 – object", "labelled"] > 5
    examples = read_examples(found.folder / "examples.parquet")
    assert set(examples.class_id) == {0, 1}
    assert set(examples.frame["said_by"]) == {PERSON}  # every tile is reviewed: nothing is left
    next_job = Job.from_yaml(found.folder / "job.yaml")
    assert next_job.examples == str(found.folder / "examples.parquet")
    assert next_job.pred_iou_thresh is None
    assert found.dataset.table.loc["train", "chips"] > 0
    assert f"labels of {job.gpkg}" in found.shapes.text


def test_what_a_review_cannot_give_says_why_and_leaves_nothing_of_an_earlier_one(
    finished, tmp_path
):
    # of a run whose raster is gone, and whose labels nobody has looked at
    moved = shutil.copytree(finished.folder, tmp_path / "run")
    raster = str(finished.scenes[0].source)
    record = (moved / "run.yaml").read_text("utf-8").replace(raster, str(tmp_path / "gone.tif"))
    (moved / "run.yaml").write_text(record, "utf-8")
    folder = moved / "review"
    folder.mkdir()
    for name in ("changes_map.png", "advice.png", "job.yaml"):
        (folder / name).touch()
    found = review(ReviewJob.create(run_dir=str(moved)))
    assert found.changes.text.startswith("No map: ")
    assert len(found.changes.pictures) == 1
    assert found.thresholds.text.startswith("No advice: advice needs labels in at least two tiles")
    assert found.dataset.text.startswith("No data set: ")
    assert found.dataset.table is None
    assert sorted(p.name for p in folder.iterdir()) == ["changes.png", "issues.gpkg"]


def test_examples_of_a_review_keep_what_was_rejected_out_of_the_next_run(
    finished, tmp_path, known_objects_only
):
    labels = finished.layer.assign(status="accepted", class_id=1)
    labels.loc[::3, "status"] = "rejected"
    job = ReviewJob.create(
        run_dir=str(finished.folder), out_dir=str(tmp_path / "review"), chip_size=64,
        reviewed=str(save_reviewed(labels, tmp_path / "reviewed.gpkg")),
    )  # fmt: skip
    review(job)
    again = Job.from_yaml(tmp_path / "review" / "job.yaml").changed(
        source=str(finished.scenes[0].source), out_dir=str(tmp_path / "again")
    )
    layer = run(again).layer
    refused = shapely.union_all(labels.geometry[labels["status"] == "rejected"].to_numpy())
    share = shapely.area(shapely.intersection(layer.geometry.to_numpy(), refused)) / layer.area
    assert not (share > 0.9).any()
    assert (layer["status"] == "accepted").sum() > 0.8 * (labels["status"] == "accepted").sum()


def test_what_taught_another_scene_stays_among_the_examples(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    labels = finished.layer.assign(status="accepted", class_id=1)
    labels.loc[::3, "status"] = "rejected"
    reviewed = str(save_reviewed(labels, tmp_path / "reviewed.gpkg"))
    given = {"run_dir": str(folder), "reviewed": reviewed, "chip_size": 64}
    review(ReviewJob.create(out_dir=str(tmp_path / "one"), **given))
    one = read_examples(tmp_path / "one" / "examples.parquet")
    elsewhere = type(one)(one.frame.assign(source="elsewhere"))
    elsewhere.write(folder / "examples.parquet")
    review(ReviewJob.create(out_dir=str(tmp_path / "two"), **given))
    two = read_examples(tmp_path / "two" / "examples.parquet")
    assert len(two) == 2 * len(one)
    assert set(two.frame["source"]) == {"elsewhere", finished.scenes[0].name}


def test_labels_without_a_class_teach_nothing_and_say_so(finished, tmp_path):
    two = replace(finished, job=finished.job.changed(classes={1: "roof", 2: "road"}))
    labels = finished.layer.assign(status="accepted", class_id=2)
    labels.loc[::3, "status"] = "rejected"
    labels.loc[1, "class_id"] = pd.NA
    job = ReviewJob.create(run_dir=str(finished.folder), out_dir=str(tmp_path))
    lessons = learn_from(job, two, labels)
    assert lessons.notes[0].startswith("1 accepted labels have no class")
    assert set(lessons.examples.class_id) == {0, 2}
    with pytest.raises(ExamplesError, match="nothing says what is none of these"):
        learn_from(job, two, finished.layer.assign(status="accepted", class_id=2))
