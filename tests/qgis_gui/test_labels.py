"""No label is lost or made up: a person works in the real QGIS desktop, with mouse and keys."""

import numpy as np
import pytest
import shapely
from PIL import Image

from workbench._support.palette import LABEL_STATUS_COLORS


def area(wkt: str) -> float:
    return shapely.from_wkt(wkt).area


def drag(desktop, start, end):
    """Move a corner with the vertex tool: a click takes it, another one drops it."""
    x, y = desktop.at(*start)
    desktop.x("mousemove", round(x) - 3, round(y) - 3, "sleep", 0.15, "mousemove", round(x),
              round(y), "sleep", 0.25)  # fmt: skip
    desktop.click(x, y)
    u, v = desktop.at(*end)
    desktop.x("mousemove", round((x + u) / 2), round((y + v) / 2), "sleep", 0.1,
              "mousemove", round(u), round(v), "sleep", 0.2)  # fmt: skip
    desktop.click(u, v)
    desktop.wait(0.2)


def corner(review, fid, which="xMaximum(), b.yMinimum()"):
    return review.ask(f"b = layer.getFeature({fid}).geometry().boundingBox()\nanswer = [b.{which}]")


def test_merging_makes_one_label_of_two(review, desktop):
    before = review.shapes()
    review.select(1, 2)
    review.shortcut("mActionMergeFeatures")
    assert any("Merge" in title for title in review.dialogs())
    desktop.key("Return")
    desktop.wait(0.4)
    after = review.shapes()
    assert len(after) == len(before) - 1
    (merged,) = [fid for fid in after if after[fid] != before.get(fid)]
    assert area(after[merged]) == pytest.approx(area(before[1]) + area(before[2]), rel=1e-3)
    review.save()
    rows = review.rows()
    assert len(rows) == 255
    assert [row["status"] for row in rows.values()].count("edited") == 1


def test_a_merge_can_be_undone(review, desktop):
    before = review.shapes()
    review.select(1, 2)
    review.shortcut("mActionMergeFeatures")
    desktop.key("Return")
    desktop.wait(0.4)
    review.shortcut("mActionUndo")
    assert review.shapes() == before
    assert review.status(1) == review.status(2) == "unreviewed"


def test_a_split_label_is_two_edited_labels(review, desktop):
    before = review.shapes()
    review.look_at(6)
    left, bottom = corner(review, 6, "xMinimum(), b.yMinimum()")
    right, top = corner(review, 6, "xMaximum(), b.yMaximum()")
    middle = (left + right) / 2
    review.select(6)
    review.shortcut("mActionSplitFeatures")
    desktop.click(*desktop.at(middle, top + 2))
    desktop.click(*desktop.at(middle, bottom - 2))
    desktop.click(*desktop.at(middle, bottom - 3), button=3)
    desktop.wait(0.4)
    after = review.shapes()
    (part,) = set(after) - set(before)
    assert area(after[6]) + area(after[part]) == pytest.approx(area(before[6]), rel=1e-3)
    assert review.status(6) == review.status(part) == "edited"
    review.save()
    rows = [row for row in review.rows().values() if row["id"] == "scene/r0c0/5"]
    assert [row["status"] for row in rows] == ["edited", "edited"]


def test_a_deleted_label_comes_back(review, desktop):
    before = review.shapes()
    review.select(5)
    review.shortcut("mActionDeleteSelected")
    desktop.wait(0.3)
    assert set(before) - set(review.shapes()) == {5}
    review.shortcut("mActionUndo")
    assert review.shapes() == before


def test_a_copied_label_is_one_more(review, desktop):
    before = review.shapes()
    review.select(5)
    review.shortcut("mActionCopyFeatures")
    review.shortcut("mActionPasteFeatures")
    desktop.wait(0.3)
    after = review.shapes()
    (copy,) = set(after) - set(before)
    assert after[copy] == before[5]
    review.save()
    assert len(review.rows()) == 257
    # nobody changed its shape
    assert [r["status"] for r in review.rows().values() if r["id"] == "scene/r0c0/4"] == [
        "unreviewed",
        "unreviewed",
    ]


