"""The job's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.runs.job import Job
from workbench.segmenters.classic import ClassicSegmenter
from workbench.segmenters.protocol import Segmenter


def loaded_segmenter(job: Job) -> Segmenter:
    """The job's Segmenter, ready to propose, for a `prepare` that comes later."""
    segmenter = segmenter_for(job, {})
    segmenter.load()
    return segmenter


def segmenter_for(job: Job, before: Mapping[str, Any]) -> Segmenter:
    """Choose the job's Segmenter; where the job leaves it open, as an earlier run (its key) did."""
    rules: dict[str, Any] = {
        "pred_iou_floor": job.rules.pred_iou_floor,
        "stability_floor": job.rules.stability_floor,
        "box_nms_thresh": job.box_nms_thresh,
        "crop_nms_thresh": job.crop_nms_thresh,
    }
    if job.model == "classic":
        return ClassicSegmenter(**rules)
    from workbench.segmenters.sam import sam_segmenter  # torch takes seconds to import

    return sam_segmenter(
        job.model,
        checkpoint=job.checkpoint,
        device=before.get("device", "auto") if job.device == "auto" else job.device,
        precision=before.get("precision", "auto") if job.precision == "auto" else job.precision,
        points_per_side=job.points_per_side,
        crop_n_layers=job.crop_n_layers,
        points_per_batch=before.get("points_per_batch"),
        threads=before.get("threads"),
        **rules,
    )
