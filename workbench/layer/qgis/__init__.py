"""The hand-off to QGIS: styles and the review project, written without QGIS."""

from workbench.layer.qgis.project import AREA, ProjectRaster, scene_raster, write_project
from workbench.layer.qgis.style import CONFIDENCE_CLASSES, NO_SCORE_COLOR, confidence_labels, styles

__all__ = [
    "AREA",
    "CONFIDENCE_CLASSES",
    "NO_SCORE_COLOR",
    "ProjectRaster",
    "confidence_labels",
    "scene_raster",
    "styles",
    "write_project",
]
