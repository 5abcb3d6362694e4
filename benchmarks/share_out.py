"""What the workers of a cluster take off the process that makes the layer.

    python benchmarks/share_out.py [--workers N] [--rounds N]

A scene of 100 tiles with 1,000 stored candidates each (see `rethreshold.py`). Its layer is made
anew, with and without overlaps, in turn by one process and with workers on the same machine. The
files must be the same, byte for byte.
"""

import argparse
import hashlib
import tempfile
import time
from contextlib import closing
from pathlib import Path

from distributed import LocalCluster
from rethreshold import stored_scene

from workbench import Job
from workbench.runs.finish import finish
from workbench.runs.plan import prepare

FILES = ("prelabels.gpkg", "prelabels.parquet", "prelabels.geojson")


def made_again(job: Job) -> tuple[float, float, int, str]:
    """Seconds and processor seconds of this process, polygons, and a digest of the files."""
    with closing(prepare(job)) as plan:
        start, busy = time.perf_counter(), time.process_time()
        result = finish(plan)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    content = b"".join((plan.folder / name).read_bytes() for name in FILES)
    n = int(result.tiles["n_polygons"].sum())
    return seconds, busy, n, hashlib.sha256(content).hexdigest()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    print("| planar | polygons | way | s | s of this process's processor time | same files |")
    print("|---|---|---|---|---|---|", flush=True)
    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(
            n_workers=given.workers, threads_per_worker=1, processes=True, dashboard_address=":0",
            host="127.0.0.1", silence_logs=50,
        ) as cluster,
    ):  # fmt: skip
        stored = stored_scene(Path(name))
        for planar in (False, True):
            alone = stored.changed(planar=planar)
            shared = alone.changed(scheduler=cluster.scheduler_address)
            made_again(alone)  # the ledger is read, and checked, once in a process
            digests = set()
            for _ in range(given.rounds):
                for way, job in (("alone", alone), (f"{given.workers} workers", shared)):
                    seconds, busy, n, digest = made_again(job)
                    digests.add(digest)
                    print(
                        f"| {'yes' if planar else 'no'} | {n:,} | {way} | {seconds:.1f} "
                        f"| {busy:.1f} | {'yes' if len(digests) == 1 else 'NO'} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
