"""Whom imagery is to be attributed to: as given by hand, or as its service says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from workbench.raster.sources import is_url
from workbench.raster.texts import fetched
from workbench.raster.web_tiles import given_attribution

# of a WMS address: what asks for a picture, or is meant for GDAL
_OF_A_PICTURE = {
    "service", "version", "request", "layers", "styles", "srs", "crs", "bbox", "format", "width",
    "height", "transparent", "time", "minresolution", "tilesize", "overviewcount", "bboxorder",
}  # fmt: skip
_NOTHING = {"", "none"}  # what services write who restrict nothing


def attribution_of(name: str) -> str:
    """Whom the imagery of a source is to be attributed to; empty if nobody says.

    What is given by hand (`…|attribution=© …`) counts before what a WMTS or WMS says in its
    capabilities: the attribution of the layer or else its provider, and the constraints on access.

    Raises:
        OSError: The capabilities cannot be fetched.
        ElementTree.ParseError: They are no XML.
    """
    given = given_attribution(name)
    if given:
        return given
    if name.startswith("WMTS:"):
        address, layers = _wmts(name)
    elif name.startswith("WMS:"):
        address, layers = _wms(name)
    else:
        return ""
    text = fetched(address) if is_url(address) else Path(address).read_bytes()
    return _said(ElementTree.fromstring(text), layers)


def _wmts(name: str) -> tuple[str, set[str]]:
    """The address of the capabilities that GDAL reads, and the layer."""
    address, *options = name.removeprefix("WMTS:").split(",")
    named = dict(option.partition("=")[::2] for option in options)
    return address.strip('"'), {named["layer"]} if "layer" in named else set()


def _wms(name: str) -> tuple[str, set[str]]:
    """The address of the capabilities of a WMS whose pictures GDAL asks for, and the layers."""
    address, _, query = name.removeprefix("WMS:").partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    asked = {key.lower(): value for key, value in pairs}
    kept = [pair for pair in pairs if pair[0].lower() not in _OF_A_PICTURE]
    kept += [("SERVICE", "WMS"), ("REQUEST", "GetCapabilities")]
    kept += [("VERSION", asked["version"])] if "version" in asked else []
    layers = {unquote(layer) for layer in asked.get("layers", "").split(",") if layer}
    return f"{address}?{urlencode(kept)}", layers


def _said(root: Element, layers: set[str]) -> str:
    """What capabilities say of some layers."""
    titles = sorted({title for layer in layers for title in _titles(root, layer)})
    providers = [_text(root, "ProviderName"), _text(root, "ContactOrganization")]
    who = titles or [provider for provider in providers if provider][:1]
    constraints = _text(root, "AccessConstraints")
    return "; ".join(who + ([constraints] if constraints.lower() not in _NOTHING else []))


def _titles(root: Element, layer: str) -> list[str]:
    """The attribution of a layer, or else of the nearest one that it is in; empty without any."""
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in root.iter():
        names = {_text_of(child) for child in _children(element, "Name", "Identifier")}
        if _tag(element) == "Layer" and layer in names:
            above: Element | None = element
            while above is not None and _tag(above) == "Layer":
                for attribution in _children(above, "Attribution"):
                    if title := _text(attribution, "Title"):
                        return [title]
                above = parents.get(above)
    return []


def _text(element: Element, tag: str) -> str:
    """The text of the first element of a tag; empty without one."""
    return next((_text_of(one) for one in element.iter() if _tag(one) == tag), "")


def _text_of(element: Element) -> str:
    return re.sub(r"\s+", " ", element.text or "").strip()


def _children(element: Element, *tags: str) -> Iterator[Element]:
    return (child for child in element if _tag(child) in tags)


def _tag(element: Element) -> str:
    """The name of an element; services of different versions put it in different namespaces."""
    return str(element.tag).rpartition("}")[2]
