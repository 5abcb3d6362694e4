"""Which source values become black and white, and which value stands for no data.

Both are decided from pixels at full resolution. Overviews may be older than the raster they lie
beside, and so may the statistics in its metadata.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from workbench.errors import SceneError, SettingError
from workbench.raster.bands import Layers
from workbench.raster.scene import Stretch
from workbench.raster.sources import GDAL_ERRORS, is_remote, patiently

PERCENTILES = (2.0, 98.0)
_WHOLE_PX = 2**22  # a raster up to this size is looked at whole
_PIECE_PX = 256  # side of the pieces that are looked at in a larger one
_ENOUGH = 10_000  # valid pixels for percentiles
_SAMPLE_PX = 1024  # longest side of the decimated read if the pieces hold too few
_DIM = 63  # an 8-bit raster with no higher value has fewer bits than its type

_FEWEST_FILL = 0.001  # share of the pixels
_MOST_NEAR = 0.1  # of its pixels; resampling mixes some of them with their neighbours
_FEWEST_VALUES = 16  # fewer different ones are classes or a mask, not measurements
# what programs write for "no data", apart from the limits of a type and from giants such as 1e20
_USUAL_FILLS = (999, 9999, 99_999, 999_999, 32_767, 32_768, 65_535, 2**31, 2**31 - 1, 2**32 - 1)
_GIANT = 1e15

_ONE_LEVEL, _TWO_LEVELS = 0.8, 0.95  # shares of the pixels in one or two of 256 levels
_ONE_COLOUR = 0.99  # share of an 8-bit raster's pixels in two levels of 256
_CLIPPED = 0.5  # share of the pixels outside the stretch
_LOST_VALUES = 64  # so many different ones in two levels are a picture that is lost


def sample(layers: Layers) -> NDArray[Any]:
    """Values `(3, n)` of valid pixels all over the dataset; n is 0 if none was found."""
    dataset = layers.dataset
    if dataset.width * dataset.height <= _WHOLE_PX:
        shape = (dataset.height, dataset.width)
        values, valid = layers.read_decimated(shape, Resampling.nearest)
        return values[:, valid]
    found = np.zeros((len(layers.bands), 0))
    for n in (4,) if is_remote(dataset.name) else (6, 12):
        found = _pieces(layers, n)
        if found.shape[1] >= _ENOUGH:
            return found
    # little of it is valid: its overviews show where, if it has any
    height, width = dataset.height, dataset.width
    coarsest = max(dataset.overviews(layers.bands[0]), default=1)
    if width * height / coarsest**2 > 64e6:  # decimating would decode the whole file
        return found
    factor = max(width, height) / _SAMPLE_PX
    shape = (max(1, round(height / factor)), max(1, round(width / factor)))
    values, valid = layers.read_decimated(shape, Resampling.nearest)
    return values[:, valid] if valid.sum() > found.shape[1] else found


def _pieces(layers: Layers, n: int) -> NDArray[Any]:
    """Valid values of `n` × `n` pieces, each in as few blocks of the file as possible."""
    dataset, pieces = layers.dataset, []
    tall, wide = dataset.block_shapes[layers.bands[0] - 1]
    for row in _starts(dataset.height, tall, n):
        for column in _starts(dataset.width, wide, n):
            width = min(_PIECE_PX, dataset.width - column)
            height = min(_PIECE_PX, dataset.height - row)
            window = Window(column, row, width, height)
            try:
                values, valid = patiently(dataset.name, partial(layers.read, window))
            except GDAL_ERRORS:
                continue
            pieces.append(values[:, valid])
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((len(layers.bands), 0))


def _starts(length: int, block: int, n: int) -> list[int]:
    """Where `n` pieces begin: at blocks if these are large, so that each needs only one."""
    if block < _PIECE_PX or length <= block:
        return np.unique(np.linspace(0, max(0, length - _PIECE_PX), n).astype(int)).tolist()
    last = (length - 1) // block
    return (np.unique(np.linspace(0, last, n).astype(int)) * block).tolist()


def fill_value(values: NDArray[Any]) -> float | None:
    """The value in all bands of `(3, n)` that stands for no data though the file does not say so.

    It is the lowest or highest value, repeated many times, and far from all others: -9999 in
    reflectance from 0 to 1, or 65535 in values up to 4000. None if there is no such value.
    """
    fills = {_fill_of(band) for band in values}
    (fill,) = fills if len(fills) == 1 else (None,)
    return fill


def _fill_of(band: NDArray[Any]) -> float | None:
    if band.size == 0 or band.dtype == np.uint8:  # eight bits have no room for a value apart
        return None
    for fill, is_low in ((band.min(), True), (band.max(), False)):
        at = band == fill
        if at.mean() < _FEWEST_FILL or at.all():
            continue
        rest = band[~at].astype(np.float64)
        if len(np.unique(rest[:100_000])) < _FEWEST_VALUES:
            continue
        # percentiles, because resampling may have mixed the fill with its neighbours
        low, high = np.percentile(rest, (1, 99))
        gap = low - float(fill) if is_low else float(fill) - high
        # bright roofs that are saturated have others beside them that nearly are
        middle = (low if is_low else high) / 2 + float(fill) / 2
        near = (rest < middle) if is_low else (rest > middle)
        if near.sum() < _MOST_NEAR * at.sum() and gap > _least_gap(float(fill), band.dtype, low) * (
            high - low
        ):
            return float(fill)
    return None


def _least_gap(fill: float, dtype: np.dtype[Any], low: float) -> float:
    """How far from the others a fill must lie, in widths of the others."""
    limits = (np.iinfo if np.issubdtype(dtype, np.integer) else np.finfo)(dtype)
    usual = abs(fill) in _USUAL_FILLS or abs(fill) > _GIANT
    usual |= fill != 0 and fill in (float(limits.min), float(limits.max))
    if not usual:
        return 5.0
    return 0.1 if fill < 0 <= low else 1.0


def choose_stretch(
    layers: Layers,
    stretch: Stretch | tuple[float, float] | None,
    values: NDArray[Any] | None,
    name: str,
) -> Stretch | None:
    """Choose a stretch for the sampled `values` `(3, n)`; None if they are 0..255 already.

    `values` None: they are sampled if they are needed. Raises `SceneError` if a picture with the
    stretch would hide what the raster shows.
    """
    if isinstance(stretch, Stretch):
        return stretch
    if layers.palette is not None:
        return None
    if stretch is None and is_eight_bit(layers):
        return _stretch_of_bytes(layers, name)
    low_high = PERCENTILES if stretch is None else stretch
    if not (len(low_high) == 2 and 0 <= low_high[0] < low_high[1] <= 100):
        raise SettingError(
            f"stretch: {low_high} are not two rising percentiles from 0 to 100. Take, for example, "
            "2 and 98."
        )
    values = sample(layers) if values is None else values
    if values.shape[1] == 0:  # no valid pixel: any stretch will do, if it is always the same
        return Stretch((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    limits = [_limits(band, low_high) for band in values]
    (r0, r1), (g0, g1), (b0, b1) = limits
    chosen = Stretch((r0, g0, b0), (r1, g1, b1))
    _refuse_blind(values, chosen, name)
    return chosen


def is_eight_bit(layers: Layers) -> bool:
    """Whether all colours are bytes."""
    return {layers.dataset.dtypes[band - 1] for band in layers.bands} == {"uint8"}


def _limits(band: NDArray[Any], low_high: Sequence[float]) -> tuple[float, float]:
    fill = _fill_of(band)  # in this band alone: it is not invalid there, but says nothing
    known = (band if fill is None else band[band != fill]).astype(np.float64)
    low, high = np.percentile(known, low_high)
    if low == high:  # nearly constant: stretch over all values
        low, high = known.min(), known.max()
    if low == high:  # constant: mid-grey, since black looks like no data
        low, high = low - 0.5, high + 0.5
    return float(low), float(high)


def _stretch_of_bytes(layers: Layers, name: str) -> Stretch | None:
    """The stretch of an 8-bit raster whose values have fewer bits; None if they have eight.

    Raises `SceneError` if nearly all pixels have the same colour and a picture is lost in them.
    """
    dataset = layers.dataset
    tags = {dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", "8") for band in layers.bands}
    said = [int(tag) for tag in tags if tag.isdecimal() and 0 < int(tag) < 8]
    if len(said) == len(tags):
        highest = 2.0 ** max(said) - 1
        return Stretch((0.0,) * 3, (highest,) * 3)
    if is_remote(dataset.name):  # opening it should fetch nothing
        return None
    # a look at the middle is enough for nearly all rasters
    side = 256
    column, row = max(0, (dataset.width - side) // 2), max(0, (dataset.height - side) // 2)
    window = Window(column, row, min(side, dataset.width), min(side, dataset.height))
    shape = (int(window.height), int(window.width))
    values, valid, _ = layers.read_what_is_whole(window, shape, Resampling.nearest)
    values = values[:, valid]
    if not values.size or (values.max() > _DIM and not _of_one_colour(values)):
        return None
    values = sample(layers)
    if not values.size:
        return None
    if values.max() > _DIM:
        if _of_one_colour(values):
            _refuse_one_colour(values, name)
        return None
    if (np.ptp(values, axis=1) == 0).all():
        return None
    return Stretch((0.0,) * 3, (2.0 ** int(values.max()).bit_length() - 1,) * 3)


def _of_one_colour(values: NDArray[Any]) -> bool:
    """Whether bytes are all but one or two levels in each band, and yet more than a few classes."""
    for band in values:
        counts = np.bincount(band, minlength=256)
        if np.count_nonzero(counts) < _FEWEST_VALUES:
            return False
        if np.sort(counts)[-2:].sum() < _ONE_COLOUR * len(band):
            return False
    return True


def _refuse_one_colour(values: NDArray[Any], name: str) -> None:
    most = [int(np.bincount(band).argmax()) for band in values]
    share = min(float((band == level).mean()) for band, level in zip(values, most, strict=True))
    raise SceneError(
        f"{name}: {share:.1%} of the pixels have one colour ({', '.join(map(str, most))}), and its "
        f"values run from {values.min()} to {values.max()}. If that colour means no data, name it "
        "as `nodata`; if the picture was lost when it was made 8-bit, export it again with another "
        "range of values; to take it as it is, set `stretch` to [0, 100]."
    )


def _refuse_blind(values: NDArray[Any], stretch: Stretch, name: str) -> None:
    """Refuse a stretch that would hide what the pixels show, in all bands."""
    step = max(1, values.shape[1] // 200_000)
    values = values[:, ::step]
    levels = stretch.apply(values)
    crowded, clipped = [], []
    for band, level, low, high in zip(values, levels, stretch.low, stretch.high, strict=True):
        most = np.argsort(np.bincount(level, minlength=256))[::-1]
        shares = [_lost(band, level, most[:n]) for n in (1, 2)]
        crowded.append(shares[1] >= _TWO_LEVELS or shares[0] >= _ONE_LEVEL)
        clipped.append(float(((band < low) | (band > high)).mean()))
    if not all(crowded) and min(clipped) <= _CLIPPED:
        return
    if all(crowded):
        what = "nearly all pixels would have the same grey"
    else:
        what = f"{min(clipped):.0%} of the pixels would be black or white"
    low, high = float(values.min()), float(values.max())
    middle = np.percentile(values.astype(np.float64), (5, 95))
    raise SceneError(
        f"{name}: with this stretch, {what}. Its values run from "
        f"{low:g} to {high:g}; 90 % of them lie between {middle[0]:g} and {middle[1]:g}. If "
        "one of them means no data, name it as `nodata`; otherwise set `stretch` to percentiles "
        "that leave out what is extreme, for example [5, 95]."
    )


def _lost(band: NDArray[Any], level: NDArray[np.uint8], levels: NDArray[np.int64]) -> float:
    """The share of the pixels that are in some levels, 0 if few of their values are different."""
    there = np.isin(level, levels)
    return float(there.mean()) if len(np.unique(band[there])) >= _LOST_VALUES else 0.0
