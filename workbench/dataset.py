"""Training data from a reviewed layer: image chips with COCO and YOLO-seg labels.

    images/<split>/<chip>.png             as the model saw them, black where invalid
    annotations/instances_<split>.json    COCO; category ids are the class ids of the layer
    labels/<split>/<chip>.txt             YOLO-seg; data.yaml names the classes from 0
    data.yaml                             as Ultralytics takes it
    chips.gpkg                            where on the map each chip is, and why some are left out

A label's pixels are those whose centre lies in its polygon and that are valid.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from rasterio.windows import Window
from tqdm import tqdm

from workbench.annotations import coco_shape, yolo_lines
from workbench.atomic import atomic_folder, remove_stale
from workbench.candidates import encode_masks
from workbench.errors import DatasetError, SceneError
from workbench.layer import Status, crs_name, frozen_time, write_gpkg_layer
from workbench.quality import with_area
from workbench.raster import Scene
from workbench.review import reviewed_tiles
from workbench.split import SPLITS, spatial_split

INDEX = "chips.gpkg"

# why a chip is left out
NO_IMAGERY = "too few valid or labelled pixels"
UNREVIEWED = "unreviewed labels"
UNFINISHED = "no labels, in tiles not reviewed to their end"
EMPTY = "no labels"
ONLY_PIECES = "only cut-off pieces"
UNREADABLE = "unreadable pixels"
GAP = "gap between splits"


@dataclass(frozen=True)
class Chips:
    """How a layer is cut into chips.

    `statuses` are exported; a chip with other labels that wait for review is left out, and so is
    one without labels where tiles are not reviewed to their end (`reviewed_tiles`). Of a label
    that a chip's edge cuts, at least `min_kept` of its area must be in the chip; less is no
    object there (COCO: `iscrowd`, which evaluation ignores; YOLO: nothing). `min_valid` is the
    share of a chip's pixels that must be valid and inside the labelled area. `val` and `test`
    are shares of the chips, the rest is `train`. `default_class` is for labels without a class.
    """

    chip_size: int = 512
    statuses: tuple[Status, ...] = ("accepted", "edited")
    min_kept: float = 0.25
    min_valid: float = 0.5
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    keep_empty: bool = True
    default_class: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set that has been written; `chips` has a row for each chip, left out ones too."""

    folder: Path
    chips: gpd.GeoDataFrame

    @property
    def summary(self) -> pd.DataFrame:
        """Chips and labels of each split, and of what is left out by reason."""
        what = self.chips["split"].where(
            self.chips["split"] != "", "left out: " + self.chips["left_out"]
        )
        groups = self.chips.groupby(what)["n_labels"]
        table = pd.DataFrame({"chips": groups.size(), "labels": groups.sum()})
        rest = [name for name in table.index if name not in SPLITS]
        return table.reindex([*SPLITS, *rest], fill_value=0).rename_axis(None)


@dataclass(frozen=True)
class _Object:
    """A label's pixels in one chip."""

    row: int  # in the layer
    rle: bytes
    cut_off: bool


@dataclass(frozen=True)
class _Chip:
    name: str
    scene: Scene
    window: Window
    objects: tuple[_Object, ...] = ()
    left_out: str = ""
    split: str = ""
    whole: tuple[_Object, ...] = field(init=False)

    def __post_init__(self) -> None:
        whole = tuple(o for o in self.objects if not o.cut_off)
        object.__setattr__(self, "whole", whole)


