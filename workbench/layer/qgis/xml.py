"""XML as QGIS reads it. Comments in this room that begin with `QGIS:` explain its quirks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

# QGIS: the version decides which migrations run. Older QGIS warns about a newer one, and every QGIS
# warns about a missing one, so this is the oldest version that is supported.
VERSION = "3.22.0"
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def qml(style: Iterable[ET.Element]) -> str:
    """Return a style as a QML document."""
    return document(style_element(style)).decode()


def style_element(style: Iterable[ET.Element]) -> ET.Element:
    """Return a style as the element `<qgis>`."""
    root = el(None, "qgis", version=VERSION, styleCategories="AllStyleCategories")
    root.extend(style)
    return root


def document(root: ET.Element) -> bytes:
    """Return an indented document, in UTF-8."""
    ET.indent(root)
    return (_DOCTYPE + ET.tostring(root, encoding="unicode")).encode()


def el(parent: ET.Element | None, tag: str, text: Any = None, /, **attributes: Any) -> ET.Element:
    """Add an element to `parent` (None: to nothing), with its text and attributes."""
    node = ET.Element(tag) if parent is None else ET.SubElement(parent, tag)
    for name, value in attributes.items():
        node.set(name.removesuffix("_"), text_of(value))  # class_, pass_: keywords of Python
    if text is not None:
        node.text = text_of(text)
    return node


def text_of(value: Any) -> str:
    """Return a value as text that XML can hold."""
    # XML cannot hold control characters and lone surrogates
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", str(value))


def option(parent: ET.Element, value: Any, name: str | None = None) -> None:
    """Add a value in QGIS's notation for variants."""
    node = el(parent, "Option", **({} if name is None else {"name": name}))
    match value:
        case Mapping():
            node.set("type", "Map")
            for key, item in value.items():
                option(node, item, key)
        case list():
            node.set("type", "List")
            for item in value:
                option(node, item)
        case bool():
            node.attrib.update(type="bool", value="true" if value else "false")
        case float():
            node.attrib.update(type="double", value=repr(value))
        case int():
            node.attrib.update(type="int", value=str(value))
        case _:
            node.attrib.update(type="QString", value=text_of(value))
