"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Count the cores that the process may use, 1 at least.

    `os.cpu_count` counts those of the machine. A batch system gives a process some of them (its
    affinity), and a container a share of their time (the quota of its cgroup).
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas())]))


def _quotas() -> list[float]:
    """The quotas of the process's cgroup and of those above it, in cores."""
    quotas = []
    for folder in _cgroups():
        try:
            if (folder / "cpu.max").exists():  # version 2
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota.strip() not in ("max", "-1"):
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue  # without a quota
    return quotas


def _cgroups() -> list[Path]:
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = _MOUNT
        elif "cpu" in controllers.split(","):
            root = _MOUNT / "cpu"
        else:
            continue
        folder = root / path.lstrip("/")
        found += [folder, *(above for above in folder.parents if above.is_relative_to(root))]
    return found
