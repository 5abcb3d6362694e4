"""All candidates by their two scores, with the two thresholds as lines to drag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.candidates.select import Thresholds
from workbench.candidates.table import Rules


class ScorePlane(anywidget.AnyWidget):
    """Candidates by predicted IoU (x) and stability (y), with histograms along both axes.

    `points` and `state` describe the same candidates: assign both under `hold_sync()`; if their
    lengths differ, nothing is drawn. Dragging a line, or an arrow key on it, sets
    `pred_iou_thresh` or `stability_score_thresh` to a multiple of 0.005, at most once per frame of
    the browser. `data-painted` on the canvas (ms, `performance.now()`) is the time of the last
    frame.
    """

    _esm = Path(__file__).with_suffix(".js")

    points = traitlets.Bytes(help="float32, predicted IoU and stability of each").tag(sync=True)
    state = traitlets.Bytes(help="uint8, a `preview.Fate` up to OUTSIDE for each").tag(sync=True)
    pred_iou_thresh = traitlets.Float(Thresholds.pred_iou_thresh).tag(sync=True)
    stability_score_thresh = traitlets.Float(Thresholds.stability_score_thresh).tag(sync=True)
    floors = traitlets.List(
        traitlets.Float(),
        default_value=[Rules.pred_iou_floor, Rules.stability_floor],
        minlen=2,
        maxlen=2,
        help="lower ends of the axes, which end at 1",
    ).tag(sync=True)
    selected = traitlets.Int(-1, help="row, -1: none").tag(sync=True)

    def on_click(self, callback: Callable[[int], None]) -> None:
        """Call `callback(row)` when a candidate is clicked."""

        def dispatch(widget: ScorePlane, message: dict[str, Any], buffers: Any) -> None:
            if message["kind"] == "click":
                callback(message["row"])

        self.on_msg(dispatch)
