"""A layer and its scenes cut into chips: what each shows, and why one is left out.

A label's pixels are those whose centre lies in its polygon and that are valid.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from rasterio.windows import Window
from tqdm import tqdm

from workbench.candidates.rle import encode_masks
from workbench.dataset.split import spatial_split
from workbench.errors import DatasetError, SceneError
from workbench.layer.cores import home_in, reviewed_tiles
from workbench.layer.schema import Status
from workbench.raster.scene import Scene

# why a chip is left out
BEYOND = "mostly beyond the edge of the raster"
OUTSIDE = "mostly outside the area of the run (aoi)"
UNSEGMENTED = "mostly in tiles that failed"
NODATA = "too few valid pixels"
UNREVIEWED = "unreviewed labels"
UNFINISHED = "no labels, in tiles not reviewed to their end"
EMPTY = "no labels"
ONLY_PIECES = "only cut-off pieces"
UNREADABLE = "unreadable pixels"
GAP = "gap between splits"

# multiples of 32, as networks take them, the largest first
CHIP_SIZES = (512, 384, 256, 192, 128, 96, 64)
_NAMED = 3  # labels that are named to be reviewed first
_WORTH_NAMING = 0.5  # one of a pair that keeps a chip out


@dataclass(frozen=True)
class Chips:
    """How a layer is cut into chips.

    `chip_size` is in pixels; None is the largest of `CHIP_SIZES` that gives a data set. Of a label
    that a chip's edge cuts, at least `min_kept` of its area must be in the chip; less is no
    object there (COCO: `iscrowd`, which evaluation ignores; YOLO: nothing). `statuses` are
    exported. A chip that shows another label which waits for review is left out, unless it is no
    object there whatever the review says; so is a chip without objects where such a piece lies or
    tiles are not reviewed to their end (`reviewed_tiles`). `min_valid` is the share of a chip's
    pixels that must be valid and inside the labelled area. `val` and `test` are shares of the
    chips, the rest is `train`. `default_class` is for labels without a class.
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
    waits_for: tuple[int, ...] = ()  # rows of the labels without whose review it is left out
    whole: tuple[Object, ...] = field(init=False)

    def __post_init__(self) -> None:
        whole = tuple(o for o in self.objects if not o.cut_off)
        object.__setattr__(self, "whole", whole)


