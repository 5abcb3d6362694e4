"""A kernel of a notebook whose stop button is pressed while a run works."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from known_runs import until

from workbench import Job

SECONDS = 300


@dataclass(frozen=True)
class Interrupted:
    """How a cell ended whose kernel was interrupted."""

    seconds: float  # from the stop button to the end of the cell
    error: str  # empty: the cell was quicker
    traceback: str


class Notebook:
    """A kernel, as Jupyter starts one."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager, self._client = manager, client

    def run(self, job: Job) -> str:
        """Run a job in a cell; returns the name of its error, or nothing."""
        self.begin(job)
        return self._end()[0]

    def begin(self, job: Job) -> None:
        """Run a job in a cell and do not wait for it."""
        path = Path(f"{job.out_dir}.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(job.to_yaml(), encoding="utf-8")
        self._cell = self._client.execute(
            f"from workbench import Job, run; run(Job.from_yaml({str(path)!r}));"
        )

    def interrupt_when(self, happened: Callable[[], Any]) -> Interrupted:
        """Press the stop button as soon as something has happened."""
        until(happened, SECONDS)
        start = time.monotonic()
        self._manager.interrupt_kernel()
        error, traceback = self._end()
        return Interrupted(time.monotonic() - start, error, traceback)

    def _end(self) -> tuple[str, str]:
        while True:
            reply = self._client.get_shell_msg(timeout=SECONDS)
            if reply["parent_header"]["msg_id"] == self._cell:
                while True:  # what it has printed would pile up
                    try:
                        self._client.get_iopub_msg(timeout=0.05)
                    except Empty:
                        told = reply["content"]
                        return told.get("ename", ""), "\n".join(told.get("traceback", []))


@contextmanager
def notebook() -> Iterator[Notebook]:
    """Start a kernel, and end it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
