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
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from workbench._support.files import atomic_folder, remove_stale
from workbench.dataset.chips import Chip, Chips, Cutter
from workbench.dataset.fates import fates_of
from workbench.dataset.formats import coco_shape, yolo_lines
from workbench.dataset.sizes import best_cut
from workbench.dataset.split import SPLITS
from workbench.errors import DatasetError
from workbench.layer.files import frozen_time, write_gpkg_layer
from workbench.polygons.areas import with_area
from workbench.raster.crs import crs_name
from workbench.raster.scene import Scene

INDEX = "chips.gpkg"


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    `chips` has a row for each chip, also for those left out. `labels` says where each label of the
    exported statuses is: by its id, its split or why it is in none.
    """

    folder: Path
    chips: gpd.GeoDataFrame
    chip_size: int  # pixels
    labels: pd.Series
    hint: str = ""  # which labels to review first for more chips

    def __str__(self) -> str:
        n = int((self.chips["split"] != "").sum())
        return (
            f"{self.folder}: {n:,} chips of {self.chip_size} × {self.chip_size} pixels with "
            f"{self.n_labels:,} of {len(self.labels):,} labels.{self._pieces()}{self.hint}"
        )

    @property
    def n_labels(self) -> int:
        """Count the labels in the splits, each once."""
        return int(self.labels.isin(SPLITS).sum())

    @property
    def summary(self) -> pd.DataFrame:
        """One row for each split, and one for each reason to leave something out.

        `labels` counts each label once: in its split, or at the reason why it is in none. `objects`
        counts what chips show of labels: one that the edge of a chip cuts in two is there twice.
        `pieces` are too small to be objects: COCO has them as crowds, YOLO does not label them.
        """
        chips = self.chips.assign(what=_rows_of(self.chips["split"], self.chips["left_out"]))
        by_row = chips.groupby("what")
        lost = self.labels.where(self.labels.isin(SPLITS), "left out: " + self.labels)
        table = pd.DataFrame(
            {
                "chips": by_row.size(),
                "labels": lost.value_counts(),
                "objects": by_row["n_labels"].sum(),
                "pieces": by_row["n_pieces"].sum(),
            }
        )
        rest = [name for name in table.index if name not in SPLITS]
        return table.reindex([*SPLITS, *rest]).fillna(0).astype(int).rename_axis(None)

    def _pieces(self) -> str:
        n = int(self.chips.loc[self.chips["split"] != "", "n_pieces"].sum())
        if not n:
            return ""
        are = "is a crowd" if n == 1 else "are crowds"
        return (
            f" {n:,} cut-off piece{'' if n == 1 else 's'} {are} in COCO and not labelled in YOLO, "
            "which has no crowds."
        )


def _rows_of(split: pd.Series, left_out: pd.Series) -> pd.Series:
    return split.where(split != "", "left out: " + left_out)


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

    `tiles` is the ledger of the run. Pixels in failed tiles or outside `aoi` (in the CRS of the
    layer) are black and not labelled. Invalid labels are mended as `find_issues` would; labels
    without area have no pixels. Equal input gives equal files.

    `folder` appears whole or not at all, and replaces only an earlier data set. If there is nothing
    to write, an earlier data set is renamed to `<folder>-stale`. Raises `DatasetError` for invalid
    values, labels without a class, a folder with other files, and if there is nothing to write.
    Warns if no chip shows a label.
    """
    folder = Path(folder).absolute()
    _refuse_foreign(folder)
    try:
        made = _write(layer, tiles, scenes, folder, classes, aoi, chips or Chips())
    except DatasetError as error:
        why = f"{error}{_set_aside(folder)}"
        raise DatasetError(why) from None
    if not made.n_labels:
        warnings.warn(f"{folder} has no label, only background: {_why_none(made)}", stacklevel=2)
    return made


def _why_none(made: Dataset) -> str:
    if made.labels.empty:
        return "no label is accepted or edited. Accept the right ones in QGIS."
    reasons = ", ".join(f"{n} {why}" for why, n in made.labels.value_counts().items())
    return f"all {len(made.labels)} labels are left out ({reasons})."


def _write(
    layer: gpd.GeoDataFrame,
    tiles: gpd.GeoDataFrame,
    scenes: Sequence[Scene],
    folder: Path,
    classes: Mapping[int, str],
    aoi: shapely.Geometry | None,
    chips: Chips,
) -> Dataset:
    _check(chips, scenes, classes)
    crs = scenes[0].crs
    if aoi is not None:
        aoi = gpd.GeoSeries([aoi], crs=layer.crs).to_crs(crs).iloc[0]
    layer = with_area(layer.to_crs(crs)).reset_index(drop=True)
    class_ids = _classes_of(layer, classes, chips)
    remove_stale(folder.parent, folder.name)
    cutter = Cutter(layer, tiles.to_crs(crs), chips, aoi)
    with atomic_folder(folder) as temporary:
        cut = best_cut(cutter, scenes, temporary / "images")
        index = _index(cut.chips)
        for split in SPLITS:
            part = [chip for chip in cut.used if chip.split == split]
            if part:
                _write_split(temporary, split, part, layer, class_ids, classes)
        _write_yaml(temporary / "data.yaml", index, classes)
        with frozen_time():
            write_gpkg_layer(index, temporary / INDEX, "chips", "Polygon")
    labels = fates_of(layer, cutter.exported, cut.chips)
    return Dataset(folder, index, cut.size, labels, cutter.who_waits(cut.chips))


