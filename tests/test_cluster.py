"""A run on a Dask cluster gives the layer of one process, whatever happens to its workers."""

import os
import signal
import socket
import sys
import threading

import pytest
from distributed import LocalCluster
from known_objects import objects, write_labels
from known_runs import equal_layers, until

from workbench import Job, run
from workbench.errors import ClusterError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
        host="127.0.0.1", silence_logs=50,
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture
def job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", objects((400, 500), 1))
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "one"), model="classic", tile_size=128,
        min_area_px=20,
    )  # fmt: skip


def test_c3_a_cluster_makes_the_layer_of_one_process(cluster, job, tmp_path):
    here = run(job)
    there = run(job.changed(out_dir=str(tmp_path / "two"), scheduler=cluster.scheduler_address))
    assert equal_layers(here.layer, there.layer)
    assert len(here.layer) > 3
    assert not list((tmp_path / "two").rglob(".*"))


def test_a_killed_worker_costs_only_its_chunk(cluster, job, tmp_path):
    here = run(job)
    there = job.changed(out_dir=str(tmp_path / "two"), scheduler=cluster.scheduler_address)
    pids = [worker.process.pid for worker in cluster.workers.values()]
    stored = tmp_path / "two" / "candidates"

    def kill():
        until(lambda: list(stored.glob("[!.]*.parquet")))
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(there)
    killer.join()
    assert equal_layers(result.layer, here.layer)


def test_what_is_wrong_with_a_cluster_is_one_sentence_before_long_work(job, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("workbench.cluster.CONNECT_SECONDS", 1)
    for bad in (address, "nonsense://x"):
        with pytest.raises(ClusterError, match="No Dask scheduler answers"):
            run(job.changed(scheduler=bad))
    assert not (tmp_path / "one").exists()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match="not installed"):
        run(job.changed(scheduler=address))
