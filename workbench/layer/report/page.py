"""The page of a run: one HTML file that needs no other file.

`page.html.j2` is the page. Jinja2 escapes every value in it, and nothing here makes HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import jinja2
import pandas as pd

from workbench._support.files import atomic_path
from workbench._support.palette import TILE_CHART_COLORS

# what lies in a run folder, for those who have been sent one
FILES: Mapping[str, str] = {
    "review.qgz": "QGIS project: open this one to review",
    "prelabels.gpkg": "the polygons and the tiles, with their style inside",
    "prelabels.geojson": "the polygons in EPSG:4326, for the web and other programs",
    "prelabels.parquet": "the polygons as GeoParquet, for analysis",
    "prelabels.fgb": "the labels as FlatGeobuf, for maps on the web",
    "prelabels.pmtiles": "the labels as vector tiles, for maps on the web",
    "tiles.parquet": "the ledger: what happened to each tile",
    "job.yaml": "the parameters, to run it again: papermill -f job.yaml",
    "run.yaml": "what was resolved: CRS, stretch, weights, versions",
}
_MAX_FAILED_ROWS = 50


def write_report(
    path: Path,
    *,
    title: str,
    picture_png: bytes,
    summary: pd.DataFrame,
    parameters: Mapping[str, Any],
    tiles: gpd.GeoDataFrame,
    charts: Mapping[str, Mapping[str, bytes]] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write one HTML page that needs no other file: picture, summary, charts, parameters.

    `charts` (PNG) and `tables` are by heading. The page links to the files of `FILES` that lie
    beside it, and lists failed `tiles` with their errors.
    """
    failed = tiles[tiles["status"] == "failed"]
    first = failed.head(_MAX_FAILED_ROWS)
    page = _template().render(
        title=title,
        n_tiles=len(tiles),
        n_failed=len(failed),
        failed=dict(zip(first["tile"], first["error"], strict=True)),
        failed_color=TILE_CHART_COLORS["failed"],
        map_png=picture_png,
        summary=summary["value"].to_dict(),
        files={name: what for name, what in FILES.items() if (path.parent / name).exists()},
        charts=charts or {},
        tables=tables or {},
        parameters={name: "–" if value is None else value for name, value in parameters.items()},
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("workbench.layer.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("page.html.j2")
