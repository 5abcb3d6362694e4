"""The label can be seen: on the screen of the real QGIS desktop."""

import numpy as np
import pytest
from PIL import Image


def pixels(desktop, path, fid):
    """The part of the screen inside a label, (h, w, 3), and its share of the map's area."""
    x0, y0, x1, y1, width, height = desktop.ask(
        "from qgis.PyQt.QtCore import QPoint\n"
        f"b = layer.getFeature({fid}).geometry().boundingBox()\n"
        "c = iface.mapCanvas()\nt = c.getCoordinateTransform()\n"
        "p, q = t.transform(b.xMinimum(), b.yMaximum()), t.transform(b.xMaximum(), b.yMinimum())\n"
        "o = c.mapToGlobal(QPoint(0, 0))\n"
        "answer = [p.x() + o.x(), p.y() + o.y(), q.x() + o.x(), q.y() + o.y(), "
        "c.width(), c.height()]"
    )
    screen = np.asarray(Image.open(desktop.picture(path)).convert("RGB")).astype(float)
    inside = screen[round(y0) + 6 : round(y1) - 6, round(x0) + 6 : round(x1) - 6]
    return inside, (x1 - x0) * (y1 - y0) / (width * height)


def accept(review, fid):
    review.ask(
        "a = [a for a in layer.actions().actions() if a.name() == 'Accept'][0]\n"
        f"layer.actions().doAction(a.id(), layer.getFeature({fid}), "
        "layer.createExpressionContext())"
    )


def test_the_roof_is_seen_under_the_selected_label(review, desktop, tmp_path):
    review.look_at(8, 3)
    bare, _ = pixels(desktop, tmp_path / "bare.png", 8)
    review.select(8)
    desktop.wait(0.5)
    chosen, _ = pixels(desktop, tmp_path / "chosen.png", 8)
    # the roof is a check of two greys: its contrast is nearly all there
    assert chosen.std() > 0.6 * bare.std() > 10
    # without a selection, nothing tints the imagery: the lighter checks are as in the file
    assert np.percentile(bare[..., 0], 90) == pytest.approx(210, abs=3)


def test_the_next_label_fills_a_fifth_of_the_view(review, desktop, tmp_path):
    accept(review, 8)
    desktop.wait(0.8)
    (following,) = review.ask("answer = layer.selectedFeatureIds()")
    _, share = pixels(desktop, tmp_path / "next.png", following)
    assert share == pytest.approx(0.2, abs=0.02)


def test_the_zoom_can_be_switched_off(review, desktop):
    review.look_at(8, 20)
    before = review.ask("answer = iface.mapCanvas().scale()")
    review.ask(
        "a = [a for a in layer.actions().actions('Layer') if a.name().startswith('Zoom')][0]\n"
        "layer.actions().doAction(a.id(), QgsFeature(), layer.createExpressionContext())"
    )
    accept(review, 8)
    desktop.wait(0.5)
    assert review.ask("answer = iface.mapCanvas().scale()") == pytest.approx(before)
    assert review.ask(
        "answer = iface.mapCanvas().extent().contains("
        "layer.getFeature(layer.selectedFeatureIds()[0]).geometry().boundingBox())"
    )


def test_a_reviewer_edits_without_surprises(review):
    seen = review.ask(
        "s = QgsProject.instance().snappingConfig()\n"
        "one = s.individualLayerSettings(layer)\n"
        "answer = [one.tolerance(), int(one.units()), QgsProject.instance().topologicalEditing()]"
    )
    assert seen == [12, 1, False]  # 12 pixels