def _set_aside(folder: Path) -> str:
    """Rename an earlier data set, so that it is not taken for one of this review; say so."""
    if not (folder / INDEX).exists():
        return ""
    stale = folder.with_name(f"{folder.name}-stale")
    try:
        _refuse_foreign(stale)
    except DatasetError:
        return f" {folder} still holds the data set of an earlier review."
    shutil.rmtree(stale, ignore_errors=True)
    folder.replace(stale)
    return f" The data set of an earlier review is now in {stale}."


# ------------------------------------------------------------------------------------- checks


def _check(chips: Chips, scenes: Sequence[Scene], classes: Mapping[int, str]) -> None:
    problems = []
    if chips.chip_size is not None and not 32 <= chips.chip_size <= 8192:
        problems.append(f"chip_size is {chips.chip_size}: choose 32 to 8192 pixels")
    shares = (chips.min_kept, chips.min_valid, chips.val, chips.test)
    for name, share in zip(("min_kept", "min_valid", "val", "test"), shares, strict=True):
        if not 0 <= share <= 1:
            problems.append(f"{name} is {share:g}: a share is from 0 to 1")
    if chips.val + chips.test >= 1:
        problems.append(
            f"val ({chips.val:g}) and test ({chips.test:g}) leave nothing for train: choose shares "
            "that add up to less than 1"
        )
    if not scenes:
        problems.append("there is no raster to cut chips from")
    if not classes:
        problems.append("there is no class: give at least one, for example {1: roof}")
    elif chips.default_class is not None and chips.default_class not in classes:
        problems.append(f"default_class is {chips.default_class}: choose one of {_listed(classes)}")
    if not chips.statuses:
        problems.append("statuses is empty: give at least one, for example accepted")
    if problems:
        raise DatasetError("The data set cannot be made: " + "; ".join(problems) + ".")


def _classes_of(
    layer: gpd.GeoDataFrame, classes: Mapping[int, str], chips: Chips
) -> NDArray[np.int64]:
    """Return the class of each label; -1: unknown, which no exported label has."""
    exported = layer["status"].isin(chips.statuses)
    default = chips.default_class
    if default is None and len(classes) == 1:  # no other class is possible
        default = next(iter(classes))
    ids = layer["class_id"].astype("Int64")
    if default is not None:
        ids = ids.fillna(default)
    for wrong, what, remedy in (
        (
            exported & ids.isna(),
            "have no class",
            "Set their class in QGIS (the filter `Without class` shows them), or give one class "
            f"for all of them, for example `-p default_class {next(iter(classes))}`.",
        ),
        (
            exported & ids.notna() & ~ids.isin(list(classes)),
            f"have a class that is not one of {_listed(classes)}",
            "Correct their class in QGIS, or add it to `classes` in the job.yaml of the run folder "
            "(`default_class` does not change it).",
        ),
    ):
        if wrong.any():
            names = ", ".join(layer.loc[wrong, "id"].astype(str).head(3))
            raise DatasetError(
                f"{wrong.sum()} of {exported.sum()} labels {what}, for instance {names}. {remedy}"
            )
    return np.where(ids.isin(list(classes)), ids.fillna(-1), -1).astype(np.int64)


def _listed(classes: Mapping[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in classes.items())


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export."""
    if not folder.exists():
        return
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    there = {name for name in there if not name.endswith(".cache")}  # of Ultralytics
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


def _index(all_chips: list[Chip]) -> gpd.GeoDataFrame:
    rows = {
        "chip": [c.name for c in all_chips],
        "split": [c.split for c in all_chips],
        "left_out": [c.left_out for c in all_chips],
        "n_labels": [len(c.whole) if c.split else 0 for c in all_chips],
        "n_pieces": [len(c.pieces) if c.split else 0 for c in all_chips],
        "image": [f"images/{c.split}/{c.name}.png" if c.split else None for c in all_chips],
        "source": [c.scene.name for c in all_chips],
        "col_off": [int(c.window.col_off) for c in all_chips],
        "row_off": [int(c.window.row_off) for c in all_chips],
    }
    outlines = [c.scene.window_polygon(c.window) for c in all_chips]
    return gpd.GeoDataFrame(rows, geometry=outlines, crs=all_chips[0].scene.crs)


# ------------------------------------------------------------------------------------ formats


def _write_split(
    folder: Path,
    split: str,
    part: list[Chip],
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
            # a label that waits for review and has no class is ignored in each class
            for category_id in [category] if category in classes else order:
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": category_id,
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
    content["class_ids"] = dict(enumerate(sorted(classes)))  # those of the layer
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
