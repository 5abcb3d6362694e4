"""Files that appear whole or not at all."""

import errno
import os
import platform
import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyogrio
import rasterio

from workbench.errors import OutputError

# on a disk that machines share, a process number alone does not identify the owner of a file
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"

# what the libraries that write for us raise
_FAILURES = (
    OSError,
    sqlite3.Error,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    rasterio.errors.RasterioError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_BYTES = 2**20  # GDAL says "no such table" when the disk is full, so look at the disk itself


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it if the block succeeds.

    The temporary name starts with `.tmp` and keeps the suffix, by which GDAL chooses its driver. If
    the block raises, the temporary file is removed and `path` stays unchanged. Raises `OutputError`
    if the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{_HOST}-{os.getpid()}-{path.name}")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut may leave an empty file of the new name
            os.replace(temporary, path)
    finally:
        for suffix in ("", "-journal"):  # SQLite's, for a GeoPackage that was not finished
            with suppress(OSError):
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise `OutputError`, which names `path`, if the block cannot write it."""
    try:
        yield
    except _FAILURES as error:
        words = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        full = getattr(error, "errno", None) in _FULL or "disk is full" in words
        with suppress(OSError):
            full |= shutil.disk_usage(path.parent).free < _FULL_BYTES
        reason = f"its disk is full ({words})" if full else words
        remedy = "Free some space" if full else "Check space, quota and permissions there"
        raise OutputError(
            f"{path} cannot be written: {reason}. {remedy}, and try again: finished work is kept."
        ) from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which takes its place if the block succeeds.

    Raises `OutputError` if it cannot be written.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".tmp-{_HOST}-{os.getpid()}-{folder.name}")
    old = folder.with_name(f".tmp-{_HOST}-{os.getpid()}-old-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(folder):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in `parent`, for this process and those that work for it.

    It is removed at the end, or by `remove_stale` if the process was killed. Raises `OutputError`
    if it cannot be made.
    """
    folder = Path(parent) / f".tmp-{_HOST}-{os.getpid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with naming(folder):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that killed processes have left in `folder`.

    `name` limits it to those that were to become that file or folder. Call it before writing, and
    only while nobody else may write there, because a running process of another machine cannot be
    told from a dead one. Files of our own process number are removed, too: in a container every run
    may have the same one.
    """
    rest = ".+" if name is None else f"(old-)?{re.escape(name)}"
    for path in folder.glob(".tmp-*"):
        owner = re.fullmatch(rf"\.tmp-([0-9a-f]{{8}})-(\d+)-{rest}", path.name)
        if not owner or (owner[1] == _HOST and _is_another(int(owner[2]))):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_another(pid: int) -> bool:
    """Whether another running process has this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is running, and belongs to another user
        return True
    return pid != os.getpid()
