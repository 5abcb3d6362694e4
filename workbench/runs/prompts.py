"""Objects that are known already, as prompts: each feature of a vector file asks for one mask.

A window is put around each feature, so no mask is cut by a seam. Features that lie close together
share a window, because the window is the expensive part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from workbench.candidates.table import Candidates
from workbench.errors import JobError
from workbench.raster.crs import crs_title
from workbench.raster.scene import Scene

KINDS = {"Point": "points", "Polygon": "polygons", "MultiPolygon": "polygons"}


@dataclass(frozen=True, eq=False)
class PromptWindow:
    """A window of a scene, and the features that are asked for in it."""

    window: Window
    features: NDArray[np.intp]  # (n,), rows of the prompts
    points: NDArray[np.float64]  # (n, 2), XY, pixels of the window
    boxes: NDArray[np.float64] | None  # (n, 4), XYXY, pixels of the window; None for points


def read_prompts(path: str | Path, scenes: Sequence[Scene]) -> gpd.GeoDataFrame:
    """Read points or polygons (boxes are polygons) with their attributes, in the scenes' CRS.

    Features without a shape, and those outside all scenes, are left out; the index is the file's
    `fid`, where it has one. Raises `JobError` if none is left, and for anything that is not a file
    of points or of polygons with a CRS.
    """
    frame = _read(Path(path))
    shaped = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if shaped.empty:
        raise _refused(path, "has no features with a shape", "Give points, boxes or polygons.")
    if shaped.geometry.has_z.any():
        raise _refused(
            path,
            "has 3D shapes",
            "Save it without heights, for example with `ogr2ogr -dim XY out.gpkg in.gpkg`.",
        )
    types = set(shaped.geometry.geom_type)
    if unknown := types - set(KINDS):
        raise _refused(
            path, f"has a {sorted(unknown)[0]}", "Give only points, or only boxes and polygons."
        )
    if len({KINDS[kind] for kind in types}) > 1:
        raise _refused(
            path, "mixes points and polygons", "Save them as two files and run two jobs."
        )
    placed = shaped.to_crs(scenes[0].crs)
    inside = np.zeros(len(placed), bool)
    for scene in scenes:
        inside |= placed.intersects(shapely.box(*scene.bounds)).to_numpy()
    if not inside.any():
        raise _refused(
            path,
            f"has no feature inside {Path(scenes[0].source).name}"
            + (f" or {len(scenes) - 1} other rasters" if len(scenes) > 1 else "")
            + f": its bounds are {_bounds(placed.total_bounds)}, the raster's are "
            f"{_bounds(scenes[0].bounds)}, both in {crs_title(scenes[0].crs)}",
            "Check the CRS of the file.",
        )
    return placed[inside]


def windows_around(scene: Scene, prompts: gpd.GeoSeries, side: int) -> Iterator[PromptWindow]:
    """Group the prompts of a scene into windows of `side` pixels.

    The scene is divided into cells of half a window. Features whose middle is in a cell share the
    window around it. A feature that comes closer to its edges than an eighth has a window to
    itself, larger than `side` if it must be.
    """
    to_pixels = ~scene.transform
    shapes = shapely.transform(
        prompts.to_numpy(), lambda xy: np.column_stack(to_pixels @ (xy[:, 0], xy[:, 1]))
    )
    bounds = shapely.bounds(shapes)
    middles = (bounds[:, :2] + bounds[:, 2:]) / 2
    half, margin = side // 2, side // 8
    cells = np.floor(middles / half).astype(int)
    starts = cells * half - half // 2
    clear = np.hstack([bounds[:, :2] - starts, starts + side - bounds[:, 2:]])
    fits: NDArray[np.bool_] = np.all(clear >= margin, axis=1)
    longest = (bounds[:, 2:] - bounds[:, :2]).max(1)
    sides = np.maximum(side, np.ceil(longest * 4 / 3).astype(int))
    starts[~fits] = np.floor(middles[~fits] - sides[~fits, None] / 2)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(shapes)):
        alone = (side,) if fits[i] else (int(sides[i]), i)
        groups.setdefault((*starts[i, ::-1].tolist(), *alone), []).append(i)
    for (top, left, width, *_), members in sorted(groups.items()):
        rows = np.array(members)
        inner = shapely.get_coordinates(shapely.point_on_surface(shapes[rows]))
        boxes = None
        if (shapely.get_type_id(shapes[rows]) != shapely.GeometryType.POINT).all():
            boxes = bounds[rows] - np.tile((left, top), 2)
        yield PromptWindow(Window(left, top, width, width), rows, inner - (left, top), boxes)


def best_masks(
    found: Candidates, prompt: NDArray[np.int64], boxes: NDArray[np.float64] | None
) -> NDArray[np.intp]:
    """The row of the best mask of each prompt that has one, in the prompts' order.

    Best is the highest predicted IoU; with `boxes`, `(n, 4)`, times the IoU of the mask's box with
    that of its prompt. `prompt` says which prompt each of `found` is for.
    """
    scores = found.column("pred_iou").astype(np.float64)
    if boxes is not None:
        ours = shapely.box(*(found.boxes + (0, 0, 1, 1)).astype(np.float64).T)
        theirs = shapely.box(*boxes[prompt].T)
        scores *= shapely.area(shapely.intersection(ours, theirs))
        scores /= shapely.area(shapely.union(ours, theirs))
    order = np.lexsort((np.arange(len(scores)), -scores, prompt))
    _, first = np.unique(prompt[order], return_index=True)
    rows: NDArray[np.intp] = order[first]
    return rows


def _read(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise _refused(path, "does not exist", "Give a vector file of points, boxes or polygons.")
    try:
        frame = (
            gpd.read_parquet(path)
            if path.suffix == ".parquet"
            else gpd.read_file(path, fid_as_index=True)
        )
    except Exception as error:  # what is damaged fails anywhere in GDAL, GEOS and PROJ
        raise _refused(
            path, f"cannot be read as a vector file ({error})", "Open it in QGIS and export it."
        ) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise _refused(path, "has no shapes", "Give points, boxes or polygons.")
    if frame.crs is None:
        raise _refused(
            path,
            "has no CRS, so its place is unknown",
            "Save it with one, for example with `ogr2ogr -a_srs EPSG:32633 out.gpkg in.shp`.",
        )
    return frame


def _refused(path: str | Path, problem: str, remedy: str) -> JobError:
    return JobError(f"Parameter `prompts`: {path} {problem}. {remedy}")


def _bounds(bounds: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.7g}" for value in bounds) + ")"
