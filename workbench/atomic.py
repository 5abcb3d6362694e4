"""Files that appear whole or not at all."""

import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# on a disk that machines share, a process number alone does not say whose file it is
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it if the block succeeds.

    The temporary name keeps the suffix, by which GDAL chooses its driver, and starts with a dot
    and `tmp`. If the block raises, the temporary file goes and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{_HOST}-{os.getpid()}-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which takes its place if the block succeeds."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{_HOST}-{os.getpid()}-{folder.name}")
    old = folder.with_name(f".tmp-{_HOST}-{os.getpid()}-old-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
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


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders in `folder` that killed processes have left.

    `name` limits it to what was to become that file or folder. Call before writing, and only while
    nobody else may write there: another machine's process that still does cannot be told from one
    that is gone. Our own go, too: in a container every run may have the same process number.
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
    """Whether it is the number of another process that runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and is another user's
        return True
    return pid != os.getpid()
