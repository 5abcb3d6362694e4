"""Rasters from a STAC catalogue: an item, a collection of items, or a search."""

from __future__ import annotations

import http.client
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from workbench._support.secrets import without_secrets
from workbench.errors import SceneError
from workbench.raster.sources import is_local, is_url
from workbench.raster.texts import fetched

KEYS = ("stac", "collections", "bbox", "datetime", "max_cloud", "asset", "max_items")
_MAX_ITEMS = 1000
_RASTERS = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
_ENDINGS = (".tif", ".tiff", ".jp2")
_NOT_IMAGERY = {"thumbnail", "overview", "metadata", "cloud", "data-mask"}
_COLOURS = {"red", "green", "blue"}


def is_stac_file(name: str) -> bool:
    """Whether a source is a STAC item or collection in a local JSON file, or at an address."""
    if not name.split("?")[0].lower().endswith((".json", ".geojson")):
        return False
    if is_url(name):
        return True
    return os.path.isfile(name) and "stac_version" in _read(name)


def rasters_of(source: Mapping[str, Any], bounds: Sequence[float] | None = None) -> list[str]:
    """Return the rasters that a STAC source stands for, one for each item.

    Args:
        source: `stac` is the address or path of an item, a collection of items, or an API, which
            is searched for `collections`, `bbox` (four degrees, or `aoi`) and `datetime`.
            `max_cloud` is the highest cloud cover in percent, `asset` the name of the asset to
            take, `max_items` how many items are accepted.
        bounds: West, south, east, north of the area, for `bbox: aoi`.

    Raises:
        SceneError: The catalogue cannot be read, or has no item with imagery in colour.
    """
    if unknown := sorted(set(source) - set(KEYS), key=str):
        raise SceneError(f"source: {unknown[0]} is not one of {', '.join(KEYS)}.")
    limit = _number(source, "max_items", _MAX_ITEMS)
    clearest = _number(source, "max_cloud", math.inf)
    place = str(source.get("stac", ""))
    try:
        return _found(place, source, bounds, limit, clearest)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise SceneError(
            f"{without_secrets(place)} is not as STAC describes items and collections ({error!r}). "
            "Ask whoever publishes it, or name the rasters themselves as source."
        ) from error


