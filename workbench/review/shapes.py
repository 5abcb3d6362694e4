"""What is wrong with reviewed shapes: a layer that shows where, and safe fixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.layer.files import write_gpkg_layer
from workbench.polygons.clean import only_polygons, regroup
from workbench.polygons.overlap import common_area, holds, iou
from workbench.raster.crs import ground_area_m2

DUPLICATE_IOU = 0.9
_UNDER = 0.999  # pixels; a gap of a whole pixel is one that the model saw
_GAP_LENGTH = 2  # pixels; shorter gaps are corners between two labels
_GAP_WIDTH = 1e-4  # pixels; thinner gaps are rounding


@dataclass(frozen=True)
class _Issue:
    kind: str
    rows: tuple[int, ...]
    what: str
    place: shapely.Geometry | None
    fix: str | None = None
    mends: int | None = None  # the row whose shape the fix changes


def find_issues(labels: gpd.GeoDataFrame, pixel: float, *, planar: bool) -> gpd.GeoDataFrame:
    """List what is wrong with reviewed labels, rejected ones left out.

    `labels` is what `read_reviewed` gives. `pixel` is the side of a pixel in map units, the
    smallest if there are several scenes. Thinner parts are slivers. Thinner spaces are gaps, if one
    of the two labels is edited; in a `planar` layer they always are. Overlaps count if neither
    label holds the other; in a planar layer they always count. Pairs that nobody has touched are
    left out.

    Columns: `kind` (`empty`, `invalid`, `unclosed`, `duplicate`, `overlap`, `sliver`, `gap`),
    `labels` (ids), `fids` (as QGIS shows them), `area_m2` of the geometry, `what`, and `fix`, which
    is null if a person must decide. The geometry is the place. A fix changes the label with the id
    `mends` and the fid `mends_fid` (a label that was split has its id twice); `mended` is that
    label after all of its fixes.
    """
    labels = labels[labels["status"] != "rejected"].reset_index(drop=True)
    shape = labels.geometry.to_numpy()
    valid = shapely.is_valid(shape)
    sound = shape.copy()
    sound[~valid] = only_polygons(shapely.make_valid(shape[~valid], method="structure"))
    issues = [
        _Issue("empty", (i,), "has no polygon", None, "delete it")
        for i in np.flatnonzero(shapely.is_empty(shape)).tolist()
    ]
    for i in np.flatnonzero(~valid).tolist():
        reason = shapely.is_valid_reason(shape[i])
        issues.append(_Issue("invalid", (i,), reason, sound[i], "make valid", i))
    for i in np.flatnonzero(labels["unclosed"] & ~shapely.is_empty(shape)).tolist():
        what = "a ring does not end where it starts in the file"
        issues.append(_Issue("unclosed", (i,), what, sound[i], "close the ring", i))
    parts, of = shapely.get_parts(sound, return_index=True)
    thin = shapely.is_empty(shapely.buffer(parts, -pixel / 2))
    touched = labels["status"].isin(["accepted", "edited"]).to_numpy()
    mended = sound.copy()
    for k in np.flatnonzero(thin & touched[of]):
        i = int(of[k])
        kept = parts[(of == i) & ~thin]
        fix = ("drop this part", i) if len(kept) else (None, None)
        if len(kept):
            mended[i] = shapely.multipolygons(kept)
        issues.append(_Issue("sliver", (i,), "a part thinner than a pixel", parts[k], *fix))
    i, j = shapely.STRtree(sound).query(sound, predicate="dwithin", distance=pixel)
    once = (i < j) & (touched[i] | touched[j])
    i, j = i[once], j[once]
    ids = labels["id"].to_numpy(object)
    issues += _overlaps(sound, ids, pixel, i, j, planar)
    edited = (labels["status"] == "edited").to_numpy()
    either = planar | edited[i] | edited[j]
    issues += _gaps(sound, pixel, i[either], j[either])
    whole = mended.copy()  # so that the order of the issues does not matter
    for issue in issues:
        if issue.kind == "overlap" and issue.mends is not None:
            (other,) = set(issue.rows) - {issue.mends}
            mended[issue.mends] = shapely.difference(mended[issue.mends], whole[other])
    return _as_layer(issues, labels, mended)


def _overlaps(
    shape: NDArray[np.object_],
    ids: NDArray[np.object_],
    pixel: float,
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    planar: bool,
) -> Iterator[_Issue]:
    """Find duplicates and overlaps among pairs; the smaller label keeps a narrow overlap."""
    areas, common = shapely.area(shape), common_area(shape[i], shape[j])
    alike = iou(common, areas[i], areas[j])
    fair = holds(common, areas[i], areas[j]) & (not planar)
    for k in np.flatnonzero((common > 0) & ((alike >= DUPLICATE_IOU) | ~fair)).tolist():
        rows = (int(i[k]), int(j[k]))
        shared = shapely.intersection(*shape[list(rows)])
        if alike[k] >= DUPLICATE_IOU:
            what = f"the same object twice (IoU {alike[k]:.2f})"
            yield _Issue("duplicate", rows, what, shared)
            continue
        fix: tuple[str | None, int | None] = (None, None)
        if shapely.is_empty(shapely.buffer(shared, -pixel / 2)):
            large = rows[1] if areas[rows[0]] <= areas[rows[1]] else rows[0]
            fix = f"cut it off {ids[large]}", large
        yield _Issue("overlap", rows, "two labels overlap", shared, *fix)


def _gaps(
    shape: NDArray[np.object_], pixel: float, i: NDArray[np.int64], j: NDArray[np.int64]
) -> Iterator[_Issue]:
    """Find spaces between two labels that are thinner than a pixel and belong to no other label."""
    rows = np.unique([i, j])
    uneven = np.zeros(len(shape), bool)  # a quick test: most neighbours share their edge exactly
    edges = shapely.coverage_invalid_edges(shape[rows], gap_width=_UNDER * pixel)
    uneven[rows] = ~shapely.is_empty(edges)
    maybe = uneven[i] & uneven[j]
    i, j = i[maybe], j[maybe]
    # only around the place where they meet, because labels may be large
    low = np.maximum(shapely.bounds(shape[i]), shapely.bounds(shape[j]))[:, :2] - 2 * pixel
    high = np.minimum(shapely.bounds(shape[i]), shapely.bounds(shape[j]))[:, 2:] + 2 * pixel
    here = shapely.box(*low.T, *high.T)
    one, other = shapely.intersection(shape[i], here), shapely.intersection(shape[j], here)
    # closing fills narrow spaces; those that closing one label alone fills do not lie between two
    gap = _closed(shapely.union(one, other), pixel)
    gap = shapely.difference(shapely.difference(gap, _closed(one, pixel)), _closed(other, pixel))
    gap = _long_parts(gap, pixel)
    k, third = shapely.STRtree(shape).query(gap, predicate="intersects")
    for pair in np.unique(k):
        gap[pair] = shapely.difference(gap[pair], shapely.union_all(shape[third[k == pair]]))
    gap = _long_parts(gap, pixel)
    for pair in np.flatnonzero(~shapely.is_empty(gap)):
        both = (int(i[pair]), int(j[pair]))
        yield _Issue("gap", both, "less than a pixel between two labels", gap[pair])


def _long_parts(gap: NDArray[np.object_], pixel: float) -> NDArray[np.object_]:
    """Leave out the parts of gaps that are only a corner or rounding."""
    parts, row = shapely.get_parts(gap, return_index=True)
    length = shapely.length(parts) / 2
    real = (length > _GAP_LENGTH * pixel) & (shapely.area(parts) > _GAP_WIDTH * pixel * length)
    return regroup(parts[real], row[real], len(gap))


def _closed(shape: NDArray[np.object_], pixel: float) -> NDArray[np.object_]:
    reach = _UNDER * pixel / 2
    # mitred, so that right angles stay right
    grown = shapely.buffer(shape, reach, join_style="mitre", mitre_limit=1.5)
    closed: NDArray[np.object_] = shapely.buffer(grown, -reach, join_style="mitre", mitre_limit=1.5)
    return closed


def _as_layer(
    issues: Sequence[_Issue], labels: gpd.GeoDataFrame, mended: NDArray[np.object_]
) -> gpd.GeoDataFrame:
    crs, ids, fids = labels.crs, labels["id"].to_numpy(object), labels["fid"].to_numpy()
    place = only_polygons(np.array([issue.place for issue in issues], object))
    place[shapely.is_empty(place)] = None
    changed = [issue.mends for issue in issues]
    layer = gpd.GeoDataFrame(
        {
            "kind": [issue.kind for issue in issues],
            "labels": [", ".join(str(ids[i]) for i in issue.rows) for issue in issues],
            "fids": [", ".join(str(fids[i]) for i in issue.rows) for issue in issues],
            "area_m2": ground_area_m2(place, crs) if len(issues) else np.empty(0),
            "what": [issue.what for issue in issues],
            "fix": [issue.fix for issue in issues],
            "mends": [None if i is None else ids[i] for i in changed],
            "mends_fid": pd.array([None if i is None else fids[i] for i in changed], "Int64"),
        },
        geometry=gpd.GeoSeries(place, crs=crs),
    )
    whole = only_polygons(np.array([None if i is None else mended[i] for i in changed], object))
    whole[shapely.is_empty(whole)] = None
    return layer.assign(mended=gpd.GeoSeries(whole, layer.index, crs=crs))


def write_issues(issues: gpd.GeoDataFrame, path: Path) -> None:
    """Write `issues` as a GeoPackage, with the labels that fixes change as its layer `mended`.

    Each of these labels is there once, with its id and fid, all of its fixes, and its new shape.
    """
    fixes = issues[issues["mended"].notna()].groupby("mends_fid")
    mended = gpd.GeoDataFrame(
        {
            "label_fid": pd.array(list(fixes.groups), "int64"),
            "id": fixes["mends"].first().to_list(),
            "fix": ["; ".join(one["fix"].unique()) for _, one in fixes],
        },
        geometry=gpd.GeoSeries(fixes["mended"].first().to_list(), crs=issues.crs),
    )
    with atomic_path(path) as temporary:
        for name, layer in (("issues", issues.drop(columns="mended")), ("mended", mended)):
            write_gpkg_layer(layer, temporary, name, "MultiPolygon")
