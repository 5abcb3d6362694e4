"""The order of a review: each tile is finished before the next one begins.

Within a tile, labels that reach into other tiles come first, because they decide about those, too.
The others follow by score, highest first, so that clear mistakes come last and can be rejected
together.

The notebook uses it, and so does the plugin in `qgis_plugin/`, which has a copy of this module. So
it must run with the Python of QGIS 3.22 and later, and without this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

PACE_OVER = 120  # seconds; the pace is measured over the last decisions


class Order(ABC):
    """Leads through the unreviewed labels of a layer.

    `tiles` are pairs of a name and a place, which is passed to `labels_in`. Subclasses know the
    labels: `labels_in(place)` yields id, status and score of each label of a tile, and whether it
    reaches beyond the tile; `statuses(fids)` gives pairs of id and status, without deleted labels.
    """

    def __init__(self, tiles: Iterable[tuple[str, Any]]) -> None:
        self.tiles = list(tiles)
        self.tile: str | None = None  # the name of the tile that is being reviewed
        self.place: Any = None  # its place, for `labels_in`
        self.fids: list[int] = []  # all labels of that tile
        self.waiting: list[int] = []  # those still to be shown
        self.skipped: dict[int, int] = {}  # how often each was skipped
        self.done: set[str] = set()  # tiles that need not be looked at again
        self.entered: Callable[[], None] | None = None  # called when a tile begins

    @abstractmethod
    def labels_in(self, place: Any) -> Iterator[tuple[int, str, float, bool]]:
        """Yield id, status and score of the labels of a tile, and whether they reach beyond it."""

    @abstractmethod
    def statuses(self, fids: Sequence[int]) -> list[tuple[int, str]]:
        """Return pairs of id and status of the labels that still exist."""

    def sort(self, names: Iterable[str]) -> None:
        """Set the order of the tiles; the current one is still finished first."""
        place = {name: i for i, name in enumerate(names)}
        self.tiles.sort(key=lambda tile: place.get(tile[0], len(place)))

    def next(self, layer: Any = None, *, look_again: bool = True) -> int | None:
        """Return the id of the label to show next; None: nothing is left."""
        fid = self._of_this_tile()
        if fid is None and self.tile is not None:
            self._enter(self.tile, self.place)  # a label may have come back
            fid = self._of_this_tile()
        if fid is not None:
            return fid
        for name, place in self.tiles:
            if name not in self.done:
                if self._enter(name, place):
                    if self.entered:
                        self.entered()
                    return self._of_this_tile()
                self.done.add(name)
        if look_again:  # a label may have come back, or have been skipped twice
            self.done.clear()
            self.skipped.clear()
            return self.next(look_again=False)
        self.tile, self.fids = None, []
        return None

    def skip(self, fid: int) -> None:
        """Show a label later: at the end of its tile, or at the very end if skipped again."""
        self.skipped[fid] = self.skipped.get(fid, 0) + 1
        self.waiting = [other for other in self.waiting if other != fid]
        if self.skipped[fid] < 2:
            self.waiting.append(fid)

    def rank_again(self) -> None:
        """Sort what waits in the current tile again, because scores have changed."""
        if self.tile is not None:
            self._enter(self.tile, self.place)

    def rest(self) -> list[int]:
        """Return the unreviewed labels of the current tile."""
        return [fid for fid, status in self.statuses(self.fids) if status == "unreviewed"]

    def progress(self) -> tuple[int, int]:
        """Return how many labels of the current tile are reviewed, and how many there are."""
        statuses = [status for _, status in self.statuses(self.fids)]
        return len(statuses) - statuses.count("unreviewed"), len(statuses)

    def _of_this_tile(self) -> int | None:
        while self.waiting:
            if [status for _, status in self.statuses(self.waiting[:1])] == ["unreviewed"]:
                return self.waiting[0]
            self.waiting.pop(0)
        return None

    def _enter(self, name: str, place: Any) -> bool:
        """Make a tile the current one, if a label waits in it."""
        labels = list(self.labels_in(place))
        waiting = [
            (self.skipped.get(fid, 0), not reaches, -score, fid)
            for fid, status, score, reaches in labels
            if status == "unreviewed" and self.skipped.get(fid, 0) < 2
        ]
        if not waiting:
            return False
        self.tile, self.place = name, place
        self.fids = [fid for fid, *_ in labels]
        self.waiting = [fid for *_, fid in sorted(waiting)]
        return True


def most_doubt_first(doubts: Mapping[str, float]) -> list[str]:
    """Return the names of tiles by doubt, most first: the sum of `score * (1 - score)`."""
    return sorted(doubts, key=lambda tile: -doubts[tile])


def pace_of(times: Iterable[float], now: float) -> str:
    """Say how many labels a minute were decided lately; `times` are seconds, in order."""
    recent = [t for t in times if now - t < PACE_OVER]
    if len(recent) < 3 or recent[-1] == recent[0]:
        return ""
    return f"{(len(recent) - 1) / (recent[-1] - recent[0]) * 60:.0f} labels a minute"
