import numpy as np
import pytest
from test_widgets_overlay import Sent, in_javascript, tell

from workbench.tuning.preview import Fate
from workbench.widgets.score_plane import ScorePlane


def test_points_and_fates_arrive_together_as_binary(monkeypatch):
    plane = ScorePlane()
    sent = Sent(plane, monkeypatch)
    points = np.array([[0.9, 0.95], [0.6, 0.7]], "<f4").tobytes()
    with plane.hold_sync():
        plane.points, plane.state = points, bytes([Fate.KEPT, Fate.BELOW])
    assert sent == [{"points": points, "state": b"\x01\x00"}]


def test_thresholds_go_both_ways(monkeypatch):
    plane = ScorePlane(pred_iou_thresh=0.85, stability_score_thresh=0.92)
    heard = []
    plane.observe(lambda change: heard.append(change["new"]), "pred_iou_thresh")
    plane._handle_msg(  # a line that was dragged
        {"content": {"data": {"method": "update", "state": {"pred_iou_thresh": 0.9}}}}
    )
    assert heard == [0.9]
    sent = Sent(plane, monkeypatch)
    plane.stability_score_thresh = 0.8
    assert sent == [{"stability_score_thresh": 0.8}]


def test_clicks_reach_python():
    plane, rows = ScorePlane(), []
    plane.on_click(rows.append)
    tell(plane, kind="click", row=3)
    tell(plane, kind="something else", row=4)
    assert rows == [3]


def test_defaults_are_those_of_a_job():
    plane = ScorePlane()
    assert (plane.pred_iou_thresh, plane.stability_score_thresh) == (0.85, 0.92)
    assert plane.floors == [0.5, 0.5]


# ---- what the browser makes of it --------------------------------------------------------------


def test_every_fate_has_a_colour_and_what_is_kept_lies_on_top(tmp_path):
    fates = in_javascript("score_plane.js", "return module.FATES", tmp_path)
    assert sorted(fate["number"] for fate in fates) == [
        Fate.BELOW, Fate.KEPT, Fate.SUPPRESSED, Fate.CLEANED, Fate.OUTSIDE,
    ]  # fmt: skip
    labels = {fate["number"]: fate["label"] for fate in fates}
    assert labels[Fate.BELOW].startswith("below")
    assert labels[Fate.SUPPRESSED] == "suppressed"
    assert "clean" in labels[Fate.CLEANED]
    assert fates[-1]["number"] == Fate.KEPT
    assert len({fate["colour"] for fate in fates}) == len(fates)


def test_thresholds_lie_on_the_grid_within_the_axis(tmp_path):
    code = "return [0.8312, 0.8349, 0.3, 1.2, 0.1 + 0.7].map((v) => module.snapped(v, 0.52))"
    assert in_javascript("score_plane.js", code, tmp_path) == [0.83, 0.835, 0.52, 1, 0.8]


def test_scores_and_pixels_lead_to_each_other(tmp_path):
    code = (
        "const scales = module.scalesOf(320, [0.5, 0.6]); const { plot } = scales;"
        "const place = ([iou, stability]) => [scales.x(iou), scales.y(stability)];"
        "const there = [[0.5, 0.6], [1, 1], [0.83, 0.91]].map(place);"
        "return { plot, there, back: scales.scores(...there[2]), beyond: scales.x(1.04) }"
    )
    found = in_javascript("score_plane.js", code, tmp_path)
    plot, (low, high, _) = found["plot"], found["there"]
    assert low == [plot["left"], plot["top"] + plot["height"]]
    assert high == [plot["left"] + plot["width"], plot["top"]]
    assert found["back"] == pytest.approx([0.83, 0.91])
    assert found["beyond"] == high[0]  # SAM's predicted IoU may pass 1


def test_histograms_count_every_candidate_once(tmp_path):
    code = (
        "const points = Float32Array.from([0.5, 0.5, 0.75, 1, 1, 0.5, 1.1, 0.99]);"
        "const { shares } = module.scalesOf(320, [0.5, 0.5], points);"
        "return [0, 1].map((axis) => {"
        "  const { all, kept } = module.histogram(shares, [0, 1, 2, 1], axis);"
        "  return [[...all], [...kept]]; })"
    )
    (iou, iou_kept), (stability, stability_kept) = in_javascript("score_plane.js", code, tmp_path)
    assert (iou[0], iou[25], iou[-1], sum(iou)) == (1, 1, 2, 4)
    assert (stability[0], stability[-1], sum(stability)) == (2, 2, 4)
    assert (sum(iou_kept), sum(stability_kept)) == (2, 2)


def test_a_click_finds_the_nearest_candidate(tmp_path):
    code = (
        "const points = Float32Array.from([0.6, 0.6, 0.62, 0.6, 0.9, 0.9]);"
        "const scales = module.scalesOf(320, [0.5, 0.5], points);"
        "const near = (a, b, dx) => module.nearest(scales, scales.x(a) + dx, scales.y(b));"
        "return [near(0.6, 0.6, 1), near(0.62, 0.6, 1), near(0.9, 0.9, 5), near(0.75, 0.75, 0)]"
    )
    assert in_javascript("score_plane.js", code, tmp_path) == [0, 1, 2, -1]


def test_scores_that_crowd_get_room_and_the_lines_can_still_be_dragged(tmp_path):
    code = (
        "const points = new Float32Array(400);"
        "for (let i = 0; i < 200; i++) points.set([0.97 + 0.0001 * i, 0.6], 2 * i);"
        "points[0] = 0.5;"
        "const scales = module.scalesOf(320, [0.5, 0.5], points); const { plot } = scales;"
        "const wide = (scales.x(0.99) - scales.x(0.97)) / plot.width;"
        "const steps = [0.5, 0.7, 0.9, 0.97, 0.975, 0.98, 0.985, 0.99, 1];"
        "const back = steps.map((v) => scales.scores(scales.x(v), plot.top)[0]);"
        "const ticks = module.ticksOf(0.5, scales.x, 28);"
        "const places = ticks.map(scales.x).sort((a, b) => a - b);"
        "return { wide, steps, back, places, ticks }"
    )
    found = in_javascript("score_plane.js", code, tmp_path)
    assert found["wide"] > 0.4  # a 25th of the axis by score
    assert found["back"] == pytest.approx(found["steps"])
    assert min(np.diff(found["places"])) >= 28
    assert {0.5, 1} <= set(found["ticks"])