def _number(source: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = source.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise SceneError(f"source: {name} must be a number from 0 on, not {value!r}.")
    return float(value)


def _found(
    place: str,
    source: Mapping[str, Any],
    bounds: Sequence[float] | None,
    limit: float,
    clearest: float,
) -> list[str]:
    """The rasters of the items that fit; anything may be raised if the document is not STAC."""
    name = without_secrets(place)
    items = []
    for item in _items(place, source, bounds):
        cover = item.get("properties", {}).get("eo:cloud_cover")
        if cover is not None and float(cover) > clearest:
            continue
        items.append(item)
        if len(items) > limit:
            raise SceneError(
                f"{name} has more than {limit:g} such items. Narrow the search, or set max_items."
            )
    if not items:
        raise SceneError(f"{name} has no item that fits. Widen the search.")
    return list(dict.fromkeys(_raster(item, source.get("asset")) for item in items))


def _items(
    place: str, source: Mapping[str, Any], bounds: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    found = _read(place)
    match found.get("type"):
        case "Feature":
            yield _located(found, place)
        case "FeatureCollection":
            yield from (_located(item, place) for item in found.get("features", []))
        case "Collection" | "Catalog" if "search" not in _relations(found):
            for link in found.get("links", []):
                if link.get("rel") == "item":
                    address = urljoin(place, link["href"])
                    yield _located(_read(address), address)
        case "Catalog":
            yield from _search(place, source, bounds)
        case _:
            raise SceneError(
                f"{without_secrets(place)} is not a STAC item, collection or API: its `type` is "
                f"{found.get('type')!r}."
            )


def _search(
    place: str, source: Mapping[str, Any], bounds: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    try:
        import pystac_client
    except ImportError as error:
        raise SceneError(
            "A search in a STAC API needs the library pystac-client, which is not installed here: "
            'pip install "sam-workbench[stac]"'
        ) from error
    bbox = source.get("bbox")
    if bbox == "aoi":
        if bounds is None:
            raise SceneError("source: `bbox: aoi` needs the parameter `aoi`.")
        bbox = list(bounds)
    try:
        found = pystac_client.Client.open(place).search(
            collections=source.get("collections"), bbox=bbox, datetime=source.get("datetime")
        )
        items: Iterable[dict[str, Any]] = found.items_as_dicts()
        yield from (_located(item, place) for item in items)
    except Exception as error:  # of the library, of requests, of the server
        raise SceneError(
            f"{without_secrets(place)} cannot be searched: {without_secrets(str(error))}. Check "
            "the address and the search."
        ) from None


def _raster(item: Mapping[str, Any], wanted: str | None) -> str:
    """The address of the imagery of an item."""
    assets = item.get("assets", {})
    if wanted is not None:
        if wanted not in assets:
            raise SceneError(
                f"STAC item {item.get('id')} has no asset {wanted}; it has: {', '.join(assets)}."
            )
        return str(assets[wanted]["href"])
    images = {name: asset for name, asset in assets.items() if _is_image(asset)}
    for choose in (_is_visual, _has_colours):
        for name, asset in images.items():
            if choose(name, asset):
                return str(asset["href"])
    apart = {colour for asset in images.values() for colour in _colours_of(asset)}
    if apart >= _COLOURS:
        raise SceneError(
            f"STAC item {item.get('id')} has red, green and blue in files of their own and no "
            "asset `visual`. Make a raster of them (gdalbuildvrt -separate) and name it as source, "
            "or choose one with `asset`."
        )
    if len(images) == 1:
        return str(next(iter(images.values()))["href"])
    raise SceneError(
        f"STAC item {item.get('id')}: which of its assets is the imagery? Name it, for example "
        f"asset: {next(iter(images or assets), '…')}. It has: {', '.join(images or assets)}."
    )


def _is_image(asset: Mapping[str, Any]) -> bool:
    if _NOT_IMAGERY & set(asset.get("roles") or ()):
        return False
    path = str(asset.get("href", "")).split("?")[0].lower()
    return str(asset.get("type", "")).lower().startswith(_RASTERS) or path.endswith(_ENDINGS)


def _is_visual(name: str, asset: Mapping[str, Any]) -> bool:
    return "visual" in (asset.get("roles") or ()) or name.lower() in ("visual", "tci", "rgb")


def _has_colours(name: str, asset: Mapping[str, Any]) -> bool:
    return _colours_of(asset) >= _COLOURS


def _colours_of(asset: Mapping[str, Any]) -> set[str]:
    """The common names of the bands, in the words of STAC 1.0 and 1.1."""
    bands = [*(asset.get("eo:bands") or ()), *(asset.get("bands") or ())]
    return {str(band.get("common_name") or band.get("eo:common_name")) for band in bands}


def _relations(found: Mapping[str, Any]) -> set[str]:
    return {str(link.get("rel")) for link in found.get("links", [])}


def _located(item: dict[str, Any], place: str) -> dict[str, Any]:
    """The item with absolute addresses of its assets."""
    own = next((a["href"] for a in item.get("links", []) if a.get("rel") == "self"), place)
    base = urljoin(place, own)
    assets = {}
    for name, asset in item.get("assets", {}).items():
        href = str(asset.get("href", ""))
        if is_url(base) and not is_url(href):
            href = urljoin(base, href)
        elif is_local(base) and is_local(href):
            href = os.path.join(os.path.dirname(os.path.abspath(place)), href)
        assets[name] = {**asset, "href": href}
    return {**item, "assets": assets}


def _read(place: str) -> dict[str, Any]:
    name = without_secrets(place)
    try:
        if is_url(place):
            found = json.loads(fetched(place))
        else:
            with open(place, encoding="utf-8") as file:
                found = json.load(file)
    except (OSError, ValueError, http.client.HTTPException, RecursionError) as error:
        raise SceneError(f"{name} cannot be read as STAC: {error}. Check the address.") from None
    if not isinstance(found, dict):
        raise SceneError(f"{name} cannot be read as STAC: it is not an object.")
    return found
