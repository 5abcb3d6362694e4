"""The keys of Segmenters with a network: all that their candidates depend on, as plain values.

Nothing here needs PyTorch, so stored candidates are recognised without it.
"""

from __future__ import annotations

from typing import Any

from workbench.candidates.table import Rules

SAM_ARITHMETIC = 5  # goes up when a change moves the last bits of the network's output


def sam_key(
    model: str,
    *,
    weights_sha256: str,
    points_per_side: int,
    rules: Rules,
    device: str,
    precision: str,
    points_per_batch: int,
    threads: int,
) -> dict[str, Any]:
    """The key of a SAM model, except torch's version; `device` is its kind, without a number."""
    return {
        "model": model,
        "arithmetic": SAM_ARITHMETIC,
        "weights_sha256": weights_sha256,
        "points_per_side": points_per_side,
        **rules.limits,
        "device": device,
        "precision": precision,
        # the last bits depend on the batch shape and the number of threads
        "points_per_batch": points_per_batch,
        "threads": threads,
    }
