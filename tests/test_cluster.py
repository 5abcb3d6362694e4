"""A run on a Dask cluster gives the layer of one process, whatever happens to its workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import LocalCluster
from known_objects import KnownObjects, objects, write_labels
from known_runs import equal_layers, left_over, until

from workbench import Job, run
from workbench.errors import ClusterError
from workbench.runs import cluster
from workbench.runs.plan import prepare
from workbench.runs.segment import segment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def workers():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
        host="127.0.0.1", silence_logs=50,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def job(tmp_path):
    raster = write_labels(tmp_path / "scene.tif", objects((400, 500), 1))
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "one"), model="classic", tile_size=128,
        min_area_px=20,
    )  # fmt: skip


@pytest.fixture
def there(job, tmp_path, workers):
    return job.changed(out_dir=str(tmp_path / "two"), scheduler=workers.scheduler_address)


@dataclass(frozen=True)
class Counted(KnownObjects):
    """Known objects; a line in a file for each tile that any process begins."""

    log: Path = Path()

    def propose(self, image, watch=None):
        with self.log.open("a") as file:
            file.write("tile\n")
        return super().propose(image)

    def count(self):
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def counted(job, tmp_path, monkeypatch):
    segmenter = Counted(job.rules, log=tmp_path / "tiles.log")
    monkeypatch.setattr("workbench.runs.choose.segmenter_for", lambda job, before: segmenter)
    return segmenter


def test_c3_a_cluster_makes_the_layer_of_one_process(job, there, tmp_path):
    here = run(job)
    assert equal_layers(here.layer, run(there).layer)
    assert len(here.layer) >= 2
    assert not left_over(tmp_path / "two")


def test_a_killed_worker_costs_only_its_chunk(workers, job, there, counted, tmp_path):
    here = run(job)
    n_tiles, chunk = len(here.tiles), len(here.tiles) // (2 * cluster.CHUNKS_PER_WORKER)
    assert counted.count() == n_tiles
    pids = [worker.process.pid for worker in workers.workers.values()]

    def kill():
        until(lambda: list((tmp_path / "two" / "candidates").glob("[!.]*.parquet")))
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(there)
    killer.join()
    assert equal_layers(result.layer, here.layer)
    assert counted.count() <= 2 * n_tiles + chunk


def test_what_is_cancelled_goes_on_later_without_the_cluster(job, there, counted):
    here = run(job)
    begun = counted.count()
    with closing(prepare(there)) as plan, closing(segment(plan)) as tiles:
        next(tiles)
    again = run(there.changed(scheduler=None))
    assert equal_layers(again.layer, here.layer)
    chunk = len(here.tiles) // (2 * cluster.CHUNKS_PER_WORKER)
    at_hand = 2 * cluster.WAITING_PER_WORKER * chunk  # what workers had when it was cancelled
    assert counted.count() <= begun + len(here.tiles) + at_hand


def test_what_is_wrong_with_a_cluster_is_one_sentence_before_long_work(job, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    for bad in (address, "nonsense://x"):
        with pytest.raises(ClusterError, match="No Dask scheduler answers"):
            run(job.changed(scheduler=bad))
    assert not (tmp_path / "one").exists()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match="not installed"):
        run(job.changed(scheduler=address))


def test_a_worker_of_another_kind_is_named_with_what_differs():
    words = cluster._unlike({"device": "cpu", "threads": 2}, {"device": "cuda", "threads": 2})
    assert "this process would compute other candidates" in words
    assert "device is cpu instead of cuda" in words
    assert "threads" not in words


# ---- `dask scheduler` and `dask worker`


class CommandLine:
    """A scheduler and workers, each started as a person would."""

    def __init__(self, folder):
        self.folder, self.running = folder, []
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-jupyter")
        until((folder / "scheduler.json").exists)
        self.address = json.loads((folder / "scheduler.json").read_text())["address"]

    def start(self, *arguments, cwd=None):
        command = [Path(sys.executable).with_name("dask"), *arguments, "--no-dashboard"]
        command += ["--scheduler-file", self.folder / "scheduler.json"]
        with (self.folder / f"{len(self.running)}.log").open("w") as log:
            self.running.append(
                subprocess.Popen(command, cwd=cwd or self.folder, stdout=log, stderr=log)
            )
        return self.running[-1]

    def start_worker(self, cwd=None):
        options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
        return self.start("worker", *options, cwd=cwd)

    def stop(self, processes):
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    started = CommandLine(tmp_path_factory.mktemp("dask"))
    yield started
    started.stop(started.running[::-1])


def test_dask_from_the_command_line(commands, job, tmp_path, monkeypatch, capsys):
    there = job.changed(out_dir=str(tmp_path / "two"), scheduler=commands.address)
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"has no workers\. Start one for each GPU"):
        run(there)
    assert "has no workers: waiting 1 s for one" in capsys.readouterr().out
    assert not (tmp_path / "two").exists()

    monkeypatch.setattr(cluster, "WORKER_SECONDS", 60)
    for _ in range(2):
        commands.start_worker()  # while the run waits for them
    assert equal_layers(run(there).layer, run(job).layer)


def test_a_worker_that_does_not_see_the_run_folder_is_named(commands, job, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    worker = commands.start_worker(cwd=tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    # what each process takes for another folder, as machines do that do not share a disk
    there = job.changed(out_dir="/proc/self/cwd/two", scheduler=commands.address)
    with pytest.raises(ClusterError, match=r"Worker tcp.* cannot take part: it does not see /proc"):
        run(there)
    commands.stop([worker])
    assert not (tmp_path / "two").exists()


def test_a_run_whose_workers_all_go_says_so_and_goes_on_later(
    commands, job, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 1)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    there = job.changed(out_dir=str(tmp_path / "two"), scheduler=commands.address)
    workers = [commands.start_worker()]
    with closing(prepare(there)) as plan:
        tiles = segment(plan)
        next(tiles)
        time.sleep(1)  # more is done, which goes with the worker
        commands.stop(commands.running[1:])
        with pytest.raises(ClusterError, match="has no workers"):
            list(tiles)
    assert workers
    assert "waiting 1 s" in capsys.readouterr().out
    assert equal_layers(run(there.changed(scheduler=None)).layer, run(job).layer)


def test_a_scheduler_that_ends_ends_the_run(commands, job, tmp_path, monkeypatch):
    commands.start_worker()
    there = job.changed(out_dir=str(tmp_path / "two"), scheduler=commands.address)
    with closing(prepare(there)) as plan:
        tiles = segment(plan)
        next(tiles)
        commands.stop(commands.running[:1])
        with pytest.raises(ClusterError, match="The scheduler has ended"):
            list(tiles)
