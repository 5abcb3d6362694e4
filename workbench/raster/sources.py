"""What a user names as rasters: find the files, refuse look-alikes, give GDAL's names."""

import glob
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from workbench._support.secrets import has_secrets, without_secrets
from workbench.errors import SceneError
from workbench.raster.web_tiles import (
    document,
    is_map_service,
    is_web_tiles,
    without_attribution,
)

_RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".j2k", ".img", ".ntf", ".ecw", ".sid", ".bil", ".asc"}
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # georeferenced only by a sidecar
_SIDECAR = re.compile(r"\.(msk|ovr|aux\.xml|[a-z]{2,4}w|wld|prj)$", re.IGNORECASE)

# how GDAL names a URL; anything else with a scheme is passed on unchanged
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
    # never for local files, which often have masks and overviews beside them
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    # when a server says "not now" (429, 503, …), for example after too many requests
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    # seconds of silence after which a connection is given up; GDAL would wait for ever
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "VSI_CACHE": "TRUE",
}
# full addresses of signed rasters, or of folders of such, separated by spaces
SIGNED_URLS = "WORKBENCH_SIGNED_URLS"
RETRY_SECONDS = (1.0, 4.0, 16.0)  # waits between the tries of a remote raster

# some of GDAL's errors pass rasterio unwrapped; their base class has no public name
GDAL_ERRORS = (RasterioError, CPLE_BaseError)

Result = TypeVar("Result")


class _WithoutSecrets(logging.Filter):
    """Leaves signatures out of what rasterio logs of GDAL, which has whole addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), ()
        return True


for _name in ("rasterio._env", "rasterio._err", "rasterio._io", "rasterio._base"):
    logging.getLogger(_name).addFilter(_WithoutSecrets())


def find_sources(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Find the rasters that a path, list, glob, directory, VRT or URL stands for.

    Returns absolute paths and URLs, each once. Those of a glob or directory are sorted; a list
    keeps its order. A directory stands for the raster files directly in it. Its VRTs count only if
    there is nothing else, because they usually mosaic the files beside them. Raises `SceneError` if
    nothing is found.
    """
    if not isinstance(source, str | os.PathLike):
        found = [path for each in source for path in find_sources(each)]
        if not found:
            raise SceneError("The list of rasters is empty. Name at least one raster.")
        return list(dict.fromkeys(found))
    name = absolute(source)
    if not is_local(name):
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
            f"No raster matches {name}. Check the pattern; relative paths start at {os.getcwd()}."
        )
    return found


def absolute(source: str | os.PathLike[str]) -> str:
    """Make the path of a local file absolute, also inside of one of GDAL's own names.

    URLs stay as they are. Example: `GPKG:two.gpkg:a` becomes `GPKG:/here/two.gpkg:a`.
    """
    name = os.fspath(source).removeprefix("file://")
    if is_local(name):
        return os.path.abspath(os.path.expanduser(name))
    start, end = _path_in(name)
    path = os.path.abspath(os.path.expanduser(name[start:end])) if start < end else ""
    return name[:start] + path + name[end:]


def _path_in(name: str) -> tuple[int, int]:
    """Where in one of GDAL's names a relative path of an existing file stands."""
    if archive := re.match(r"/vsi(?:zip|tar|gzip|7z|rar)/(?!/|vsi)", name):
        parts, end = name[archive.end() :].split("/"), archive.end()
        for part in parts:
            end += len(part)
            if os.path.isfile(name[archive.end() : end]):
                return archive.end(), end
            end += 1
    elif virtual := re.match(r"vrt://(?!/)([^?]+)", name):
        return virtual.span(1)
    elif not is_url(name):
        # a driver, and then the file in quotes or among other words: HDF4_SDS:UNKNOWN:"a.hdf":0
        for word in re.finditer(r'"([^"]+)"|(?<=:)([^":]+)', name):
            span = word.span(1) if word[1] else word.span(2)
            path = os.path.expanduser(name[slice(*span)])
            if not os.path.isabs(path) and os.path.exists(path):
                return span
    return 0, 0


def is_local(name: str) -> bool:
    """Whether a name is a path, rather than a URL or one of GDAL's own names."""
    # at least two letters before the colon: C:\ is a drive, GPKG: a GDAL driver
    return not re.match(r"/vsi|[A-Za-z][A-Za-z0-9_+.-]+:", name)


def is_url(name: str) -> bool:
    """Whether a name is an address with a scheme, as `https://…` or `s3://…`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def gdal_name(name: str) -> str:
    """The name by which GDAL opens a path or URL."""
    if is_web_tiles(name):
        return document(name)
    for scheme, prefix in _REMOTE.items():
        if name.startswith(scheme):
            return prefix + name.removeprefix(scheme)
    return without_attribution(name)


def signed(name: str) -> str:
    """Add the signature that the environment has for an address, if it has one.

    `WORKBENCH_SIGNED_URLS` holds the full addresses of rasters, or of folders with one signature
    for all that is in them.
    """
    head = "/vsicurl/" if name.startswith("/vsicurl/") else ""
    address = name.removeprefix(head)
    for full in os.environ.get(SIGNED_URLS, "").split():
        place, _, query = full.partition("?")
        plain = without_secrets(place)
        if address == plain or address.startswith((plain.rstrip("/") + "/", plain + "?")):
            joint = "&" if "?" in address else "?"
            address, bar, options = address.partition("|")  # of web tiles
            more = joint + query if query else ""
            return head + place + address[len(plain) :] + more + bar + options
    return name


def is_remote(name: str) -> bool:
    """Whether a source is read over a network by GDAL's own means."""
    return is_map_service(name) or gdal_name(name).startswith(_REMOTE_FILE_SYSTEMS)


