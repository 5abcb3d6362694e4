"""Rasters as scenes: any CRS, layout and data type, read as metric, north-up RGB windows.

A `Scene` is a small value that any process or thread can read from. Reading goes through `Layers`:
open datasets, and where in them the colours and the validity are.
"""

import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from workbench.crs import ground_scale
from workbench.errors import SceneError
from workbench.sources import (
    GDAL_ERRORS,
    cause,
    forget,
    gdal_environment,
    gdal_name,
    is_remote,
    patiently,
)

_HANDLES_PER_THREAD = 8


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

    def window_around(self, bounds: tuple[float, float, float, float], margin: float) -> Window:
        """The window of whole pixels around map bounds (left, bottom, right, top), in the scene.

        `margin` is a share of the longer side. Bounds must meet the scene's.
        """
        to_pixel = ~self.transform
        (x0, y0), (x1, y1) = to_pixel @ (bounds[0], bounds[3]), to_pixel @ (bounds[2], bounds[1])
        more = margin * max(x1 - x0, y1 - y0)
        rows = (max(0, math.floor(y0 - more)), min(self.height, math.ceil(y1 + more)))
        columns = (max(0, math.floor(x0 - more)), min(self.width, math.ceil(x1 + more)))
        return Window.from_slices(rows, columns)

    def window_polygon(self, window: Window) -> shapely.Polygon:
        """The window's outline in map units."""
        transform = self.window_transform(window)
        left, top = transform @ (0, 0)
        right, bottom = transform @ (window.width, window.height)
        return shapely.box(left, bottom, right, top)

    def read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """RGB `(h, w, 3)` and validity `(h, w)` of a window of whole pixels.

        The window may reach outside the scene or miss it: what is outside is black and invalid,
        and invalid pixels are black. A remote raster that does not answer is tried again for a
        while. Raises SceneError where the file's blocks cannot be read or decoded.
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

        def attempt() -> tuple[Layers, NDArray[Any], NDArray[np.bool_]]:
            layers = _layers_of(self)
            try:
                return layers, *layers.read(inside)
            except GDAL_ERRORS:
                self.close()  # what a dataset has failed to read, it does not ask for again
                raise

        try:
            layers, raw, inside_valid = patiently(self.source, attempt)
        except GDAL_ERRORS as error:
            remedy = (
                "The network or the server has failed, or the file is damaged there: run again "
                "when they are back."
                if is_remote(self.source)
                else "The file is damaged or incomplete there: copy or download it again."
            )
            raise SceneError(
                f"{self.source}: the pixels of rows {rows.start}–{rows.stop}, columns "
                f"{columns.start}–{columns.stop} of its working grid cannot be read: "
                f"{cause(error)}. {remedy}"
            ) from error
        target = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        rgb[target], valid[target] = _render(raw, inside_valid, layers.palette, self.stretch)
        return rgb, valid

    def view(
        self,
        window: Window,
        shape: tuple[int, int],
        tell: Callable[[str], None] = lambda problem: None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """RGB `(h, w, 3)` and validity `(h, w)` of any window at another size, by its overviews.

        Offsets may be fractional and the window may reach outside: pixels that are not wholly in
        the scene are black and invalid. So are parts that cannot be decoded, of which `tell` gets
        a sentence. Raises SceneError where the raster cannot be opened any more.
        """
        height, width = shape
        rgb, valid = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.bool_)
        wide, tall = window.width / width, window.height / height
        columns = _wholly_inside(window.col_off, wide, width, self.width)
        rows = _wholly_inside(window.row_off, tall, height, self.height)
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return rgb, valid
        inside = Window(
            max(0.0, window.col_off + columns.start * wide),
            max(0.0, window.row_off + rows.start * tall),
            min((columns.stop - columns.start) * wide, self.width),
            min((rows.stop - rows.start) * tall, self.height),
        )
        size = (rows.stop - rows.start, columns.stop - columns.start)
        try:
            with gdal_environment(self.source):
                layers = _layers_of(self)
                # colours of a palette cannot be averaged by their index
                averaged = layers.palette is None and max(wide, tall) > 1
                resampling = Resampling.average if averaged else Resampling.nearest
                raw, inside_valid, damage = layers.read_what_is_whole(inside, size, resampling)
        except GDAL_ERRORS as error:
            raise SceneError(
                f"{self.source} cannot be read any more: {cause(error)}. Check that it is still "
                "there and whole."
            ) from error
        if damage is not None:
            self.close()
            forget(self.source)
            tell(
                f"{self.source}: some of its pixels here cannot be read: {cause(damage)}. The file "
                "is damaged or incomplete there: copy or download it again."
            )
        rgb[rows, columns], valid[rows, columns] = _render(
            raw, inside_valid, layers.palette, self.stretch
        )
        return rgb, valid

    def overview(
        self, max_px: int = 2048, window: Window | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Affine]:
        """A window (None: the whole scene) at no more than `max_px` a side.

        Returns RGB, validity and the transform from pixels to the map. Parts that cannot be decoded
        are black and invalid.
        """
        window = window or self.window
        factor = max(1.0, max(window.width, window.height) / max_px)
        shape = (max(1, round(window.height / factor)), max(1, round(window.width / factor)))
        rgb, valid = self.view(window, shape)
        scale = Affine.scale(window.width / shape[1], window.height / shape[0])
        return rgb, valid, self.window_transform(window) @ scale

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

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Return the scene that `describe` has described, to the bit, without opening its file."""
        values = {name: value for name, value in description.items() if name != "pixel_m"}
        stretch = values["stretch"]
        return cls(
            **values
            | {
                "crs": pyproj.CRS.from_user_input(values["crs"]),
                "transform": Affine(*values["transform"]),
                "bands": tuple(values["bands"]),
                "stretch": stretch and Stretch(tuple(stretch["low"]), tuple(stretch["high"])),
            }
        )

    def close(self) -> None:
        """Close the datasets that this thread has opened for the scene; reading reopens them."""
        layers = _handles.by_scene.pop(_handle_key(self), None)
        if layers is not None:
            layers.close()


