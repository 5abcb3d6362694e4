"""Text on the page: everything is escaped, except for the HTML that this package writes itself.

Names of files, CRSs and classes, and messages of libraries, come from whoever made the file. As
HTML, they could run code in the browser. So no other module makes a `widgets.HTML`, and `Markup` is
only ever made from a literal: `Markup("<b>{}</b>").format(name)` escapes the name.
"""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import pandas as pd
import traitlets
from markupsafe import Markup, escape

__all__ = ["Markup", "SafeHTML", "paragraph", "sentence", "small", "table"]


class SafeHTML(widgets.HTML):
    """Shows a `str` as it is, and only `Markup` as HTML."""

    @traitlets.validate("value")
    def _escaped(self, proposal: Any) -> Markup:
        return escape(proposal["value"])


def paragraph(content: str, style: str = "") -> Markup:
    """Return text, or `Markup`, as a paragraph that screen readers announce."""
    return Markup('<div role="status" style="line-height: 1.35; {}">{}</div>').format(
        style, content
    )


def sentence(text: str) -> Markup:
    """Return an error message, readable in light and dark themes."""
    return Markup(
        '<div role="alert" style="color: var(--jp-error-color1, #c00); line-height: 1.3;'
        ' white-space: pre-line">{}</div>'
    ).format(text)


def small(text: str) -> Markup:
    """Return a line of figures whose digits all have the same width."""
    return Markup(
        '<span style="font-variant-numeric: tabular-nums; white-space: nowrap">{}</span>'
    ).format(text)


def table(frame: pd.DataFrame) -> Markup:
    """Return a table without a header; pandas escapes the cells."""
    return Markup(frame.to_html(header=False, escape=True))
