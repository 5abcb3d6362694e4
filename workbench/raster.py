"""Rasters as scenes: any CRS, layout and data type, read as metric, north-up RGB windows.

`open_scene` looks at a raster once and decides everything (working grid, bands, mask, stretch);
the `Scene` that it returns is a small value that any process or thread can read from.
"""

import glob
import hashlib
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyproj
import rasterio
import rasterio.windows
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from workbench.crs import ground_scale, is_earth, is_metric, metric_crs, to_lonlat
from workbench.errors import SceneError

_SAMPLE_PX = 1024  # longest side of the decimated read behind statistics
_SAMPLE_PERCENTILES = (2.0, 98.0)
_HANDLES_PER_THREAD = 8

_RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".j2k", ".img", ".ntf", ".ecw", ".sid", ".bil", ".asc"}
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # georeferenced only by a sidecar
_SIDECAR = re.compile(r"\.(msk|ovr|aux\.xml|[a-z]{2,4}w|wld|prj)$", re.IGNORECASE)

# what a URL is to GDAL; anything else with a scheme goes to GDAL as it is
_REMOTE = {
    "http://": "/vsicurl/http://",
    "https://": "/vsicurl/https://",
    "ftp://": "/vsicurl/ftp://",
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
    "az://": "/vsiaz/",
}
_REMOTE_FILE_SYSTEMS = (
    "/vsicurl/",
    "/vsis3/",
    "/vsigs/",
    "/vsiaz/",
    "/vsiadls/",
    "/vsioss/",
    "/vsiswift/",
)
_REMOTE_OPTIONS = {
    # stop GDAL from listing the bucket and asking for .aux, .msk and .ovr files at every opening;
    # never for local files, whose masks and overviews may well lie beside them
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "VSI_CACHE": "TRUE",
}

# some of GDAL's errors pass rasterio unwrapped; their base class has no public name
_GDAL_ERRORS = (RasterioError, CPLE_BaseError)

_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}


