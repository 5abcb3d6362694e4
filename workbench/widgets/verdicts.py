"""Why a clicked polygon is shown, and what else lies at its place."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import ipyleaflet
import pandas as pd
import pyproj

from workbench.tuning.preview import Fate, Preview, Verdict, View
from workbench.widgets.map import feature
from workbench.widgets.safe_html import SafeHTML
from workbench.widgets.tuner_text import MOST_VERDICTS, verdicts_table

_OUTLINE = {
    "color": "#ffffff",
    "weight": 2,
    "fill": False,
    "interactive": False,
    "dashArray": "4 4",
}


class Explained:
    """Explains candidates in `text`, and outlines in `alternatives` those that are not drawn."""

    def __init__(self, crs: pyproj.CRS) -> None:
        self._nothing = gpd.GeoSeries([], crs=crs)
        self._asked: tuple[float, float, int] | None = None  # place and row that are explained
        self.text = SafeHTML()
        self.alternatives = ipyleaflet.GeoJSON(data=feature(self._nothing, _OUTLINE))

    def clear(self) -> None:
        """Explain nothing."""
        self._asked = None
        self.text.value = ""
        self._outline([])

    def ask_place(
        self, x: float, y: float, row: int, preview: Preview, view: View
    ) -> list[Verdict]:
        """Explain the candidates at a point of the map, first the clicked `row`; -1: none was."""
        self._asked = x, y, row
        return self.follow(preview, view)

    def ask_row(self, row: int, preview: Preview, view: View) -> list[Verdict]:
        """Explain one candidate."""
        self._asked = None
        return self._show([preview.explain(row, view)], preview)

    def follow(self, preview: Preview, view: View) -> list[Verdict]:
        """Explain the same place in another view; empty if no place was asked about."""
        if self._asked is None:
            return []
        x, y, row = self._asked
        # sorted is stable: what was clicked first, then the best
        verdicts = sorted(preview.at(x, y, view), key=lambda verdict: verdict.row != row)
        return self._show(verdicts, preview)

    @property
    def has_place(self) -> bool:
        """Whether a place is explained, which other thresholds may change."""
        return self._asked is not None

    def _show(self, verdicts: list[Verdict], preview: Preview) -> list[Verdict]:
        self.text.value = verdicts_table(verdicts)
        listed = verdicts[:MOST_VERDICTS]
        self._outline([preview.outline(v.row) for v in listed if v.fate != Fate.KEPT])
        return verdicts

    def _outline(self, shapes: Sequence[gpd.GeoSeries]) -> None:
        together = pd.concat(shapes) if shapes else self._nothing
        self.alternatives.data = feature(together, _OUTLINE)
