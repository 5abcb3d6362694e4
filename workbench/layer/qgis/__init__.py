"""The hand-off to QGIS: styles and the review project, written without QGIS.

`style` has forms and symbols (in the colours of `_support.palette`), `project` the `.qgz`,
`buttons` the buttons for reviewers and `actions` the code that QGIS runs for them, `order` what is
reviewed next, `marks` who has a file open, `xml` and `expressions` what must be escaped.
"""

from workbench.layer.qgis.project import AREA, ProjectRaster, scene_raster, write_project
from workbench.layer.qgis.style import styles

__all__ = ["AREA", "ProjectRaster", "scene_raster", "styles", "write_project"]
