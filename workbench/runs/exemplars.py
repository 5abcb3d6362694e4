"""Exemplars from a vector file: read, placed on the scenes, and shown to the model tile by tile.

SAM 3 sees one image at a time. A tile that shows exemplars of a class looks for them as SAM 3 does
it: by its own exemplars alone. All other tiles take over what the tile with the most exemplars of
the class has shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.secrets import without_secrets
from workbench.candidates.table import Candidates
from workbench.errors import JobError
from workbench.layer.schema import LABELS
from workbench.raster.crs import crs_title
from workbench.raster.scene import Scene, raster_of
from workbench.raster.tiles import Tile, TileGrid, tile_name
from workbench.raster.vectors import read_vectors
from workbench.runs.job import Job
from workbench.runs.tile_stream import ScenePlan
from workbench.segmenters.exemplars import EVERY_CLASS, NO_EXEMPLARS, Exemplars, TakesExemplars
from workbench.segmenters.protocol import AskedInItsWay, Segmenter, Watch

UNLIKE = "unlike"  # a column
LEAST_PX = 2  # of a side
LEAST_SEEN = 0.5  # of a box, so that a tile shows it
_YES = ("true", "yes", "1", "1.0", UNLIKE)


@dataclass(frozen=True, eq=False)
class DrawnExemplars:
    """The boxes of a vector file; `what` begins each message about them."""

    what: str
    boxes: gpd.GeoSeries  # polygons; the index is the file's `fid`
    class_id: NDArray[np.int64]
    like: NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """A sha256 of all that candidates depend on."""
        digest = hashlib.sha256(self.boxes.crs.to_wkt().encode())
        for part in (shapely.bounds(self.boxes.to_numpy()), self.class_id, self.like):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def read_exemplars(job: Job) -> DrawnExemplars | None:
    """Read the exemplars of a job; None if it has none.

    Raises `JobError` if the file does not hold boxes or polygons with classes of the job.
    """
    if job.exemplars is None:
        return None
    what = f"Parameter `exemplars`: {without_secrets(job.exemplars)}"
    frame = read_vectors(job.exemplars, what, JobError, layer=LABELS)
    shapes = frame.geometry.to_numpy()
    frame = frame[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    if not len(frame):
        raise JobError(f"{what} has no features with a shape. Draw boxes around some objects.")
    flat = shapely.get_dimensions(frame.geometry.to_numpy()) != 2
    if flat.any():
        kind = frame.geometry.to_numpy()[flat][0].geom_type
        raise JobError(f"{what} has a {kind}. Give only boxes and polygons.")
    if "class_id" not in frame:
        raise JobError(
            f"{what} has no column class_id. Give each box the class of its object, or 0 for an "
            "object that is of no class."
        )
    class_id = _classes(what, frame["class_id"], job)
    unlike = np.zeros(len(frame), bool)
    if UNLIKE in frame:
        unlike = frame[UNLIKE].map(lambda v: str(v).strip().lower() in _YES).to_numpy(bool)
    drawn = DrawnExemplars(what, frame.geometry, class_id, (class_id != EVERY_CLASS) & ~unlike)
    if lacking := what_is_lacking(what, class_id, drawn.like, job.concepts or {}):
        raise JobError(lacking)
    return drawn


def what_is_lacking(
    what: str, class_id: NDArray[np.int64], like: NDArray[np.bool_], words: Collection[int]
) -> str:
    """Say what exemplars `(n,)` lack to be of use, beside words for some classes; '': nothing.

    `what` begins the sentence.
    """
    known = {*words, *class_id[like].tolist()}
    if lacking := sorted(set(class_id.tolist()) - known - {EVERY_CLASS}):
        return (
            f"{what} shows only what is not of class {lacking[0]}. Add a box around an object that "
            "is, or name the class in concepts."
        )
    if not known:
        return (
            f"{what} shows only what is of no class. Add boxes around objects of the classes, or "
            "name the classes in concepts."
        )
    return ""


def _classes(what: str, values: pd.Series, job: Job) -> NDArray[np.int64]:
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values[numbers.isna() | (numbers % 1 != 0)]
    if len(wrong):
        raise JobError(
            f"{what} has class_id {wrong.iloc[0]!r}, which is not a whole number. Give each box a "
            "class, or 0 for none of them."
        )
    if unknown := sorted(set(numbers.astype(int)) - set(job.classes) - {EVERY_CLASS}):
        raise JobError(
            f"{what} has class_id {unknown[0]}, which is not one of classes {job.classes}. Add it "
            "to `classes`."
        )
    return numbers.to_numpy(np.int64)


@dataclass(frozen=True, eq=False)
class PlacedExemplars:
    """Exemplars on the scenes of a run.

    `bounds` are in the working CRS, and `raster` names the scene that shows each. `sources` has for
    each class the tile that shows most of it. `notes` are sentences for a person.
    """

    bounds: NDArray[np.float64]  # (n, 4)
    raster: NDArray[np.object_]  # (n,)
    class_id: NDArray[np.int64]
    like: NDArray[np.bool_]
    sources: Mapping[int, tuple[ScenePlan, Tile]]
    notes: tuple[str, ...] = ()
    _seen: dict[int, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def in_tile(self, part: ScenePlan, tile: Tile) -> Exemplars:
        """The exemplars that a tile shows, in its pixels: at least half of each."""
        rows = np.flatnonzero(self.raster == raster_of(part.scene.name))
        boxes = _pixels(self.bounds[rows], part.scene)
        boxes -= np.tile((tile.window.col_off, tile.window.row_off), 2)
        limit = np.minimum(
            (tile.window.width, tile.window.height),
            np.array((part.scene.width, part.scene.height))
            - (tile.window.col_off, tile.window.row_off),
        )
        seen = boxes.clip(0, np.tile(limit, 2))
        sides, seen_sides = boxes[:, 2:] - boxes[:, :2], seen[:, 2:] - seen[:, :2]
        there = (seen_sides >= LEAST_PX).all(axis=1)
        there &= seen_sides.prod(axis=1) >= LEAST_SEEN * sides.prod(axis=1)
        rows = rows[there]
        return Exemplars(self.class_id[rows], seen[there], self.like[rows])

    def asker(self, part: ScenePlan, segmenter: Segmenter) -> Callable[[Tile], Segmenter]:
        """What computes each tile: the Segmenter, with the exemplars that the tile shows."""
        return lambda tile: self._asked(segmenter, self.in_tile(part, tile))

    def elsewhere(self, segmenter: Segmenter) -> Segmenter:
        """The Segmenter for an image without exemplars of its own."""
        return self._asked(segmenter, NO_EXEMPLARS)

    def _asked(self, segmenter: Segmenter, here: Exemplars) -> Segmenter:
        assert isinstance(segmenter, TakesExemplars)
        model: TakesExemplars = segmenter

        def begin(image: NDArray[np.uint8], watch: Watch | None) -> Callable[[], Candidates]:
            elsewhere = self.looks(model, sorted(set(self.sources) - here.shown))
            return model.begin_with(image, here, elsewhere, watch)

        return AskedInItsWay(segmenter, begin)

    def looks(self, model: TakesExemplars, classes: Iterable[int]) -> Mapping[int, Any]:
        """What classes look like in the tiles that show most of them; each looked at once."""
        with self._lock:
            for number in classes:
                if number not in self._seen:
                    part, tile = self.sources[number]
                    image, _ = part.scene.read(tile.window)
                    self._seen[number] = model.look_at(image, self.in_tile(part, tile))[number]
            return {number: self._seen[number] for number in classes}


def place_exemplars(
    drawn: DrawnExemplars, scenes: Sequence[Scene], tile_size: int, overlap: float
) -> PlacedExemplars:
    """Place exemplars on the scenes that show them, the first one if there are several.

    Where they are does not depend on the area of a run, so that stored tiles fit any area. Raises
    `JobError` if no scene shows any of them, or if one is too small or too large.
    """
    shapes = drawn.boxes.to_crs(scenes[0].crs).to_numpy()
    bounds = shapely.bounds(shapes)
    middles = np.column_stack((bounds[:, [0, 2]].mean(axis=1), bounds[:, [1, 3]].mean(axis=1)))
    raster = np.full(len(bounds), "", object)
    for scene in scenes:
        raster[(raster == "") & shapely.intersects_xy(shapely.box(*scene.bounds), middles)] = (
            scene.name
        )
    there = raster != ""
    if not there.any():
        theirs, ours = (
            ", ".join(f"{value:.7g}" for value in of)
            for of in (shapely.total_bounds(shapes), scenes[0].bounds)
        )
        raise JobError(
            f"{drawn.what} lies outside {Path(scenes[0].source).name}: its bounds are ({theirs}), "
            f"the raster's are ({ours}), both in {crs_title(scenes[0].crs)}. SAM 3 takes exemplars "
            "from the scene itself: draw some there, and check the CRS of the file."
        )
    notes = []
    if not there.all():
        outside = f"{np.count_nonzero(~there):,} of {len(there):,} exemplars lie outside"
        notes.append(f"{outside} the rasters and are not used.")
    fid = drawn.boxes.index.to_numpy()
    parts = {
        scene.name: ScenePlan(scene, TileGrid(scene.width, scene.height, tile_size, overlap), ())
        for scene in scenes
    }
    placed = PlacedExemplars(
        bounds[there], raster[there], drawn.class_id[there], drawn.like[there], {}
    )
    homes = [
        tile_showing(f"{drawn.what}: exemplar {number}", parts[name], box)
        for number, name, box in zip(fid[there], placed.raster, placed.bounds, strict=True)
    ]
    sources = {}
    for number in sorted(set(placed.class_id[placed.like].tolist())):
        mine = np.flatnonzero(placed.like & (placed.class_id == number))
        counted = Counter((placed.raster[i], homes[i].row, homes[i].col) for i in mine.tolist())
        (name, row, col), _ = counted.most_common(1)[0]  # of equal ones the first in the file
        sources[number] = parts[name], parts[name].grid.tile(row, col)
        if _n_tiles(parts) > 1:
            notes.append(
                f"Class {number} is shown in {len(counted):,} of {_n_tiles(parts):,} tiles. SAM 3 "
                "is made for exemplars on the same image: tiles without any take over what "
                f"{tile_name(name, row, col)} shows. Check some of them first."
            )
    return PlacedExemplars(
        placed.bounds, placed.raster, placed.class_id, placed.like, sources, tuple(notes)
    )


def _n_tiles(parts: Mapping[str, ScenePlan]) -> int:
    return sum(len(part.grid) for part in parts.values())


def tile_showing(what: str, part: ScenePlan, bounds: NDArray[np.float64]) -> Tile:
    """The tile whose core holds the middle of a box, called `what`.

    Raises `JobError` if the tile cannot show it to the model.
    """
    x0, y0, x1, y1 = _pixels(bounds[None], part.scene)[0]
    if min(x1 - x0, y1 - y0) < LEAST_PX:
        raise JobError(
            f"{what} is {x1 - x0:.2g} × {y1 - y0:.2g} pixels, and the model would not see it. Draw "
            f"it around a whole object, at least {LEAST_PX} pixels wide and high; remove it if it "
            "was a slip."
        )
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    tile = next(part.grid.within(x, y, x, y))
    alone = PlacedExemplars(
        bounds[None], np.array([part.scene.name], object), np.array([1]), np.array([True]), {}
    )
    if not len(alone.in_tile(part, tile).boxes):
        raise JobError(
            f"{what} is {x1 - x0:.0f} × {y1 - y0:.0f} pixels, larger than a tile. Draw it around "
            "one object, or use a larger tile_size or resolution_m."
        )
    return tile


def _pixels(bounds: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    """Boxes of the map `(n, 4)` in pixels of a north-up scene, XYXY."""
    to_pixel = ~scene.transform
    x0, y1 = to_pixel @ (bounds[:, 0], bounds[:, 1])
    x1, y0 = to_pixel @ (bounds[:, 2], bounds[:, 3])
    return np.column_stack((x0, y0, x1, y1))
