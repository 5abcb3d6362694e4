"""Open a raster as a `Scene`: choose its working grid, bands, validity and stretch."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, Resampling

from workbench._support.secrets import without_secrets
from workbench.errors import SceneError, SettingError
from workbench.raster.bands import (
    Layers,
    choose_bands,
    horizontal,
    is_by_gcps,
    is_in,
    open_dataset,
    open_subset,
    source_layers,
    warp,
    without,
)
from workbench.raster.crs import (
    as_registered,
    crs_title,
    ground_scale,
    is_earth,
    is_metric,
    metric_crs,
    to_lonlat,
)
from workbench.raster.fingerprint import fingerprint_of
from workbench.raster.scene import Scene, Stretch
from workbench.raster.sources import (
    GDAL_ERRORS,
    absolute,
    cause,
    gdal_name,
    harmless,
    is_local,
    is_remote,
    is_url,
    patiently,
    refuse_description,
    refuse_impostors,
    signed,
)
from workbench.raster.stretch import choose_stretch, fill_value, is_eight_bit, sample
from workbench.raster.texts import head_of
from workbench.raster.web_tiles import is_map_service, is_web_tiles


def open_scene(
    source: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    stretch: Stretch | tuple[float, float] | None = None,
    crs: pyproj.CRS | str | int | None = None,
    resolution_m: float | None = None,
    nodata: float | None = None,
) -> Scene:
    """Decide how to read a raster; only a small sample of its pixels is read.

    Args:
        source: Path, URL or GDAL name.
        bands: Three 1-based numbers; None goes by colour interpretation.
        stretch: A `Stretch`, or a pair of percentiles; None is 2 and 98, for 8-bit data none.
            Taken from pixels at full resolution.
        crs: Projected, in metres; None keeps the raster's own if it is, else takes UTM (WGS 84).
        resolution_m: Ground metres per pixel at the scene's centre; None keeps the raster's.
        nodata: A value that means no data, besides what the file says; None finds one that stands
            far apart from all others.

    Returns:
        The scene on its working grid. One with damaged pixels, or nodata only, opens, too.

    Raises:
        SceneError: Not a readable raster with a place on Earth, or its picture would be of nearly
            one colour.

    Example:
        >>> rgb, valid = open_scene("ortho.tif").read(Window(0, 0, 512, 512))
    """
    address = signed(absolute(source))
    name = without_secrets(address)
    refuse_impostors(name)

    def attempt() -> Scene:
        if not is_local(name) and not is_map_service(name):
            with suppress(*GDAL_ERRORS):  # which opening it will tell better
                refuse_description(name, head_of(gdal_name(address)))
        with open_dataset(address) as dataset:
            return _plan(dataset, name, address, bands, stretch, crs, resolution_m, nodata)

    try:
        return patiently(address, attempt)
    except (*GDAL_ERRORS, CRSError) as error:
        remedy = (
            "Check the address, the network and the server, and try again."
            if is_remote(name)
            else "Check the file with gdalinfo, and copy, download or export it again."
        )
        raise SceneError(
            f"{name} cannot be read as a raster: {cause(error)}. {remedy}"
        ) from harmless(error)


def _plan(
    dataset: rasterio.DatasetReader,
    name: str,
    address: str,
    bands: Sequence[int] | None,
    stretch: Stretch | tuple[float, float] | None,
    crs: pyproj.CRS | str | int | None,
    resolution_m: float | None,
    nodata: float | None,
) -> Scene:
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise SceneError(
            f"{name} holds complex numbers ({dataset.dtypes[0]}). Take the magnitude first, for "
            'example: gdal_calc.py -A in.tif --calc="abs(A)" --type=Float32 --outfile=out.tif'
        )
    if dataset.count == 0:
        raise SceneError(_several(dataset, name))
    source_crs = crs_of(dataset, name)
    working_crs = _working_crs(dataset, name, source_crs, crs)
    alpha = _genuine_alpha(dataset)
    chosen = choose_bands(dataset, name, bands, alpha)
    layers = source_layers(dataset, chosen, alpha)
    # before any pixels: after a damaged block GDAL's error would be raised by whatever comes next
    fingerprint = fingerprint_of(dataset, name)
    nodata, limits = _nodata_and_stretch(layers, name, address, nodata, stretch)
    scene = Scene(
        source=name,
        name=_stem(name),
        crs=working_crs,
        transform=dataset.transform,
        width=dataset.width,
        height=dataset.height,
        bands=chosen,
        stretch=limits,
        alpha=alpha,
        warped=False,
        fingerprint=fingerprint,
        nodata=nodata,
        address="" if address == name else address,
    )
    if not is_in(dataset, working_crs):
        scene = _on_grid(scene, *_suggested_grid(layers, scene))
    elif not _is_north_up(dataset):
        scene = _on_grid(scene, *_upright_grid(dataset))
    else:  # drop the shear that rounding has left
        a, _, c, _, e, f = dataset.transform[:6]
        scene = replace(scene, transform=Affine(a, 0.0, c, 0.0, e, f))
    return scene if resolution_m is None else _on_grid(scene, *_square_grid(scene, resolution_m))


def _nodata_and_stretch(
    layers: Layers,
    name: str,
    address: str,
    nodata: float | None,
    stretch: Stretch | tuple[float, float] | None,
) -> tuple[float | None, Stretch | None]:
    """The value that means no data besides what the file says, and the stretch of the others."""
    if nodata is not None:
        with without(layers, address, nodata) as known:
            return nodata, choose_stretch(known, stretch, None, name)
    if layers.palette is not None or is_eight_bit(layers):
        return None, choose_stretch(layers, stretch, None, name)
    values = sample(layers)
    nodata = fill_value(values)
    if nodata is not None:
        values = values[:, ~(values == nodata).all(axis=0)]
    return nodata, choose_stretch(layers, stretch, values, name)


def _on_grid(scene: Scene, transform: Affine, width: int, height: int) -> Scene:
    if min(width, height) < 1:
        raise SceneError(
            f"{scene.source} covers no area on the map: north up it would have {width} × {height} "
            "pixels. Check its transform or its control points with gdalinfo."
        )
    return replace(scene, transform=transform, width=width, height=height, warped=True)


def _several(dataset: rasterio.DatasetReader, name: str) -> str:
    """Say which rasters a file holds."""
    tags = dataset.tags(ns="SUBDATASETS")
    lines = [
        f"  {each}  ({tags.get(f'SUBDATASET_{number}_DESC', '')})"
        for number, each in enumerate(dataset.subdatasets, 1)
    ]
    if not lines:
        return f"{name} has no bands. Export it again, or name another raster."
    more = [f"  and {len(lines) - 20} more (gdalinfo lists them)"] if len(lines) > 20 else []
    return (
        f"{name} holds several rasters ({len(lines)}). Name one of them as source:\n"
        + "\n".join([*lines[:20], *more])
    )


def _stem(name: str) -> str:
    layer = re.search(r"[?&,]layers?=([^,&|]+)", name, re.IGNORECASE)
    if is_map_service(name) and layer is not None:
        return re.sub(r"[^\w.-]+", "_", layer[1]).strip("._") or "scene"
    if not (is_local(name) or is_url(name) or name.startswith("/vsi")):
        # a driver, a file and what is in it: GPKG:/data/two.gpkg:a becomes two_a
        words = [word for word in re.split(r'[:"]+', name)[1:] if word]
        stems = [Path(word).stem if "." in word else word for word in words]
        return re.sub(r"[^\w.-]+", "_", "_".join(stems)).strip("._") or "scene"
    if is_web_tiles(name):
        return re.sub(r"^https?://|[/:{?].*$", "", name.replace("{s}.", "")) or "scene"
    path = re.sub(r"[?#].*$", "", name) if is_url(name) else name
    # a leading dot would hide the files that are named after the scene
    return Path(path).stem.lstrip(".") or "scene"


def crs_of(dataset: rasterio.DatasetReader, name: str) -> pyproj.CRS:
    """The CRS of the raster's transform or ground control points, checked to be on Earth."""
    gcps, gcp_crs = dataset.gcps
    found = gcp_crs if is_by_gcps(dataset) and gcp_crs else dataset.crs
    if not found:
        how = f"gdal_edit.py -a_srs EPSG:… {name}"
        if not is_local(name):
            how = f"gdal_translate -a_srs EPSG:… '{name}' with_crs.tif"
        raise SceneError(f"{name} has no CRS. If you know it, write it in: {how}")
    if dataset.transform == Affine.identity() and not gcps:
        remedy = (
            "Orthorectify it first (gdalwarp -rpc)."
            if dataset.rpcs
            else "Add a world file beside it, or georeference it (QGIS Georeferencer)."
        )
        raise SceneError(f"{name} has no transform: where its pixels lie is not known. {remedy}")
    if dataset.transform.is_degenerate:
        raise SceneError(
            f"{name} has a transform without area ({dataset.transform[:6]}). Export it again as a "
            "georeferenced file, or georeference it (QGIS Georeferencer)."
        )
    try:
        crs = pyproj.CRS.from_wkt(found.to_wkt())
    except CRSError as error:
        raise SceneError(
            f"{name} has a CRS that PROJ does not understand ({cause(error)}). Write a known one "
            f"in: gdal_edit.py -a_srs EPSG:… {name}"
        ) from error
    crs = horizontal(crs)
    if crs.ellipsoid is None or crs.is_engineering:
        raise SceneError(
            f"{name} is in a local CRS ({crs.name}) with no known place on Earth. Georeference it, "
            f"or write the right CRS in: gdal_edit.py -a_srs EPSG:… {name}"
        )
    if not is_earth(crs):
        raise SceneError(
            f"{name} is not on Earth: the ellipsoid of its CRS ({crs.name}) has a radius of "
            f"{crs.ellipsoid.semi_major_metre / 1000:.0f} km. Only Earth imagery is supported."
        )
    return as_registered(crs)


