"""Classes in a whole run, with a Segmenter that knows its objects: contracts C2, C3, C5 and C9."""

import shutil
from contextlib import closing

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_objects import TRANSFORM, largest_parts, write_labels
from known_runs import counted_calls, equal_layers, job_for, use_known_objects
from reviews import save_reviewed

from workbench import run
from workbench.errors import ExamplesError, JobError, RunFolderError
from workbench.layer.files import read_layer
from workbench.learning.examples import PERSON, read_examples
from workbench.runs.classes import classed_polygons, teach
from workbench.runs.labels import refuse_to_lose_examples
from workbench.runs.plan import prepare

pytestmark = pytest.mark.usefixtures("known_objects_only")

ROOF, FIELD, NONE = 1, 2, 0
CLASSES = {ROOF: "roof", FIELD: "field"}
FIRST = {ROOF: 40, FIELD: 120, NONE: 200}  # number of the first object of a class: its colour
SHAPE = (230, 330)


def town() -> np.ndarray:
    """Objects of three kinds, each with a colour and a shape of its own, none touching another."""
    rng = np.random.default_rng(3)
    labels = np.zeros(SHAPE, np.int32)
    count = dict(FIRST)
    for y in range(3, SHAPE[0] - 18, 20):
        for x in range(3, SHAPE[1] - 18, 20):
            kind = [ROOF, FIELD, NONE][rng.integers(3)]
            wide, tall = {ROOF: (9, 9), FIELD: (15, 8), NONE: (5, 14)}[kind]
            dx, dy = rng.integers(0, 17 - wide), rng.integers(0, 17 - tall)
            labels[y + dy : y + dy + tall, x + dx : x + dx + wide] = count[kind]
            count[kind] += 1
    return largest_parts(labels)


def kind_of(number):
    return max((first, kind) for kind, first in FIRST.items() if first <= number)[1]