def gdal_environment(name: str) -> AbstractContextManager[Any]:
    """GDAL's options for reading the source; options set in the user's environment are kept."""
    options = {k: v for k, v in _REMOTE_OPTIONS.items() if k not in os.environ}
    # an Env even without options, because without one GDAL prints its errors to stderr
    return rasterio.Env(**(options if is_remote(name) else {}))


def patiently(name: str, read: Callable[[], Result]) -> Result:
    """Return what `read` returns; for a remote source, try again after ever longer waits.

    GDAL itself tries again if a server has answered, but not if a connection was dropped or has
    gone silent. An answer that will stay the same (4xx, except 408 and 429) is not tried again.
    """
    waits = iter(RETRY_SECONDS if is_remote(name) else ())
    while True:
        try:
            with gdal_environment(name):
                return read()
        except GDAL_ERRORS as error:
            forget(name)
            seconds = next(waits, None)
            if seconds is None or re.search(r"response code: 4(?!08|29)", cause(error)):
                raise
        time.sleep(seconds)


def forget(name: str) -> None:
    """Let GDAL forget what it has cached of a remote source.

    GDAL takes half an answer for the end of the file, and no answer for a missing file.
    """
    if is_remote(name):
        # the only access to its cache: it is dropped when a file that may not be cached is closed
        options = {"CPL_VSIL_CURL_NON_CACHED": gdal_name(name), "GDAL_HTTP_MAX_RETRY": "0"}
        with gdal_environment(name), rasterio.Env(**options), suppress(*GDAL_ERRORS):
            rasterio.open(gdal_name(name)).close()


def cause(error: BaseException) -> str:
    """GDAL's own text of an error: rasterio often says only that something failed.

    Without signatures.
    """
    return without_secrets(str(error.__cause__ or error)).strip().rstrip(".")


def why_gone(name: str, error: BaseException) -> str | None:
    """Say that a raster is not there any more, and what to do; None if that is not the cause."""
    plain, words = without_secrets(name), cause(error)
    if is_local(name):
        if os.path.exists(name):
            return None
        return (
            f"There is no file {plain} any more: it was moved, renamed or deleted. Put it back, or "
            "run again with `source` where it is now: finished tiles are kept."
        )
    status = re.search(r"response code: (401|403|404|410)", words)
    if status is None:
        return None
    if status[1] in ("404", "410"):
        return (
            f"{plain} is not there any more (HTTP {status[1]}): it was moved or deleted. Run again "
            "with `source` where it is now: finished tiles are kept."
        )
    return (
        f"{plain} does not answer without a valid signature or login (HTTP {status[1]}); an old "
        f"one may have expired. Put a fresh address in {SIGNED_URLS}, or set GDAL_HTTP_HEADERS, "
        "and try again: finished tiles are kept."
    )


def harmless(error: BaseException) -> BaseException | None:
    """Return the error if a traceback may show it, and None if it has a signature in it."""
    chain = (error, error.__cause__, error.__context__)
    return None if any(has_secrets(str(each)) for each in chain) else error


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
            f"The directory {directory} holds no raster. Name another directory, or a pattern, for "
            f"example {directory / '**' / '*.tif'}."
        )
    return [str(path) for path in rasters]


def _refuse_missing(name: str) -> None:
    if os.path.isdir(name):
        raise SceneError(f"{name} is a directory, not a raster. Name a file in it.")
    if not os.path.exists(name):
        raise SceneError(
            f"There is no file {name}. Check the path; relative paths start at {os.getcwd()}."
        )


def refuse_impostors(name: str) -> None:
    """Refuse local files for which we can give a better reason than GDAL."""
    if not is_local(name):
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
            f"{name} is empty (0 bytes). Copying or downloading it has failed: fetch it again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise SceneError(
            f"{name} is a Git LFS pointer, not the raster itself. Fetch it with `git lfs pull`."
        )
    refuse_description(name, head)


def refuse_description(name: str, head: bytes) -> None:
    """Refuse a text that has the name of a raster, given the beginning of the file.

    GDAL goes by the content: such a text may name any file, program or server to read from.
    """
    if Path(name.split("?")[0]).suffix.lower() in _RASTER_SUFFIXES | _PICTURE_SUFFIXES and re.match(
        rb"\s*(<[?!A-Za-z]|[{\[]\s*[\"{\[])", head
    ):
        raise SceneError(
            f"{name} is a text that describes rasters elsewhere, not a raster. If you know what it "
            "names, rename it to .vrt or .xml; otherwise fetch the raster itself."
        )