def _working_crs(
    dataset: rasterio.DatasetReader,
    name: str,
    source_crs: pyproj.CRS,
    crs: pyproj.CRS | str | int | None,
) -> pyproj.CRS:
    x, y = _outline(dataset)
    lon, lat = to_lonlat(source_crs, x, y)
    centre_lon, centre_lat = float(lon[0]), float(lat[0])
    if not np.isfinite([centre_lon, centre_lat]).all():
        raise SceneError(
            f"{name}: its centre ({x[0]:.6g}, {y[0]:.6g}) lies outside what its CRS "
            f"({source_crs.name}) can map. Check its CRS and transform."
        )
    if crs is not None:
        try:
            wanted = as_registered(pyproj.CRS.from_user_input(crs))
        except CRSError as error:
            raise SettingError(
                f"crs: {crs!r} is not a CRS that PROJ knows ({cause(error)}). Use a code, for "
                "example EPSG:32633, or leave crs out."
            ) from error
        if not is_metric(wanted):
            usual = metric_crs(source_crs, centre_lon, centre_lat)
            raise SettingError(
                f"crs: {crs_title(wanted)} is not projected in metres. Choose one that is, for "
                f"example {crs_title(usual)}."
            )
        if not is_earth(wanted):
            raise SettingError(
                f"crs: {crs_title(wanted)} is not on Earth. Choose one that is, or leave crs out."
            )
        _refuse_foreign(name, wanted, source_crs, centre_lon, centre_lat)
        return wanted
    working = metric_crs(source_crs, centre_lon, centre_lat)
    # UTM stretches ground by 15 % at 30° from its meridian and folds up beyond 80°
    away = np.abs((lon[np.isfinite(lon)] - centre_lon + 180) % 360 - 180)
    if not is_metric(source_crs) and abs(centre_lat) < 80 and away.max() > 25:
        raise SceneError(
            f"{name} spans more than 50° of longitude: too wide for {working.name}, the metric CRS "
            "at its centre. Cut it, or choose a projected CRS in metres, for example "
            "crs=EPSG:6933."
        )
    return working