def _grid(scenes: Sequence[Scene], size: int) -> list[Chip]:
    """Chips that partition each scene; the last ones reach beyond its edge."""
    taken = set[str]()
    chips = []
    for scene in scenes:
        plain = stem = re.sub(r"[^\w.-]", "_", scene.name)
        n = 1
        while stem.casefold() in taken:  # some file systems do not tell A from a
            n += 1
            stem = f"{plain}-{n}"
        taken.add(stem.casefold())
        for row in range(-(-scene.height // size)):
            for col in range(-(-scene.width // size)):
                window = Window(col * size, row * size, size, size)
                chips.append(Chip(f"{stem}_r{row}c{col}", scene, window))
    return chips


def _progress(chips: list[Chip], size: int) -> Iterator[Chip]:
    yield from tqdm(chips, desc=f"chips of {size} pixels", unit="chip")


@dataclass(frozen=True)
class Cut:
    """All chips of one size, and the splits that none of them can be in."""

    size: int
    chips: list[Chip]
    missing: list[str]

    @property
    def kept(self) -> int:
        """How many chips show something to train on, whether or not they can be split."""
        return sum(not chip.left_out or chip.left_out == GAP for chip in self.chips)

    @property
    def used(self) -> list[Chip]:
        """The chips that are exported."""
        return [chip for chip in self.chips if chip.split]


def _cut(cutter: Cutter, scenes: Sequence[Scene], size: int, images: Path | None) -> Cut:
    """Cut chips of one size, and write their images where that is wanted."""
    found = [cutter.chip(chip, images) for chip in _progress(_grid(scenes, size), size)]
    all_chips, missing = _split(found, cutter.chips)
    return Cut(size, all_chips, missing)


def largest_cut(cutter: Cutter, scenes: Sequence[Scene], images: Path) -> Cut:
    """Cut chips of the size that is asked for, or of the largest that gives a data set.

    Raises `DatasetError`, which says what would give one.
    """
    asked = cutter.chips.chip_size
    largest = asked or CHIP_SIZES[0]
    tried: list[Cut] = []
    for size in (largest, *(size for size in CHIP_SIZES if size < largest)):
        wanted = asked is None or size == asked
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir(parents=True)
        cut = _cut(cutter, scenes, size, images if wanted else None)
        if cut.kept and not cut.missing:
            if not wanted:
                raise DatasetError(_why_not(tried, cutter, cut))
            for chip in cut.chips:
                if chip.left_out == GAP:  # known only now that all are cut
                    image_of(chip, images).unlink()
            return cut
        tried.append(cut)
    raise DatasetError(_why_not(tried, cutter, None))


def _why_not(tried: list[Cut], cutter: Cutter, fitting: Cut | None) -> str:
    """Say why a cut is no data set, and what gives one.

    It is the one of the size that was asked for; of all sizes that which comes closest.
    """
    asked = cutter.chips.chip_size is not None
    closest = max(tried, key=lambda cut: (cut.kept, cut.size if cut.kept else -cut.size))
    cut = tried[0] if asked else closest
    reasons = Counter(chip.left_out for chip in cut.chips if chip.left_out not in ("", GAP))
    left_out = ", ".join(f"{n} {why}" for why, n in reasons.most_common())
    if cut.kept:
        said = (
            f"{_chips(cut.kept)} of {cut.size} pixels leave none for {' and '.join(cut.missing)} "
            "if no chip may lie beside one of another split"
            + (f"; left out: {left_out}." if left_out else ".")
        )
    else:
        said = f"No chip of {cut.size} pixels is left to export: {left_out}."
    said += cutter.who_waits(cut.chips)
    if fitting is not None:
        return (
            f"{said} `-p chip_size {fitting.size}` gives a data set: {_chips(len(fitting.used))}."
        )
    if len(tried) > 1:
        sizes = "smaller chip_size," if asked else f"chip_size, from {tried[0].size}"
        said += f" No {sizes} down to {tried[-1].size}, gives one."
    if closest.kept:  # only the split is in the way
        return (
            f"{said} For training alone, `-p chip_size {closest.size} -p val 0 -p test 0` gives "
            f"{_chips(closest.kept)}."
        )
    return said


def image_of(chip: Chip, images: Path) -> Path:
    """Where a chip's image is written, until it is known to which split it belongs."""
    return images / f"{chip.name}.png"


class Cutter:
    """What all chips of one export share: the labels, and where there are any."""

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
        # what seems empty elsewhere may not be
        known = tiles["tile"].isin(reviewed_tiles(tiles, layer, self.waiting))
        self.unfinished = shapely.union_all(tiles.geometry[~known].to_numpy())
        shapely.prepare([segmented, aoi, self.unfinished])

    def chip(self, chip: Chip, images: Path | None) -> Chip:
        """Find a chip's labels and write its image, unless it is to be left out.

        Pixels are read last: of a scene of which little is reviewed, most chips need none.
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
            if pieces:  # whether it is empty is not known
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
        """Name the labels whose review frees chips soonest, in sentences; empty if none waits.

        A label counts in each chip that it keeps out, less the more others do so, too.
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
            return " Review more tiles to their end."
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
            f"{'these' if len(names) > 1 else 'this one'} first, then review more tiles to their "
            "end."
        )

    def _object(self, row: int, chip: Chip, seen: NDArray[np.bool_]) -> Object | None:
        """The pixels of one label; None if the chip shows none of them."""
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
    """The pixels of a part of a chip whose centre lies in a geometry."""
    window = Window(
        chip.window.col_off + part.col_off, chip.window.row_off + part.row_off,
        part.width, part.height,
    )  # fmt: skip
    transform = chip.scene.window_transform(window)
    filled = rasterize([shape], (int(part.height), int(part.width)), transform=transform)
    return np.asarray(filled, np.bool_)


def _split(all_chips: list[Chip], chips: Chips) -> tuple[list[Chip], list[str]]:
    """Give each chip its split; also the names of those that would be empty."""
    kept = [i for i, chip in enumerate(all_chips) if not chip.left_out]
    outlines = [all_chips[i].scene.window_polygon(all_chips[i].window) for i in kept]
    # pieces of an object that fills a landscape would tie all chips together
    objects = [[o.row for o in all_chips[i].whole] for i in kept]
    splits = spatial_split(
        np.array(outlines, object), objects, val=chips.val, test=chips.test, seed=chips.seed
    )
    wanted = {"train", *(("val",) if chips.val else ()), *(("test",) if chips.test else ())}
    missing = sorted(wanted - set(splits))
    for i, split in zip(kept, splits, strict=True):
        reason = "" if split else GAP
        all_chips[i] = replace(all_chips[i], split=split, left_out=reason)
    return all_chips, missing


def _chips(n: int) -> str:
    return f"{n:,} chip{'' if n == 1 else 's'}"
