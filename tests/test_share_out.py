"""The workers of a cluster do their share of the layer, and it is the layer of one process."""

import importlib
import logging
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing

import geopandas as gpd
import numpy as np
import pytest
import shapely
from distributed import LocalCluster
from known_objects import TRANSFORM, UTM, objects, write_labels
from known_runs import job_for, left_over, use_known_objects

from workbench import run
from workbench.errors import ClusterError
from workbench.polygons.portions import read_portion, write_portion
from workbench.runs import cluster, share_out
from workbench.runs.finish import finish
from workbench.runs.plan import prepare
from workbench.runs.segment import segment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

LAYER_FILES = ("prelabels.parquet", "prelabels.geojson")


def started():
    return LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
        host="127.0.0.1", silence_logs=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def workers():
    with started() as running:
        yield running


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Known objects, many of which several tiles see."""
    use_known_objects(monkeypatch)
    raster = write_labels(tmp_path / "scene.tif", objects((400, 500), 1))
    return job_for(raster, tmp_path / "one", min_area_px=20, simplify_m=None, overlaps="nested")


def there(job, tmp_path, workers):
    return job.changed(out_dir=str(tmp_path / "two"), scheduler=workers.scheduler_address)


def told(module, name, log, act=None):
    """Let a function of a module write the process that calls it into a file."""
    found = importlib.import_module(module)
    whole = getattr(found, name)
    whole = getattr(whole, "whole", whole)

    def telling(*args, **options):
        with open(log, "a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if act is not None:
            act()
        return whole(*args, **options)

    telling.whole = whole
    setattr(found, name, telling)


def untold(module, name):
    found = importlib.import_module(module)
    setattr(found, name, getattr(getattr(found, name), "whole", getattr(found, name)))


@pytest.fixture
def tell(workers, tmp_path):
    """Count where functions are called: `tell(module, name)`; then `tell.counted()` by process."""
    log, asked = tmp_path / "calls.log", []

    def begin(module, name, act=None):
        asked.append((module, name))
        told(module, name, log)
        with cluster.connect(workers.scheduler_address) as client:
            client.run(told, module, name, str(log), act)

    def counted():
        calls = [line.split() for line in log.read_text().splitlines()]
        return {
            name: Counter(int(pid) for called, pid in calls if called == name) for _, name in asked
        }

    begin.counted = counted
    yield begin
    with cluster.connect(workers.scheduler_address) as client:
        for module, name in asked:
            untold(module, name)
            client.run(untold, module, name)


def same_files(one, other):
    for name in LAYER_FILES:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert in_geopackage(one.folder) == in_geopackage(other.folder)


def in_geopackage(folder):
    """The rows of the layer; the layer of the tiles beside it also says how long each took."""
    with closing(sqlite3.connect(folder / "prelabels.gpkg")) as file:
        return file.execute("SELECT * FROM prelabels ORDER BY fid").fetchall()


@pytest.mark.parametrize("planar", [False, True])
def test_workers_do_their_share_of_the_layer(workers, job, tmp_path, tell, planar):
    job = job.changed(planar=planar)
    here = run(job)
    step = ("workbench.polygons.planar", "cut_overlaps") if planar else (
        "workbench.runs.finish", "clean"
    )  # fmt: skip
    tell("workbench.runs.trace", "offered")
    tell(*step)
    made = run(there(job, tmp_path, workers))
    traced, cleaned = tell.counted().values()
    assert os.getpid() not in traced
    assert len(traced) == 2
    assert os.getpid() not in cleaned
    assert cleaned
    same_files(here, made)
    assert len(made.layer) > 10
    assert made.layer["n_tiles"].max() > 1
    assert not left_over(made.folder)


def examples_for(job, folder):
    """Teach the job a class by what lies in its left half."""
    labels = run(job.changed(out_dir=str(folder / "all"))).layer
    left, middle = TRANSFORM @ (0, 400), TRANSFORM @ (250, 0)
    area = shapely.box(*left, *middle)
    inside = labels[shapely.within(labels.geometry, area)]
    class_id = (np.arange(len(inside)) % 3 > 0).astype(int)
    given = gpd.GeoDataFrame({"class_id": class_id}, geometry=inside.geometry, crs=UTM)
    given.to_file(folder / "labels.gpkg")
    gpd.GeoSeries([area], crs=UTM).to_file(folder / "area.gpkg")
    return job.changed(
        examples=str(folder / "labels.gpkg"), labelled_area=str(folder / "area.gpkg"),
        classes={1: "roof"}, class_thresh=0.0,
    )  # fmt: skip


def test_workers_compute_the_features_of_taught_classes(workers, job, tmp_path, tell):
    job = examples_for(job, tmp_path)
    here = run(job)
    tell("workbench.runs.classes", "described")
    made = run(there(job, tmp_path, workers))
    (described,) = tell.counted().values()
    assert os.getpid() not in described
    assert described
    same_files(here, made)
    assert "class_score" in made.layer


def test_a_worker_that_dies_while_the_layer_is_made_is_replaced(workers, job, tmp_path, tell):
    here, once = run(job), str(tmp_path / "died")

    def die():
        if not os.path.exists(once):
            open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

    tell("workbench.runs.trace", "offered", die)
    made = run(there(job, tmp_path, workers))
    assert os.path.exists(once)
    assert os.getpid() not in tell.counted()["offered"]
    same_files(here, made)


def test_what_no_worker_can_do_is_done_here(workers, job, tmp_path, tell):
    here, own = run(job), os.getpid()

    def fail():
        if os.getpid() != own:
            raise OSError("no room")

    tell("workbench.runs.trace", "offered", fail)
    made = run(there(job, tmp_path, workers))
    assert tell.counted()["offered"][own] > 2
    same_files(here, made)


def test_a_layer_is_made_here_if_the_cluster_has_ended(job, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    here = run(job)
    with started() as gone:
        plan = prepare(there(job, tmp_path, gone))
        list(segment(plan))
    with closing(plan), caplog.at_level(logging.WARNING):
        made = finish(plan)
    assert "The layer is made in this process. No Dask scheduler answers" in caplog.text
    same_files(here, made)


def test_a_cluster_that_ends_in_between_leaves_the_rest_to_this_process(
    workers, job, tmp_path, monkeypatch, caplog
):
    here = run(job)

    def ends(client, function, pieces):
        for number, piece in enumerate(pieces):
            if number == 3:
                raise ClusterError("The scheduler has ended.")
            yield piece, function(piece)

    monkeypatch.setattr(share_out, "map_pieces", ends)
    with caplog.at_level(logging.WARNING):
        made = run(there(job, tmp_path, workers))
    assert "The rest of the layer is made in this process. The scheduler has ended" in caplog.text
    same_files(here, made)
    assert not left_over(made.folder)


def test_what_a_killed_process_has_put_down_is_removed_by_the_next_run(job, tmp_path):
    run(job)
    left = tmp_path / "one" / ".tmp-00000000-1-layer"
    left.mkdir()
    (left / "0.made.parquet").write_bytes(b"half")
    run(job)
    assert not left.exists()


def test_a_portion_is_the_same_to_the_bit_after_it_has_been_in_a_file(tmp_path):
    rng = np.random.default_rng(0)
    corners = rng.random((5, 2)) * 1e6
    shapes = [shapely.MultiPolygon([shapely.box(x, y, x + 1 / 3, y + 0.1)]) for x, y in corners]
    frame = gpd.GeoDataFrame(
        {
            "source": np.array(["a", "b/2x", "ä", "", "a"], object),
            "scale": np.arange(5, dtype=np.int32),
            "confidence": rng.random(5),
            "kept": [True, False, True, False, False],
        },
        geometry=shapes,
        crs=UTM,
    )
    for some in (frame, frame[:0]):
        write_portion(some, tmp_path / "a.parquet")
        again = read_portion(tmp_path / "a.parquet", UTM)
        assert again.drop(columns="geometry").equals(some.drop(columns="geometry"))
        assert again.dtypes.equals(some.dtypes)
        assert (shapely.to_wkb(again.geometry) == shapely.to_wkb(some.geometry)).all()
        assert again.crs == UTM