def _refuse_foreign(
    name: str, wanted: pyproj.CRS, source_crs: pyproj.CRS, lon: float, lat: float
) -> None:
    """Refuse a CRS of another datum outside the area it was made for.

    There GDAL and PROJ fall back to different datum shifts, so that imagery and exported polygons
    would be some 200 m apart (Swiss LV95 in Munich). Within one datum there is no shift.
    """
    area, datums = wanted.area_of_use, [_datum_of(crs) for crs in (wanted, source_crs)]
    if area is None or datums[0] == datums[1]:
        return
    # the east of an area that crosses the antimeridian is smaller than its west
    span = area.east - area.west
    inside = span >= 360 or (lon - area.west) % 360 <= span % 360
    if not (inside and area.south <= lat <= area.north):
        raise SettingError(
            f"crs: {crs_title(wanted)} is made for {area.name}, but {name} lies at {lat:.2f}° N, "
            f"{lon:.2f}° E. Choose a CRS for that place, for example "
            f"{crs_title(metric_crs(pyproj.CRS.from_epsg(4326), lon, lat))}. Rasters that are far "
            "apart need a job each."
        )


def _datum_of(crs: pyproj.CRS) -> str:
    geodetic = crs.geodetic_crs
    name = geodetic.datum.name if geodetic and geodetic.datum else ""
    # "World Geodetic System 1984" and its ensemble, "WGS_1984" in WKT 1
    wgs84 = name.startswith(("World Geodetic System 1984", "WGS"))
    return "WGS 84" if wgs84 else name


