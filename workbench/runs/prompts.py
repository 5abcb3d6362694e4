"""Prompts from a vector file: its features are read, and files that cannot be used are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.secrets import without_secrets
from workbench.errors import JobError
from workbench.layer.schema import ANSWER, COLUMNS, GEOMETRY_COLUMN, LABELS
from workbench.polygons.areas import lies_in, middle_of
from workbench.raster.crs import crs_title
from workbench.raster.scene import Scene
from workbench.raster.vectors import read_vectors

KINDS = {"Point": "points", "Polygon": "polygons", "MultiPolygon": "polygons"}
# why a feature is not a prompt
NO_SHAPE, OUTSIDE, OUTSIDE_AOI = "no shape", "outside the rasters", "outside the area"
_TAKEN = {name.lower() for name in (*COLUMNS, *ANSWER, "geometry", GEOMETRY_COLUMN, "fid", "crs")}


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """The features of a vector file, in the working CRS.

    `frame` has all of them with their attributes, polygons mended; its index is their `fid`.
    `why_not` `(n,)` says why a feature is not a prompt; it is empty for those that are.
    """

    frame: gpd.GeoDataFrame
    why_not: NDArray[np.object_]

    @property
    def shapes(self) -> NDArray[np.object_]:
        """The shape of each feature."""
        return self.frame.geometry.to_numpy()

    @property
    def asked(self) -> NDArray[np.intp]:
        """The rows of the features that are prompts."""
        return np.flatnonzero(self.why_not == "")

    @property
    def are_points(self) -> bool:
        """Whether they are points, which have no shape of their own."""
        return bool((shapely.get_dimensions(self.shapes[self.asked]) == 0).all())

    @property
    def class_id(self) -> pd.Series | None:
        """The class of each feature, nullable; None if the file has no `class_id`."""
        return self.frame["class_id"].astype("Int64") if "class_id" in self.frame else None

    def attributes(self) -> pd.DataFrame:
        """All columns of the file but the class, named and typed for the layer.

        A name that the layer already has gets the prefix `prompt_`. Whole numbers and truth values
        are nullable, since labels without a prompt have none.
        """
        columns: dict[str, pd.Series] = {}
        taken = set(_TAKEN)
        for name, values in self.frame.drop(columns=self.frame.geometry.name).items():
            if name == "class_id":
                continue
            new = str(name)
            while new.lower() in taken:
                new = f"prompt_{new}"
            taken.add(new.lower())
            columns[new] = _nullable(values)
        return pd.DataFrame(columns, index=self.frame.index)


def read_prompts(
    path: str | Path,
    scenes: Sequence[Scene],
    aoi: gpd.GeoSeries | None = None,
    classes: Mapping[int, str] | None = None,
) -> PromptFeatures:
    """Read points or polygons (boxes are polygons) with their attributes, in the scenes' CRS.

    A feature is a prompt if its representative point lies in a scene and in the AOI.

    Raises:
        JobError: No feature is left, the file does not hold points or polygons with a CRS, or a
            `class_id` is not among `classes`.
    """
    what = f"Parameter `prompts`: {without_secrets(str(path))}"
    # the GeoPackage of a run folder also holds tiles: read its labels
    frame = read_vectors(str(path), what, JobError, layer=LABELS)
    if not frame.index.is_unique:  # a GeoParquet may have any index
        frame = frame.reset_index(drop=True)
    if classes is not None and "class_id" in frame:
        frame = frame.assign(class_id=_classes(what, frame["class_id"], classes))
    shapes = frame.geometry.to_numpy()
    has_shape = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    if not has_shape.any():
        raise JobError(f"{what} has no features with a shape. Give points, boxes or polygons.")
    _refuse_other_kinds(what, shapes[has_shape])
    placed = frame.to_crs(scenes[0].crs)
    shapes = _mended(placed.geometry.to_numpy())
    has_shape &= ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    has_shape &= np.isfinite(shapely.bounds(shapes)).all(axis=1)  # a place that the CRS cannot show
    if not has_shape.any():
        raise JobError(
            f"{what} has no features with a shape in {crs_title(scenes[0].crs)}, the CRS of the "
            "raster: they enclose no area, or lie where it cannot show them. Check them in QGIS."
        )
    inside = np.zeros(len(frame), bool)
    rows = np.flatnonzero(has_shape)
    for scene in scenes:
        inside[rows] |= lies_in(shapes[rows], shapely.box(*scene.bounds))
    if not inside.any():
        bounds = shapely.total_bounds(shapes[has_shape])
        others = f" or {len(scenes) - 1} other rasters" if len(scenes) > 1 else ""
        raise JobError(
            f"{what} has no feature inside {Path(scenes[0].source).name}{others}: its bounds are "
            f"{_bounds(bounds)}, the raster's are {_bounds(scenes[0].bounds)}, both in "
            f"{crs_title(scenes[0].crs)}. Check the CRS of the file."
        )
    why_not = np.where(has_shape, np.where(inside, "", OUTSIDE), NO_SHAPE).astype(object)
    if aoi is not None:
        rows = np.flatnonzero(inside)
        wanted = shapely.union_all(aoi.to_crs(scenes[0].crs).to_numpy())
        why_not[rows[~lies_in(shapes[rows], wanted)]] = OUTSIDE_AOI
        if not (why_not == "").any():
            raise JobError(
                f"{what} has {len(rows)} features inside the rasters, but none inside aoi. Choose "
                "a larger area, or leave aoi null."
            )
    return PromptFeatures(placed.set_geometry(shapes, crs=scenes[0].crs), why_not)


def middles(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """The representative point of each shape `(n,)`, as `(n, 2)`."""
    return shapely.get_coordinates(middle_of(shapes))


def _refuse_other_kinds(what: str, shapes: NDArray[np.object_]) -> None:
    if shapely.has_z(shapes).any():
        raise JobError(
            f"{what} has 3D shapes. Save it without heights, for example with "
            "`ogr2ogr -dim XY out.gpkg in.gpkg`."
        )
    types = {shapely.GeometryType(number).name for number in np.unique(shapely.get_type_id(shapes))}
    kinds = {kind.upper(): what for kind, what in KINDS.items()}
    if unknown := sorted(types - set(kinds)):
        other = next(shape.geom_type for shape in shapes if shape.geom_type.upper() == unknown[0])
        raise JobError(f"{what} has a {other}. Give only points, or only boxes and polygons.")
    if len({kinds[kind] for kind in types}) > 1:
        raise JobError(
            f"{what} mixes points and polygons. Save them as two files and run two jobs."
        )


def _mended(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Make polygons valid: a bow tie has no area to compare with."""
    broken = np.flatnonzero(~(shapely.is_valid(shapes) | shapely.is_missing(shapes)))
    if len(broken):
        shapes = shapes.copy()
        mended = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
        shapes[broken] = mended
    return shapes


def _classes(what: str, values: pd.Series, classes: Mapping[int, str]) -> pd.Series:
    """The classes of features as whole numbers, all of them among the job's."""
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values[values.notna() & (numbers.isna() | (numbers % 1 != 0))]
    if len(wrong):
        raise JobError(
            f"{what} has class_id {wrong.iloc[0]!r}, which is not a whole number. Mend the column, "
            "or rename it if it means something else."
        )
    unknown = sorted({int(number) for number in numbers.dropna().unique()} - set(classes))
    if unknown:
        raise JobError(
            f"{what} has class_id {unknown[0]}, which is not one of classes {dict(classes)}. Add "
            "it to `classes`, or rename the column if it means something else."
        )
    return numbers.astype("Int64")


def _nullable(values: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(values):
        return values.astype("boolean")
    if pd.api.types.is_integer_dtype(values):
        return values.astype("Int64")
    if pd.api.types.is_float_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return values
    return values.map(_as_text).astype("string")


def _as_text(value: Any) -> str | None:
    missing = value is None or (pd.api.types.is_scalar(value) and pd.isna(value))
    return None if missing else str(value)


def _bounds(bounds: Sequence[float] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.7g}" for value in bounds) + ")"
