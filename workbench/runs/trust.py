"""Who may name the scheduler of a run, which can run any code here."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import JobError

TRUST = "WORKBENCH_TRUST_SCHEDULER"  # names the scheduler that a job file may name, too


def refuse_strange_scheduler(path: Path, scheduler: str | None) -> None:
    """Refuse a scheduler that only a job file names: Dask unpickles what it sends, which is code.

    `WORKBENCH_TRUST_SCHEDULER` may name one that is trusted.
    """
    if scheduler is not None and scheduler != os.environ.get(TRUST):
        raise JobError(
            f"{path} names scheduler {scheduler}, which could run any code on this machine. If you "
            f"trust it, give it by hand (`-p scheduler {scheduler}`) or set {TRUST}={scheduler}. "
            "If not, set scheduler to null in the file."
        )
