"""Choose the model of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import JobError
from workbench.runs.exemplars import read_exemplars
from workbench.runs.job import Job
from workbench.runs.together import NOTHING_TO_FIND
from workbench.segmenters.keys import sam_key
from workbench.segmenters.protocol import Segmenter, SharesNetwork
from workbench.segmenters.weights import WEIGHTS


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
        return _classic(job)
    # torch takes seconds to import
    from workbench.segmenters.sam import concept_segmenter, sam_segmenter

    device, precision = _as_before(job, before)
    resolved: dict[str, Any] = {
        "checkpoint": job.checkpoint,
        "device": device,
        "precision": precision,
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


def key_before_loading(job: Job, before: Mapping[str, Any]) -> dict[str, Any] | None:
    """The key of the Segmenter that `segmenter_for` chooses, without importing torch.

    None if it cannot be known that way: for SAM 3, for a checkpoint of the job's own (to hash
    gigabytes takes seconds, too), on a cluster, or after a run by another kind of model. Raises
    `CheckpointError` for weights that only a person can download.
    """
    if job.scheduler is not None or before.get("model") != job.model:
        return None
    if job.model == "classic":
        return dict(_classic(job).key)
    if job.model not in WEIGHTS or job.checkpoint is not None:
        return None
    device, precision = _as_before(job, before)
    return sam_key(
        job.model,
        weights_sha256=WEIGHTS[job.model].sha256,
        points_per_side=job.points_per_side,
        rules=job.rules,
        device=device.partition(":")[0],
        precision=precision,
        points_per_batch=before.get("points_per_batch", 0),
        threads=before.get("threads", 0),
    )


def _classic(job: Job) -> Segmenter:
    from workbench.segmenters.classic import ClassicSegmenter  # and scikit-image takes a while

    return ClassicSegmenter(job.rules)


def _as_before(job: Job, before: Mapping[str, Any]) -> tuple[str, str]:
    """Device and precision of the job; what it leaves `auto` is as in an earlier key."""
    device = before.get("device", "auto") if job.device == "auto" else job.device
    precision = before.get("precision", "auto") if job.precision == "auto" else job.precision
    return device, precision
