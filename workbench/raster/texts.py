"""The bytes of a file wherever GDAL can read it: on disk, at an address, in an archive."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio

from workbench.raster.sources import gdal_environment, signed

_TIMEOUT = 60  # seconds of silence of a server
HEAD_BYTES = 16_384  # as much as GDAL fetches of a remote file at once
MOST_BYTES = 2**30
_PIECE_BYTES = 2**22  # at once, at most
# GDAL shows any file as a raster of its bytes; rasterio has no other way to read one
_AS_RASTER = """<VRTDataset rasterXSize="{width}" rasterYSize="1">
<GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>
<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativetoVRT="0">{place}</SourceFilename><ImageOffset>{start}</ImageOffset>
<PixelOffset>1</PixelOffset><LineOffset>{width}</LineOffset></VRTRasterBand></VRTDataset>"""


def fetched(address: str) -> bytes:
    """All bytes of a file at an `https` address.

    Raises `OSError` if the server does not give them, without signatures in its text.
    """
    try:
        with urllib.request.urlopen(signed(address), timeout=_TIMEOUT) as answer:
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"HTTP response code: {error.code}") from None
    return content


def head_of(place: str) -> bytes:
    """The first bytes of a file that GDAL names `place`, up to `HEAD_BYTES`, or to a zero byte.

    Raises one of `sources.GDAL_ERRORS` if it is no file, or cannot be read.
    """
    return _piece(place, 0, HEAD_BYTES).partition(b"\0")[0]


def copy_text(place: str, path: Path) -> None:
    """Write the text that GDAL names `place` to a file on disk; a text has no zero byte.

    Raises one of `sources.GDAL_ERRORS` if it cannot be read, and `ValueError` if it is larger than
    `MOST_BYTES`.
    """
    with path.open("wb") as file:
        while file.tell() < MOST_BYTES:
            # GDAL refuses a raster that is much larger than its file
            n = min(max(HEAD_BYTES, file.tell()), _PIECE_BYTES)
            text, end, _ = _piece(place, file.tell(), n).partition(b"\0")
            file.write(text)
            if end:
                return
    raise ValueError(f"it is a text of more than {MOST_BYTES // 2**20} MB")


def _piece(place: str, start: int, n: int) -> bytes:
    """`n` bytes of a file; zeros follow its end."""
    raster = _AS_RASTER.format(width=n, start=start, place=escape(place))
    allowed = {"GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL"}
    with gdal_environment(place), rasterio.Env(**allowed), rasterio.open(raster) as file:
        content: bytes = file.read(1).tobytes()
    return content
