"""Which bands are the colours and where a raster is valid; datasets of these, and how they warp."""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from workbench.errors import SceneError
from workbench.raster.sources import GDAL_ERRORS, gdal_name, patiently


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
            flags = [dataset.mask_flag_enums[band - 1] for band in unique]
            if all(MaskFlags.nodata in each or not each for each in flags):
                # GDAL compares, because a tag may differ from the pixels in its last digits; a
                # pixel is invalid only if all bands are: a red of 255 makes no white roof nodata
                masks = None if shape is None else (len(unique), *shape)
                valid &= dataset.read_masks(unique, out_shape=masks, **options).any(axis=0)
            if self.alpha is not None:
                # the band itself: GDAL scales a 16-bit alpha to its mask, where 255 becomes 0
                valid &= dataset.read(self.alpha, out_shape=shape, **options) > 0
        if np.issubdtype(values.dtype, np.floating):
            valid &= np.isfinite(values).all(axis=0)
        return values[[unique.index(band) for band in self.bands]], valid

    def read_decimated(
        self, shape: tuple[int, int], resampling: Resampling
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The whole dataset at `shape`; blocks that cannot be decoded are left invalid."""
        whole = Window(0, 0, self.dataset.width, self.dataset.height)
        try:
            # decisions are based on it, which must not depend on the network
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the datasets."""
        for dataset in (self.dataset, *self.beneath):
            dataset.close()

    @property
    def has_mask_band(self) -> bool:
        """Whether validity is a mask in the file or beside it."""
        flags = self.dataset.mask_flag_enums[self.bands[0] - 1]
        return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def choose_bands(
    dataset: rasterio.DatasetReader, name: str, bands: Sequence[int] | None, alpha: int | None
) -> tuple[int, int, int]:
    """The bands of red, green and blue, counted from 1: `bands`, else those that the file tags.

    Without tags, the first three that are not `alpha`; of fewer the first one, as grey. Raises
    `SceneError` if `bands` are not three that the raster has.
    """
    if bands is not None:
        if len(bands) != 3:
            raise SceneError(f"bands: {list(bands)} are {len(bands)} numbers; name three bands.")
        for band in bands:
            if not 1 <= band <= dataset.count:
                raise SceneError(
                    f"bands: there is no band {band} in {name}, which has {dataset.count} "
                    "(counted from 1). Name three of these, or leave bands out."
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
    grey = usable[0] if usable else 1
    return grey, grey, grey


def source_layers(
    dataset: rasterio.DatasetReader, bands: tuple[int, int, int], alpha: int | None
) -> Layers:
    """The layers of a raster that is not warped."""
    palette = None
    if dataset.colorinterp[bands[0] - 1] == ColorInterp.palette:
        colours = dataset.colormap(bands[0])
        palette = np.zeros((max(colours) + 1, 4), np.uint8)
        palette[list(colours)] = list(colours.values())
    return Layers(dataset, bands, alpha, palette)


def is_by_gcps(dataset: rasterio.DatasetReader) -> bool:
    """Whether the raster is placed by ground control points instead of a transform."""
    return dataset.transform == Affine.identity() and bool(dataset.gcps[0])


def is_in(dataset: rasterio.DatasetReader, crs: pyproj.CRS) -> bool:
    """Whether the raster's own transform leads to `crs`."""
    if is_by_gcps(dataset):
        return False
    own = horizontal(pyproj.CRS.from_wkt(dataset.crs.to_wkt()))
    return own.equals(crs, ignore_axis_order=True)


def horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The CRS without its heights, which are not used here."""
    return crs.sub_crs_list[0] if crs.is_compound else crs


_warnings_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    # catch_warnings swaps global state, so two threads in it at once could leave it swapped
    with _warnings_lock, warnings.catch_warnings():
        # for a missing transform we raise our own error, or there are control points
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def open_dataset(name: str) -> rasterio.DatasetReader:
    """Open a path, a URL, a GDAL name or a VRT document."""
    with _quiet():
        return rasterio.open(gdal_name(name))


def warp(
    subset: rasterio.DatasetReader, crs: pyproj.CRS | None, resampling: Resampling, **grid: Any
) -> WarpedVRT:
    """A warp of a subset, with its validity as the last band (alpha); `crs` None keeps the CRS."""
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


def without(layers: Layers, source: str, nodata: float) -> Layers:
    """The same layers, in which `nodata` is invalid, too. Close them, but not what is below."""
    subset = open_subset(layers, source, nodata)
    unique = sorted(set(layers.bands))
    red, green, blue = (unique.index(band) + 1 for band in layers.bands)
    return Layers(subset, (red, green, blue), None, layers.palette)


def open_subset(layers: Layers, source: str, nodata: float | None = None) -> rasterio.DatasetReader:
    """Open a VRT of the chosen bands alone, with their validity, for warping.

    Without it the warper would read all bands, take near infrared that is tagged as alpha for a
    mask, and count a pixel as nodata because of bands that are not used. `nodata` is a value that
    is invalid besides what the file says.
    """
    mask, tags = _mask_and_tags(layers)
    if nodata is None:
        return open_dataset(_vrt(layers, source, {} if mask is not None else tags, mask))
    valid = [_vrt_of_valid(layers, source, dict.fromkeys(tags, nodata))]
    if mask is not None:
        valid.append((source, str(mask)))
    if None not in tags.values():
        valid.append(_vrt_of_valid(layers, source, tags))
    both = _combined(layers.dataset, valid, "min")
    return open_dataset(_vrt(layers, source, {}, 1, both))


def _mask_and_tags(layers: Layers) -> tuple[str | int | None, dict[int, float | None]]:
    """The band of the file that says what is valid, if there is one; and its nodata values."""
    dataset = layers.dataset
    # GDAL's order: a mask in the file or beside it counts before nodata values
    mask = f"mask,{layers.bands[0]}" if layers.has_mask_band else layers.alpha
    tags: dict[int, float | None] = {}
    for band in sorted(set(layers.bands)):
        tags[band] = dataset.nodatavals[band - 1]
        if tags[band] is None and dataset.dtypes[band - 1].startswith("float"):
            tags[band] = np.nan  # or bilinear resampling would spread undeclared nans
    return mask, tags


def _vrt_of_valid(
    layers: Layers, source: str, nodata: Mapping[int, float | None]
) -> tuple[str, str]:
    """A VRT whose first band is 0 where all bands have their `nodata`, and that band."""
    inner = _vrt(layers, source, nodata, None)
    masks = [(inner, f"mask,{number}") for number in range(1, len(nodata) + 1)]
    return _combined(layers.dataset, masks, "max"), "1"


def _combined(dataset: rasterio.DatasetReader, parts: list[tuple[str, str]], how: str) -> str:
    """A VRT of one byte band: the `min` or `max` of some bands (file, band)."""
    root = _vrt_root(dataset)
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    if len(parts) > 1:  # GDAL's functions want two at least
        band.set("subClass", "VRTDerivedRasterBand")
        ElementTree.SubElement(band, "PixelFunctionType").text = how
    for name, number in parts:
        _add_source(band, name, number)
    return ElementTree.tostring(root, encoding="unicode")


def _vrt_root(dataset: rasterio.DatasetReader) -> ElementTree.Element:
    return ElementTree.Element(
        "VRTDataset", rasterXSize=str(dataset.width), rasterYSize=str(dataset.height)
    )


def _add_source(
    band: ElementTree.Element,
    name: str,
    number: str,
    rects: Mapping[str, dict[str, str]] = MappingProxyType({}),
) -> ElementTree.Element:
    simple = ElementTree.SubElement(band, "SimpleSource")
    element = ElementTree.SubElement(simple, "SourceFilename", relativeToVRT="0")
    element.text = gdal_name(name)
    ElementTree.SubElement(simple, "SourceBand").text = number
    for rect, place in rects.items():
        ElementTree.SubElement(simple, rect, place)
    return simple


def _vrt(
    layers: Layers,
    source: str,
    nodata: Mapping[int, float | None],
    mask: str | int | None,
    mask_source: str | None = None,
) -> str:
    """A VRT of the chosen bands with these nodata values, and with a mask (a band) if given.

    The mask is a band of `mask_source`, or else of `source`.
    """
    dataset = layers.dataset
    root = _vrt_root(dataset)
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

    def add_band(parent: ElementTree.Element, dtype: str) -> ElementTree.Element:
        return ElementTree.SubElement(parent, "VRTRasterBand", dataType=dtype)

    for index in sorted(set(layers.bands)):
        band = add_band(root, typename_fwd[dtype_rev[dataset.dtypes[index - 1]]])
        value = nodata.get(index)
        if value is not None:
            ElementTree.SubElement(band, "NoDataValue").text = repr(float(value))
        _add_source(band, source, str(index))
    if mask is not None:
        band = add_band(ElementTree.SubElement(root, "MaskBand"), "Byte")
        _add_source(band, mask_source or source, str(mask))
    return ElementTree.tostring(root, encoding="unicode")


def open_mosaic(
    layers: Layers, names: Sequence[str], grid: tuple[Affine, int, int], nodata: float | None
) -> Layers:
    """Open rasters of one grid as one, later ones on top; what none of them covers is invalid.

    `layers` is one of them, whose bands and validity the others have, too. `grid` is the transform,
    width and height of the whole; it may cut the rasters. `nodata` is invalid besides what the
    files say.
    """
    dataset, (transform, width, height) = layers.dataset, grid
    unique = sorted(set(layers.bands))
    mask, tags = _mask_and_tags(layers)
    by_mask = mask is not None or None in tags.values()
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS").text = dataset.crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(
        repr(value) for value in transform.to_gdal()
    )
    bands = {}
    for index in unique:
        dtype = typename_fwd[dtype_rev[dataset.dtypes[index - 1]]]
        bands[index] = ElementTree.SubElement(root, "VRTRasterBand", dataType=dtype)
        if not by_mask:
            ElementTree.SubElement(bands[index], "NoDataValue").text = repr(tags[index])
    if by_mask:
        masks = ElementTree.SubElement(
            ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte"
        )
    for name in names:
        with open_dataset(name) as each:
            column, row = ~transform @ (each.transform @ (0, 0))
            size = {"xSize": str(each.width), "ySize": str(each.height)}
            rects = {
                "SrcRect": {"xOff": "0", "yOff": "0", **size},
                "DstRect": {"xOff": str(round(column)), "yOff": str(round(row)), **size},
            }
            mask, tags = _mask_and_tags(source_layers(each, layers.bands, layers.alpha))
        for index, band in bands.items():
            source = _add_source(band, name, str(index), rects)
            if not by_mask and tags[index] is not None:  # what is below shows through
                source.tag = "ComplexSource"
                ElementTree.SubElement(source, "NODATA").text = repr(tags[index])
        if by_mask:
            source = _add_source(masks, name, "1" if mask is None else str(mask), rects)
            if mask is None:  # all of it is valid
                source.tag = "ComplexSource"
                ElementTree.SubElement(source, "LUT").text = "0:255,1:255"
    text = ElementTree.tostring(root, encoding="unicode")
    red, green, blue = (unique.index(band) + 1 for band in layers.bands)
    mosaic = Layers(open_dataset(text), (red, green, blue), None, layers.palette, (dataset,))
    if nodata is None:
        return mosaic
    return replace(without(mosaic, text, nodata), beneath=(mosaic.dataset, dataset))