@dataclass(frozen=True)
class Stretch:
    """Per output band, the source values that become 0 and 255; linear between, clipped outside."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def apply(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        """`(3, …)` source values as uint8 of the same shape; what is not finite becomes 0."""
        shape = (3,) + (1,) * (raw.ndim - 1)
        # float32 would lose the last digits of 32-bit integers and of doubles
        exact = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        kind: type[np.floating[Any]] = np.float32 if exact else np.float64
        low: NDArray[Any] = np.array(self.low, kind).reshape(shape)
        span: NDArray[Any] = np.array(self.high, kind).reshape(shape) - low
        scaled = (raw.astype(kind) - low) * (255 / np.where(span > 0, span, 1))
        np.nan_to_num(scaled, copy=False)
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Scene:
    """A raster on its working grid: metric CRS, north-up, RGB uint8, with a validity mask.

    A plain value that can be pickled and compared; datasets are opened when first read from, once
    per thread, and closed by `close` or when the thread ends. `transform` maps working pixels to
    map units of `crs`. Pixels are square unless the source's own grid is kept (`warped` false).
    """

    source: str  # as the user names it: absolute path of a local file, else URL or GDAL name
    name: str
    crs: pyproj.CRS
    transform: Affine
    width: int
    height: int
    bands: tuple[int, int, int]  # 1-based; a grey raster repeats its band
    stretch: Stretch | None  # None: the values are 0..255 already
    alpha: int | None  # the band that is a genuine alpha, 1-based
    warped: bool  # read through a warp; else the working grid is the source's grid, bit for bit
    fingerprint: str  # changes when the raster's content does

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in map units."""
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (self.width, self.height)
        return left, bottom, right, top

    @property
    def pixel_m(self) -> float:
        """Side in ground metres of a (square) pixel at the scene's centre."""
        x, y = self.transform @ (self.width / 2, self.height / 2)
        areal = float(ground_scale(self.crs, x, y)[2])
        return float(np.sqrt(areal * abs(self.transform.a * self.transform.e)))

    @property
    def window(self) -> Window:
        """The window of the whole scene."""
        return Window(0, 0, self.width, self.height)

    def window_transform(self, window: Window) -> Affine:
        """From pixels of the window to map units."""
        return self.transform @ Affine.translation(window.col_off, window.row_off)

    def window_polygon(self, window: Window) -> shapely.Polygon:
        """The window's outline in map units."""
        transform = self.window_transform(window)
        left, top = transform @ (0, 0)
        right, bottom = transform @ (window.width, window.height)
        return shapely.box(left, bottom, right, top)

    def read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """RGB `(h, w, 3)` and validity `(h, w)` of a window of whole pixels.

        The window may reach outside the scene or miss it: what is outside is black and invalid,
        and invalid pixels are black. Raises SceneError where the file's blocks cannot be decoded.
        """
        left, top = int(window.col_off), int(window.row_off)
        width, height = int(window.width), int(window.height)
        rgb = np.zeros((height, width, 3), np.uint8)
        valid = np.zeros((height, width), np.bool_)
        columns = slice(max(left, 0), min(left + width, self.width))
        rows = slice(max(top, 0), min(top + height, self.height))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return rgb, valid
        inside = Window.from_slices(rows, columns)
        try:
            with _gdal_environment(self.source):
                layers = _layers_of(self)
                raw, inside_valid = _read(layers, inside)
        except _GDAL_ERRORS as error:
            raise SceneError(
                f"{self.source}: the pixels of rows {rows.start}–{rows.stop}, columns "
                f"{columns.start}–{columns.stop} of its working grid cannot be read: "
                f"{_cause(error)}. The file is damaged or incomplete there: copy or download it "
                "again."
            ) from error
        target = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        rgb[target], valid[target] = _render(raw, inside_valid, layers.palette, self.stretch)
        return rgb, valid

    def overview(self, max_px: int = 2048) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Affine]:
        """The whole scene at no more than `max_px` a side: RGB, validity, pixel-to-map transform.

        Parts that cannot be decoded are black and invalid.
        """
        factor = max(1.0, max(self.width, self.height) / max_px)
        shape = (max(1, round(self.height / factor)), max(1, round(self.width / factor)))
        with _gdal_environment(self.source):
            layers = _layers_of(self)
            # colours of a palette cannot be averaged by their index
            resampling = Resampling.nearest if layers.palette is not None else Resampling.average
            raw, valid = _read_decimated(layers, shape, resampling)
        rgb, valid = _render(raw, valid, layers.palette, self.stretch)
        scale = Affine.scale(self.width / shape[1], self.height / shape[0])
        return rgb, valid, self.transform @ scale

    def describe(self) -> dict[str, Any]:
        """What was decided about the raster, in plain values for YAML and JSON."""
        stretch = self.stretch
        return {
            "source": self.source,
            "name": self.name,
            "crs": self.crs.to_string(),
            "transform": [float(value) for value in self.transform[:6]],
            "width": self.width,
            "height": self.height,
            "pixel_m": round(self.pixel_m, 6),
            "bands": list(self.bands),
            "stretch": stretch and {"low": list(stretch.low), "high": list(stretch.high)},
            "alpha": self.alpha,
            "warped": self.warped,
            "fingerprint": self.fingerprint,
        }

    def close(self) -> None:
        """Close the datasets that this thread has opened for the scene; reading reopens them."""
        layers = _handles.by_scene.pop(_handle_key(self), None)
        if layers is not None:
            layers.close()


def open_scene(
    source: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    stretch: Stretch | tuple[float, float] | None = None,
    crs: pyproj.CRS | str | int | None = None,
    resolution_m: float | None = None,
) -> Scene:
    """Decide how a raster is read, and return it as a Scene; only a decimated sample is read.

    `bands`: three 1-based numbers; None goes by colour interpretation. `stretch`: a given one, a
    pair of percentiles to take of the valid pixels, or None for the data as it is where it is
    8-bit and the percentiles 2 and 98 elsewhere. `crs`: projected and in metres; None keeps the
    raster's own if it is that and takes UTM (WGS 84) if not. `resolution_m`: ground metres per
    pixel at the scene's centre; None keeps the raster's.

    Raises SceneError, naming file, cause and remedy, for whatever is not a readable raster with a
    place on Earth. A raster whose pixels are damaged or all nodata opens.
    """
    name = _absolute(source)
    _refuse_impostors(name)
    try:
        with _gdal_environment(name), _open(gdal_name(name)) as dataset:
            return _plan(dataset, name, bands, stretch, crs, resolution_m)
    except (*_GDAL_ERRORS, CRSError) as error:
        raise SceneError(
            f"{name} cannot be read as a raster: {_cause(error)}. Check the file with gdalinfo, "
            "and copy, download or export it again."
        ) from error