def write_dataset(
    layer: gpd.GeoDataFrame,
    tiles: gpd.GeoDataFrame,
    scenes: Sequence[Scene],
    folder: Path,
    *,
    classes: Mapping[int, str],
    aoi: shapely.Geometry | None = None,
    chips: Chips | None = None,
) -> Dataset:
    """Cut a reviewed layer and its scenes into chips, and write them as COCO and YOLO-seg.

    `tiles` is the ledger of the run: what it has not segmented, or lies outside `aoi` (in the
    CRS of the layer), is black and not labelled. Invalid labels are mended, as `find_issues` would;
    what has no area has no pixels. Equal input gives equal files. `folder` appears whole or not at
    all, and replaces only an earlier data set. Raises `DatasetError` for values that cannot be,
    labels without a class, a folder with other files, and nothing to write.
    """
    chips = Chips() if chips is None else chips
    folder = Path(folder).absolute()
    _check(chips, scenes, classes)
    _refuse_foreign(folder)
    crs = scenes[0].crs
    if aoi is not None:
        aoi = gpd.GeoSeries([aoi], crs=layer.crs).to_crs(crs).iloc[0]
    layer = with_area(layer.to_crs(crs)).reset_index(drop=True)
    tiles = tiles.to_crs(crs)
    class_ids = _classes_of(layer, classes, chips)
    remove_stale(folder.parent, folder.name)
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        cut = _Cutter(layer, tiles, chips, aoi, temporary / "images")
        all_chips = [cut.chip(chip) for chip in _progress(_grid(scenes, chips.chip_size))]
        all_chips = _split(all_chips, chips)
        for chip in all_chips:
            if chip.left_out == GAP:  # known only now that all are cut
                cut.image_of(chip).unlink()
        index = _index(all_chips)
        if not (index["split"] != "").any():
            reasons = Counter(index["left_out"])
            raise DatasetError(
                "No chip is left to export: "
                + ", ".join(f"{n} with {why}" for why, n in reasons.most_common())
                + f". {_in_the_way(layer[cut.waiting], index)}Review more labels, export other "
                "statuses, or take a smaller chip_size."
            )
        used = [chip for chip in all_chips if chip.split]
        for split in SPLITS:
            part = [chip for chip in used if chip.split == split]
            if part:
                _write_split(temporary, split, part, layer, class_ids, classes)
        _write_yaml(temporary / "data.yaml", index, classes)
        with frozen_time():
            write_gpkg_layer(index, temporary / INDEX, "chips", "Polygon")
    return Dataset(folder, index)


# ------------------------------------------------------------------------------------- checks


def _check(chips: Chips, scenes: Sequence[Scene], classes: Mapping[int, str]) -> None:
    problems = []
    if not 32 <= chips.chip_size <= 8192:
        problems.append(f"chip_size is {chips.chip_size}: choose 32 to 8192 pixels")
    shares = (chips.min_kept, chips.min_valid, chips.val, chips.test)
    for name, share in zip(("min_kept", "min_valid", "val", "test"), shares, strict=True):
        if not 0 <= share <= 1:
            problems.append(f"{name} is {share:g}: a share is from 0 to 1")
    if chips.val + chips.test >= 1:
        problems.append(f"val ({chips.val:g}) and test ({chips.test:g}) leave nothing for train")
    if not scenes:
        problems.append("there is no raster to cut chips from")
    if not classes:
        problems.append("there is no class: name at least one, as {1: roof}")
    if not chips.statuses:
        problems.append("statuses is empty: name at least one, as accepted")
    if problems:
        raise DatasetError("The data set cannot be made: " + "; ".join(problems) + ".")


