"""The frame around the label being judged, which sets it apart from its neighbours."""

from qgis.core import QgsGeometry, QgsSettings, QgsWkbTypes
from qgis.gui import QgsRubberBand
from qgis.PyQt.QtGui import QColor

# black below white is seen on any imagery, and no label has these colours
LINES = (QColor(0, 0, 0, 150), 5), (QColor(255, 255, 255, 255), 2)
MARKERS = "qgis/digitizing/marker_style"  # crosses at all corners of what is selected
KEPT = "sam_workbench_review/marker_style"  # the user's own style, kept during a review


class Frame:
    """A thin white line with a dark halo. `begin` and `hide` may be called repeatedly."""

    def __init__(self, canvas):
        self.bands = []
        for color, width in LINES:
            band = QgsRubberBand(canvas, QgsWkbTypes.GeometryType.LineGeometry)
            band.setColor(color)
            band.setWidth(width)
            self.bands.append(band)
        give_markers_back()  # in case a review ended in a crash

    def begin(self):
        """Hide the crosses at the corners of a selected label, which cover its edge."""
        settings = QgsSettings()
        if not settings.contains(KEPT):
            settings.setValue(KEPT, settings.value(MARKERS, "Cross"))
        settings.setValue(MARKERS, "None")

    def show(self, layer, fids):
        """Frame a label; if there is not exactly one, frame nothing."""
        line = QgsGeometry()
        if len(fids) == 1:
            shape = layer.getFeature(fids[0]).geometry()
            if not shape.isEmpty():
                line = QgsGeometry(shape.constGet().boundary())
        for band in self.bands:
            band.setToGeometry(line, layer)

    def hide(self):
        """Remove the frame, and show the corners as before."""
        for band in self.bands:
            band.reset(QgsWkbTypes.GeometryType.LineGeometry)
        give_markers_back()


def give_markers_back():
    """Restore the user's style for corners."""
    settings = QgsSettings()
    if settings.contains(KEPT):
        settings.setValue(MARKERS, settings.value(KEPT))
        settings.remove(KEPT)
