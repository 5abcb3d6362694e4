"""What is wrong with reviewed shapes, as a layer that says where, and how to mend what is safe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from workbench.atomic import atomic_path
from workbench.crs import ground_area_m2

DUPLICATE_IOU = 0.9
HOLDS = 0.95  # of the smaller one: a part on its whole, which is in order unless planar
COLUMNS = ("kind", "labels", "area_m2", "what", "fix", "mends")
_Row = tuple[
    str, str, float, str, str | None, str | None, shapely.Geometry | None, shapely.Geometry | None
]


def find_issues(labels: gpd.GeoDataFrame, pixel: float, *, planar: bool) -> gpd.GeoDataFrame:
    """List what is wrong with reviewed labels; rejected ones are left out.

    `labels` is what `read_reviewed` gives, `pixel` the side of a pixel in map units: what is
    thinner is a sliver, or a gap between labels of which one is edited (in a `planar` layer: any).
    Overlaps count where neither label holds the other, or in a planar layer always; pairs that
    nobody has touched are left out. Columns: `kind` (`empty`, `invalid`, `unclosed`, `duplicate`,
    `overlap`, `sliver`, `gap`), `labels` (ids), `area_m2` of the geometry, `what`, `fix`, null
    where a person must decide, and `mends`, the id of the label that the fix changes. The geometry
    is the place; `mended` is the whole label as this fix leaves it, None without one.
    """
    labels = labels[labels["status"] != "rejected"].reset_index(drop=True)
    shape, ids = labels.geometry.to_numpy(), labels["id"].to_numpy(object)
    valid = shapely.is_valid(shape)
    sound = np.where(valid, shape, shapely.make_valid(shape, method="structure"))
    rows: list[_Row] = [
        ("empty", ids[i], 0.0, "has no polygon", "delete it", None, None, None)
        for i in np.flatnonzero(shapely.is_empty(shape))
    ]
    for i in np.flatnonzero(~valid):
        reason = shapely.is_valid_reason(shape[i])
        rows.append(("invalid", ids[i], 0.0, reason, "make valid", ids[i], sound[i], sound[i]))
    for i in np.flatnonzero(labels["unclosed"] & ~shapely.is_empty(shape)):
        what = "a ring does not end where it starts in the file"
        rows.append(("unclosed", ids[i], 0.0, what, "close the ring", ids[i], sound[i], sound[i]))
    parts, of = shapely.get_parts(sound, return_index=True)
    thin = shapely.is_empty(shapely.buffer(parts, -pixel / 2))
    touched = labels["status"].isin(["accepted", "edited"]).to_numpy()
    for k in np.flatnonzero(thin & touched[of]):
        kept = parts[(of == of[k]) & ~thin]
        rest = shapely.multipolygons(kept) if len(kept) else None
        fix, mends = ("drop this part", ids[of[k]]) if len(kept) else (None, None)
        what = "a part thinner than a pixel"
        rows.append(("sliver", ids[of[k]], 0.0, what, fix, mends, parts[k], rest))
    edited = (labels["status"] == "edited").to_numpy()
    rows += _pairs(sound, ids, pixel, touched, edited, planar)
    return _as_layer(rows, labels.crs)


def _pairs(
    shape: NDArray[np.object_],
    ids: NDArray[np.object_],
    pixel: float,
    touched: NDArray[np.bool_],
    edited: NDArray[np.bool_],
    planar: bool,
) -> list[_Row]:
    i, j = shapely.STRtree(shape).query(shape, predicate="dwithin", distance=pixel)
    once = (i < j) & (touched[i] | touched[j])
    i, j = i[once], j[once]
    shared = shapely.intersection(shape[i], shape[j])
    area, areas = shapely.area(shared), shapely.area(shape)
    less = np.minimum(areas[i], areas[j])
    iou = area / (areas[i] + areas[j] - area)
    rows: list[_Row] = []
    for k in np.flatnonzero(area > 0):
        both = f"{ids[i[k]]}, {ids[j[k]]}"
        if iou[k] >= DUPLICATE_IOU:
            what = f"the same object twice (IoU {iou[k]:.2f})"
            rows.append(("duplicate", both, 0.0, what, None, None, shared[k], None))
        elif planar or area[k] < HOLDS * less[k]:
            narrow = shapely.is_empty(shapely.buffer(shared[k], -pixel / 2))
            small = i[k] if areas[i[k]] <= areas[j[k]] else j[k]
            large = i[k] + j[k] - small
            cut = shapely.difference(shape[large], shape[small]) if narrow else None
            fix, mends = (f"cut it off {ids[large]}", ids[large]) if narrow else (None, None)
            what = "two labels overlap"
            rows.append(("overlap", both, 0.0, what, fix, mends, shared[k], cut))
    near = np.flatnonzero(shapely.is_empty(shared) & (planar | edited[i] | edited[j]))
    # what both reach from either side, less what is theirs
    reach = shapely.intersection(
        shapely.buffer(shape[i[near]], pixel), shapely.buffer(shape[j[near]], pixel)
    )
    between = shapely.difference(shapely.difference(reach, shape[i[near]]), shape[j[near]])
    for k, gap in zip(near, between, strict=True):
        both = f"{ids[i[k]]}, {ids[j[k]]}"
        what = "less than a pixel between two labels"
        rows.append(("gap", both, 0.0, what, None, None, gap, None))
    return rows


def _as_layer(rows: Sequence[_Row], crs: object) -> gpd.GeoDataFrame:
    place = np.array([_polygons_of(row[-2]) for row in rows], object)
    layer = gpd.GeoDataFrame(
        {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS)},
        geometry=gpd.GeoSeries(place, crs=crs),
    )
    layer["area_m2"] = ground_area_m2(place, layer.crs) if len(rows) else np.empty(0)
    layer["mended"] = gpd.GeoSeries([_polygons_of(row[-1]) for row in rows], layer.index, crs=crs)
    return layer


def _polygons_of(shape: shapely.Geometry | None) -> shapely.MultiPolygon | None:
    if shape is None:
        return None
    parts = [p for p in shapely.get_parts(shapely.get_parts(shape)) if p.geom_type == "Polygon"]
    return shapely.MultiPolygon(parts) if parts else None


def write_issues(issues: gpd.GeoDataFrame, path: Path) -> None:
    """Write `issues`, and as layer `mended` each label as all its fixes leave it, as GeoPackage."""
    fixed = issues[issues["mended"].notna()].groupby("mends", sort=False)
    # a fix only takes away: what all of them leave is what each of them leaves
    shapes = [_polygons_of(shapely.intersection_all(one["mended"])) for _, one in fixed]
    mended = gpd.GeoDataFrame(
        {"id": list(fixed.groups), "fix": ["; ".join(one["fix"].unique()) for _, one in fixed]},
        geometry=gpd.GeoSeries(shapes, crs=issues.crs),
    )
    with atomic_path(path) as temporary:
        for name, layer in (("issues", issues.drop(columns="mended")), ("mended", mended)):
            pyogrio.write_dataframe(
                layer, temporary, layer=name, driver="GPKG", geometry_type="MultiPolygon",
                dataset_options={} if temporary.exists() else {"VERSION": "1.2"},
            )  # fmt: skip
