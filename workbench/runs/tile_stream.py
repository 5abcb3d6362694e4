"""Put tiles through a Segmenter: while one is computed, others are read and finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.rle import encode_masks
from workbench.candidates.store import CandidateStore, TileRecord, TileStatus
from workbench.candidates.table import Candidates, concat
from workbench.raster.scene import Scene
from workbench.raster.tiles import Tile, TileGrid
from workbench.segmenters.protocol import Segmenter

# one is read, one computed, one finished, and one waits; the limit bounds the memory
TILES_IN_WORK = 4


@dataclass(frozen=True)
class ScenePlan:
    """One scene of a run: its grid, and the tiles that are wanted."""

    scene: Scene
    grid: TileGrid
    tiles: tuple[Tile, ...]

    def index(self, tile: Tile) -> tuple[str, int, int]:
        """Return the index of a tile of this scene in the ledger."""
        return self.scene.name, tile.row, tile.col


@dataclass(frozen=True)
class SegmentedTile:
    """A tile with its candidates and its row of the ledger.

    While the tile is being computed it is not `whole`, and has the candidates so far.
    """

    part: ScenePlan
    tile: Tile
    candidates: Candidates
    record: TileRecord
    whole: bool = True

    def pixel_at(self, x: float, y: float) -> tuple[int, int]:
        """The column and line in the tile of a point of the map; it may lie outside."""
        column, line = ~self.part.scene.transform @ (x, y)
        return int(column // 1) - self.tile.window.col_off, int(
            line // 1
        ) - self.tile.window.row_off


def store_tiles(tiles: Sequence[SegmentedTile], store: CandidateStore) -> None:
    """Store tiles of one scene, all made under the same rules, in one file."""
    if tiles:
        tables = [tile.candidates for tile in tiles if len(tile.candidates)]
        store.write(concat(tables or [tiles[0].candidates]), [tile.record for tile in tiles])


# called often while a tile is computed, with the share that is done and a way to get the tile so
# far
TileWatch = Callable[[float, Callable[[], SegmentedTile]], None]


def segment_tiles(
    part: ScenePlan,
    tiles: Iterable[Tile],
    segmenter: Segmenter,
    watch: TileWatch | None = None,
) -> Generator[SegmentedTile, None, None]:
    """Compute tiles of a scene as `segment_each` does, all with one Segmenter."""
    return segment_each(part, tiles, lambda _: segmenter, watch)


def segment_each(
    part: ScenePlan,
    tiles: Iterable[Tile],
    segmenter_of: Callable[[Tile], Segmenter],
    watch: TileWatch | None = None,
) -> Generator[SegmentedTile, None, None]:
    """Compute tiles of a scene and yield them in their order, each as soon as it is finished.

    Reading, the network and the work after it run in a thread each, a few tiles ahead; `watch` is
    called in the caller's thread. The error of a failed tile is in its record. Closing or
    interrupting the iterator does not wait for the threads: they end after their current step.
    """
    threads = tuple(ThreadPoolExecutor(1, name) for name in ("read", "compute", "finish"))
    stop = Event()
    waiting: deque[_Work] = deque()
    try:
        for tile in tiles:
            waiting.append(_Work(part, tile, segmenter_of(tile), stop, watch).begin(*threads))
            if len(waiting) == TILES_IN_WORK:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stop.set()
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)


class _Stopped(BaseException):
    """Nobody is waiting for the tile any more."""


class _Work:
    """A tile on its way through the threads."""

    def __init__(
        self,
        part: ScenePlan,
        tile: Tile,
        segmenter: Segmenter,
        stop: Event,
        watch: TileWatch | None,
    ) -> None:
        self.part, self.tile, self.segmenter = part, tile, segmenter
        self.stop, self.watch = stop, watch
        # wakes the caller's thread: a call of `watch` to make there, or None when all is done
        self.told: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.seconds = 0.0

    def begin(self, *threads: ThreadPoolExecutor) -> _Work:
        reader, network, finisher = threads
        computed = network.submit(self._compute, reader.submit(self._read))
        self.finished: Future[SegmentedTile] = finisher.submit(self._finish, computed)
        self.finished.add_done_callback(lambda _: self.told.put(None))
        return self

    def result(self) -> SegmentedTile:
        while (tell := self.told.get()) is not None:
            tell()
        return self.finished.result()

    def _read(self) -> tuple[NDArray[np.uint8] | None, str | None]:
        """Return the image (None if none is valid) and the validity as RLE (None if all are)."""
        start = time.perf_counter()
        image, valid = self.part.scene.read(self.tile.window)
        rle = None if valid.all() else encode_masks(valid[None])[0].decode()
        self.seconds = time.perf_counter() - start
        return (image if valid.any() else None), rle

    def _compute(
        self, read: Future[tuple[NDArray[np.uint8] | None, str | None]]
    ) -> tuple[Callable[[], Candidates] | None, str | None]:
        """Return the rest of the work (None without valid pixels), and the RLE from `_read`."""
        if self.stop.is_set():
            raise _Stopped
        image, rle = read.result()
        if image is None:
            return None, rle
        start = time.perf_counter() - self.seconds

        def tell(share: float, so_far: Callable[[], Candidates]) -> None:
            if self.stop.is_set():
                raise _Stopped
            watch = self.watch
            if watch is not None and self.told.empty():  # a slow caller hears of less
                self.told.put(lambda: watch(share, lambda: underway(so_far())))

        def underway(found: Candidates) -> SegmentedTile:
            return replace(self._made("ok", start, found, valid_rle=rle), whole=False)

        try:
            rest = self.segmenter.begin(image, tell)
        except Exception:
            raise
        except BaseException:  # an interrupt, which also ends the tiles after this one
            self.stop.set()
            raise
        self.seconds = time.perf_counter() - start
        return rest, rle

    def _finish(
        self, computed: Future[tuple[Callable[[], Candidates] | None, str | None]]
    ) -> SegmentedTile:
        try:
            rest, rle = computed.result()
            start = time.perf_counter() - self.seconds
            if rest is None:
                return self._made("nodata", start)
            found = rest()
            return self._made("ok" if len(found) else "empty", start, found, valid_rle=rle)
        except Exception as problem:
            # one bad tile must not stop the others: the ledger has its error, and the run fails
            # at its end
            start = time.perf_counter() - self.seconds
            return self._made("failed", start, error=f"{type(problem).__name__}: {problem}")

    def _made(
        self, status: TileStatus, start: float, found: Candidates | None = None, **more: Any
    ) -> SegmentedTile:
        if found is None:
            grid = self.part.grid
            rules = self.segmenter.rules.for_tile(grid.window_height, grid.window_width)
            found = Candidates.empty(rules)
        candidates = found.at_tile(self.tile.row, self.tile.col)
        seconds = round(time.perf_counter() - start, 3)
        index = self.part.index(self.tile)
        record = TileRecord(*index, status, n_candidates=len(found), seconds=seconds, **more)
        return SegmentedTile(self.part, self.tile, candidates, record)
