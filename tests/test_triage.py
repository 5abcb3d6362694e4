"""Answers to the labels of a finished layer: written at once, in order, and taken back."""

import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise

import numpy as np
import pyogrio
import pytest
import shapely
from known_objects import objects, write_labels
from known_runs import job_for, use_known_objects

from workbench import run
from workbench.errors import ReviewError
from workbench.layer.qgis.marks import MARK
from workbench.layer.qgis.order import pace_of
from workbench.review.decide import write_decisions
from workbench.review.job import ReviewJob
from workbench.review.ranking import FEWEST, Ranking
from workbench.review.tile_by_tile import OUTSIDE, TileByTile
from workbench.review.triage import Triage
from workbench.runs.result import read_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of known objects in 15 tiles."""
    folder = tmp_path_factory.mktemp("triage")
    raster = write_labels(folder / "scene.tif", objects((230, 330), 1))
    with pytest.MonkeyPatch.context() as patch:
        use_known_objects(patch)
        return run(job_for(raster, folder / "run", classes={1: "roof", 2: "tree"})).folder


@pytest.fixture
def job(run_folder, tmp_path):
    """A review of a copy of the run."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    return ReviewJob.create(run_dir=str(folder))


@pytest.fixture
def triage(job):
    return Triage(job)


def rows_of(gpkg, columns="status, class_id"):
    with closing(sqlite3.connect(f"file:{gpkg}?mode=ro", uri=True)) as db:
        rows = db.execute(f"SELECT fid, {columns} FROM prelabels").fetchall()
    return {fid: tuple(rest) for fid, *rest in rows}


def fid(triage, row):
    return int(triage.labels["fid"].iloc[row])


def test_answers_are_in_the_file_and_nothing_else_changes(job, triage):
    everything = "status, class_id, id, confidence, geom"
    before = rows_of(job.gpkg, everything)
    first = triage.go()
    second = triage.answer("accepted")
    third = triage.answer("rejected")
    triage.answer("accepted", 2)
    after = rows_of(job.gpkg, everything)
    assert {fid(triage, row) for row in (first, second, third)} == {
        number for number in before if before[number] != after[number]
    }
    assert after[fid(triage, first)][0] == "accepted"
    assert after[fid(triage, first)][1:] == before[fid(triage, first)][1:]
    assert after[fid(triage, second)][0] == "rejected"
    assert after[fid(triage, third)][:2] == ("accepted", 2)
    # whoever reads it afterwards, as the cells below and QGIS do
    labels = Triage(job).labels
    assert labels["status"].value_counts()["accepted"] == 2
    assert pyogrio.read_info(job.gpkg, layer="prelabels")["features"] == len(before)


def test_the_file_keeps_count_of_tiles_that_are_done(job, triage):
    triage.go()
    tile = triage.order.tile
    while triage.order.tile == tile:
        triage.answer("accepted")
    with closing(sqlite3.connect(job.gpkg)) as db:
        (left,) = db.execute("SELECT n_unreviewed FROM tiles WHERE tile = ?", (tile,)).fetchone()
    assert left == 0
    assert triage.progress()[0] == 1


def test_undo_and_redo_go_over_answers(job, triage):
    before = rows_of(job.gpkg)
    first = triage.go()
    second = triage.answer("accepted", 2)
    triage.answer("rejected")
    done = rows_of(job.gpkg)
    assert triage.undo() == second
    assert triage.undo() == first
    assert rows_of(job.gpkg) == before
    assert triage.undo() == -1
    triage.redo()
    triage.redo()
    assert rows_of(job.gpkg) == done
    triage.undo()
    triage.answer("accepted")
    assert not triage.future  # another way was taken


def test_tile_by_tile_and_in_a_tile_what_reaches_out_and_then_the_surest(triage):
    tiles, seen = triage.run.tiles.set_index("tile"), []
    row = triage.go()
    while row >= 0:
        box = shapely.box(*tiles.loc[triage.order.tile].geometry.bounds)
        shape = triage.labels.geometry.iloc[row]
        assert box.intersects(shapely.point_on_surface(shape))
        reaches = not box.covers(shape)
        seen.append((triage.order.tile, not reaches, -triage.score[row]))
        row = triage.answer("accepted")
    names = [name for name, *_ in seen]
    assert len(set(names)) == 1 + sum(one != other for one, other in pairwise(names)) > 3
    by_tile = {name: [rest for one, *rest in seen if one == name] for name in names}
    assert all(rest == sorted(rest) for rest in by_tile.values())
    assert len(seen) == len(triage) == triage.progress()[2]


def test_a_skipped_label_comes_at_the_end_of_its_tile(triage):
    first = triage.go()
    tile = triage.order.tile
    shown = [triage.skip()]
    while triage.order.tile == tile and shown[-1] != first:
        shown.append(triage.answer("accepted"))
    assert shown[-1] == first
    assert triage.order.tile == tile


def test_the_rest_of_a_tile_is_rejected_in_one_step(job, triage):
    triage.go()
    triage.answer("accepted")
    _, done, n = triage.tile_progress()
    before = rows_of(job.gpkg)
    assert triage.reject_rest() == n - done > 1
    assert [s for s, _ in rows_of(job.gpkg).values()].count("rejected") == n - done
    triage.undo()
    assert rows_of(job.gpkg) == before