def _wholly_inside(offset: float, step: float, count: int, length: int) -> slice:
    """Which of `count` steps from `offset` on lie between 0 and `length`."""
    close = 1e-6  # of a step: rounding must not cost a pixel at the edge
    first, last = math.ceil(-offset / step - close), math.floor((length - offset) / step + close)
    return slice(max(0, first), min(count, last))


# ---- open datasets ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """Where an open dataset has its colours and its validity."""

    dataset: rasterio.DatasetReader
    bands: tuple[int, int, int]
    alpha: int | None = None
    palette: NDArray[np.uint8] | None = None  # (n, 4) RGBA by index
    beneath: tuple[rasterio.DatasetReader, ...] = ()  # what `dataset` reads from, outermost first

    def read(
        self,
        window: Window,
        shape: tuple[int, int] | None = None,
        resampling: Resampling = Resampling.nearest,
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Source values `(3, h, w)` and validity `(h, w)` of a window inside the dataset."""
        dataset = self.dataset
        unique = sorted(set(self.bands))
        options = {"window": window, "resampling": resampling}
        stack = None if shape is None else (len(unique), *shape)
        values = dataset.read(unique, out_shape=stack, **options)
        valid = np.ones(values.shape[1:], np.bool_)
        if self.has_mask_band:
            valid &= dataset.read_masks(unique[0], out_shape=shape, **options) > 0
        else:
            nodata = [dataset.nodatavals[band - 1] for band in unique]
            if None not in nodata:
                # only where all bands have it: a white roof is not nodata because its red is 255
                empty = np.ones(valid.shape, np.bool_)
                for band, value in zip(values, nodata, strict=True):
                    empty &= np.isnan(band) if np.isnan(value) else band == value
                valid &= ~empty
            if self.alpha is not None:
                # the band itself: GDAL scales a 16-bit alpha to its mask, where 255 becomes 0
                valid &= dataset.read(self.alpha, out_shape=shape, **options) > 0
        if np.issubdtype(values.dtype, np.floating):
            valid &= np.isfinite(values).all(axis=0)
        return values[[unique.index(band) for band in self.bands]], valid

    def read_decimated(
        self, shape: tuple[int, int], resampling: Resampling
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The whole dataset at `shape`; where blocks cannot be decoded, what can be is read."""
        whole = Window(0, 0, self.dataset.width, self.dataset.height)
        try:
            # what is decided by it must not depend on the network
            return patiently(self.dataset.name, lambda: self.read(whole, shape, resampling))
        except GDAL_ERRORS:
            return self.read_what_is_whole(whole, shape, resampling)[:2]

    def read_what_is_whole(
        self, window: Window, shape: tuple[int, int], resampling: Resampling
    ) -> tuple[NDArray[Any], NDArray[np.bool_], BaseException | None]:
        """`read`, but blocks that cannot be decoded are left invalid; also returns the error."""
        try:
            return *self.read(window, shape, resampling), None
        except GDAL_ERRORS as error:
            damage = error
        dtype = np.result_type(*(self.dataset.dtypes[band - 1] for band in self.bands))
        values, valid = np.zeros((3, *shape), dtype), np.zeros(shape, np.bool_)
        rows = np.unique(np.linspace(0, shape[0], 17).astype(int))
        columns = np.unique(np.linspace(0, shape[1], 17).astype(int))
        tall, wide = window.height / shape[0], window.width / shape[1]
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                piece = (slice(top, bottom), slice(left, right))
                part = Window(
                    window.col_off + left * wide,
                    window.row_off + top * tall,
                    (right - left) * wide,
                    (bottom - top) * tall,
                )
                try:
                    values[:, *piece], valid[piece] = self.read(
                        part, (int(bottom - top), int(right - left)), resampling
                    )
                except GDAL_ERRORS:
                    continue
        return values, valid, damage

    def close(self) -> None:
        """Close the datasets."""
        for dataset in (self.dataset, *self.beneath):
            dataset.close()

    @property
    def has_mask_band(self) -> bool:
        """Whether validity is a mask in the file or beside it."""
        flags = self.dataset.mask_flag_enums[self.bands[0] - 1]
        return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def source_layers(
    dataset: rasterio.DatasetReader, bands: tuple[int, int, int], alpha: int | None
) -> Layers:
    """The layers of a raster as it is, not warped."""
    palette = None
    if dataset.colorinterp[bands[0] - 1] == ColorInterp.palette:
        colours = dataset.colormap(bands[0])
        palette = np.zeros((max(colours) + 1, 4), np.uint8)
        palette[list(colours)] = list(colours.values())
    return Layers(dataset, bands, alpha, palette)


def is_by_gcps(dataset: rasterio.DatasetReader) -> bool:
    """Whether ground control points place the raster, for want of a transform."""
    return dataset.transform == Affine.identity() and bool(dataset.gcps[0])


def is_in(dataset: rasterio.DatasetReader, crs: pyproj.CRS) -> bool:
    """Whether the raster's own transform leads to `crs`."""
    if is_by_gcps(dataset):
        return False
    own = horizontal(pyproj.CRS.from_wkt(dataset.crs.to_wkt()))
    return own.equals(crs, ignore_axis_order=True)


def horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The CRS without its heights, which play no part here."""
    return crs.sub_crs_list[0] if crs.is_compound else crs


class _Handles(threading.local):
    """Open datasets of this thread: GDAL's must not be shared between threads."""

    def __init__(self) -> None:
        self.by_scene: OrderedDict[tuple[Any, ...], Layers] = OrderedDict()


_handles = _Handles()
_warnings_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    # catch_warnings swaps global state, so two threads in it at once could leave it swapped
    with _warnings_lock, warnings.catch_warnings():
        # a missing transform gets our own error, or is made up for by control points
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def open_dataset(name: str) -> rasterio.DatasetReader:
    """Open a path, a URL, a GDAL name or a VRT document."""
    with _quiet():
        return rasterio.open(gdal_name(name))


def _handle_key(scene: Scene) -> tuple[Any, ...]:
    # the process too: a forked child must not share file positions with its parent
    return (os.getpid(), scene.source, scene.crs.srs, scene.transform, scene.width, scene.height,
            scene.bands, scene.alpha, scene.warped, scene.fingerprint)  # fmt: skip


def _layers_of(scene: Scene) -> Layers:
    """The scene's datasets, opened once per thread; the longest unused are closed."""
    cache, key = _handles.by_scene, _handle_key(scene)
    if key not in cache:
        cache[key] = _open_layers(scene)
        while len(cache) > _HANDLES_PER_THREAD:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(key)
    return cache[key]


def _open_layers(scene: Scene) -> Layers:
    dataset = open_dataset(scene.source)
    layers = source_layers(dataset, scene.bands, scene.alpha)
    if not scene.warped:
        return layers
    subset = open_subset(layers, scene.source)
    resampling = Resampling.bilinear if layers.palette is None else Resampling.nearest
    beneath: tuple[rasterio.DatasetReader, ...] = (subset, dataset)
    grid = {"transform": scene.transform, "width": scene.width, "height": scene.height}
    if is_in(dataset, scene.crs):
        warped = warp(subset, None, resampling, **grid)
    else:
        # Only on a grid that GDAL suggests does rasterio heed control points and tell PROJ where
        # the raster lies; on a given grid, imagery outside the area that a CRS was made for came
        # out with holes. A second warp brings it to the wanted grid where that differs.
        warped = warp(subset, scene.crs, resampling)
        if (warped.transform, warped.width, warped.height) != tuple(grid.values()):
            beneath = (warped, *beneath)
            warped = WarpedVRT(warped, resampling=resampling, **grid)
    unique = sorted(set(scene.bands))
    red, green, blue = (unique.index(band) + 1 for band in scene.bands)
    return Layers(warped, (red, green, blue), len(unique) + 1, layers.palette, beneath)


def warp(
    subset: rasterio.DatasetReader, crs: pyproj.CRS | None, resampling: Resampling, **grid: Any
) -> WarpedVRT:
    """A warp of a subset, with validity in an alpha band at the end; `crs` None keeps the CRS."""
    with _quiet():
        return WarpedVRT(
            subset,
            src_crs=subset.gcps[1] if is_by_gcps(subset) else subset.crs,
            crs=subset.crs if crs is None else rasterio.crs.CRS.from_wkt(crs.to_wkt()),
            resampling=resampling,
            add_alpha=True,  # validity: source mask, nodata and footprint in one band
            unified_src_nodata="YES",  # a pixel is nodata only if all its bands are
            **grid,
        )


def open_subset(layers: Layers, source: str) -> rasterio.DatasetReader:
    """Open a VRT of the chosen bands alone, with their validity, to warp.

    Without it the warper would read all bands, take near infrared tagged as alpha for a mask, and
    count a pixel as nodata by bands that nobody looks at.
    """
    dataset = layers.dataset
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(dataset.width), rasterYSize=str(dataset.height)
    )
    if is_by_gcps(dataset):
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
        name.text = gdal_name(source)
        ElementTree.SubElement(simple, "SourceBand").text = source_band
        return band

    # GDAL's order: a mask in the file or beside it counts before nodata values
    mask = f"mask,{layers.bands[0]}" if layers.has_mask_band else layers.alpha
    for index in sorted(set(layers.bands)):
        dtype = dataset.dtypes[index - 1]
        nodata = dataset.nodatavals[index - 1]
        if nodata is None and dtype.startswith("float"):
            nodata = np.nan  # or bilinear resampling would spread undeclared nans
        band = add_band(root, typename_fwd[dtype_rev[dtype]], str(index))
        if mask is None and nodata is not None:
            element = ElementTree.Element("NoDataValue")
            element.text = repr(float(nodata))
            band.insert(0, element)
    if mask is not None:
        add_band(ElementTree.SubElement(root, "MaskBand"), "Byte", str(mask))
    return open_dataset(ElementTree.tostring(root, encoding="unicode"))


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