def test_dragging_a_corner_changes_one_label(review, desktop):
    before = review.shapes()
    review.look_at(1)
    start = corner(review, 1)  # the second label has a corner here
    review.shortcut("mActionVertexTool")
    drag(desktop, start, (start[0] + 0.8, start[1] - 1.5))
    after = review.shapes()
    (moved,) = [fid for fid in after if after[fid] != before[fid]]
    assert (moved in (1, 2), review.status(moved)) == (True, "edited")
    review.save()
    assert [f for f, row in review.rows().items() if row["status"] != "unreviewed"] == [moved]
    # once saved, the label stays edited whatever else is changed
    review.ask(f"layer.startEditing()\nlayer.changeAttributeValue({moved}, 2, 2)")
    assert review.status(moved) == "edited"


def test_a_class_set_in_bulk_judges_nothing(review):
    review.ask(
        "c = layer.fields().indexOf('class_id')\n"
        "for f in layer.getFeatures(): layer.changeAttributeValue(f.id(), c, 1)"
    )
    review.save()
    rows = review.rows().values()
    assert {row["class_id"] for row in rows} == {1}
    assert {row["status"] for row in rows} == {"unreviewed"}


def test_a_status_without_quotes_judges_nothing(review):
    # QGIS takes accepted for the name of a field that there is not, which gives NULL
    review.ask(
        "s = layer.fields().indexOf('status')\n"
        "for fid in (1, 2, 3): layer.changeAttributeValue(fid, s, None)"
    )
    review.save()
    assert {row["status"] for row in review.rows().values()} <= {"unreviewed", None}


def test_undo_goes_back_to_the_label_and_says_what_it_undid(review, desktop):
    review.ask(
        "a = [a for a in layer.actions().actions() if a.name() == 'Reject'][0]\n"
        "layer.actions().doAction(a.id(), layer.getFeature(7), layer.createExpressionContext())"
    )
    desktop.wait(0.3)
    assert review.status(7) == "rejected"
    assert review.ask("answer = layer.selectedFeatureIds()") != [7]
    review.shortcut("mActionUndo")
    assert review.status(7) == "unreviewed"
    assert review.ask("answer = layer.selectedFeatureIds()") == [7]
    assert any("Reject label 7" in text for text in review.said())


def draw_square(review, desktop):
    """Draw a polygon where no label is; its form opens."""
    review.ask(
        "e = layer.extent()\nxy = [e.xMinimum() + 7.5, e.yMaximum() - 7.5]\n"
        "iface.mapCanvas().setExtent(QgsRectangle(xy[0] - 5, xy[1] - 10, xy[0] + 10, xy[1] + 5))\n"
        "iface.mapCanvas().refresh()"
    )
    desktop.wait(0.3)
    review.shortcut("mActionAddFeature")
    x, y = review.ask("answer = xy")
    for point in ((x, y), (x + 3, y), (x + 3, y - 3), (x, y - 3)):
        desktop.click(*desktop.at(*point))
    desktop.click(*desktop.at(x - 1, y - 1), button=3)
    desktop.wait(0.3)


BUTTON = (
    "[b for w in QgsApplication.topLevelWidgets() for b in w.findChildren(QAbstractButton) "
    "if b.text().replace('&', '') == {!r} and b.isVisible()][-1]"
)
ACCEPT_IN_FORM, OK_IN_FORM = BUTTON.format("Accept"), BUTTON.format("OK")


def test_the_form_of_a_new_polygon_never_ends_in_a_traceback(review, desktop):
    before = review.shapes()
    draw_square(review, desktop)
    (form,) = review.dialogs()
    review.ask("from qgis.PyQt.QtWidgets import QAbstractButton")
    desktop.click(*desktop.place_of(ACCEPT_IN_FORM))
    desktop.wait(0.3)
    assert review.dialogs() == [form], "no window with a traceback"
    desktop.click(*desktop.place_of(OK_IN_FORM))
    desktop.wait(0.4)
    assert review.dialogs() == []
    (new,) = set(review.shapes()) - set(before)
    assert review.status(new) == "edited"
    assert not any("rror" in text for text in review.said())
    assert any("not in the layer yet" in text for text in review.said())