def test_all_above_a_score_are_accepted_in_one_step(job, triage):
    triage.go()
    triage.answer("rejected")
    middle = float(np.median(triage.score[triage.waits]))
    wanted = {fid(triage, row) for row in triage.above(middle)}
    assert 0 < len(wanted) < len(triage)
    assert triage.accept_above(middle) == len(wanted)
    assert wanted == {number for number, (s, _) in rows_of(job.gpkg).items() if s == "accepted"}
    triage.undo()
    assert {s for s, _ in rows_of(job.gpkg).values()} == {"unreviewed", "rejected"}


def test_an_edited_label_stays_edited_when_it_is_accepted(job):
    given = rows_of(job.gpkg)[1]
    write_decisions(job.gpkg, "prelabels", {1: given}, {1: ("edited", given[1])})
    triage = Triage(job)
    triage.decide([0], "accepted", 2)
    assert rows_of(job.gpkg)[1] == ("edited", 2)
    triage.decide([0], "rejected")
    assert rows_of(job.gpkg)[1][0] == "rejected"


def test_nothing_is_written_while_qgis_has_the_file_open(job, triage):
    triage.go()
    before = job.gpkg.read_bytes()
    log = job.gpkg.with_name("prelabels.gpkg-wal")
    log.touch()
    with pytest.raises(ReviewError, match=r"is open in another program, probably QGIS\. Save and"):
        triage.answer("accepted")
    log.unlink()
    mark = job.gpkg.with_name(f"prelabels.gpkg{MARK}laptop-17")
    mark.write_text('{"who": "ben on laptop", "since": "09:10"}')
    with pytest.raises(ReviewError, match=r"ben on laptop has had prelabels\.gpkg open since 09"):
        triage.answer("accepted")
    mark.write_text('{"who": ')  # it is just being written
    with pytest.raises(ReviewError, match=r"Somebody has had prelabels\.gpkg open since some"):
        triage.answer("accepted")
    mark.unlink()
    assert job.gpkg.read_bytes() == before
    assert not triage.past
    assert triage.status[triage.row] == "unreviewed"
    triage.answer("accepted")


def test_a_file_that_is_locked_or_read_only_is_refused_with_what_to_do(job, triage):
    triage.go()
    with closing(sqlite3.connect(job.gpkg)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ReviewError, match=r"cannot be written \(database is locked\)\. Close"):
            triage.answer("accepted")
    assert not triage.past


def test_what_somebody_else_changed_is_not_overwritten(job, triage):
    row = triage.go()
    other = Triage(job)
    other.decide([row], "rejected")
    with pytest.raises(ReviewError, match="was changed by another program since"):
        triage.decide([row, (row + 1) % len(triage)], "accepted")
    assert [s for s, _ in rows_of(job.gpkg).values()].count("accepted") == 0


def test_other_formats_are_refused(job, triage):
    path = job.gpkg.with_name("reviewed.geojson")
    triage.labels.drop(columns=["fid", "unclosed"]).to_file(path)
    with pytest.raises(ReviewError, match=r"reviewed\.geojson is no GeoPackage: labels can be"):
        Triage(ReviewJob.create(run_dir=job.run_dir, reviewed=str(path)))


def test_a_label_outside_of_all_tiles_comes_last(job):
    run = read_run(job.run_dir)
    far = Triage(job, run)
    moved = far.labels.geometry.to_numpy().copy()
    moved[3] = shapely.transform(moved[3], lambda xy: xy + 10_000)
    far.labels = far.labels.set_geometry(moved)
    order = TileByTile(far.labels, run.tiles, far.status)
    assert order.tiles[-1][0] == OUTSIDE
    assert [row for row, *_ in order.labels_in(order.tiles[-1][1])] == [3]


def test_answers_teach_the_order_of_what_is_left(job, triage):
    ranking = Ranking(triage)
    while ranking.describe_one() is not None:
        pass
    assert ranking.is_done
    assert not np.isnan(ranking.figures).any()
    assert ranking.scores() is None
    triage.go()
    large = triage.labels["area_m2"] > triage.labels["area_m2"].median()
    for row in range(0, len(triage), 2):
        triage.decide([row], "accepted" if large[row] else "rejected", 1 if large[row] else None)
    assert len(triage.past) >= FEWEST
    scores = ranking.scores()
    left = np.arange(1, len(triage), 2)
    big = large.to_numpy()[left]
    assert scores[left][big].mean() > scores[left][~big].mean() + 0.1
    triage.rank(scores)
    triage.go()
    here = triage.order.labels_in(triage.order.place)
    reaching = {row for row, _, _, reaches in here if reaches}
    within = [row for row in triage.order.waiting if row not in reaching]
    assert within == sorted(within, key=lambda row: -scores[row])


def test_the_pace_is_that_of_the_last_two_minutes():
    assert pace_of([], 0) == pace_of([1.0, 2.0], 3) == ""
    assert pace_of([0.0, *range(200, 211)], 211) == "60 labels a minute"


def test_a_change_of_nothing_is_written_as_nothing(job, triage):
    before = rows_of(job.gpkg)
    write_decisions(job.gpkg, "prelabels", {}, {})
    assert rows_of(job.gpkg) == before
