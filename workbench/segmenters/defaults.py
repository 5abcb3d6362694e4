"""The thresholds and floors that each model has of its own: models score their masks differently.

`benchmarks/labels.py` measures what they cost a reviewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.candidates.select import Thresholds
from workbench.candidates.table import Rules


@dataclass(frozen=True)
class ModelDefaults:
    """What `null` means for a model: where the sliders start, and what is stored.

    `takes_boxes` is whether a prompt's box helps it: `benchmarks/prompts.py` measures that.
    `takes_clicks` is whether a person can ask it for an outline by clicks.
    `joins_clicks` is whether several clicks together mean one object to it.
    """

    pred_iou_thresh: float = Thresholds.pred_iou_thresh
    stability_score_thresh: float = Thresholds.stability_score_thresh
    pred_iou_floor: float = Rules.pred_iou_floor
    stability_floor: float = Rules.stability_floor
    box_nms_thresh: float = Rules.box_nms_thresh
    takes_boxes: bool = True
    takes_clicks: bool = True
    joins_clicks: bool = True


_OF_SAM = ModelDefaults()
_OF = {
    "classic": ModelDefaults(takes_clicks=False),
    # what Meta's own processor keeps; the stability of its masks has not been measured
    "sam3": ModelDefaults(0.5, 0.0, pred_iou_floor=0.2, stability_floor=0.0, takes_clicks=False),
    # its scores are right on the average, so few are high; its regions are distinct already, so
    # equal boxes alone mean one object; they do not grow by a click, but those of several clicks
    # can be put together
    "tiny": ModelDefaults(0.65, 0.9, box_nms_thresh=0.95, joins_clicks=False),
}


def defaults_of(model: str) -> ModelDefaults:
    """The defaults of a model, by its name in a job."""
    return _OF.get(model, _OF_SAM)