def test_in_a_form_accept_decides_about_the_highlighted_label(review, desktop):
    review.ask(
        "from qgis.gui import QgsDualView\n"
        "from qgis.PyQt import sip\n"
        "from qgis.PyQt.QtWidgets import QAbstractButton, QWidget\n"
        "table = iface.showAttributeTable(layer)\n"
        "table.move(300, 150)\n"
        "table.resize(900, 600)\n"
        "view = [w for w in table.findChildren(QWidget) if w.objectName() == 'mMainView']\n"
        "view = sip.cast(view[0], QgsDualView)\n"
        "view.setView(QgsDualView.AttributeEditor)\n"
        "view.setCurrentEditSelection([4])"
    )
    desktop.wait(0.4)
    review.select(9)  # on the map, while the form shows another label
    seen = []
    for _ in range(5):
        (highlighted,) = review.ask("answer = layer.selectedFeatureIds()")
        desktop.click(*desktop.place_of(ACCEPT_IN_FORM))
        desktop.wait(0.3)
        seen.append((highlighted, review.status(highlighted)))
    assert [status for _, status in seen] == ["accepted"] * 5
    assert len({fid for fid, _ in seen}) == 5
    accepted = "answer = [f.id() for f in layer.getFeatures() if f['status'] == 'accepted']"
    assert sorted(review.ask(accepted)) == sorted(fid for fid, _ in seen)


def test_a_selection_is_rejected_as_one_step(review, desktop):
    review.select(*range(10, 60))
    review.ask(
        "a = [a for a in layer.actions().actions('Layer') if a.name().startswith('Reject')][0]\n"
        "layer.actions().doAction(a.id(), QgsFeature(), layer.createExpressionContext())"
    )
    assert {review.status(fid) for fid in (10, 30, 59)} == {"rejected"}
    assert (review.status(9), review.status(60)) == ("unreviewed", "unreviewed")
    review.shortcut("mActionUndo")
    assert {review.status(fid) for fid in (10, 30, 59)} == {"unreviewed"}
    assert any("Undone: Reject 50 labels" in text for text in review.said())


def test_a_tile_that_is_reviewed_turns_green_without_a_plugin(review, desktop, tmp_path):
    here = review.ask(
        "answer = [f.id() for f in layer.getFeatures() if f['source_tile'] == 'scene/r0c0']"
    )
    tiles = "QgsProject.instance().mapLayersByName('tiles')[0]"
    review.ask(
        f"b = [f for f in {tiles}.getFeatures() if f['tile'] == 'scene/r0c0'][0]"
        ".geometry().boundingBox()\nb.scale(1.2)\n"
        "iface.mapCanvas().setExtent(b)\niface.mapCanvas().refresh()"
    )
    desktop.wait(0.4)
    before = green(desktop, tmp_path / "before.png")
    review.select(*here)
    review.ask(
        "a = [a for a in layer.actions().actions('Layer') if a.name().startswith('Reject')][0]\n"
        "layer.actions().doAction(a.id(), QgsFeature(), layer.createExpressionContext())"
    )
    review.save()
    desktop.wait(0.5)
    review.ask("layer.removeSelection()")
    desktop.wait(0.4)
    after = green(desktop, tmp_path / "after.png")
    assert after > before + 1000, "the outline of the tile, without a key, a click or a plugin"
    waiting = review.ask(
        f"answer = {{f['tile']: f['n_unreviewed'] for f in {tiles}.getFeatures()}}"
    )
    assert waiting == {"scene/r0c0": 0, "scene/r0c1": 64, "scene/r1c0": 64, "scene/r1c1": 64}


def green(desktop, path):
    """Count the pixels of the screen in the colour of a reviewed tile."""
    screen = np.asarray(Image.open(desktop.picture(path)).convert("RGB")).astype(int)
    wanted = [int(LABEL_STATUS_COLORS["accepted"][i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(screen - wanted).max(axis=2) < 40).sum())
