"""The size of the chips: the one that was asked for, or the one that keeps most labels."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from workbench._support.progress import tqdm
from workbench.dataset.chips import GAP, Chip, Chips, Cutter, image_of
from workbench.dataset.split import spatial_split
from workbench.errors import DatasetError
from workbench.raster.scene import Scene

# multiples of 32, as networks take them, the largest first
CHIP_SIZES = (512, 384, 256, 192, 128, 96, 64)
# a larger size is taken if it keeps this share of what the best one keeps: it shows more around an
# object and cuts fewer of them
_NEARLY = 0.95


@dataclass(frozen=True)
class Cut:
    """All chips of one size, and the splits that would be empty."""

    size: int
    chips: list[Chip]
    missing: list[str]

    @property
    def kept(self) -> int:
        """Count the chips that show something to train on, in a split or in the gap between two."""
        return sum(not chip.left_out or chip.left_out == GAP for chip in self.chips)

    @property
    def used(self) -> list[Chip]:
        """The chips that are exported."""
        return [chip for chip in self.chips if chip.split]

    @property
    def is_data_set(self) -> bool:
        """Whether there are chips, in each split that was asked for."""
        return bool(self.kept) and not self.missing

    @property
    def labels(self) -> float:
        """Count the labels in the splits: one counts by the largest share of it in one chip.

        A label that chips cut into pieces is worth less than one that a chip shows whole.
        """
        largest: dict[int, float] = {}
        for chip in self.used:
            for o in chip.whole:
                largest[o.row] = max(largest.get(o.row, 0.0), min(o.share, 1.0))
        return sum(largest.values())


def best_cut(cutter: Cutter, scenes: Sequence[Scene], images: Path) -> Cut:
    """Cut chips of the size that was asked for, or of the one that keeps most labels.

    Sizes are compared by the shapes of the labels, and pixels are read for the best one alone. If
    no size gives a data set, raises `DatasetError`, which says what would give one.
    """
    asked = cutter.chips.chip_size
    if asked is None:
        tried = _outlooks(cutter, scenes, CHIP_SIZES)
        for outlook in _best_first(tried):
            cut = _cut(cutter, scenes, outlook.size, images)
            if cut.is_data_set:
                return _without_gap(cut, images)
            tried[tried.index(outlook)] = cut
        raise DatasetError(_why_not(tried, cutter, None))
    cut = _cut(cutter, scenes, asked, images)
    if cut.is_data_set:
        return _without_gap(cut, images)
    smaller = _outlooks(cutter, scenes, [size for size in CHIP_SIZES if size < asked])
    fitting = (_cut(cutter, scenes, outlook.size, images) for outlook in _best_first(smaller))
    found = next((other for other in fitting if other.is_data_set), None)
    raise DatasetError(_why_not([cut, *smaller], cutter, found))


def _outlooks(cutter: Cutter, scenes: Sequence[Scene], sizes: Sequence[int]) -> list[Cut]:
    """Estimate the cuts of some sizes, the largest first, until one keeps nearly all labels."""
    tried: list[Cut] = []
    for size in sizes:
        tried.append(_with_splits(size, map(cutter.outlook, _grid(scenes, size)), cutter))
        if tried[-1].is_data_set and tried[-1].labels >= _NEARLY * cutter.exported.sum():
            break
    return tried


def _best_first(tried: Sequence[Cut]) -> list[Cut]:
    """Order the sizes that give a data set: the largest of those that keep nearly most, first."""
    fitting = [cut for cut in tried if cut.is_data_set]
    most = max((cut.labels for cut in fitting), default=0.0)
    nearly = [cut for cut in fitting if cut.labels >= _NEARLY * most]
    others = [cut for cut in fitting if cut.labels < _NEARLY * most]
    return [
        *sorted(nearly, key=lambda cut: -cut.size),
        *sorted(others, key=lambda cut: -cut.labels),
    ]


def _cut(cutter: Cutter, scenes: Sequence[Scene], size: int, images: Path) -> Cut:
    """Cut chips of one size, and write their images to `images`, which is emptied first."""
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    progress = tqdm(_grid(scenes, size), desc=f"chips of {size} pixels", unit="chip")
    return _with_splits(size, (cutter.chip(chip, images) for chip in progress), cutter)


def _with_splits(size: int, chips: Iterable[Chip], cutter: Cutter) -> Cut:
    all_chips, missing = _split(list(chips), cutter.chips)
    return Cut(size, all_chips, missing)


def _without_gap(cut: Cut, images: Path) -> Cut:
    """Remove the images of chips between two splits, which are known only after all are cut."""
    for chip in cut.chips:
        if chip.left_out == GAP:
            image_of(chip, images).unlink()
    return cut


def _why_not(tried: list[Cut], cutter: Cutter, fitting: Cut | None) -> str:
    """Say why there is no data set, and what would give one.

    The reasons are those of the size that was asked for, or else of the size that comes closest.
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


def _grid(scenes: Sequence[Scene], size: int) -> list[Chip]:
    """Partition each scene into chips; the last ones reach beyond its edge."""
    taken = set[str]()
    chips = []
    for scene in scenes:
        plain = stem = re.sub(r"[^\w.-]", "_", scene.name)
        n = 1
        while stem.casefold() in taken:  # some file systems take A and a for one
            n += 1
            stem = f"{plain}-{n}"
        taken.add(stem.casefold())
        for row in range(-(-scene.height // size)):
            for col in range(-(-scene.width // size)):
                window = Window(col * size, row * size, size, size)
                chips.append(Chip(f"{stem}_r{row}c{col}", scene, window))
    return chips


def _split(all_chips: list[Chip], chips: Chips) -> tuple[list[Chip], list[str]]:
    """Give each chip its split; also return the names of the splits that would be empty."""
    kept = [i for i, chip in enumerate(all_chips) if not chip.left_out]
    outlines = [all_chips[i].scene.window_polygon(all_chips[i].window) for i in kept]
    # no pieces: those of an object as large as the scene would tie all chips together
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
