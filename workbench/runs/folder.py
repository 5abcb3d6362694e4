"""A run folder: its files, who may write to it, and what must not be lost."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from workbench.candidates.store import CandidateStore
from workbench.errors import RunFolderError
from workbench.layer.files import refuse_open
from workbench.layer.guard import count_reviewed
from workbench.learning.store import FeatureStore

# what a run writes besides its candidates, job.yaml and run.yaml
OUTPUTS = (
    "prelabels.gpkg",
    "prelabels.geojson",
    "prelabels.parquet",
    "prelabels.qml",
    "prelabels.fgb",
    "prelabels.pmtiles",
    "tiles.parquet",
    "review.qgz",
    "report.html",
    "examples.parquet",
    "prompts.parquet",
)
LOCK = ".lock"  # only filelock writes it: on a disk without locks, what it says is the lock
OWNER = ".owner"  # says which process writes the folder, while one does


def store_in(folder: Path) -> CandidateStore:
    """The candidates of a run folder."""
    return CandidateStore(folder / "candidates")


def features_in(folder: Path) -> FeatureStore:
    """The features of those candidates, as far as they have been needed."""
    return FeatureStore(folder / "features")


# -------------------------------------------------------------------------- who may write it


class FolderLock:
    """A run folder that one process at a time may write; it is created if it does not exist.

    Raises `RunFolderError` if the folder cannot be written, or if another process holds it, on this
    machine or on another one that shares the disk. The operating system keeps the lock, so it ends
    with its process, even if that is killed. Within that process it can be taken again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._owner = folder, folder / OWNER
        self._made: list[Path] = []
        self._held = False
        try:
            self._made += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            # any thread of the process may release it, and a second lock is the first one
            self._lock = FileLock(folder / LOCK, timeout=1, is_singleton=True, thread_local=False)
            self._lock.acquire()
            self._held = True
            if self._lock.lock_counter == 1:
                self._owner.write_text(_this_process(), encoding="utf-8")
            self.owner = self._owner.read_text(encoding="utf-8")
        except Timeout:
            raise RunFolderError(
                f"{folder} is being written by another run: {self._read() or 'a process'}. Wait "
                "for it, stop it, or choose another out_dir."
            ) from None
        except (OSError, ValueError) as error:
            self.release()
            raise unwritable(folder, error) from error

    def release(self) -> None:
        """Let others have the folder.

        The lock file stays, because another process may be waiting for it. A folder that was made
        for this lock and holds nothing else is removed.
        """
        if self._held:
            self._held = False
            if self._lock.lock_counter == 1:
                with suppress(OSError):
                    self._owner.unlink(missing_ok=True)
                    self._unlink_if_made_for_nothing()
            self._lock.release()
        for path in self._made:
            with suppress(OSError, ValueError):
                path.rmdir()

    def _unlink_if_made_for_nothing(self) -> None:
        if isinstance(self._lock, SoftFileLock):
            return  # its existence is the lock, and `release` removes it
        if self._made and [path.name for path in self.folder.iterdir()] == [LOCK]:
            # who waits for the old file finds that it has no name any more, and makes a new one
            (self.folder / LOCK).unlink(missing_ok=True)

    def _read(self) -> str:
        with suppress(OSError, ValueError):
            return self._owner.read_text(encoding="utf-8")
        return ""


def is_owned_by(folder: Path, owner: str) -> bool:
    """Whether the folder, as this machine sees it, is locked by this `owner`."""
    try:
        return (folder / OWNER).read_text(encoding="utf-8") == owner
    except (OSError, ValueError):
        return False


def _this_process() -> str:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="milliseconds")
    return f"process {os.getpid()} on {platform.node()}, since {now}"


# -------------------------------------------------------------------- what must not be lost


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace files that no run has written."""
    if (folder / "run.yaml").exists():
        return
    names = [name for name in (*OUTPUTS, "candidates") if (folder / name).exists()]
    if names:
        raise RunFolderError(
            f"{folder} holds {', '.join(names)}, which this run would replace, but no run.yaml, so "
            "they are not a run's. Move them away, or choose another out_dir."
        )


def refuse_to_lose_review(folder: Path) -> None:
    """Refuse to replace a layer that a person has worked on, or has open."""
    gpkg = folder / "prelabels.gpkg"
    refuse_open(gpkg)
    reviewed = count_reviewed(gpkg) if gpkg.exists() else 0
    if reviewed:
        raise RunFolderError(
            f"{gpkg} holds {reviewed} reviewed labels, which this run would replace. Set "
            "refresh=true to keep them and to replace only the others, or choose another out_dir."
        )


def unwritable(folder: Path, error: Exception) -> RunFolderError:
    """Say why a run folder cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return RunFolderError(
        f"out_dir {folder} cannot be written: {reason}. Check its permissions and the room on its "
        "disk, or choose another out_dir."
    )