def _classes_of(
    layer: gpd.GeoDataFrame, classes: Mapping[int, str], chips: Chips
) -> NDArray[np.int64]:
    """The class of each label; -1 for labels that are not exported."""
    exported = layer["status"].isin(chips.statuses)
    default = chips.default_class
    if default is None and len(classes) == 1:  # then there is no doubt
        default = next(iter(classes))
    ids = layer["class_id"].astype("Int64")
    if default is not None:
        ids = ids.fillna(default)
    for wrong, what in (
        (exported & ids.isna(), "have no class"),
        (exported & ids.notna() & ~ids.isin(list(classes)), f"have a class not in {dict(classes)}"),
    ):
        if wrong.any():
            names = ", ".join(layer.loc[wrong, "id"].astype(str).head(3))
            raise DatasetError(
                f"{wrong.sum()} of {exported.sum()} labels {what}, for instance {names}. Set their "
                "class in QGIS, or give default_class one of the classes."
            )
    return np.where(exported, ids.fillna(-1), -1).astype(np.int64)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with anything in it that no earlier export has written."""
    if not folder.exists():
        return
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    there = {name for name in there if not name.endswith(".cache")}  # Ultralytics leaves them
    ours = {INDEX, "data.yaml", *(f"annotations/instances_{split}.json" for split in SPLITS)}
    if INDEX in there:
        try:
            index = pyogrio.read_dataframe(folder / INDEX, read_geometry=False)
            for image in index["image"].dropna():
                label = str(image).replace("images/", "labels/", 1)
                ours |= {image, label.removesuffix(".png") + ".txt"}
        except (pyogrio.errors.DataSourceError, KeyError):
            ours = set()
    foreign = sorted(there - ours)
    if foreign or not folder.is_dir() or (there and INDEX not in there):
        what = ", ".join((foreign or sorted(there))[:3]) or "a file of this name"
        raise DatasetError(
            f"{folder} holds {what}, which no earlier export has written. Choose another folder, "
            "or move it away."
        )


# -------------------------------------------------------------------------------------- chips


def _grid(scenes: Sequence[Scene], size: int) -> list[_Chip]:
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
                chips.append(_Chip(f"{stem}_r{row}c{col}", scene, window))
    return chips


def _progress(chips: list[_Chip]) -> Iterator[_Chip]:
    yield from tqdm(chips, desc="chips", unit="chip")


class _Cutter:
    """What all chips of one export share: the labels, and where there are any."""

    def __init__(
        self,
        layer: gpd.GeoDataFrame,
        tiles: gpd.GeoDataFrame,
        chips: Chips,
        aoi: shapely.Geometry | None,
        images: Path,
    ) -> None:
        self.chips, self.images = chips, images
        self.geometry = np.asarray(layer.geometry.array)
        status = layer["status"]
        self.exported = status.isin(chips.statuses).to_numpy()
        self.waiting = (status.eq("unreviewed") & ~status.isin(chips.statuses)).to_numpy()
        self.tree = shapely.STRtree(self.geometry)
        self.area = shapely.union_all(tiles.geometry[tiles["status"] != "failed"].to_numpy())
        if aoi is not None:
            self.area = shapely.intersection(self.area, aoi)
        shapely.prepare(self.area)
        # what seems empty elsewhere may not be
        known = tiles["tile"].isin(reviewed_tiles(tiles, layer, self.waiting))
        self.unfinished = shapely.union_all(tiles.geometry[~known].to_numpy())
        shapely.prepare(self.unfinished)

    def image_of(self, chip: _Chip) -> Path:
        """Where a chip's image is written, until it is known to which split it belongs."""
        return self.images / f"{chip.name}.png"

    def chip(self, chip: _Chip) -> _Chip:
        """Find a chip's labels and write its image, unless it is to be left out."""
        scene, chips = chip.scene, self.chips
        outline = scene.window_polygon(chip.window.intersection(scene.window))
        if not shapely.intersects(self.area, outline):
            return replace(chip, left_out=NO_IMAGERY)
        try:
            rgb, seen = scene.read(chip.window)
        except SceneError:
            return replace(chip, left_out=UNREADABLE)
        if not shapely.covers(self.area, outline):
            seen &= _pixels(self.area, chip, Window(0, 0, *seen.shape[::-1]))
        if seen.mean() < max(chips.min_valid, 1 / seen.size):
            return replace(chip, left_out=NO_IMAGERY)
        objects = []
        for row in np.sort(self.tree.query(outline, predicate="intersects")):
            if not (self.exported[row] or self.waiting[row]):
                continue
            found = self._object(int(row), chip, seen)
            if found is None:
                continue
            if self.waiting[row]:
                return replace(chip, left_out=UNREVIEWED)
            objects.append(found)
        chip = replace(chip, objects=tuple(objects))
        if not objects and shapely.area(shapely.intersection(self.unfinished, outline)):
            return replace(chip, left_out=UNFINISHED)
        if not objects and not chips.keep_empty:
            return replace(chip, left_out=EMPTY)
        if objects and not chip.whole:
            return replace(chip, left_out=ONLY_PIECES)
        rgb[~seen] = 0
        Image.fromarray(rgb).save(self.image_of(chip))
        return chip

    def _object(self, row: int, chip: _Chip, seen: NDArray[np.bool_]) -> _Object | None:
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
        return _Object(row, encode_masks(mask[None])[0], pixels / whole < self.chips.min_kept)


def _pixels(shape: shapely.Geometry, chip: _Chip, part: Window) -> NDArray[np.bool_]:
    """The pixels of a part of a chip whose centre lies in a geometry."""
    window = Window(
        chip.window.col_off + part.col_off, chip.window.row_off + part.row_off,
        part.width, part.height,
    )  # fmt: skip
    transform = chip.scene.window_transform(window)
    filled = rasterize([shape], (int(part.height), int(part.width)), transform=transform)
    return np.asarray(filled, np.bool_)


