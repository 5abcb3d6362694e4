"""The order of a review: one tile to its end before the next.

Within a tile, labels that reach into other tiles come first, because they decide about those, too.
The others follow by their score, so that what surely is nothing comes last and can be rejected
together.

The notebook and the plugin in `qgis_plugin/`, which has a copy of this module, go by it. So it runs
with the Python of QGIS 3.22 and later, and without this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

PACE_OVER = 120  # seconds; the pace is that of the last decisions


class Order(ABC):
    """Leads through the unreviewed labels of a layer.

    `tiles` are pairs of a name and of what `labels_in` knows the tile by. Subclasses know the
    labels: `labels_in(place)` yields id, status and score of each label of a tile, and whether it
    reaches beyond the tile; `statuses(fids)` gives pairs of id and status, without those that are
    gone.
    """

    def __init__(self, tiles: Iterable[tuple[str, Any]]) -> None:
        self.tiles = list(tiles)
        self.tile: str | None = None  # the name of the tile that is being reviewed
        self.place: Any = None  # what `labels_in` knows it by
        self.fids: list[int] = []  # all labels of that tile
        self.waiting: list[int] = []  # those still to be shown
        self.skipped: dict[int, int] = {}  # how often
        self.done: set[str] = set()  # tiles that need not be looked at again
        self.entered: Callable[[], None] | None = None  # is called when a tile begins

    @abstractmethod
    def labels_in(self, place: Any) -> Iterator[tuple[int, str, float, bool]]:
        """Yield id, status and score of the labels of a tile, and whether they reach beyond it."""

    @abstractmethod
    def statuses(self, fids: Sequence[int]) -> list[tuple[int, str]]:
        """Return pairs of id and status of those labels that are there."""

    def sort(self, names: Iterable[str]) -> None:
        """Set the order of the tiles; the current one is still reviewed to its end."""
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
        if look_again:  # a label may have come back, or was skipped twice
            self.done.clear()
            self.skipped.clear()
            return self.next(look_again=False)
        self.tile, self.fids = None, []
        return None

    def skip(self, fid: int) -> None:
        """Show a label later: at the end of its tile, and if skipped again, at the very end."""
        self.skipped[fid] = self.skipped.get(fid, 0) + 1
        self.waiting = [other for other in self.waiting if other != fid]
        if self.skipped[fid] < 2:
            self.waiting.append(fid)

    def rank_again(self) -> None:
        """Sort anew what waits in the current tile: scores have changed."""
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
    """Return the names of tiles, first those with most doubt: the sum of `score * (1 - score)`."""
    return sorted(doubts, key=lambda tile: -doubts[tile])


def pace_of(times: Iterable[float], now: float) -> str:
    """Say how many labels a minute were decided about lately; `times` are seconds, in order."""
    recent = [t for t in times if now - t < PACE_OVER]
    if len(recent) < 3 or recent[-1] == recent[0]:
        return ""
    return f"{(len(recent) - 1) / (recent[-1] - recent[0]) * 60:.0f} labels a minute"
