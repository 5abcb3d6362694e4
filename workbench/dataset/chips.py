"""A layer and its scenes, cut into chips: what each shows, and why one is left out.

A label's pixels are those whose centre lies in its polygon and that are valid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from rasterio.windows import Window

from workbench.candidates.rle import encode_masks
from workbench.errors import SceneError
from workbench.layer.cores import home_in, reviewed_tiles
from workbench.layer.schema import Status
from workbench.raster.scene import Scene

# why a chip is left out
BEYOND = "mostly beyond the edge of the raster"
OUTSIDE = "mostly outside the area of the run (aoi)"
UNSEGMENTED = "mostly in tiles that failed"
NODATA = "too few valid pixels"
UNREVIEWED = "unreviewed labels"
UNFINISHED = "no labels, in tiles that are not fully reviewed"
EMPTY = "no labels"
ONLY_PIECES = "only cut-off pieces"
UNREADABLE = "unreadable pixels"
GAP = "gap between splits"

_NAMED = 3  # labels that are named to be reviewed first
_WORTH_NAMING = 0.5  # one of a pair that keeps a chip out


@dataclass(frozen=True)
class Chips:
    """How a layer is cut into chips.

    `chip_size` is in pixels; None is the largest of `CHIP_SIZES` that gives a data set. Labels with
    one of `statuses` are exported. If a chip's edge cuts a label, the chip must show at least
    `min_kept` of its area; a smaller piece is not an object (COCO: `iscrowd`, which evaluation
    ignores; YOLO: nothing). `min_valid` is the share of a chip's pixels that must be valid and
    inside the labelled area. `val` and `test` are shares of the chips, the rest is `train`.
    `default_class` is for labels without a class.

    A chip is left out if it shows a label that waits for review, unless it shows so little of it
    that it is not an object anyway. A chip without objects is left out if it shows a piece of such
    a label, or if its tiles are not fully reviewed (`reviewed_tiles`).
    """

    chip_size: int | None = None
    statuses: tuple[Status, ...] = ("accepted", "edited")
    min_kept: float = 0.25
    min_valid: float = 0.5
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    keep_empty: bool = True
    default_class: int | None = None


@dataclass(frozen=True)
class Object:
    """A label's pixels in one chip."""

    row: int  # in the layer
    rle: bytes
    cut_off: bool


@dataclass(frozen=True)
class Chip:
    """One chip: where it is, what it shows, and why it is left out or to which split it goes."""

    name: str
    scene: Scene
    window: Window
    objects: tuple[Object, ...] = ()
    left_out: str = ""
    split: str = ""
    waits_for: tuple[int, ...] = ()  # rows of the labels that must be reviewed first

    @property
    def whole(self) -> tuple[Object, ...]:
        """The objects of which enough is in the chip."""
        return tuple(o for o in self.objects if not o.cut_off)


def image_of(chip: Chip, images: Path) -> Path:
    """Return where a chip's image is written until its split is known."""
    return images / f"{chip.name}.png"


