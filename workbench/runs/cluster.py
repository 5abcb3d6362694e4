"""Compute tiles on a Dask cluster, with one worker for each GPU and a disk that all share.

Only small values pass through the scheduler: workers store the candidates themselves and send back
the rows of the ledger. `connect` and everything below it know only Dask. A scheduler is trusted
code, because Dask unpickles what it sends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from workbench._support.progress import tqdm
from workbench.candidates.store import TileRecord
from workbench.candidates.table import Candidates, Rules
from workbench.errors import ClusterError, RunFolderError, WorkbenchError
from workbench.runs.folder import is_owned_by, store_in
from workbench.runs.job import Job
from workbench.runs.record import record_change
from workbench.runs.tile_stream import ScenePlan, SegmentedTile, segment_tiles, store_tiles
from workbench.segmenters.protocol import Segmenter

if TYPE_CHECKING:
    from distributed import Client

CHUNK_TILES = 64
CHUNKS_PER_WORKER = 4  # at least, so that all workers end at about the same time
CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # how long to wait for a worker: the first may still be starting
LOOK_SECONDS = 5  # how often to check that there are still workers
SEE_SECONDS = 5  # a shared disk may show a new file to other machines a little later
WAITING_PER_WORKER = 2  # one being computed, the next waiting

Piece = TypeVar("Piece")
Result = TypeVar("Result")
MakeSegmenter = Callable[[Job, Mapping[str, Any]], Segmenter]


@dataclass(frozen=True)
class SharedRun:
    """What a worker must know of a run to take part in it.

    `owner` is the text in the lock of the run folder. `make` gives the Segmenter of a job; what the
    job leaves `auto` is as in a given key.
    """

    job: Job
    folder: Path
    owner: str
    make: MakeSegmenter


@dataclass(frozen=True)
class Chunk:
    """Some tiles of one scene, to segment and store; `key` is that of the run's Segmenter."""

    share: SharedRun
    key: Mapping[str, Any]
    part: ScenePlan


@dataclass(frozen=True)
class _SegmenterThere:
    """Stands for the Segmenter that the workers of a cluster have loaded."""

    rules: Rules
    key: Mapping[str, Any]

    def load(self) -> None:
        """Nothing to do: the workers have loaded it."""

    def propose(self, image: NDArray[np.uint8], watch: Any = None) -> Candidates:
        """Never called: tiles are computed where the model is."""
        raise NotImplementedError

    def begin(self, image: NDArray[np.uint8], watch: Any = None) -> Callable[[], Candidates]:
        """Never called, either."""
        raise NotImplementedError


def segmenter_there(address: str, share: SharedRun, before: Mapping[str, Any]) -> Segmenter:
    """Check the workers, and let one of them load the model and resolve its key.

    `before` is the key of an earlier run's Segmenter, or empty.
    """
    with connect(address) as client:
        ask_all(client, _why_unfit, share.folder, share.owner)
        return _SegmenterThere(share.job.rules, ask_one(client, _key_here, share, dict(before)))


