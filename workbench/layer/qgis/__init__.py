"""The hand-off to QGIS: styles and the review project, written without QGIS."""

from workbench.layer.qgis.project import AREA, ProjectRaster, scene_raster, write_project
from workbench.layer.qgis.style import styles

__all__ = ["AREA", "ProjectRaster", "scene_raster", "styles", "write_project"]