class Cutter:
    """What all chips of one export share: the labels, and where labels are known."""

    def __init__(
        self,
        layer: gpd.GeoDataFrame,
        tiles: gpd.GeoDataFrame,
        chips: Chips,
        aoi: shapely.Geometry | None,
    ) -> None:
        self.layer, self.tiles, self.chips = layer, tiles, chips
        self.geometry = np.asarray(layer.geometry.array)
        status = layer["status"]
        self.exported = status.isin(chips.statuses).to_numpy()
        self.waiting = (status.eq("unreviewed") & ~status.isin(chips.statuses)).to_numpy()
        self.tree = shapely.STRtree(self.geometry)
        segmented = shapely.union_all(tiles.geometry[tiles["status"] != "failed"].to_numpy())
        self.areas = [(segmented, UNSEGMENTED)] if aoi is None else [
            (aoi, OUTSIDE), (segmented, UNSEGMENTED)
        ]  # fmt: skip
        # elsewhere a chip without labels may show objects
        known = tiles["tile"].isin(reviewed_tiles(tiles, layer, self.waiting))
        self.unfinished = shapely.union_all(tiles.geometry[~known].to_numpy())
        shapely.prepare([segmented, aoi, self.unfinished])

    def chip(self, chip: Chip, images: Path | None) -> Chip:
        """Find a chip's labels and write its image, unless it is to be left out.

        Pixels are read last, because most chips need none where little is reviewed.
        """
        scene, chips = chip.scene, self.chips
        inside = chip.window.intersection(scene.window)
        outline = scene.window_polygon(inside)
        seen = np.zeros((int(chip.window.height), int(chip.window.width)), bool)
        enough = max(chips.min_valid, 1 / seen.size)
        seen[: int(inside.height), : int(inside.width)] = True
        if seen.mean() < enough:
            return replace(chip, left_out=BEYOND)
        for area, why in self.areas:
            if not shapely.intersects(area, outline):
                return replace(chip, left_out=why)
            if not shapely.covers(area, outline):
                seen &= _pixels(area, chip, Window(0, 0, *seen.shape[::-1]))
            if seen.mean() < enough:
                return replace(chip, left_out=why)
        rows = np.sort(self.tree.query(outline, predicate="intersects"))
        waiting, exported = rows[self.waiting[rows]], rows[self.exported[rows]]
        shown = shapely.area(shapely.intersection(self.geometry[waiting], outline))
        blocks = shown >= chips.min_kept * shapely.area(self.geometry[waiting])
        if blocks.any():
            waits_for = tuple(waiting[blocks].tolist())
            return replace(chip, left_out=UNREVIEWED, waits_for=waits_for)
        nothing = ""
        if shapely.area(shapely.intersection(self.unfinished, outline)):
            nothing = UNFINISHED
        elif not chips.keep_empty:
            nothing = EMPTY
        if nothing and not len(exported) and not len(waiting):
            return replace(chip, left_out=nothing)
        try:
            rgb, valid = scene.read(chip.window)
        except SceneError:
            return replace(chip, left_out=UNREADABLE)
        seen &= valid
        if seen.mean() < enough:
            return replace(chip, left_out=NODATA)
        objects = [o for row in exported if (o := self._object(int(row), chip, seen))]
        pieces = [
            replace(piece, cut_off=True)
            for row in waiting
            if (piece := self._object(int(row), chip, seen))
        ]
        chip = replace(chip, objects=tuple(sorted(objects + pieces, key=lambda o: o.row)))
        if not chip.whole:
            if pieces:  # nobody knows yet whether it is empty
                waits_for = tuple(piece.row for piece in pieces)
                return replace(chip, left_out=UNREVIEWED, waits_for=waits_for)
            if objects:
                return replace(chip, left_out=ONLY_PIECES)
            if nothing:
                return replace(chip, left_out=nothing)
        if images is not None:
            rgb[~seen] = 0
            Image.fromarray(rgb).save(image_of(chip, images))
        return chip

    def who_waits(self, all_chips: list[Chip]) -> str:
        """Name the labels to review first for more chips, in sentences; empty if none waits.

        A label counts in each chip that it keeps out, and counts less if others keep it out too.
        """
        if not self.waiting.any():
            return ""
        blocked = [chip.waits_for for chip in all_chips if chip.waits_for]
        chips, weight = Counter[int](), Counter[int]()
        for rows in blocked:
            chips.update(rows)
            for row in rows:
                weight[row] += 1 / len(rows)  # type: ignore[assignment]
        first = [row for row, w in weight.most_common(_NAMED) if w >= _WORTH_NAMING]
        if not first:
            return " Review more tiles fully."
        labels = self.layer.iloc[first]
        home = home_in(self.tiles, labels)
        names = [
            f"{id} ({area:,.0f} m², "
            + (f"tile {self.tiles['tile'].iloc[at]}, " if at >= 0 else "")
            + f"{chips[row]} of {len(blocked)} chips)"
            for row, id, area, at in zip(first, labels["id"], labels["area_m2"], home, strict=True)
        ]
        return (
            f" Chips wait most for {', '.join(names)}: accept or reject "
            f"{'these' if len(names) > 1 else 'this one'} first, then review more tiles fully."
        )

    def _object(self, row: int, chip: Chip, seen: NDArray[np.bool_]) -> Object | None:
        """Return the pixels of one label, or None if the chip shows none of them."""
        shape, scene = self.geometry[row], chip.scene
        to_pixel = ~scene.window_transform(chip.window)
        x0, y0, x1, y1 = shapely.bounds(shape)
        left, top = to_pixel @ (x0, y1)
        right, bottom = to_pixel @ (x1, y0)
        height, width = seen.shape
        columns = slice(max(0, int(np.floor(left))), min(width, int(np.ceil(right)) + 1))
        rows = slice(max(0, int(np.floor(top))), min(height, int(np.ceil(bottom)) + 1))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return None
        mask = np.zeros_like(seen)
        part = Window.from_slices(rows, columns)
        mask[rows, columns] = _pixels(shape, chip, part) & seen[rows, columns]
        pixels = int(mask.sum())
        if not pixels:
            return None
        whole = shapely.area(shape) / abs(scene.transform.a * scene.transform.e)
        return Object(row, encode_masks(mask[None])[0], pixels / whole < self.chips.min_kept)


def _pixels(shape: shapely.Geometry, chip: Chip, part: Window) -> NDArray[np.bool_]:
    """Return the pixels of a part of a chip whose centre lies in a geometry."""
    window = Window(
        chip.window.col_off + part.col_off, chip.window.row_off + part.row_off,
        part.width, part.height,
    )  # fmt: skip
    transform = chip.scene.window_transform(window)
    filled = rasterize([shape], (int(part.height), int(part.width)), transform=transform)
    return np.asarray(filled, np.bool_)
