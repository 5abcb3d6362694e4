"""The order of a review over the labels of a layer in memory: one tile to its end after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from workbench.layer.cores import home_in
from workbench.layer.qgis.order import Order, most_doubt_first

OUTSIDE = "outside of all tiles"  # where labels are that nobody finds tile by tile


class TileByTile(Order):
    """The order of a review over the rows of a layer in memory."""

    def __init__(
        self, labels: gpd.GeoDataFrame, tiles: gpd.GeoDataFrame, status: list[str]
    ) -> None:
        self._status = status
        self.score = np.ones(len(labels))  # what a tile's labels are sorted by
        self.likely = np.full(len(labels), 0.5)  # and what tiles are: how likely each is right
        bounds, boxes = labels.bounds.to_numpy(), tiles.bounds.to_numpy()
        home = home_in(tiles, labels)
        inside = np.zeros(len(labels), bool)
        there = home >= 0
        mine, tile = bounds[there], boxes[home[there]]
        inside[there] = ((mine[:, :2] >= tile[:, :2]) & (mine[:, 2:] <= tile[:, 2:])).all(axis=1)
        self._reaches = there & ~inside
        self.home = home
        order = np.argsort(home, kind="stable")
        parts = np.split(order, np.searchsorted(home[order], np.arange(len(tiles))))
        names = [OUTSIDE, *tiles["tile"]]
        self._rows = {place - 1: rows for place, rows in enumerate(parts)}
        # last, as nothing else leads to these
        found = [(name, place - 1) for place, name in enumerate(names) if len(parts[place])]
        super().__init__(sorted(found, key=lambda tile: tile[1] < 0))
        self.listed = [name for name, _ in self.tiles]

    def labels_in(self, place: int) -> Iterator[tuple[int, str, float, bool]]:
        """Yield row, status and score of the labels of a tile, and whether they reach beyond it."""
        for row in self._rows[place].tolist():
            yield row, self._status[row], float(self.score[row]), bool(self._reaches[row])

    def statuses(self, fids: Sequence[int]) -> list[tuple[int, str]]:
        """Pairs of row and status."""
        return [(row, self._status[row]) for row in fids if row < len(self._status)]

    def add(self, home: int) -> None:
        """Take a label at the end, which a person has drawn in this tile; -1: in none."""
        self._rows[home] = np.append(self._rows[home], len(self.home))
        self.home = np.append(self.home, home)
        self._reaches = np.append(self._reaches, False)
        self.score, self.likely = np.append(self.score, 1.0), np.append(self.likely, 1.0)

    def drop_last(self) -> None:
        """Forget the label at the end."""
        home = int(self.home[-1])
        self._rows[home] = self._rows[home][:-1]
        self.home, self._reaches = self.home[:-1], self._reaches[:-1]
        self.score, self.likely = self.score[:-1], self.likely[:-1]

    def most_telling(self, waits: NDArray[np.bool_]) -> list[str]:
        """The names of the tiles, first those with most labels that the model is unsure about."""
        doubt = waits * self.likely * (1 - self.likely)
        by_place = np.bincount(self.home + 1, doubt, len(self._rows))
        return most_doubt_first({name: by_place[place + 1] for name, place in self.tiles})
