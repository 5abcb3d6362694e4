"""What a person has said of single objects is kept, and holds in the next run."""

from contextlib import closing

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_runs import equal_layers, use_known_objects
from test_learning_run import (  # noqa: F401
    CLASSES,
    FIELD,
    NONE,
    ROOF,
    job_for,
    labelled,
    taught,
    tiles_of,
)

from workbench import run
from workbench.candidates.store import valid_masks
from workbench.errors import ExamplesError
from workbench.learning.examples import PERSON
from workbench.learning.features import FEATURES
from workbench.learning.verdicts import VERDICTS, Verdicts, read_verdicts
from workbench.polygons.build import to_polygons
from workbench.runs.classes import classed_polygons, figures_of, teach
from workbench.runs.plan import prepare
from workbench.runs.said import traced_rows

pytestmark = pytest.mark.usefixtures("known_objects_only")


@pytest.fixture(scope="module")
def plain(labelled, tmp_path_factory):  # noqa: F811
    """The scene without classes."""
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(job_for(labelled[0], tmp_path_factory.mktemp("plain") / "run", classes=CLASSES))


def described(result):
    """All candidates of a run, with their polygons, as the tuner describes them."""
    with closing(prepare(result.job)) as plan:
        (part,) = plan.scenes
        frames = []
        for candidates, _ in plan.store.read([part.index(tile) for tile in part.tiles]):
            figures = figures_of(plan.folder, part, candidates)
            frames.append((candidates, figures))
    layer = result.layer.set_index("id")
    rows = []
    for candidates, figures in frames:
        names = ("tile_row", "tile_col", "ordinal")
        for i, (row, col, ordinal) in enumerate(zip(*map(candidates.column, names), strict=True)):
            tile = f"{result.scenes[0].name}/r{row}c{col}"
            if f"{tile}/{ordinal}" in layer.index:
                shape = layer.geometry[f"{tile}/{ordinal}"]
                rows.append((tile, ordinal, shape, figures[i]))
    frame = gpd.GeoDataFrame(
        {"source": result.scenes[0].name, "tile": [r[0] for r in rows],
         "ordinal": [int(r[1]) for r in rows]}
        | dict(zip(FEATURES, np.array([r[3] for r in rows]).T, strict=True)),
        geometry=[r[2] for r in rows], crs=layer.crs,
    )  # fmt: skip
    return frame


def verdicts_on(known, candidates, n):
    """Verdicts on `n` objects of each kind, as a careful person gives them."""
    verdicts = Verdicts.none(candidates.crs)
    left = dict.fromkeys((ROOF, FIELD, NONE), n)
    for _, one in known.iterrows():
        iou = shapely.area(shapely.intersection(candidates.geometry, one.geometry)) / shapely.area(
            shapely.union(candidates.geometry, one.geometry)
        )
        best = int(np.argmax(iou))
        if iou[best] > 0.99 and left[one["class_id"]]:
            left[one["class_id"]] -= 1
            verdicts = verdicts.with_verdict(candidates.iloc[[best]], one["class_id"])
    return verdicts


def test_verdicts_are_read_as_they_were_written(labelled, plain, tmp_path):  # noqa: F811
    verdicts = verdicts_on(labelled[1], described(plain), 4)
    verdicts.write(tmp_path / VERDICTS)
    again = read_verdicts(tmp_path / VERDICTS, plain.layer.crs)
    assert again.said == verdicts.said
    assert again.frame.equals(verdicts.frame)
    assert len(again) == 12
    assert set(again.frame["said_by"]) == {PERSON}


def test_the_last_word_counts_and_can_be_taken_back(plain):
    one = described(plain).iloc[[0]]
    label = f"{one['tile'].iloc[0]}/{one['ordinal'].iloc[0]}"
    none = Verdicts.none(one.crs)
    assert none.with_verdict(one, 1).with_verdict(one, 0).said == {label: 0}
    assert len(none.with_verdict(one, 1).without(label)) == 0
    assert not none.can_teach


def test_a_verdict_on_a_near_double_replaces_the_first(plain):
    two = described(plain).iloc[[0, 1]]
    verdicts = Verdicts.none(two.crs).with_verdict(two, 1).with_verdict(two.iloc[::-1], 2)
    assert list(verdicts.said.values()) == [2]


def test_a_file_of_another_kind_is_not_taken_for_verdicts(tmp_path, plain):
    path = tmp_path / VERDICTS
    plain.layer.to_parquet(path)
    with pytest.raises(ExamplesError, match="Move it out of the run folder"):
        read_verdicts(path, plain.layer.crs)


def test_verdicts_teach_a_run_and_come_back_accepted(labelled, plain, tmp_path):  # noqa: F811
    verdicts = verdicts_on(labelled[1], described(plain), 8)
    path = tmp_path / VERDICTS
    verdicts.write(path)
    result = run(taught(labelled, tmp_path / "run", examples=str(path), labelled_area=None))
    layer = result.layer
    judged = layer[layer["status"] == "accepted"]
    said = verdicts.frame[verdicts.frame["class_id"] != NONE]
    assert len(judged) == len(said) == 16
    joined = gpd.sjoin(said, judged[["class_id", "geometry"]], predicate="intersects")
    assert (joined["class_id_left"] == joined["class_id_right"]).all()
    assert (judged["class_score"] == 1).all()
    refused = verdicts.frame[verdicts.frame["class_id"] == NONE]
    assert not layer.intersects(shapely.union_all(refused.geometry.buffer(-0.4))).any()
    # what is accepted so can be taught again: it is no review that a run would lose
    again = run(result.job)
    assert (again.layer["status"] == "accepted").sum() == 16


