"""The files of a run besides its layer and ledger: formats, QGIS project, parts of the report.

If one cannot be made, the others still are; the report says what is missing, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from workbench._support.attempts import Attempts
from workbench._support.text import duration
from workbench.evaluation.against import AgainstReference
from workbench.layer import qgis
from workbench.layer.report.page import write_report
from workbench.layer.report.tally import Topology, seams
from workbench.layer.web import FILES, write_format
from workbench.runs.classes import Taught
from workbench.runs.concepts import ConceptLabels
from workbench.runs.looks import class_colors
from workbench.runs.plan import Plan
from workbench.runs.prompted import PromptLabels, more_of
from workbench.runs.refresh import Refresh
from workbench.runs.result import Run

QUALITY, TOPOLOGY = "Quality", "Topology"  # headings of tables that are counted batch by batch


@dataclass(frozen=True, eq=False)
class FinishedLayer:
    """A run whose layer and ledger are written, and what was counted on the way.

    `seconds` is how long the layer took.
    """

    run: Run
    plan: Plan
    taught: Taught | None
    concepts: ConceptLabels | None
    prompted: PromptLabels | None
    topology: Topology
    against: AgainstReference | None
    refresh: Refresh | None
    attempts: Attempts
    seconds: float


def write_by_products(finished: FinishedLayer) -> None:
    """Write all files but those of the layer and the ledger; the report comes last."""
    start, attempts, run = time.perf_counter(), finished.attempts, finished.run
    for name, write in _FILES.items():
        attempts.make(name, partial(write, finished))
    picture = attempts.make("the picture of the layer", run.picture)
    drawn = {
        heading: attempts.make(f"the charts “{heading}”", partial(draw, finished))
        for heading, draw in _CHARTS.items()
    }
    tables = {
        heading: attempts.make(heading, partial(count, finished))
        for heading, count in _TABLES.items()
    }
    write_report(
        run.folder / "report.html",
        title=f"Run {run.folder.name}",
        picture_png=picture or b"",
        summary=run.summary,
        parameters=run.job.parameters(),
        tiles=run.ledger,
        charts={heading: pictures for heading, pictures in drawn.items() if pictures},
        tables={
            heading: rows
            for heading, rows in (
                ("Rasters left out", finished.plan.left_out),
                ("Not made", attempts.missed),
                *tables.items(),
                ("Time", _times(finished, time.perf_counter() - start)),
                ("Versions", finished.plan.record.versions),
            )
            if rows
        },
    )


def _write_format(name: str, finished: FinishedLayer) -> None:
    run = finished.run
    # after a refresh, the Parquet has labels as they were before their review
    layer = run.folder / ("prelabels.parquet" if finished.refresh is None else "prelabels.gpkg")
    (run.folder / FILES[name]).unlink(missing_ok=True)  # of an earlier layer
    if name in (run.job.formats or ()):
        write_format(layer, name, run.scenes[0].crs, min(each.pixel_m for each in run.scenes))


def _write_project(finished: FinishedLayer) -> None:
    run, attempts = finished.run, finished.attempts
    rasters = [
        attempts.make(f"{scene.name} in review.qgz", partial(qgis.scene_raster, scene))
        for scene in run.scenes
    ]
    qgis.write_project(
        run.folder / "review.qgz",
        gpkg=run.folder / "prelabels.gpkg",
        rasters=[raster for raster in rasters if raster is not None],
        crs=run.scenes[0].crs,
        bounds=tuple(run.tiles.total_bounds),
        classes=run.job.classes,
        title=run.folder.name,
        tiles=run.tiles,
        aoi=run.aoi,
        planar=run.job.planar,
        confidence=run.tally.classes,
        learned=class_colors(run.folder, run.job) if run.job.knows_classes else None,
        more=more_of(finished.prompted),
    )


def _tile_maps(finished: FinishedLayer) -> dict[str, bytes]:
    # the tuner, which draws no chart, need not wait for matplotlib
    from workbench.layer.report.charts import tile_maps
    from workbench.layer.report.map import figure_png

    figures = tile_maps(finished.run.tiles)
    return {title: figure_png(figure) for title, figure in figures.items()}


def _scores_and_areas(finished: FinishedLayer) -> dict[str, bytes]:
    from workbench.layer.report.charts import distributions
    from workbench.layer.report.map import figure_png

    job = finished.run.job
    used = job.thresholds if finished.taught is None else job.limits
    figures = distributions(
        finished.run.tally.numbers, used.pred_iou_thresh, used.stability_score_thresh
    )
    return {title: figure_png(figure) for title, figure in figures.items()}


def _review(finished: FinishedLayer) -> Mapping[str, Any]:
    return {} if finished.refresh is None else finished.refresh.table()


def _classes(finished: FinishedLayer) -> Mapping[str, Any]:
    return {} if finished.taught is None else finished.taught.summary(finished.run.job.classes)


def _concepts(finished: FinishedLayer) -> Mapping[str, Any]:
    shown = finished.plan.shown
    notes = () if shown is None else shown.notes
    rows = {} if finished.concepts is None else finished.concepts.table()
    return {**rows, **{f"exemplars {i}": note for i, note in enumerate(notes, 1)}}


def _prompts(finished: FinishedLayer) -> Mapping[str, Any]:
    return {} if finished.prompted is None else finished.prompted.table()


def _quality(finished: FinishedLayer) -> Mapping[str, Any]:
    return {} if finished.against is None else finished.against.rows()


def _seams(finished: FinishedLayer) -> Mapping[str, Any]:
    return seams(finished.run.tally.numbers)


def _topology(finished: FinishedLayer) -> Mapping[str, Any]:
    return finished.topology.table()


def _times(finished: FinishedLayer, seconds: float) -> Mapping[str, Any]:
    return {
        "finished": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "segmenting, sum over tiles": duration(float(finished.run.ledger["seconds"].sum())),
        "polygons, seams, cleaning and the layer's files": duration(finished.seconds),
        "the other files": duration(seconds),
    }


# what is made, in the order of the report, where a part without content is left out
_FILES: Mapping[str, Callable[[FinishedLayer], None]] = {
    **{FILES[name]: partial(_write_format, name) for name in FILES},
    "review.qgz": _write_project,
}
_CHARTS: Mapping[str, Callable[[FinishedLayer], Mapping[str, bytes]]] = {
    "Tiles": _tile_maps,
    "Scores and areas": _scores_and_areas,
}
_TABLES: Mapping[str, Callable[[FinishedLayer], Mapping[str, Any]]] = {
    "Review": _review,
    "Classes": _classes,
    "Concepts": _concepts,
    "Prompts": _prompts,
    QUALITY: _quality,
    "Seams": _seams,
    TOPOLOGY: _topology,
}
