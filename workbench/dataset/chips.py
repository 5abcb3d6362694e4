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

    `chip_size` is in pixels; None is that of `CHIP_SIZES` which keeps most labels. Labels with one
    of `statuses` are exported. If a chip's edge cuts a label, the chip must show at least
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
    rle: bytes  # empty until pixels are read
    share: float  # of the label that the chip shows
    cut_off: bool  # too little to be an object


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

    @property
    def pieces(self) -> tuple[Object, ...]:
        """The others: crowds in COCO, and nothing in YOLO."""
        return tuple(o for o in self.objects if o.cut_off)


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
        self.area = shapely.area(self.geometry)
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

    def outlook(self, chip: Chip) -> Chip:
        """Find a chip's labels by their shapes alone, which is quick: no pixel is read."""
        return self._by_shapes(chip)[0]

    def chip(self, chip: Chip, images: Path) -> Chip:
        """Find a chip's labels and write its image, unless it is to be left out.

        Pixels are read last, because most chips need none where little is reviewed.
        """
        seen_by_shapes, seen = self._by_shapes(chip)
        if seen_by_shapes.left_out and not seen_by_shapes.objects:
            return seen_by_shapes
        try:
            rgb, valid = chip.scene.read(chip.window)
        except SceneError:
            return replace(chip, left_out=UNREADABLE)
        seen &= valid
        if seen.mean() < self._enough(seen):
            return replace(chip, left_out=NODATA)
        rows = [o.row for o in seen_by_shapes.objects]
        objects = [o for row in rows if (o := self._object(row, chip, seen))]
        chip = self._judged(chip, objects)
        if not chip.left_out:
            rgb[~seen] = 0
            Image.fromarray(rgb).save(image_of(chip, images))
        return chip

    def _by_shapes(self, chip: Chip) -> tuple[Chip, NDArray[np.bool_]]:
        """Find a chip's labels by their shapes, and the pixels `(h, w)` where labels are known."""
        scene = chip.scene
        inside = chip.window.intersection(scene.window)
        outline = scene.window_polygon(inside)
        seen = np.zeros((int(chip.window.height), int(chip.window.width)), bool)
        seen[: int(inside.height), : int(inside.width)] = True
        if seen.mean() < self._enough(seen):
            return replace(chip, left_out=BEYOND), seen
        for area, why in self.areas:
            if not shapely.intersects(area, outline):
                return replace(chip, left_out=why), seen
            if not shapely.covers(area, outline):
                seen &= _pixels(area, chip, Window(0, 0, *seen.shape[::-1]))
            if seen.mean() < self._enough(seen):
                return replace(chip, left_out=why), seen
        rows = np.sort(self.tree.query(outline, predicate="intersects"))
        rows = rows[self.waiting[rows] | self.exported[rows]]
        shown = shapely.area(shapely.intersection(self.geometry[rows], outline))
        # a label without area has no pixels
        share = np.divide(shown, self.area[rows], out=np.zeros_like(shown), where=shown > 0)
        blocks = rows[self.waiting[rows] & (share >= self.chips.min_kept)]
        if len(blocks):
            return replace(chip, left_out=UNREVIEWED, waits_for=tuple(blocks.tolist())), seen
        found = [
            Object(row, b"", part, part < self.chips.min_kept)
            for row, part in zip(rows.tolist(), share.tolist(), strict=True)
            if part
        ]
        return self._judged(chip, found), seen

    def _judged(self, chip: Chip, objects: list[Object]) -> Chip:
        """Give a chip its objects, and the reason why it is left out, if there is one."""
        # what waits for review is no object, whatever the chip shows of it
        objects = [replace(o, cut_off=True) if self.waiting[o.row] else o for o in objects]
        chip = replace(chip, objects=tuple(sorted(objects, key=lambda o: o.row)))
        if chip.whole:
            return chip
        waits_for = tuple(o.row for o in chip.objects if self.waiting[o.row])
        if waits_for:  # nobody knows yet whether it is empty
            return replace(chip, left_out=UNREVIEWED, waits_for=waits_for)
        if objects:
            return replace(chip, left_out=ONLY_PIECES)
        outline = chip.scene.window_polygon(chip.window.intersection(chip.scene.window))
        if shapely.area(shapely.intersection(self.unfinished, outline)):
            return replace(chip, left_out=UNFINISHED)
        return chip if self.chips.keep_empty else replace(chip, left_out=EMPTY)

    def _enough(self, seen: NDArray[np.bool_]) -> float:
        """Return the share of a chip's pixels that must be valid; one pixel at least."""
        return max(self.chips.min_valid, 1 / seen.size)

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
        share = pixels * abs(scene.transform.a * scene.transform.e) / float(self.area[row])
        return Object(row, encode_masks(mask[None])[0], share, share < self.chips.min_kept)


def _pixels(shape: shapely.Geometry, chip: Chip, part: Window) -> NDArray[np.bool_]:
    """Return the pixels of a part of a chip whose centre lies in a geometry."""
    window = Window(
        chip.window.col_off + part.col_off, chip.window.row_off + part.row_off,
        part.width, part.height,
    )  # fmt: skip
    transform = chip.scene.window_transform(window)
    filled = rasterize([shape], (int(part.height), int(part.width)), transform=transform)
    return np.asarray(filled, np.bool_)
