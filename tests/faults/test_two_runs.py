"""Two runs never write one folder."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest
from known_runs import equal_layers, job_for, left_over, until

from workbench import run
from workbench.errors import RunFolderError
from workbench.layer.files import read_layer
from workbench.runs.folder import FolderLock, is_owned_by


def test_the_second_run_is_refused_until_the_first_has_ended_somehow(raster, tmp_path, start):
    job = job_for(raster, tmp_path / "run", model="classic", tile_size=128, overlap=0.5)
    undisturbed = run(job_for(raster, tmp_path / "undisturbed", **{
        name: getattr(job, name) for name in ("model", "tile_size", "overlap")
    }))  # fmt: skip
    first = start(job)
    until((tmp_path / "run" / "run.yaml").exists)
    first.send_signal(signal.SIGSTOP)
    for again in (job, job.changed(resume=False), job.changed(overlap=0.25)):
        with pytest.raises(RunFolderError, match=rf"another run: process {first.pid} on .*since"):
            run(again)
    first.kill()
    first.wait()
    assert equal_layers(run(job).layer, undisturbed.layer)
    assert not left_over(tmp_path / "run")


def test_of_runs_that_start_at_once_one_goes_on(raster, tmp_path, start):
    job = job_for(raster, tmp_path / "run", model="classic", tile_size=128)
    first, second = start(job), start(job)
    with ThreadPoolExecutor(2) as pool:
        (_, one), (_, other) = pool.map(lambda process: process.communicate(), (first, second))
    # where one was done before the other began, both may have gone well
    assert 0 in (first.returncode, second.returncode), one + other
    for process, words in ((first, one), (second, other)):
        assert process.returncode == 0 or "is being written by another run" in words
    assert len(read_layer(tmp_path / "run" / "prelabels.gpkg"))


def test_a_lock_ends_with_what_holds_it_and_leaves_nothing(tmp_path):
    folder = tmp_path / "deep" / "run"
    lock, again = FolderLock(folder), FolderLock(folder)  # a process has it as often as it likes
    assert lock.owner == again.owner == (folder / ".owner").read_text()
    assert str(os.getpid()) in lock.owner
    again.release()
    again.release()
    assert (folder / ".lock").exists()
    lock.release()
    assert not (tmp_path / "deep").exists()


def test_the_lock_file_stays_for_those_who_wait_for_it(tmp_path):
    """A lock on a file without a name keeps nobody out who comes later."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    inode = (folder / ".lock").stat().st_ino
    lock.release()
    assert not (folder / ".owner").exists()
    assert (folder / ".lock").stat().st_ino == inode
    assert not is_owned_by(folder, lock.owner)


def test_on_a_disk_without_locks_nobody_touches_the_file_that_is_the_lock(tmp_path, monkeypatch):
    """Others take a lock over if its file does not say which process has it."""
    monkeypatch.setattr("workbench.runs.folder.FileLock", filelock.SoftFileLock)
    folder, there = tmp_path / "run", []
    folder.mkdir()
    (folder / "notes.txt").touch()
    lock = FolderLock(folder)
    theirs = filelock.SoftFileLock(folder / ".lock", timeout=4)  # longer than they wait
    assert theirs.pid == os.getpid()
    code = "import sys, filelock; filelock.SoftFileLock(sys.argv[1], timeout=4).acquire()"
    other = subprocess.run(
        [sys.executable, "-c", code, folder / ".lock"], capture_output=True, text=True, check=False
    )
    assert "Timeout" in other.stderr
    release = filelock.SoftFileLock.release
    monkeypatch.setattr(
        filelock.SoftFileLock, "release",
        lambda self, *args: there.append((folder / ".lock").exists()) or release(self, *args),
    )  # fmt: skip
    lock.release()
    assert there == [True]  # until it is released
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    FolderLock(tmp_path / "deep" / "run").release()
    assert not (tmp_path / "deep").exists()


def test_who_waits_for_a_lock_file_that_goes_has_a_lock_all_the_same(tmp_path):
    folder = tmp_path / "run"
    lock = FolderLock(folder)
    code = (
        "import sys, time, filelock\n"
        "lock = filelock.FileLock(sys.argv[1], timeout=30)\n"
        "print('waits', flush=True)\n"
        "with lock:\n"
        "    print('has it', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder / ".lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "waits\n"
        time.sleep(0.3)  # it looks every 50 ms
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rmdir", lambda self: None)  # slower than the other
            lock.release()
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(RunFolderError, match="being written by another run"):
            FolderLock(folder)
        other.communicate("")