def _split(all_chips: list[_Chip], chips: Chips) -> list[_Chip]:
    kept = [i for i, chip in enumerate(all_chips) if not chip.left_out]
    outlines = [all_chips[i].scene.window_polygon(all_chips[i].window) for i in kept]
    # pieces of an object that fills a landscape would tie all chips together
    objects = [[o.row for o in all_chips[i].whole] for i in kept]
    splits = spatial_split(
        np.array(outlines, object), objects, val=chips.val, test=chips.test, seed=chips.seed
    )
    wanted = {"train", *(("val",) if chips.val else ()), *(("test",) if chips.test else ())}
    missing = sorted(wanted - set(splits))
    if kept and missing:
        raise DatasetError(
            f"{len(kept)} chips leave none for {' and '.join(missing)} if no chip may lie beside "
            "one of another split. Take a smaller chip_size, review more, or set val or test to 0."
        )
    for i, split in zip(kept, splits, strict=True):
        reason = "" if split else GAP
        all_chips[i] = replace(all_chips[i], split=split, left_out=reason)
    return all_chips


def _index(all_chips: list[_Chip]) -> gpd.GeoDataFrame:
    rows = {
        "chip": [c.name for c in all_chips],
        "split": [c.split for c in all_chips],
        "left_out": [c.left_out for c in all_chips],
        "n_labels": [len(c.whole) for c in all_chips],
        "image": [f"images/{c.split}/{c.name}.png" if c.split else None for c in all_chips],
        "source": [c.scene.name for c in all_chips],
        "col_off": [int(c.window.col_off) for c in all_chips],
        "row_off": [int(c.window.row_off) for c in all_chips],
    }
    outlines = [c.scene.window_polygon(c.window) for c in all_chips]
    return gpd.GeoDataFrame(rows, geometry=outlines, crs=all_chips[0].scene.crs)


def _in_the_way(waiting: gpd.GeoDataFrame, index: gpd.GeoDataFrame) -> str:
    """Name the label that waits for review in most chips: large ones keep many from being used."""
    outlines = index.geometry[index["left_out"] == UNREVIEWED].to_numpy()
    _, rows = shapely.STRtree(waiting.geometry.to_numpy()).query(outlines, predicate="intersects")
    if not len(rows):
        return ""
    n_chips = np.bincount(rows)
    most = int(n_chips.argmax())
    name = waiting["id"].iloc[most]
    return f"One label alone, {name}, waits for review in {n_chips[most]} of them. "


# ------------------------------------------------------------------------------------ formats


def _write_split(
    folder: Path,
    split: str,
    part: list[_Chip],
    layer: gpd.GeoDataFrame,
    class_ids: NDArray[np.int64],
    classes: Mapping[int, str],
) -> None:
    """Put the images of a split in their place, and write its labels in both formats."""
    order = {number: i for i, number in enumerate(sorted(classes))}
    ids = layer["id"].astype(str).to_numpy()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images" / split).mkdir()
    (folder / "labels" / split).mkdir(parents=True)
    for number, chip in enumerate(part, start=1):
        name, size = f"{chip.name}.png", (int(chip.window.height), int(chip.window.width))
        (folder / "images" / name).rename(folder / "images" / split / name)
        transform = chip.scene.window_transform(chip.window)
        images.append(
            {"id": number, "file_name": name, "height": size[0], "width": size[1],
             "crs": crs_name(chip.scene.crs), "transform": list(transform)[:6]}
        )  # fmt: skip
        lines = []
        for found in chip.objects:
            mask = np.asarray(coco_mask.decode({"size": size, "counts": found.rle}), np.bool_)
            category = int(class_ids[found.row])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category,
                 **coco_shape(found.rle, mask, crowd=found.cut_off), "label_id": ids[found.row]}
            )  # fmt: skip
            if not found.cut_off:
                lines += yolo_lines(order[category], mask)
        text = "".join(line + "\n" for line in lines)
        (folder / "labels" / split / f"{chip.name}.txt").write_text(text, encoding="utf-8")
    content = {
        "info": {"description": "SAM Workbench, reviewed labels", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": classes[number], "supercategory": ""} for number in order
        ],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_yaml(path: Path, index: gpd.GeoDataFrame, classes: Mapping[int, str]) -> None:
    used: Collection[str] = set(index["split"])
    content: dict[str, Any] = {split: f"images/{split}" for split in SPLITS if split in used}
    content["names"] = {i: classes[number] for i, number in enumerate(sorted(classes))}
    content["class_ids"] = dict(enumerate(sorted(classes)))  # as the layer has them
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
