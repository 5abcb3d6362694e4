"""The hand-off to QGIS: styles and the review project, written without QGIS.

`style` makes forms and symbols (all colours are in `_support.palette`), `project` the `.qgz`.
`buttons` makes the buttons for reviewers, `actions` is the code that QGIS runs for them. `order`
decides which label is next, `marks` shows who has a file open, `xml` and `expressions` escape.
"""

from workbench.layer.qgis.project import AREA, ProjectRaster, scene_raster, write_project
from workbench.layer.qgis.style import styles

__all__ = ["AREA", "ProjectRaster", "scene_raster", "styles", "write_project"]