def _outline(dataset: rasterio.DatasetReader) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map coordinates of the raster's centre, corners and mid-edges, or of its control points."""
    if is_by_gcps(dataset):
        points = np.array([(gcp.x, gcp.y) for gcp in dataset.gcps[0]], np.float64)
        x, y = np.vstack([points.mean(axis=0), points]).T
        return x, y
    column = np.array([1, 0, 1, 2, 0, 2, 0, 1, 2]) * dataset.width / 2
    row = np.array([1, 0, 0, 0, 1, 1, 2, 2, 2]) * dataset.height / 2
    x, y = dataset.transform @ (column, row)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _is_north_up(dataset: rasterio.DatasetReader) -> bool:
    a, b, _, d, e, _ = dataset.transform[:6]
    # shear that moves no pixel of the raster by a hundredth of one is rounding
    sheared = abs(b * dataset.height) > 0.01 * abs(a) or abs(d * dataset.width) > 0.01 * abs(e)
    return a > 0 and e < 0 and not sheared


def _upright_grid(dataset: rasterio.DatasetReader) -> tuple[Affine, int, int]:
    """A north-up grid in the raster's own CRS around a flipped or turned one."""
    a, b, _, d, e, _ = dataset.transform[:6]
    x, y = _outline(dataset)
    if b == d == 0:
        across, down = abs(a), abs(e)  # only flipped: the same pixels, in another order
    else:
        across = down = float(np.sqrt(abs(dataset.transform.determinant)))
    width, height = np.ptp(x) / across, np.ptp(y) / down
    transform = Affine(across, 0.0, float(x.min()), 0.0, -down, float(y.max()))
    return transform, int(np.ceil(width - 1e-6)), int(np.ceil(height - 1e-6))


def _suggested_grid(layers: Layers, scene: Scene) -> tuple[Affine, int, int]:
    """The north-up grid that GDAL suggests in the scene's CRS: square pixels of like size."""
    with (
        open_subset(layers, scene.opened_as, scene.nodata) as subset,
        warp(subset, scene.crs, Resampling.nearest) as warped,
    ):
        return warped.transform, warped.width, warped.height


def _square_grid(scene: Scene, resolution_m: float) -> tuple[Affine, int, int]:
    """A grid of square pixels of `resolution_m` ground metres at the scene's centre."""
    if not resolution_m > 0:
        raise SettingError(f"resolution_m must be above 0, not {resolution_m}.")
    left, bottom, right, top = scene.bounds
    areal = float(ground_scale(scene.crs, (left + right) / 2, (bottom + top) / 2)[2])
    size = resolution_m / np.sqrt(areal)
    # rounded, not up: a last column that is mostly outside would be mostly invalid
    width = max(1, round((right - left) / size))
    height = max(1, round((top - bottom) / size))
    if max(width, height) >= 2**31:
        raise SceneError(
            f"{scene.source}: {width} × {height} pixels at resolution_m {resolution_m} are more "
            "than GDAL can handle. Choose a coarser resolution."
        )
    return Affine(size, 0.0, left, 0.0, -size, top), width, height


def _genuine_alpha(dataset: rasterio.DatasetReader) -> int | None:
    """The band that is a real alpha, 1-based, if there is one.

    NAIP and others have near infrared as a fourth band, which a converter may have tagged as alpha.
    Read as a mask it would hide water. A real alpha is off or on nearly everywhere, except at
    feathered edges: in 99.9 % of the pixels and more. Near infrared is so in 0.004 % of the pixels
    of a NAIP chip. "On" is the largest value present, because 16-bit files may use 255.
    """
    tagged = [i + 1 for i, tag in enumerate(dataset.colorinterp) if tag == ColorInterp.alpha]
    if dataset.driver in ("WMS", "WMTS"):  # made by GDAL, and looking would fetch a lot
        return tagged[0] if tagged else None
    for band in tagged:
        values = sample(Layers(dataset, (band, band, band)))[0]
        if values.size == 0 or np.isin(values, (0, values.max())).mean() > 0.9:
            return band
    return None
