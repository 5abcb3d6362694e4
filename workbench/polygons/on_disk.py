"""Polygons on disk while a run is being finished: memory holds only those in use."""

from __future__ import annotations

import os
import tempfile
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray


class SpilledPolygons:
    """Geometry in a file, read by row; `bounds` `(n, 4)` and `area` `(n,)` stay in memory.

    All rows are appended, then put in order once. The file lies in `folder` (None: the system's
    folder for temporary files), without a name if the system allows that, so that nothing is left
    of it however a process ends. Several threads may read at once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".")  # noqa: SIM115
        self._ends = array("q", [0])
        self._appended: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._place = np.empty(0, np.int64)  # of each row in the file

    def append(self, geometry: NDArray[np.object_]) -> None:
        """Add `(n,)` polygons."""
        self._write(geometry)
        self._appended.append((shapely.bounds(geometry).reshape(-1, 4), shapely.area(geometry)))

    def settle(self, order: NDArray[np.int64] | None = None) -> None:
        """Make the appended polygons the rows, in this order: `(n,)` positions among them."""
        bounds, area = zip(*self._appended, strict=True)
        self._place = np.arange(len(self._ends) - 1) if order is None else order.copy()
        self.bounds: NDArray[np.float64] = np.concatenate(bounds)[self._place]
        self.area: NDArray[np.float64] = np.concatenate(area)[self._place]
        self._appended = []

    def replace(self, row: int, shape: shapely.MultiPolygon) -> None:
        """Give a row another geometry."""
        self._place[row] = len(self._ends) - 1
        self._write(np.array([shape], object))
        self.bounds[row], self.area[row] = shapely.bounds(shape), shapely.area(shape)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many bytes each row takes, `(n,)`."""
        ends = np.frombuffer(self._ends, np.int64)
        return np.asarray(ends[self._place + 1] - ends[self._place], np.int64)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Read the geometry of `(n,)` rows; consecutive rows are read at once."""
        places = self._place[rows]
        ends = np.frombuffer(self._ends, np.int64)
        wkb = np.empty(len(places), object)
        runs = np.concatenate(([0], np.flatnonzero(np.diff(places) != 1) + 1, [len(places)]))
        for first, last in pairwise(runs.tolist()):
            if first < last:
                cuts = ends[places[first] : places[last - 1] + 2]
                content = os.pread(self._file.fileno(), int(cuts[-1] - cuts[0]), int(cuts[0]))
                wkb[first:last] = [content[a:b] for a, b in pairwise((cuts - cuts[0]).tolist())]
        return np.asarray(shapely.from_wkb(wkb), object)

    def _write(self, geometry: NDArray[np.object_]) -> None:
        content = shapely.to_wkb(geometry).tolist()
        self._file.write(b"".join(content))
        self._file.flush()
        self._ends.extend(np.cumsum([self._ends[-1], *map(len, content)])[1:].tolist())

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()
