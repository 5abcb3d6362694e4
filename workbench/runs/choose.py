"""Choose the model of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import JobError
from workbench.runs.exemplars import read_exemplars
from workbench.runs.job import Job
from workbench.runs.together import NOTHING_TO_FIND
from workbench.segmenters.classic import ClassicSegmenter
from workbench.segmenters.protocol import Segmenter, SharesNetwork


def loaded_segmenter(job: Job, before: Segmenter | None = None) -> Segmenter:
    """Load the job's Segmenter ahead of a later `prepare`, unless the one `before` is the same."""
    segmenter = or_loaded(segmenter_for(job, {} if before is None else before.key), before)
    if segmenter is not before:
        segmenter.load()
    return segmenter


def or_loaded(segmenter: Segmenter, loaded: Segmenter | None) -> Segmenter:
    """The Segmenter that is loaded if it is the same, or a new one with its network."""
    if loaded is None:
        return segmenter
    if loaded.key == segmenter.key:
        return loaded
    return segmenter.with_network_of(loaded) if isinstance(segmenter, SharesNetwork) else segmenter


def segmenter_for(job: Job, before: Mapping[str, Any]) -> Segmenter:
    """Choose the job's Segmenter; what the job leaves `auto` is as in `before`.

    `before` is the key of an earlier run's Segmenter, or empty.
    """
    if job.model == "classic":
        return ClassicSegmenter(job.rules)
    # torch takes seconds to import
    from workbench.segmenters.sam import concept_segmenter, sam_segmenter

    resolved: dict[str, Any] = {
        "checkpoint": job.checkpoint,
        "device": before.get("device", "auto") if job.device == "auto" else job.device,
        "precision": before.get("precision", "auto") if job.precision == "auto" else job.precision,
        "rules": job.rules,
        "threads": before.get("threads"),
    }
    if job.lacks_concepts:
        raise JobError(f"Nothing to find yet: {NOTHING_TO_FIND}.")
    if job.finds_concepts:
        drawn = read_exemplars(job)
        shown = "" if drawn is None else drawn.digest
        return concept_segmenter(job.concepts or {}, exemplars=shown, **resolved)
    return sam_segmenter(
        job.model,
        points_per_side=job.points_per_side,
        points_per_batch=before.get("points_per_batch"),
        **resolved,
    )
