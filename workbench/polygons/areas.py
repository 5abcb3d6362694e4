"""Areas of polygons, the point that says where one lies, and polygons with any area."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from workbench.errors import WorkbenchError
from workbench.polygons.clean import only_polygons


def with_area(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows that have an area, mended, so that `match` numbers them as they stand."""
    geometry, row = only_polygonal(layer.geometry)
    return layer.iloc[row].set_geometry(geometry, crs=layer.crs)


def middle_of(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """The point of each polygon `(n,)` that says where it lies; it lies in the polygon itself."""
    return np.asarray(shapely.point_on_surface(geometry), object)


def lies_in(
    geometry: NDArray[np.object_], area: shapely.Geometry | NDArray[np.object_]
) -> NDArray[np.bool_]:
    """Whether the middle of each polygon `(n,)` lies in an area, or in its own of `(n,)` areas.

    Both are in one CRS. This decides whether a polygon belongs to an AOI, a labelled area or the
    core of a tile; it is kept whole then.
    """
    return np.asarray(shapely.intersects(area, middle_of(geometry)), bool)


def inside(layer: gpd.GeoDataFrame, area: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Keep the rows whose middle lies in an area, as that of the labels."""
    require_crs(layer, "predicted layer")
    return layer[lies_in(layer.geometry.to_numpy(), area_of(area, layer.crs))]


def area_of(within: gpd.GeoDataFrame, crs: CRS) -> shapely.Geometry:
    """Return a labelled area as one geometry in a CRS, mended and without lines and points.

    Raises `WorkbenchError` where its CRS is missing.
    """
    require_crs(within, "labelled area")
    return shapely.union_all(only_polygonal(within.geometry.to_crs(crs))[0])


def require_crs(layer: gpd.GeoDataFrame, name: str) -> None:
    """Refuse a layer without CRS; `name` says which layer."""
    if layer.crs is None:
        raise WorkbenchError(
            f"the {name} has no CRS, so it cannot be compared: "
            "say which one it is in with layer.set_crs(...)"
        )


def only_polygonal(geometry: gpd.GeoSeries) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the polygons that have an area, mended and without lines and points, and their rows.

    Parts of one row stay together, as one object.
    """
    mended = only_polygons(geometry.to_numpy())
    broken = ~shapely.is_valid(mended)  # a tenth of the time that mending takes
    mended[broken] = shapely.make_valid(mended[broken], method="structure", keep_collapsed=False)
    rows = np.flatnonzero(shapely.area(mended) > 0)
    return mended[rows], rows
