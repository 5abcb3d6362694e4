"""SAM Workbench: batch pre-labelling of georeferenced rasters with the Segment Anything Model.

A script needs the names below (`docs/api.md` shows them at work). Everything else may change.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

# loaded when first used: `import workbench` must not wait for GDAL, matplotlib or PyTorch
_HOMES = {
    "Candidates": "candidates.table",
    "ClassicSegmenter": "segmenters.classic",
    "Cleaning": "polygons.clean",
    "Job": "runs.job",
    "Offer": "candidates.offer",
    "Run": "runs.result",
    "Thresholds": "candidates.select",
    "TileGrid": "raster.tiles",
    "WorkbenchError": "errors",
    "clean": "polygons.clean",
    "compare": "evaluation.metrics",
    "join_reviews": "review.join",
    "merge_seams": "polygons.seams",
    "offered": "candidates.offer",
    "open_scene": "raster.open",
    "postgis_project": "review.postgis",
    "read_run": "runs.result",
    "run": "runs.run",
    "sam_segmenter": "segmenters.sam",
    "sample_scene": "samples.demo",
    "select": "candidates.select",
    "split_review": "review.split",
    "tile_windows": "raster.tiles",
    "to_polygons": "polygons.build",
}

__version__ = version("sam-workbench")

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(import_module(f"workbench.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
