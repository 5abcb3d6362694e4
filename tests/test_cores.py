"""Thread pools are as large as what the process may use, not as the machine."""

import os
import subprocess
import sys

import pytest

from workbench._support import cores
from workbench._support.cores import usable_cores

POOLS = (
    "from workbench.polygons.seam_pairs import _THREADS as a; from workbench.tuning.preview import "
)
POOLS += "_THREADS as b; print(a._max_workers, b._max_workers)"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 cores whose control groups are the files in a folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "_CGROUP", tmp_path / "self")
    monkeypatch.setattr(cores, "_MOUNT", tmp_path / "fs")

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"self": "0::/\n", "fs/cpu.max": "max 100000\n"}, 16),
        ({"self": "0::/\n", "fs/cpu.max": "250000 100000\n"}, 3),
        ({"self": "0::/\n", "fs/cpu.max": "10000 100000\n"}, 1),
        ({"self": "0::/\n", "fs/cpu.max": "9900000 100000\n"}, 16),
        # the quota of a group above counts, too
        ({"self": "0::/a/b\n", "fs/a/b/cpu.max": "max 1000\n", "fs/a/cpu.max": "2000 1000\n"}, 2),
        (
            {
                "self": "4:memory:/x\n3:cpu,cpuacct:/job\n",
                "fs/cpu/job/cpu.cfs_quota_us": "400000\n",
                "fs/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({"self": "3:cpu:/\n", "fs/cpu/cpu.cfs_quota_us": "-1\n"}, 16),
        ({"self": "0::/\n", "fs/cpu.max": "damaged"}, 16),
    ],
)
def test_the_quota_of_a_container_counts(machine, files, expected):
    machine(files)
    assert usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pools_of_a_process_with_one_core_have_one_thread():
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); {POOLS}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["1", "1"]