def find_sources(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The rasters that a path, list, glob, directory, VRT or URL stands for.

    Absolute paths and URLs, each once; sorted within a glob or directory, a list keeps its order.
    A directory stands for the raster files directly in it; its VRTs only count if there is nothing
    else, since they usually mosaic the files beside them. Nothing found is a SceneError.
    """
    if not isinstance(source, str | os.PathLike):
        found = [path for each in source for path in find_sources(each)]
        if not found:
            raise SceneError("The list of rasters is empty. Name at least one raster.")
        return list(dict.fromkeys(found))
    name = _absolute(source)
    if not _is_local(name):
        return [name]
    if os.path.isdir(name):
        return _rasters_in(Path(name))
    if os.path.exists(name) or not glob.has_magic(name):
        _refuse_missing(name)
        return [name]
    found = sorted(
        path
        for path in glob.glob(name, recursive=True)
        if os.path.isfile(path) and not _SIDECAR.search(path)
    )
    if not found:
        raise SceneError(
            f"No raster matches {name}. Check the pattern; relative ones start at {os.getcwd()}."
        )
    return found


# ---- what the user names --------------------------------------------------------------------


def _absolute(source: str | os.PathLike[str]) -> str:
    name = os.fspath(source).removeprefix("file://")
    return os.path.abspath(os.path.expanduser(name)) if _is_local(name) else name


def _is_local(name: str) -> bool:
    # two letters at least before the colon: C:\ is a drive, GPKG: a GDAL driver
    return not re.match(r"/vsi|[A-Za-z][A-Za-z0-9_+.-]+:", name)


def gdal_name(name: str) -> str:
    """Turn a path or URL as a user writes it into the name that GDAL opens."""
    for scheme, prefix in _REMOTE.items():
        if name.startswith(scheme):
            return prefix + name.removeprefix(scheme)
    return name


def _gdal_environment(name: str) -> AbstractContextManager[Any]:
    # an Env even without options: without one GDAL prints its errors to stderr
    return rasterio.Env(**(_REMOTE_OPTIONS if _is_remote(name) else {}))


def _is_remote(name: str) -> bool:
    return gdal_name(name).startswith(_REMOTE_FILE_SYSTEMS)


def _rasters_in(directory: Path) -> list[str]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    names = {path.name.lower() for path in files}

    def is_raster(path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix not in _PICTURE_SUFFIXES:
            return suffix in _RASTER_SUFFIXES
        # a picture without world file or .aux.xml is a quicklook, not a raster to label
        world = {f".{suffix[1]}{suffix[-1]}w", f"{suffix}w", ".wld"}
        stem = path.stem.lower()
        return f"{path.name.lower()}.aux.xml" in names or any(stem + w in names for w in world)

    rasters = [path for path in files if is_raster(path)]
    rasters = rasters or [path for path in files if path.suffix.lower() == ".vrt"]
    if not rasters:
        raise SceneError(
            f"The directory {directory} holds no raster. Name another directory, or a pattern such "
            f"as {directory / '**' / '*.tif'}."
        )
    return [str(path) for path in rasters]


def _refuse_missing(name: str) -> None:
    if os.path.isdir(name):
        raise SceneError(f"{name} is a directory, not a raster. Name a file in it.")
    if not os.path.exists(name):
        raise SceneError(
            f"There is no file {name}. Check the path; relative ones start at {os.getcwd()}."
        )


def _refuse_impostors(name: str) -> None:
    """Refuse local files that are no raster for a reason better known than GDAL's."""
    if not _is_local(name):
        return
    _refuse_missing(name)
    try:
        with open(name, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise SceneError(
            f"{name} cannot be opened: {error.strerror}. Check its permissions."
        ) from error
    if not head:
        raise SceneError(
            f"{name} is empty (0 bytes). Its copy or download has failed: fetch it again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise SceneError(
            f"{name} is a Git LFS pointer, not the raster itself. Fetch it with `git lfs pull`."
        )


def _cause(error: BaseException) -> str:
    """GDAL's own words for an error: rasterio often says only that something failed."""
    return str(error.__cause__ or error).strip().rstrip(".")


# ---- deciding -------------------------------------------------------------------------------


def _plan(
    dataset: rasterio.DatasetReader,
    name: str,
    bands: Sequence[int] | None,
    stretch: Stretch | tuple[float, float] | None,
    crs: pyproj.CRS | str | int | None,
    resolution_m: float | None,
) -> Scene:
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise SceneError(
            f"{name} holds complex numbers ({dataset.dtypes[0]}). Take the magnitude first, for "
            'instance: gdal_calc.py -A in.tif --calc="abs(A)" --type=Float32 --outfile=out.tif'
        )
    source_crs = crs_of(dataset, name)
    working_crs = _working_crs(dataset, name, source_crs, crs)
    alpha = _genuine_alpha(dataset)
    chosen = _choose_bands(dataset, name, bands, alpha)
    layers = _source_layers(dataset, chosen, alpha)
    scene = Scene(
        source=name,
        name=_stem(name),
        crs=working_crs,
        transform=dataset.transform,
        width=dataset.width,
        height=dataset.height,
        bands=chosen,
        stretch=_choose_stretch(layers, stretch),
        alpha=alpha,
        warped=False,
        fingerprint=_fingerprint(dataset, name),
    )
    if _is_north_up(dataset) and _is_in(dataset, working_crs):
        a, _, c, _, e, f = dataset.transform[:6]
        scene = replace(scene, transform=Affine(a, 0.0, c, 0.0, e, f))
        return scene if resolution_m is None else _at_resolution(scene, resolution_m)
    transform, width, height = (
        _upright_grid(dataset) if _is_in(dataset, working_crs) else _suggested_grid(dataset, scene)
    )
    scene = replace(scene, transform=transform, width=width, height=height, warped=True)
    return scene if resolution_m is None else _at_resolution(scene, resolution_m)


def _stem(name: str) -> str:
    path = re.sub(r"[?#].*$", "", name) if "://" in name else name
    return Path(path).stem or "scene"


def crs_of(dataset: rasterio.DatasetReader, name: str) -> pyproj.CRS:
    """The CRS of the raster's transform or ground control points, checked to be on Earth."""
    gcps, gcp_crs = dataset.gcps
    found = gcp_crs if _is_by_gcps(dataset) and gcp_crs else dataset.crs
    if not found:
        raise SceneError(
            f"{name} has no CRS. If you know it, write it in: gdal_edit.py -a_srs EPSG:… {name}"
        )
    if dataset.transform == Affine.identity() and not gcps:
        remedy = (
            "Orthorectify it first (gdalwarp -rpc)."
            if dataset.rpcs
            else "Add a world file beside it, or georeference it (QGIS Georeferencer)."
        )
        raise SceneError(f"{name} has no transform: where its pixels lie is not known. {remedy}")
    if dataset.transform.is_degenerate:
        raise SceneError(f"{name} has a transform without area ({dataset.transform[:6]}).")
    try:
        crs = pyproj.CRS.from_wkt(found.to_wkt())
    except CRSError as error:
        raise SceneError(
            f"{name} has a CRS that PROJ does not understand ({_cause(error)}). Write a known one "
            f"in: gdal_edit.py -a_srs EPSG:… {name}"
        ) from error
    crs = _horizontal(crs)
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
    epsg = found.to_epsg()
    if epsg:
        # the database's entry, where it says the same, has the name and code that GIS users know
        known = pyproj.CRS.from_epsg(epsg)
        if known.equals(crs, ignore_axis_order=True):
            return known
    return crs


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
            wanted = pyproj.CRS.from_user_input(crs)
        except CRSError as error:
            raise SceneError(
                f"crs: {crs!r} is no CRS that PROJ knows ({_cause(error)})."
            ) from error
        if not is_metric(wanted):
            usual = metric_crs(source_crs, centre_lon, centre_lat)
            raise SceneError(
                f"crs: {wanted.to_string()} ({wanted.name}) is not projected in metres. Choose "
                f"one that is, such as {usual.to_string()}."
            )
        if not is_earth(wanted):
            raise SceneError(f"crs: {wanted.to_string()} ({wanted.name}) is not on Earth.")
        _refuse_foreign(name, wanted, source_crs, centre_lon, centre_lat)
        return wanted
    working = metric_crs(source_crs, centre_lon, centre_lat)
    # UTM stretches ground by 15 % at 30° from its meridian and folds up beyond 80°
    away = np.abs((lon[np.isfinite(lon)] - centre_lon + 180) % 360 - 180)
    if not is_metric(source_crs) and abs(centre_lat) < 80 and away.max() > 25:
        raise SceneError(
            f"{name} spans more than 50° of longitude: too wide for {working.name}, the metric CRS "
            "at its centre. Cut it, or choose a projected CRS in metres for it, such as "
            "crs=EPSG:6933."
        )
    return working


def _refuse_foreign(
    name: str, wanted: pyproj.CRS, source_crs: pyproj.CRS, lon: float, lat: float
) -> None:
    """Refuse a CRS of another datum outside the area it was made for.

    There GDAL and PROJ fall back to different datum shifts, and imagery and exported polygons
    would be some 200 m apart (Swiss LV95 in Munich). Within one datum there is nothing to choose.
    """
    area, datums = wanted.area_of_use, [_datum_of(crs) for crs in (wanted, source_crs)]
    if area is None or datums[0] == datums[1]:
        return
    # an area that crosses the antimeridian runs from west to a smaller east
    inside = (lon - area.west) % 360 <= (
        area.east - area.west
    ) % 360 or area.east - area.west >= 360
    if not (inside and area.south <= lat <= area.north):
        raise SceneError(
            f"crs: {wanted.to_string()} ({wanted.name}) is made for {area.name}, but {name} lies "
            f"at {lat:.2f}° N, {lon:.2f}° E. Choose a CRS for that place, such as "
            f"{metric_crs(pyproj.CRS.from_epsg(4326), lon, lat).to_string()}."
        )


def _datum_of(crs: pyproj.CRS) -> str:
    geodetic = crs.geodetic_crs
    datum = None if geodetic is None else geodetic.datum
    # "World Geodetic System 1984" and its ensemble, "WGS_1984" in WKT 1
    name = "" if datum is None else datum.name
    wgs84 = name.startswith(("World Geodetic System 1984", "WGS"))
    return "WGS 84" if wgs84 else name


def _outline(dataset: rasterio.DatasetReader) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map coordinates of the raster's centre, corners and mid-edges, or of its control points."""
    if _is_by_gcps(dataset):
        points = np.array([(gcp.x, gcp.y) for gcp in dataset.gcps[0]], np.float64)
        x, y = np.vstack([points.mean(axis=0), points]).T
        return x, y
    column = np.array([1, 0, 1, 2, 0, 2, 0, 1, 2]) * dataset.width / 2
    row = np.array([1, 0, 0, 0, 1, 1, 2, 2, 2]) * dataset.height / 2
    x, y = dataset.transform @ (column, row)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _is_by_gcps(dataset: rasterio.DatasetReader) -> bool:
    return dataset.transform == Affine.identity() and bool(dataset.gcps[0])


def _is_in(dataset: rasterio.DatasetReader, crs: pyproj.CRS) -> bool:
    """Whether the raster's own transform leads to `crs`."""
    if _is_by_gcps(dataset):
        return False
    own = _horizontal(pyproj.CRS.from_wkt(dataset.crs.to_wkt()))
    return own.equals(crs, ignore_axis_order=True)


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    return crs.sub_crs_list[0] if crs.is_compound else crs  # heights play no part here


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


def _suggested_grid(dataset: rasterio.DatasetReader, scene: Scene) -> tuple[Affine, int, int]:
    """The north-up grid that GDAL suggests in the scene's CRS: square pixels of like size."""
    layers = _source_layers(dataset, scene.bands, scene.alpha)
    with (
        _open(_subset_document(layers, gdal_name(scene.source))) as subset,
        _warp(subset, scene.crs, Resampling.nearest) as warped,
    ):
        return warped.transform, warped.width, warped.height


def _at_resolution(scene: Scene, resolution_m: float) -> Scene:
    """The scene on square pixels of `resolution_m` ground metres (at its centre)."""
    if not resolution_m > 0:
        raise SceneError(f"resolution_m must be above 0, not {resolution_m}.")
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
    transform = Affine(size, 0.0, left, 0.0, -size, top)
    return replace(scene, transform=transform, width=width, height=height, warped=True)


def _genuine_alpha(dataset: rasterio.DatasetReader) -> int | None:
    """The band that is an alpha, 1-based.

    NAIP and others ship near infrared as a fourth band that a converter has tagged as alpha; read
    as a mask it would hide water. A real alpha is off or on nearly everywhere (feathered edges
    aside), near infrared hardly anywhere: 0.004 % of the pixels of our NAIP chip, against 99.9 %
    and more of all real ones. "On" is the largest value present: 16-bit files may use 255.
    """
    tagged = [i + 1 for i, tag in enumerate(dataset.colorinterp) if tag == ColorInterp.alpha]
    for band in tagged:
        layers = _Layers(dataset, (band, band, band), None, None)
        values = _sample(layers)[0]
        if values.size == 0 or np.isin(values, (0, values.max())).mean() > 0.9:
            return band
    return None


def _choose_bands(
    dataset: rasterio.DatasetReader, name: str, bands: Sequence[int] | None, alpha: int | None
) -> tuple[int, int, int]:
    if bands is not None:
        if len(bands) != 3:
            raise SceneError(f"bands: {list(bands)} are {len(bands)} numbers; name three bands.")
        for band in bands:
            if not 1 <= band <= dataset.count:
                raise SceneError(
                    f"bands: there is no band {band} in {name}, which has {dataset.count} "
                    f"(counted from 1)."
                )
        return int(bands[0]), int(bands[1]), int(bands[2])
    tags = list(dataset.colorinterp)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in tags for colour in colours):
        red, green, blue = (tags.index(colour) + 1 for colour in colours)
        return red, green, blue
    usable = [band for band in dataset.indexes if band != alpha]
    if len(usable) >= 3:
        return usable[0], usable[1], usable[2]
    return (usable or [1])[0], (usable or [1])[0], (usable or [1])[0]


def _choose_stretch(
    layers: "_Layers", stretch: Stretch | tuple[float, float] | None
) -> Stretch | None:
    if isinstance(stretch, Stretch) or layers.palette is not None:
        return stretch if isinstance(stretch, Stretch) else None
    dtypes = {layers.dataset.dtypes[band - 1] for band in layers.bands}
    if stretch is None and dtypes == {"uint8"}:
        return None
    low_high = _SAMPLE_PERCENTILES if stretch is None else stretch
    if not (len(low_high) == 2 and 0 <= low_high[0] < low_high[1] <= 100):
        raise SceneError(f"stretch: {low_high} are not two rising percentiles from 0 to 100.")
    values = _sample(layers)
    if values.shape[1] == 0:  # nothing valid to look at: any stretch will do, but always the same
        return Stretch((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    limits = []
    for band in values.astype(np.float64):
        low, high = np.percentile(band, low_high)
        if low == high:  # nearly constant: show the little that differs
            low, high = band.min(), band.max()
        if low == high:  # constant: mid-grey, since black looks like no data
            low, high = low - 0.5, high + 0.5
        limits.append((float(low), float(high)))
    (r0, r1), (g0, g1), (b0, b1) = limits
    return Stretch((r0, g0, b0), (r1, g1, b1))


def _fingerprint(dataset: rasterio.DatasetReader, name: str) -> str:
    """A digest of the layout and of pieces of the content; cheap, so changes can slip through."""
    digest = hashlib.sha256()
    digest.update(repr((dataset.profile, dataset.colorinterp, dataset.nodatavals)).encode())
    if not _is_local(name):
        digest.update(name.encode())
        if dataset.overviews(1):  # one small request; without overviews it would fetch the lot
            layers = _Layers(dataset, (1, 1, 1), None, None)
            digest.update(_read_decimated(layers, (64, 64), Resampling.nearest)[0].tobytes())
        return digest.hexdigest()
    # overviews and statistics are left out: QGIS writes both beside a raster when it shows it
    files = [path for path in dataset.files if not path.lower().endswith((".ovr", ".aux.xml"))]
    files = [path for path in files if os.path.isfile(path)]
    pieces = max(1, 16 // max(1, len(files)))
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{os.path.basename(path)} {size}".encode())
        if len(files) > 256:
            continue  # a VRT of thousands of tiles: names and sizes must do
        with open(path, "rb") as file:
            for offset in np.linspace(0, max(0, size - 65536), pieces).astype(int):
                file.seek(int(offset))
                digest.update(file.read(65536))
            file.seek(max(0, size - 65536))
            digest.update(file.read(65536))
    return digest.hexdigest()


# ---- reading --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layers:
    """Where an open dataset has its colours and its validity."""

    dataset: rasterio.DatasetReader
    bands: tuple[int, int, int]
    alpha: int | None
    palette: NDArray[np.uint8] | None  # (n, 4) RGBA by index
    beneath: tuple[rasterio.DatasetReader, ...] = ()  # what `dataset` reads from, outermost first

    def close(self) -> None:
        for dataset in (self.dataset, *self.beneath):
            dataset.close()


class _Handles(threading.local):
    """Open datasets of this thread: GDAL's must not be shared between threads."""

    def __init__(self) -> None:
        self.by_scene: OrderedDict[tuple[Any, ...], _Layers] = OrderedDict()


_handles = _Handles()
_opening = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    # catch_warnings swaps global state, so two threads in it at once could leave it swapped
    with _opening, warnings.catch_warnings():
        # a missing transform gets our own error, or is made up for by control points
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _open(gdal_name: str) -> rasterio.DatasetReader:
    with _quiet():
        return rasterio.open(gdal_name)


def _handle_key(scene: Scene) -> tuple[Any, ...]:
    # the process too: a forked child must not share file positions with its parent
    return (os.getpid(), scene.source, scene.crs.srs, scene.transform, scene.width, scene.height,
            scene.bands, scene.alpha, scene.warped, scene.fingerprint)  # fmt: skip


def _layers_of(scene: Scene) -> _Layers:
    """The scene's datasets, opened once per thread; the longest unused are closed."""
    cache, key = _handles.by_scene, _handle_key(scene)
    if key not in cache:
        cache[key] = _open_layers(scene)
        while len(cache) > _HANDLES_PER_THREAD:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(key)
    return cache[key]


def _open_layers(scene: Scene) -> _Layers:
    dataset = _open(gdal_name(scene.source))
    layers = _source_layers(dataset, scene.bands, scene.alpha)
    if not scene.warped:
        return layers
    subset = _open(_subset_document(layers, gdal_name(scene.source)))
    resampling = Resampling.bilinear if layers.palette is None else Resampling.nearest
    beneath: tuple[rasterio.DatasetReader, ...] = (subset, dataset)
    grid = {"transform": scene.transform, "width": scene.width, "height": scene.height}
    if _is_in(dataset, scene.crs):
        warped = _warp(subset, None, resampling, **grid)
    else:
        # Only on a grid that GDAL suggests does rasterio heed control points and tell PROJ where
        # the raster lies; on a given grid, imagery outside the area that a CRS was made for came
        # out with holes. A second warp brings it to the wanted grid where that differs.
        warped = _warp(subset, scene.crs, resampling)
        if (warped.transform, warped.width, warped.height) != tuple(grid.values()):
            beneath = (warped, *beneath)
            warped = WarpedVRT(warped, resampling=resampling, **grid)
    unique = sorted(set(scene.bands))
    red, green, blue = (unique.index(band) + 1 for band in scene.bands)
    return _Layers(warped, (red, green, blue), len(unique) + 1, layers.palette, beneath)


def _source_layers(
    dataset: rasterio.DatasetReader, bands: tuple[int, int, int], alpha: int | None
) -> _Layers:
    palette = None
    if dataset.colorinterp[bands[0] - 1] == ColorInterp.palette:
        colours = dataset.colormap(bands[0])
        palette = np.zeros((max(colours) + 1, 4), np.uint8)
        palette[list(colours)] = list(colours.values())
    return _Layers(dataset, bands, alpha, palette)


def _warp(
    subset: rasterio.DatasetReader, crs: pyproj.CRS | None, resampling: Resampling, **grid: Any
) -> WarpedVRT:
    """A warp of a subset, with validity in an alpha band at the end; `crs` None keeps the CRS."""
    with _quiet():
        return WarpedVRT(
            subset,
            src_crs=subset.gcps[1] if _is_by_gcps(subset) else subset.crs,
            crs=subset.crs if crs is None else rasterio.crs.CRS.from_wkt(crs.to_wkt()),
            resampling=resampling,
            add_alpha=True,  # validity: source mask, nodata and footprint in one band
            unified_src_nodata="YES",  # a pixel is nodata only if all its bands are
            **grid,
        )


def _subset_document(layers: _Layers, gdal_name: str) -> str:
    """A VRT of the chosen bands alone, with their validity, to warp.

    Without it the warper would read all bands, take near infrared tagged as alpha for a mask, and
    count a pixel as nodata by bands that nobody looks at.
    """
    dataset = layers.dataset
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(dataset.width), rasterYSize=str(dataset.height)
    )
    if _is_by_gcps(dataset):
        gcps, crs = dataset.gcps
        points = ElementTree.SubElement(root, "GCPList", Projection=(crs or dataset.crs).to_wkt())
        for gcp in gcps:
            place = {"Pixel": gcp.col, "Line": gcp.row, "X": gcp.x, "Y": gcp.y, "Z": gcp.z or 0.0}
            ElementTree.SubElement(points, "GCP", {k: repr(float(v)) for k, v in place.items()})
    else:
        ElementTree.SubElement(root, "SRS").text = dataset.crs.to_wkt()
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(
            repr(value) for value in dataset.transform.to_gdal()
        )

    def add_band(parent: ElementTree.Element, dtype: str, source_band: str) -> ElementTree.Element:
        band = ElementTree.SubElement(parent, "VRTRasterBand", dataType=dtype)
        simple = ElementTree.SubElement(band, "SimpleSource")
        name = ElementTree.SubElement(simple, "SourceFilename", relativeToVRT="0")
        name.text = gdal_name
        ElementTree.SubElement(simple, "SourceBand").text = source_band
        return band

    mask = _mask_source(layers)
    for index in sorted(set(layers.bands)):
        dtype = dataset.dtypes[index - 1]
        nodata = dataset.nodatavals[index - 1]
        if nodata is None and dtype.startswith("float"):
            nodata = np.nan  # or bilinear resampling would spread undeclared nans
        band = add_band(root, _GDAL_TYPES[dtype], str(index))
        if mask is None and nodata is not None:
            element = ElementTree.Element("NoDataValue")
            element.text = repr(float(nodata))
            band.insert(0, element)
    if mask is not None:
        add_band(ElementTree.SubElement(root, "MaskBand"), "Byte", mask)
    return ElementTree.tostring(root, encoding="unicode")


def _mask_source(layers: _Layers) -> str | None:
    """What the bands' mask is read from, in the terms of a VRT; None: nodata, or nothing.

    GDAL's order: a mask in the file or beside it counts before nodata values.
    """
    if _has_mask_band(layers):
        return f"mask,{layers.bands[0]}"
    return None if layers.alpha is None else str(layers.alpha)


def _has_mask_band(layers: _Layers) -> bool:
    flags = layers.dataset.mask_flag_enums[layers.bands[0] - 1]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _read(
    layers: _Layers,
    window: Window,
    shape: tuple[int, int] | None = None,
    resampling: Resampling = Resampling.nearest,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Source values `(3, h, w)` and validity `(h, w)` of a window inside the dataset."""
    dataset = layers.dataset
    unique = sorted(set(layers.bands))
    options = {"window": window, "resampling": resampling}
    stack = None if shape is None else (len(unique), *shape)
    values = dataset.read(unique, out_shape=stack, **options)
    valid = np.ones(values.shape[1:], np.bool_)
    if _has_mask_band(layers):
        valid &= dataset.read_masks(unique[0], out_shape=shape, **options) > 0
    else:
        nodata = [dataset.nodatavals[band - 1] for band in unique]
        if None not in nodata:
            # only where all bands have it: a white roof is not nodata because its red is 255
            empty = np.ones(valid.shape, np.bool_)
            for band, value in zip(values, nodata, strict=True):
                empty &= np.isnan(band) if np.isnan(value) else band == value
            valid &= ~empty
        if layers.alpha is not None:
            # the band itself: GDAL scales a 16-bit alpha to its mask, where 255 becomes 0
            valid &= dataset.read(layers.alpha, out_shape=shape, **options) > 0
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    return values[[unique.index(band) for band in layers.bands]], valid


def _read_decimated(
    layers: _Layers, shape: tuple[int, int], resampling: Resampling
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The whole dataset at `shape`; where blocks cannot be decoded, what can be is read."""
    dataset = layers.dataset
    try:
        return _read(layers, Window(0, 0, dataset.width, dataset.height), shape, resampling)
    except _GDAL_ERRORS:
        pass
    dtype = np.result_type(*(dataset.dtypes[band - 1] for band in layers.bands))
    values, valid = np.zeros((3, *shape), dtype), np.zeros(shape, np.bool_)
    rows = np.unique(np.linspace(0, shape[0], 17).astype(int))
    columns = np.unique(np.linspace(0, shape[1], 17).astype(int))
    tall, wide = dataset.height / shape[0], dataset.width / shape[1]
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            piece = (slice(top, bottom), slice(left, right))
            window = Window(left * wide, top * tall, (right - left) * wide, (bottom - top) * tall)
            try:
                values[:, *piece], valid[piece] = _read(
                    layers, window, (int(bottom - top), int(right - left)), resampling
                )
            except _GDAL_ERRORS:
                continue
    return values, valid


def _sample(layers: _Layers) -> NDArray[Any]:
    """Values `(3, n)` of valid pixels spread over the dataset; n is 0 if none was found."""
    dataset = layers.dataset
    width, height = dataset.width, dataset.height
    factor = max(1.0, max(width, height) / _SAMPLE_PX)
    coarsest = max(dataset.overviews(layers.bands[0]), default=1)
    if width * height / coarsest**2 <= 64e6:
        shape = (max(1, round(height / factor)), max(1, round(width / factor)))
        values, valid = _read_decimated(layers, shape, Resampling.nearest)
        return values[:, valid]
    # without overviews, decimating would decode the whole file: look at pieces of it instead
    pieces = []
    for row in np.linspace(0, height - 256, 6).astype(int):
        for column in np.linspace(0, width - 256, 6).astype(int):
            window = Window(max(0, column), max(0, row), min(256, width), min(256, height))
            try:
                values, valid = _read(layers, window)
            except _GDAL_ERRORS:
                continue
            pieces.append(values[:, valid])
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((3, 0))


def _render(
    raw: NDArray[Any],
    valid: NDArray[np.bool_],
    palette: NDArray[np.uint8] | None,
    stretch: Stretch | None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Source values `(3, h, w)` as RGB `(h, w, 3)`, black where invalid, and the validity."""
    if palette is not None:
        index = raw[0].astype(np.int64)
        known = (index >= 0) & (index < len(palette))
        colours = palette[np.where(known, index, 0)]
        valid = valid & known & (colours[..., 3] > 0)
        rgb = colours[..., :3].copy()
    else:
        rgb = (raw if stretch is None else stretch.apply(raw)).transpose(1, 2, 0)
        rgb = np.ascontiguousarray(rgb, dtype=np.uint8)
    rgb[~valid] = 0
    return rgb, valid