def segment_there(
    address: str, share: SharedRun, key: Mapping[str, Any], parts: Sequence[ScenePlan]
) -> Generator[SegmentedTile, None, None]:
    """Let workers compute and store the tiles of scenes; yields them without their candidates.

    These stay where they were stored. When the iterator is closed, the chunks that are being
    computed are lost, and no others.
    """
    n_tiles = sum(len(part.tiles) for part in parts)
    if not n_tiles:
        return
    nothing = Candidates.empty(share.job.rules)
    with connect(address) as client:
        size = min(CHUNK_TILES, max(1, n_tiles // (CHUNKS_PER_WORKER * n_workers(client))))
        chunks = [
            Chunk(share, dict(key), replace(part, tiles=part.tiles[start : start + size]))
            for part in parts
            for start in range(0, len(part.tiles), size)
        ]
        with closing(map_pieces(client, _segment_chunk, chunks)) as results:
            for chunk, result in results:
                records = result if isinstance(result, list) else _failed(chunk, result)
                for tile, record in zip(chunk.part.tiles, records, strict=True):
                    yield SegmentedTile(chunk.part, tile, nothing, record)


def _failed(chunk: Chunk, error: Exception) -> list[TileRecord]:
    """Store and return the ledger rows of a chunk that no worker could compute."""
    if isinstance(error, WorkbenchError):
        raise error  # concerns the whole run, not this chunk
    text = f"{type(error).__name__}: {error}"
    records = [TileRecord(*chunk.part.index(tile), "failed", text) for tile in chunk.part.tiles]
    store_in(chunk.share.folder).write(Candidates.empty(chunk.share.job.rules), records)
    return records


# ------------------------------------------------------------------------------ on a worker

_at_work = threading.Lock()  # a worker may have several threads, but has the model only once
_loaded: list[tuple[dict[str, Any], Segmenter]] = []


def _segmenter_here(share: SharedRun, key: Mapping[str, Any]) -> tuple[dict[str, Any], Segmenter]:
    """This worker's Segmenter, loaded on first use, and the key that it had then."""
    segmenter = share.make(share.job, key)
    if not _loaded or _loaded[0][0] != dict(segmenter.key):
        _loaded.clear()  # two would not fit into memory
        segmenter.load()
        _loaded.append((dict(segmenter.key), segmenter))
    return _loaded[0]


def _key_here(share: SharedRun, before: Mapping[str, Any]) -> dict[str, Any]:
    with _at_work:
        return _segmenter_here(share, before)[0]


def _why_unfit(folder: Path, owner: str) -> str:
    deadline = time.monotonic() + SEE_SECONDS
    while not is_owned_by(folder, owner):
        if time.monotonic() > deadline:
            return (
                f"it does not see {folder}. Put the run folder on a disk that all workers see "
                "under the same path."
            )
        time.sleep(0.1)
    return ""


def _unlike(here: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Say how this worker differs from the one that was asked first."""
    from distributed import get_worker

    try:
        name = get_worker().address
    except ValueError:  # not on a worker
        name = "this process"
    differing = ", ".join(
        f"{entry} is {here.get(entry)} instead of {first.get(entry)}"
        for entry in {**first, **here}
        if here.get(entry) != first.get(entry)
    )
    return (
        f"Worker {name} would compute other candidates than the first worker: {differing}. Give "
        "all workers the same kind of device and the same versions of the packages, and run "
        "again: stored tiles are kept."
    )


def _segment_chunk(chunk: Chunk) -> list[TileRecord]:
    """Compute and store the tiles of a chunk in this process, a worker of the cluster."""
    share = chunk.share
    with _at_work:
        key, segmenter = _segmenter_here(share, chunk.key)
        if key != chunk.key:
            raise ClusterError(_unlike(key, chunk.key))
        before = dict(segmenter.key)  # not `key`: with less memory than others it has changed
        done = list(segment_tiles(chunk.part, chunk.part.tiles, segmenter))
        if not is_owned_by(share.folder, share.owner):
            raise RunFolderError(
                f"The run in {share.folder} has ended, or another run has begun there. Run the "
                "job again: stored tiles are kept."
            )
        if dict(segmenter.key) != before:
            record_change(share.folder, segmenter)
        store_tiles(done, store_in(share.folder))
    return [tile.record for tile in done]


# ------------------------------------------------------------------------------------- Dask


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """Connect to a scheduler with at least one worker; raises `ClusterError` if there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError(
            f"scheduler {address} needs dask.distributed, which is not installed here: "
            'pip install "sam-workbench[cluster]"'
        ) from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, "
            "which prints its address, or leave scheduler null to run in this process."
        ) from error
    with client:
        if not _n_workers(client):
            _wait_for_worker(client)
        yield client


def n_workers(client: Client) -> int:
    """How many workers there are now, at least 1 because one may be starting."""
    return max(1, _n_workers(client))


def _n_workers(client: Client) -> int:
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _wait_for_worker(client: Client) -> None:
    """Wait for a worker, and say so; raises `ClusterError` if none comes."""
    address = client.scheduler_info()["address"]
    tqdm.write(f"The scheduler at {address} has no workers: waiting {WORKER_SECONDS} s for one.")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"The scheduler at {address} has no workers. Start one for each GPU: "
            f"dask worker {address} --nthreads 1\nThen run again: stored tiles are kept."
        ) from error


def ask_all(client: Client, question: Callable[..., str], *arguments: Any) -> None:
    """Ask every worker what is wrong with it, and raise the first answer that is not empty."""
    answers = client.run(question, *arguments, on_error="return")
    for worker, answer in answers.items():
        if answer:
            raise ClusterError(f"Worker {worker} cannot take part: {answer}")


def ask_one(client: Client, question: Callable[..., Result], *arguments: Any) -> Result:
    """Let one worker answer; a `WorkbenchError` there is raised here."""
    answer: Result = client.submit(question, *arguments, pure=False).result()
    return answer


def map_pieces(
    client: Client, function: Callable[[Piece], Result], pieces: Iterable[Piece]
) -> Generator[tuple[Piece, Result | Exception], None, None]:
    """Yield each piece with its result or its error, in the order in which they are done.

    A piece whose worker dies is computed again elsewhere; a piece that kills several workers ends
    in an error. Raises `ClusterError` if the scheduler ends, or if all workers end and no new one
    comes. Closing the iterator cancels what has not begun.
    """
    from distributed import CancelledError, wait

    todo = iter(pieces)
    waiting: dict[Any, Piece] = {}  # by future

    def submit(n: int) -> None:
        for piece in islice(todo, n):
            waiting[client.submit(function, piece, pure=False)] = piece

    def answers() -> dict[Any, Result | Exception]:
        with client.as_current():
            done = wait(list(waiting), LOOK_SECONDS, return_when="FIRST_COMPLETED").done
        found: dict[Any, Result | Exception] = {}
        for future in done:
            # if a worker ends before it has sent its answer, the piece waits for another worker
            with suppress(TimeoutError):
                error = future.exception(LOOK_SECONDS)
                found[future] = future.result(LOOK_SECONDS) if error is None else error
        return found

    submit(WAITING_PER_WORKER * n_workers(client))
    try:
        while waiting:
            try:
                done = answers()
            except TimeoutError:
                done = {}
            except CancelledError as gone:
                raise ClusterError(
                    "The scheduler has ended, or has been told to drop this run's work. Start it "
                    "and run again: stored tiles are kept."
                ) from gone
            if not done and not _n_workers(client):
                _wait_for_worker(client)
            for future, result in done.items():
                piece = waiting.pop(future)
                future.release()
                submit(1)
                yield piece, result
    finally:
        client.cancel(list(waiting))
