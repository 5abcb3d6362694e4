"""The page of a run, one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
from matplotlib.figure import Figure

from workbench._support.files import atomic_path
from workbench.layer.report.map import (
    figure_png,
)

# what lies in a run folder, for those who have been sent one
FILES: Mapping[str, str] = {
    "review.qgz": "QGIS project: open this one to review",
    "prelabels.gpkg": "the polygons and the tiles, with their style inside",
    "prelabels.geojson": "the polygons in EPSG:4326, for the web and other programs",
    "prelabels.parquet": "the polygons as GeoParquet, for analysis",
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
    tiles: gpd.GeoDataFrame | None = None,
    charts: Mapping[str, Mapping[str, Figure]] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write one HTML page that needs no other file: picture, summary, charts, parameters.

    `charts` and `tables` are by heading. Links lead to the files of `FILES` that lie beside it;
    failed `tiles` are listed with errors.
    """
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _failures(tiles) if tiles is not None else "",
        _image("Map of the polygons over the imagery", picture_png),
        "<h2>Summary</h2>",
        _table({str(name): row["value"] for name, row in summary.iterrows()}),
        _files(path.parent),
        *(_chart_row(heading, figures) for heading, figures in (charts or {}).items()),
        *(f"<h2>{html.escape(name)}</h2>" + _table(rows) for name, rows in (tables or {}).items()),
        "<h2>Parameters</h2>",
        _table({name: "–" if value is None else value for name, value in parameters.items()}),
    ]
    page = _PAGE.format(title=html.escape(title), body="\n".join(filter(None, sections)))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# ------------------------------------------------------------------------------------- page


def _image(alt: str, png: bytes) -> str:
    picture = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">'


def _chart_row(heading: str, figures: Mapping[str, Figure]) -> str:
    images = "\n".join(_image(name, figure_png(figure)) for name, figure in figures.items())
    return f'<h2>{html.escape(heading)}</h2>\n<div class="charts">\n{images}\n</div>'


def _breakable(name: str) -> str:
    """A name as HTML that a narrow screen breaks at its underscores."""
    return html.escape(name).replace("_", "_<wbr>")


def _table(rows: Mapping[str, Any]) -> str:
    cells = (
        f"<tr><th>{_breakable(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return "<table>\n" + "\n".join(cells) + "\n</table>"


def _files(folder: Path) -> str:
    there = {name: meaning for name, meaning in FILES.items() if (folder / name).exists()}
    if not there:
        return ""
    items = (
        f'<li><a href="{name}">{name}</a>: {html.escape(meaning)}</li>'
        for name, meaning in there.items()
    )
    return "<h2>Files</h2>\n<ul>\n" + "\n".join(items) + "\n</ul>"


def _failures(tiles: gpd.GeoDataFrame) -> str:
    failed = tiles[tiles["status"] == "failed"]
    if failed.empty:
        return ""
    shown = failed.head(_MAX_FAILED_ROWS)
    more = len(failed) - len(shown)
    return (
        f'<div class="failed"><h2>{len(failed):,} of {len(tiles):,} tiles failed</h2>'
        "<p>Run again to try them again; the other tiles are done.</p>"
        + _table(dict(zip(shown["tile"], shown["error"], strict=True)))
        + (f"<p>… and {more:,} more, in tiles.parquet.</p>" if more else "")
        + "</div>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 1.5rem 0 .5rem; }}
img {{ display: block; width: 100%; height: auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: .5rem; align-items: start; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .5rem .3rem 0;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
th {{ font-weight: 500; color: #555; width: 40%; }}
td {{ font-variant-numeric: tabular-nums; }}
ul {{ padding-left: 1.2rem; }}
.failed {{ border-left: .3rem solid #d50000; background: #fff2f2; padding: .1rem 1rem 1rem; }}
.failed h2 {{ margin-top: .8rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
