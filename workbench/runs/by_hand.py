"""Shapes that a person has drawn in the tuner, or changed there: each is a label of every run."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj
import shapely

from workbench._support.files import atomic_path
from workbench.errors import ExamplesError, RunFolderError
from workbench.layer.drawn import drawn_label
from workbench.layer.kept import Kept
from workbench.layer.schema import DRAWN
from workbench.polygons.areas import lies_in
from workbench.polygons.overlap import common_area
from workbench.raster.tiles import tile_names

BY_HAND = "drawn.parquet"  # in a run folder
SAME_IOU = 0.9  # with the outline of a candidate: other tiles or another model give other ones
_COLUMNS = ["id", "class_id", "label", "outline"]


@dataclass(frozen=True, eq=False)
class ShapesByHand:
    """Shapes with an id of their own and a class, in the working CRS, one row each.

    `label` is the id of the candidate that shows the same object, '' if there is none, and
    `outline` its shape: the shape by hand stands in its place.
    """

    frame: gpd.GeoDataFrame

    @classmethod
    def none(cls, crs: pyproj.CRS) -> ShapesByHand:
        """No shape."""
        nothing = gpd.GeoSeries([], crs=crs)
        columns = {"id": [], "class_id": pd.array([], "int64"), "label": [], "outline": nothing}
        return cls(gpd.GeoDataFrame(columns, geometry=nothing))

    def __len__(self) -> int:
        return len(self.frame)

    def with_shape(
        self,
        shape: shapely.MultiPolygon,
        class_id: int,
        label: str = "",
        outline: shapely.Geometry | None = None,
        id: str = "",
    ) -> ShapesByHand:
        """Add a shape, or give the one with this id another shape or class."""
        crs = self.frame.crs
        row = gpd.GeoDataFrame(
            {
                "id": [id or f"{DRAWN}{uuid.uuid4()}"], "class_id": [class_id], "label": [label],
                "outline": gpd.GeoSeries([outline or shapely.MultiPolygon()], crs=crs),
            },
            geometry=[shape], crs=crs,
        )  # fmt: skip
        left = self.without(id).frame
        return ShapesByHand(pd.concat([left, row], ignore_index=True) if len(left) else row)

    def without(self, id: str) -> ShapesByHand:
        """Take a shape away."""
        return ShapesByHand(self.frame[self.frame["id"] != id].reset_index(drop=True))

    def at(self, x: float, y: float) -> int:
        """The row of the smallest shape at a place, -1 if there is none."""
        here = self.frame[self.frame.geometry.intersects(shapely.Point(x, y))]
        return int(here.geometry.area.idxmin()) if len(here) else -1

    def write(self, path: Path) -> None:
        """Write GeoParquet, whole or not at all; raises `OutputError`."""
        with atomic_path(path) as temporary:
            self.frame.to_parquet(temporary, index=False)


def read_by_hand(path: Path, crs: pyproj.CRS) -> ShapesByHand:
    """Read the shapes by hand of a run folder, in its CRS; none if there is no file.

    Raises `ExamplesError` if the file is not what this version writes.
    """
    if not path.exists():
        return ShapesByHand.none(crs)
    try:
        frame = gpd.read_parquet(path).to_crs(crs)
        frame["outline"] = frame["outline"].to_crs(crs)
        typed = frame.astype({"class_id": "int64"})
        return ShapesByHand(typed[[*_COLUMNS, "geometry"]])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ExamplesError(
            f"{path} holds no drawn shapes that this version can read ({error}). Move it out of "
            "the run folder to start again; nothing is written to it until then."
        ) from error


def usable_by_hand(folder: Path, crs: pyproj.CRS, classes: Mapping[int, str]) -> gpd.GeoDataFrame:
    """Read the shapes by hand of a run folder that a run can use, by id.

    Raises `ExamplesError` as `read_by_hand` does, and `RunFolderError` for a class that the job
    does not name.
    """
    path = folder / BY_HAND
    frame = read_by_hand(path, crs).frame.sort_values("id", ignore_index=True)
    unknown = frame["class_id"][~frame["class_id"].isin(list(classes))]
    if len(unknown):
        raise RunFolderError(
            f"{path} holds {len(unknown)} drawn shapes of class {unknown.iloc[0]}, which is not "
            f"one of classes {classes}. Add it there, or give them another class in the tuner."
        )
    return frame


def give_way(polygons: gpd.GeoDataFrame, shapes: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Mark the polygons of tiles in whose place shapes by hand stand: they are no labels.

    So `merge_seams` does not join to them what other tiles saw, which would be left out with them.
    """
    of_labels = shapes[shapes["label"] != ""].drop_duplicates("label").set_index("label")
    ids = (tile_names(polygons) + "/" + polygons["ordinal"].astype(str)).to_numpy()
    rows = np.flatnonzero(np.isin(ids, of_labels.index))
    outlines = of_labels["outline"].loc[ids[rows]].to_numpy()
    now = polygons.geometry.to_numpy()[rows]
    common = common_area(now, outlines)
    same = common > SAME_IOU * (shapely.area(now) + shapely.area(outlines) - common)
    there = np.zeros(len(polygons), bool)
    there[rows[same]] = True
    return polygons.assign(no_label=there | polygons.get("no_label", False))


def kept_by_hand(
    frame: gpd.GeoDataFrame,
    tiles: gpd.GeoDataFrame,
    aoi: shapely.Geometry | None,
    reviewed: Collection[str],
) -> Kept | None:
    """What a layer keeps of shapes by hand, as `usable_by_hand` returns them; None: there are none.

    `tiles` are those of the layer, `reviewed` are the ids of labels that stay anyway: a later
    review counts.
    """
    if not len(frame):
        return None
    crs = frame.crs
    columns = frame["id"], frame["class_id"], frame.geometry
    rows = [
        drawn_label(shape, int(number), tiles, crs, id)
        for id, number, shape in zip(*columns, strict=True)
    ]
    now = pd.concat(rows, ignore_index=True)
    there = now["source"].ne("").to_numpy(bool)  # in a tile of this run
    if aoi is not None:
        there = there & lies_in(now.geometry.to_numpy(), aoi)
    replaced = there & ~frame["outline"].is_empty.to_numpy(bool)
    before = now[replaced].set_geometry(frame["outline"][replaced].to_numpy(), crs=crs)
    there = there & ~now["id"].isin(list(reviewed)).to_numpy(bool)
    return Kept(now[there].reset_index(drop=True), before.reset_index(drop=True))
