"""Rasters as scenes: any CRS, layout and data type, read as metric, north-up RGB windows.

A `Scene` is a small value that any process or thread can read from. Reading goes through
`bands.Layers`.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from workbench._support.secrets import without_secrets
from workbench.errors import SceneError
from workbench.raster.bands import (
    Layers,
    is_in,
    open_dataset,
    open_mosaic,
    open_subset,
    source_layers,
    warp,
    without,
)
from workbench.raster.crs import ground_scale
from workbench.raster.sources import (
    GDAL_ERRORS,
    cause,
    forget,
    gdal_environment,
    harmless,
    is_remote,
    patiently,
    signed,
    why_gone,
)

_HANDLES_PER_THREAD = 8


@dataclass(frozen=True)
class Stretch:
    """The source values that become 0 and 255 in each band; linear between, clipped outside."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def apply(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        """`(3, …)` source values as uint8 of the same shape; what is not finite becomes 0."""
        shape = (3,) + (1,) * (raw.ndim - 1)
        # float32 would lose the last digits of 32-bit integers and doubles
        exact = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        kind: type[np.floating[Any]] = np.float32 if exact else np.float64
        low: NDArray[Any] = np.array(self.low, kind).reshape(shape)
        span: NDArray[Any] = np.array(self.high, kind).reshape(shape) - low
        with np.errstate(over="ignore"):  # what is no data may be as large as a number can be
            scaled = (raw.astype(kind) - low) * (255 / np.where(span > 0, span, 1))
        np.nan_to_num(scaled, copy=False)
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Scene:
    """A raster on its working grid: metric CRS, north-up, RGB uint8, with a validity mask.

    A plain value that can be pickled and compared. Datasets are opened when they are first read
    from, once per thread, and closed by `close` or when the thread ends. `transform` maps working
    pixels to map units of `crs`. Pixels are square unless the source's own grid is kept (`warped`
    false). `scale` is 1, or says how many times as large its pixels are as the working grid's.
    """

    source: str  # as the user names it: absolute path of a local file, else URL or GDAL name
    name: str
    crs: pyproj.CRS
    transform: Affine
    width: int
    height: int
    bands: tuple[int, int, int]  # 1-based; three times the same for a grey raster
    stretch: Stretch | None  # None: the values are 0..255 already
    alpha: int | None  # the band that is a real alpha, 1-based
    warped: bool  # read through a warp; else the working grid is the source's grid, bit for bit
    fingerprint: str  # changes when the raster's content does
    scale: int = 1
    nodata: float | None = None  # means no data, though the file does not say so
    # with its signature, if it has one: a signature is no part of the raster, and in no file
    address: str = field(default="", repr=False, compare=False)

    # rasters of the same grid that touch this one, of which the working grid takes in a strip
    beside: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def opened_as(self) -> str:
        """The name by which it is opened: with the environment's signature, or else its own."""
        fresh = signed(self.source)
        return fresh if fresh != self.source else self.address or self.source

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in map units."""
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (self.width, self.height)
        return left, bottom, right, top

    @property
    def pixel_m(self) -> float:
        """Side in ground metres of a (square) pixel at the scene's centre."""
        return self.pixel_m_in(self.window)

    @property
    def window(self) -> Window:
        """The window of the whole scene."""
        return Window(0, 0, self.width, self.height)

    def coarser(self, scale: int) -> Scene:
        """The scene with pixels `scale` times as large; its name says so: `ortho/4x`.

        Both have one origin. What does not fill a large pixel, at the right and lower edge, is left
        out.
        """
        if scale == 1:
            return self
        return replace(
            self,
            name=f"{self.name}/{scale}x",  # no file name has a slash
            transform=self.transform @ Affine.scale(scale),
            width=max(1, self.width // scale),
            height=max(1, self.height // scale),
            warped=True,
            fingerprint=f"{self.fingerprint}/{scale}x",
            scale=scale,
        )

    def pixel_m_in(self, window: Window) -> float:
        """Side in ground metres of a (square) pixel at the centre of a window."""
        middle = window.col_off + window.width / 2, window.row_off + window.height / 2
        areal = float(ground_scale(self.crs, *(self.transform @ middle))[2])
        return float(np.sqrt(areal * abs(self.transform.a * self.transform.e)))

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

        The window may reach outside the scene or miss it. Pixels outside are invalid, and invalid
        pixels are black. If a remote raster does not answer, it is tried again for a while. Raises
        `SceneError` if the file's blocks cannot be read or decoded.
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
                self.close()  # a dataset does not ask again for what it has failed to read
                raise

        try:
            layers, raw, inside_valid = patiently(self.opened_as, attempt)
        except GDAL_ERRORS as error:
            if gone := why_gone(self.opened_as, error):
                raise SceneError(gone) from harmless(error)
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
            ) from harmless(error)
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
        """RGB `(h, w, 3)` and validity `(h, w)` of any window at another size, from its overviews.

        Offsets may be fractional and the window may reach outside. Pixels that are not wholly in
        the scene are black and invalid, and so are parts that cannot be decoded; `tell` gets a
        sentence about these. Raises `SceneError` if the raster can no longer be opened.
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
            with gdal_environment(self.opened_as):
                layers = _layers_of(self)
                # colours of a palette cannot be averaged by their index
                averaged = layers.palette is None and max(wide, tall) > 1
                resampling = Resampling.average if averaged else Resampling.nearest
                raw, inside_valid, damage = layers.read_what_is_whole(inside, size, resampling)
        except GDAL_ERRORS as error:
            if gone := why_gone(self.opened_as, error):
                raise SceneError(gone) from harmless(error)
            raise SceneError(
                f"{self.source} cannot be read any more: {cause(error)}. Check that it is still "
                "there and whole."
            ) from harmless(error)
        if damage is not None:
            self.close()
            forget(self.opened_as)
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

    def problem(self) -> str | None:
        """Say why the raster cannot be opened any more, and what to do; None if it can."""
        self.close()
        try:
            self.view(Window(0, 0, 1, 1), (1, 1))
        except SceneError as error:
            return str(error)
        return None

    def describe(self) -> dict[str, Any]:
        """Return what was decided about the raster, as plain values for YAML and JSON."""
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
            "nodata": self.nodata,
            "beside": [without_secrets(name) for name in self.beside],
        } | ({} if self.scale == 1 else {"scale": self.scale})

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Return exactly the scene that `describe` has described, without opening its file."""
        values = {name: value for name, value in description.items() if name != "pixel_m"}
        stretch = values["stretch"]
        return cls(
            **values
            | {
                "crs": pyproj.CRS.from_user_input(values["crs"]),
                "transform": Affine(*values["transform"]),
                "bands": tuple(values["bands"]),
                "beside": tuple(values.get("beside", ())),
                "stretch": stretch and Stretch(tuple(stretch["low"]), tuple(stretch["high"])),
            }
        )

    def close(self) -> None:
        """Close the datasets that this thread has opened for the scene; reading reopens them."""
        layers = _handles.by_scene.pop(_handle_key(self), None)
        if layers is not None:
            layers.close()


def raster_of(name: str) -> str:
    """The name of a scene without its scale: `ortho` for `ortho` and for `ortho/4x`."""
    return name.partition("/")[0]


def _wholly_inside(offset: float, step: float, count: int, length: int) -> slice:
    """Which of `count` steps from `offset` on lie between 0 and `length`."""
    close = 1e-6  # of a step, so that rounding loses no pixel at the edge
    first, last = math.ceil(-offset / step - close), math.floor((length - offset) / step + close)
    return slice(max(0, first), min(count, last))


# ---- open datasets ---------------------------------------------------------------------------


class _Handles(threading.local):
    """Open datasets of this thread: GDAL's must not be shared between threads."""

    def __init__(self) -> None:
        self.by_scene: OrderedDict[tuple[Any, ...], Layers] = OrderedDict()


_handles = _Handles()


def _handle_key(scene: Scene) -> tuple[Any, ...]:
    # the process too: a forked child must not share file positions with its parent
    return (os.getpid(), scene.opened_as, scene.crs.srs, scene.transform, scene.width, scene.height,
            scene.bands, scene.alpha, scene.warped, scene.fingerprint, scene.nodata,
            scene.beside)  # fmt: skip


def _layers_of(scene: Scene) -> Layers:
    """The scene's datasets, opened once per thread; the least recently used are closed."""
    cache, key = _handles.by_scene, _handle_key(scene)
    if key not in cache:
        cache[key] = _open_layers(scene)
        while len(cache) > _HANDLES_PER_THREAD:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(key)
    return cache[key]


def _open_layers(scene: Scene) -> Layers:
    dataset = open_dataset(scene.opened_as)
    layers = source_layers(dataset, scene.bands, scene.alpha)
    if scene.beside:
        names = [*map(signed, scene.beside), scene.opened_as]  # its own pixels lie on top
        at_full_size = scene.transform @ Affine.scale(1 / scene.scale)
        place = (at_full_size, scene.width * scene.scale, scene.height * scene.scale)
        layers = open_mosaic(layers, names, place, scene.nodata)
        if scene.scale == 1:
            return layers
        dataset, subset = layers.dataset, open_subset(layers, layers.dataset.name)
    elif not scene.warped:
        if scene.nodata is None:
            return layers
        return replace(without(layers, scene.opened_as, scene.nodata), beneath=(dataset,))
    else:
        subset = open_subset(layers, scene.opened_as, scene.nodata)
    resampling = Resampling.bilinear if layers.palette is None else Resampling.nearest
    beneath: tuple[rasterio.DatasetReader, ...] = (subset, dataset, *layers.beneath)
    grid = {"transform": scene.transform, "width": scene.width, "height": scene.height}
    if is_in(dataset, scene.crs):
        warped = warp(subset, None, resampling, **grid)
    else:
        # rasterio heeds control points and tells PROJ where the raster lies only on a grid that
        # GDAL suggests. On a given grid, imagery outside the area that a CRS was made for came out
        # with holes. A second warp brings it to the wanted grid if that differs.
        warped = warp(subset, scene.crs, resampling)
        if (warped.transform, warped.width, warped.height) != tuple(grid.values()):
            beneath = (warped, *beneath)
            warped = WarpedVRT(warped, resampling=resampling, **grid)
    unique = sorted(set(scene.bands))
    red, green, blue = (unique.index(band) + 1 for band in scene.bands)
    return Layers(warped, (red, green, blue), len(unique) + 1, layers.palette, beneath)


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
