"""Memory of JupyterLab and its kernel while a notebook is at work, as on Binder (2 GB).

    python benchmarks/memory.py [WORD …]

Starts JupyterLab by `binder/start`, runs each notebook cell by cell in a kernel of that server, and
prints the highest sum over the server, the kernel and whatever they have started. Pages that
processes share count once (PSS, as in /proc/PID/smaps_rollup). *By hand* is what a person does in
`prelabel.ipynb`: the widgets are there, and the run is started by the panel, in a process of its
own. Words choose the rows that have one of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
from jupyter_client.blocking import BlockingKernelClient

ROOT = Path(__file__).parent.parent
# what the button of the run panel does
BY_HAND = """
import threading
from workbench.tuning.process import Finished, Stopped
ended = threading.Event()
picker.session.compute(None, lambda e: isinstance(e, Finished | Stopped) and ended.set())
assert ended.wait(600)
"""


def main() -> None:
    """Measure each notebook with a server of its own."""
    print("| notebook | model | peak MB | seconds |\n|---|---|---|---|", flush=True)
    prelabel = ROOT / "notebooks" / "prelabel.ipynb"
    for path, how, values in (
        (None, "server and an idle kernel", {}),
        (prelabel, "prelabel.ipynb, batch", {"model": "classic", "interactive": False}),
        (prelabel, "prelabel.ipynb, batch", {"model": "tiny", "interactive": False}),
        (prelabel, "prelabel.ipynb, by hand", {"model": "classic", "interactive": True}),
        (prelabel, "prelabel.ipynb, by hand", {"model": "tiny", "interactive": True}),
        (ROOT / "notebooks" / "tour.ipynb", "tour.ipynb", {"interactive": False}),
        (ROOT / "notebooks" / "tour.ipynb", "tour.ipynb, by hand", {"interactive": True}),
    ):
        if sys.argv[1:] and not set(sys.argv[1:]) & {*how.split(), *map(str, values.values())}:
            continue
        start = time.perf_counter()
        peak = measure(cells_of(path, values))
        model = values.get("model", "–" if path is None else "tiny, classic")
        print(f"| {how} | {model} | {peak} | {time.perf_counter() - start:.0f} |", flush=True)


def cells_of(path: Path | None, values: dict[str, object]) -> list[str]:
    """Return the code of a notebook with other parameters."""
    if path is None:
        return ["1"]
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = []
    for cell in cells:
        code.append(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            code += [f"{name} = {value!r}" for name, value in values.items()]
    return code + [BY_HAND] * (path.stem == "prelabel" and values["interactive"] is True)


def measure(cells: list[str]) -> int:
    """Run cells in a kernel of a JupyterLab; return the peak of all its processes in MB."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        runtime = Path(folder) / "runtime"
        server = subprocess.Popen(
            [
                shutil.which("bash") or "bash", ROOT / "binder" / "start", sys.executable, "-m",
                "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
                "--IdentityProvider.token=key", f"--ServerApp.root_dir={folder}",
            ],
            env=os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime)},
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ended = threading.Event()
        peak: list[int] = [0]
        watcher = threading.Thread(target=_watch, args=(server.pid, ended, peak))
        try:
            kernel = _start_kernel(f"http://127.0.0.1:{port}/api/kernels")
            watcher.start()
            _run(runtime / f"kernel-{kernel}.json", cells)
        finally:
            ended.set()
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                process.kill()
            server.wait()
        watcher.join()
        return peak[0] // 2**20


def _watch(server: int, ended: threading.Event, peak: list[int]) -> None:
    while not ended.wait(0.2):
        total = 0
        for process in [psutil.Process(server), *psutil.Process(server).children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        peak[0] = max(peak[0], total)


def _start_kernel(url: str) -> str:
    request = urllib.request.Request(url, b"{}", {"Authorization": "token key"})
    return _patiently(lambda: str(json.load(urllib.request.urlopen(request))["id"]))


def _patiently(ask: Callable[[], str]) -> str:
    for _ in range(120):
        try:
            return ask()
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("JupyterLab does not answer")


def _run(connection: Path, cells: list[str]) -> None:
    client = BlockingKernelClient()
    client.load_connection_file(str(connection))
    client.start_channels()
    client.wait_for_ready(timeout=60)
    for code in cells:
        reply = client.execute_interactive(code, timeout=900, output_hook=lambda _: None)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))
    client.stop_channels()


if __name__ == "__main__":
    main()