def truth(labels) -> gpd.GeoDataFrame:
    rows = []
    for number in np.unique(labels[labels > 0]).tolist():
        ys, xs = np.nonzero(labels == number)
        (x0, y0), (x1, y1) = (
            TRANSFORM @ (xs.min(), ys.min()),
            TRANSFORM @ (xs.max() + 1, ys.max() + 1),
        )
        rows.append((kind_of(number), shapely.box(x0, y1, x1, y0)))
    return gpd.GeoDataFrame(
        {"class_id": [kind for kind, _ in rows]},
        geometry=[shape for _, shape in rows],
        crs="EPSG:32633",
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A raster, the truth of all its objects, and the labels of its left half with their area."""
    folder = tmp_path_factory.mktemp("town")
    labels = town()
    raster = write_labels(folder / "scene.tif", labels)
    known = truth(labels)
    left, top = TRANSFORM @ (0, 0)
    right, bottom = TRANSFORM @ (165, SHAPE[0])
    area = shapely.box(left, bottom, right, top)
    inside = known[known.representative_point().within(area) & (known["class_id"] != NONE)]
    inside.to_file(folder / "labels.gpkg")
    gpd.GeoDataFrame(geometry=[area], crs=known.crs).to_file(folder / "area.gpkg")
    return raster, known, folder


def taught(labelled, folder, **parameters):
    raster, _, given = labelled
    return job_for(
        raster, folder,
        **{
            "examples": str(given / "labels.gpkg"),
            "labelled_area": str(given / "area.gpkg"),
            "classes": CLASSES,
        } | parameters,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(labelled, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(taught(labelled, tmp_path_factory.mktemp("finished") / "run"))


def test_classes_that_are_taught_during_a_review_change_no_decision(labelled, finished, tmp_path):
    folder = tmp_path / "run"
    gpkg = folder / "prelabels.gpkg"
    labels = run(taught(labelled, folder, examples=None, labelled_area=None)).layer
    assert not set(labels["id"][:2]) - set(finished.layer["id"]), "both have a class when taught"
    labels.loc[0, ["status", "class_id"]] = ["accepted", FIELD]
    labels.loc[1, "status"] = "rejected"
    gpkg.unlink()
    save_reviewed(labels, gpkg)
    run(taught(labelled, folder, refresh=True))
    now = read_layer(gpkg)
    judged = now["id"].isin(labels["id"][:2])
    assert equal_layers(now[judged].reset_index(drop=True), labels[:2])
    by_id = {"by": "id", "ignore_index": True}
    rest = finished.layer[~finished.layer["id"].isin(labels["id"][:2])]
    assert equal_layers(now[~judged].sort_values(**by_id), rest.sort_values(**by_id))


def test_a_taught_run_finds_the_classes_and_nothing_else(labelled, finished):
    _, known, _ = labelled
    wanted = known[known["class_id"] != NONE]
    layer = finished.layer
    assert set(layer["class_id"]) == {ROOF, FIELD}
    assert layer["class_score"].between(0, 1).all()
    joined = gpd.sjoin(wanted, layer[["class_id", "geometry"]], predicate="intersects")
    right = (joined["class_id_left"] == joined["class_id_right"]).sum()
    assert right >= 0.95 * len(wanted)
    assert len(layer) <= 1.05 * len(wanted)


@pytest.fixture(scope="module")
def plain(labelled, tmp_path_factory):
    """The same scene, finished without examples."""
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(job_for(labelled[0], tmp_path_factory.mktemp("plain") / "run", classes=CLASSES))


def test_without_examples_nothing_is_classed(plain):
    assert plain.layer["class_id"].isna().all()
    assert plain.layer["class_score"].isna().all()
    assert not (plain.folder / "examples.parquet").exists()
    assert not (plain.folder / "features").exists()


def test_c9_teaching_a_finished_run_equals_a_fresh_run(
    labelled, finished, plain, tmp_path, monkeypatch
):
    folder = shutil.copytree(plain.folder, tmp_path / "run")
    calls = counted_calls(monkeypatch)
    again = run(taught(labelled, folder))
    assert not calls
    assert equal_layers(again.layer, finished.layer)


def test_c5_other_limits_and_thresholds_equal_a_fresh_run(labelled, finished, tmp_path):
    other = {"class_thresh": 0.7, "pred_iou_thresh": 0.93}
    fresh = run(taught(labelled, tmp_path / "fresh", **other))
    folder = shutil.copytree(finished.folder, tmp_path / "again")
    again = run(taught(labelled, folder, **other))
    assert equal_layers(again.layer, fresh.layer)
    assert again.layer["class_score"].min() >= 0.7
    assert again.layer["confidence"].min() > 0.93
    assert len(fresh.layer) < len(finished.layer)


def test_c3_the_order_of_examples_changes_nothing(labelled, finished, tmp_path):
    labels = gpd.read_file(labelled[2] / "labels.gpkg")
    files = [tmp_path / "one.gpkg", tmp_path / "two.gpkg"]
    for number, file in enumerate(files):
        labels[number::2].to_file(file)
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    given = [str(file) for file in reversed(files)]
    assert equal_layers(run(taught(labelled, folder, examples=given)).layer, finished.layer)


def test_c2_a_tile_alone_gives_what_the_batch_gives(labelled, finished, tmp_path):
    plan = prepare(taught(labelled, finished.folder))
    try:
        lesson = teach(plan)
        (part,) = plan.scenes
        clear = []
        for candidates, records in plan.store.read([part.index(tile) for tile in part.tiles]):
            clear += [classed_polygons(plan, lesson, part, candidates.take(rows), records)
                      for rows in tiles_of(candidates)]  # fmt: skip
    finally:
        plan.close()
    alone = pd.concat(clear)
    alone = alone[~alone["seam"]]
    keys = (
        alone["source"] + "/r" + alone["tile_row"].astype(str) + "c" + alone["tile_col"].astype(str)
    )
    alone = alone.assign(id=keys + "/" + alone["ordinal"].astype(str)).set_index("id")
    batch = finished.layer.set_index("id").loc[alone.index]
    assert len(alone) > 10
    assert (batch["class_id"] == alone["class_id"]).all()
    assert (batch["class_score"] == alone["class_score"]).all()
    assert all(map(shapely.equals, batch.geometry, alone.geometry))


def tiles_of(candidates):
    index = np.column_stack([candidates.column(name) for name in ("tile_row", "tile_col")])
    for one in np.unique(index, axis=0):
        yield np.flatnonzero((index == one).all(axis=1))


def test_the_examples_of_a_run_teach_another_scene(labelled, finished, tmp_path):
    away = TRANSFORM @ TRANSFORM.translation(5000, 0)
    elsewhere = write_labels(tmp_path / "other.tif", town(), away)
    job = job_for(
        elsewhere, tmp_path / "run", classes=CLASSES,
        examples=str(finished.folder / "examples.parquet"),
    )  # fmt: skip
    layer = run(job).layer
    assert (
        layer["class_id"].value_counts().to_dict()
        == finished.layer["class_id"].value_counts().to_dict()
    )


def test_examples_keep_what_they_say(finished, tmp_path):
    examples = read_examples(finished.folder / "examples.parquet")
    examples.write(tmp_path / "again.parquet")
    again = read_examples(tmp_path / "again.parquet")
    assert again.frame.equals(examples.frame)
    assert set(examples.frame["class_id"]) == {NONE, ROOF, FIELD}


def test_verdicts_of_a_person_are_not_replaced(labelled, finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    path = folder / "examples.parquet"
    said = read_examples(path)
    type(said)(said.frame.assign(said_by=PERSON)).write(path)
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match="holds verdicts of a person"):
        run(taught(labelled, folder))
    assert path.read_bytes() == before
    named = taught(labelled, folder, examples=[str(labelled[2] / "labels.gpkg"), str(path)])
    with closing(prepare(named)) as plan:
        refuse_to_lose_examples(plan.job, plan.folder)
        assert (teach(plan).examples.frame["said_by"] == PERSON).any()


@pytest.mark.parametrize("name", ["labelled_area", "class_thresh"])
def test_what_examples_need_is_refused_without_them(labelled, tmp_path, name):
    value = {"labelled_area": str(labelled[2] / "area.gpkg"), "class_thresh": 0.5}[name]
    with pytest.raises(JobError, match=f"{name} says something of classes"):
        job_for(labelled[0], tmp_path / "run", **{name: value})


def change(labels, what):
    match what:
        case "no CRS":
            return labels.set_crs(None, allow_override=True)
        case "off the scene":
            return labels.set_geometry(labels.translate(10_000, 0))
        case "another class":
            return labels.assign(class_id=7)
        case "one class":
            return labels.assign(class_id=1)
        case "points":
            return labels.set_geometry(labels.representative_point())
        case "no numbers":
            return labels.assign(class_id="roof")
        case "no end":
            return labels.assign(class_id=np.inf)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no CRS", "has no CRS"),
        ("off the scene", "do not lie on the scene"),
        ("another class", "`classes` does not name"),
        ("one class", "nothing says what is none of these"),
        ("points", "holds Point, but no polygons"),
        ("no numbers", "whole numbers are needed"),
        ("no end", "class_id .*inf.*: whole numbers are needed"),
    ],
)
def test_bad_examples_are_refused_with_a_reason(labelled, tmp_path, what, said):
    labels = change(gpd.read_file(labelled[2] / "labels.gpkg"), what)
    path = tmp_path / "bad.parquet"
    labels.to_parquet(path)
    with pytest.raises(ExamplesError, match=said):
        run(taught(labelled, tmp_path / "run", examples=str(path), labelled_area=None))


def test_labels_of_prompts_win_over_taught_ones(labelled, finished, tmp_path):
    _, known, _ = labelled
    roofs = known[known["class_id"] == ROOF][-5:]
    roofs.assign(class_id=FIELD).to_file(tmp_path / "known.gpkg")
    layer = run(taught(labelled, tmp_path / "run", prompts=str(tmp_path / "known.gpkg"))).layer
    of_prompts = layer["prompt_fid"].notna()
    assert shapely.equals(layer.geometry[of_prompts].to_numpy(), roofs.geometry.to_numpy()).all()
    assert layer["class_id"][of_prompts].tolist() == [FIELD] * 5
    before = finished.layer
    elsewhere = ~before.geometry.intersects(roofs.geometry.buffer(-0.1).union_all())
    assert (~elsewhere).sum() == 5
    assert set(layer["id"][~of_prompts]) == set(before["id"][elsewhere])
    assert layer["class_score"][~of_prompts].notna().all()