def test_a_verdict_counts_more_than_the_classes(labelled, plain, tmp_path):  # noqa: F811
    candidates, known = described(plain), labelled[1]
    verdicts = verdicts_on(known, candidates, 8)
    one = known[known["class_id"] == ROOF].geometry.iloc[-1]
    fields = candidates[candidates.intersects(one.buffer(-0.4))].iloc[[0]]
    path = tmp_path / VERDICTS
    verdicts.with_verdict(fields, FIELD).write(path)
    layer = run(taught(labelled, tmp_path / "run", examples=str(path), labelled_area=None)).layer
    here = layer[layer.intersects(one.buffer(-0.4))]
    assert here["class_id"].tolist() == [FIELD]
    assert here["status"].tolist() == ["accepted"]
    verdicts.with_verdict(fields, NONE).write(path)
    layer = run(taught(labelled, tmp_path / "two", examples=str(path), labelled_area=None)).layer
    assert not layer.intersects(one.buffer(-0.4)).any()


def cut_candidates(result, kind):
    """Candidates of a kind of object that end at an edge of their tile inside the scene."""
    with closing(prepare(result.job)) as plan:
        (part,) = plan.scenes
        frames = []
        for candidates, records in plan.store.read([part.index(tile) for tile in part.tiles]):
            figures = figures_of(plan.folder, part, candidates)
            polygons = to_polygons(
                candidates, part.scene, part.grid, valid_masks(records, candidates.rules)
            )
            row = traced_rows(candidates, polygons)
            tile = [
                f"{part.scene.name}/r{r}c{c}"
                for r, c in zip(polygons["tile_row"], polygons["tile_col"], strict=True)
            ]
            window = [
                part.scene.window_polygon(part.grid.tile(r, c).window)
                for r, c in zip(polygons["tile_row"], polygons["tile_col"], strict=True)
            ]
            table = dict(zip(FEATURES, figures[row].T, strict=True))
            frames.append(
                gpd.GeoDataFrame(
                    table | {"source": part.scene.name, "tile": tile,
                     "ordinal": polygons["ordinal"].astype("int64"), "window": window},
                    geometry=polygons.geometry, crs=polygons.crs,
                )
            )  # fmt: skip
        everything = part.scene.window_polygon(part.scene.window)
    found = pd.concat(frames, ignore_index=True)
    inner = shapely.boundary(found.pop("window").to_numpy())
    inner = shapely.difference(inner, shapely.boundary(everything).buffer(0.1))
    at_edge = shapely.length(shapely.intersection(shapely.boundary(found.geometry), inner)) > 1
    return found[at_edge & found.intersects(shapely.union_all(kind.geometry.buffer(-0.4)))]


def test_what_a_person_accepted_at_a_seam_is_in_the_layer(labelled, plain, tmp_path):  # noqa: F811
    known = labelled[1]
    cut = cut_candidates(plain, known[known["class_id"] == NONE])
    # one of each four: the neighbouring tile sees the same object whole, and calls it none of these
    judged = cut.iloc[2::4].iloc[:5]
    assert len(judged) == 5
    verdicts = verdicts_on(known, described(plain), 8)
    for row in range(len(judged)):
        verdicts = verdicts.with_verdict(judged.iloc[[row]], ROOF)
    path = tmp_path / VERDICTS
    verdicts.write(path)
    layer = run(taught(labelled, tmp_path / "run", examples=str(path), labelled_area=None)).layer
    accepted = layer[(layer["status"] == "accepted") & (layer["class_id"] == ROOF)]
    there = gpd.sjoin(
        judged.set_geometry(judged.buffer(-0.1))[["geometry"]], accepted[["geometry"]],
        predicate="within",
    )  # fmt: skip
    assert set(there.index) == set(judged.index)
    assert not there.index.duplicated().any()


def test_c2_a_tile_alone_keeps_what_the_batch_keeps(labelled, plain, tmp_path):  # noqa: F811
    verdicts = verdicts_on(labelled[1], described(plain), 8)
    path = tmp_path / VERDICTS
    verdicts.write(path)
    result = run(taught(labelled, tmp_path / "run", examples=str(path), labelled_area=None))
    with closing(prepare(result.job)) as plan:
        lesson = teach(plan)
        (part,) = plan.scenes
        for candidates, records in plan.store.read([part.index(tile) for tile in part.tiles]):
            batch = classed_polygons(plan, lesson, part, candidates, records)
            alone = [
                classed_polygons(plan, lesson, part, candidates.take(rows), records)
                for rows in tiles_of(candidates)
            ]
            assert len(alone) > 5
            assert (batch["accepted_iou"] > 0).sum() >= 16
            assert equal_layers(pd.concat(alone, ignore_index=True), batch)
