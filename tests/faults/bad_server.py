"""An HTTP server with range requests that drops, stalls and refuses, as it is told."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import rasterio
from known_objects import write_labels
from numpy.typing import NDArray

# no answer, half of one (its end in peace or by a reset), an answer that does not end, a code
Fault = Literal["close", "half", "reset", "stall", "503"]


@dataclass
class BadServer:
    """Where it is, what it was asked for, and what goes wrong next.

    `fault` gets the first and last byte that are asked for and says what goes wrong; None: nothing.
    """

    url: str = ""
    fault: Callable[[int, int], Fault | None] = lambda first, last: None
    asked: list[tuple[float, int, Fault | None]] = field(default_factory=list)

    def fail_now_and_then(self, fault: Fault) -> None:
        """Let two requests in a row go wrong, and again after ten; of stalls one in twenty."""
        n, every = (1, 20) if fault == "stall" else (2, 12)
        kinds = itertools.cycle([None] * (every - n) + [fault] * n)
        self.fault = lambda first, last: next(kinds)

    def fail_within(self, start: int, stop: int, fault: Fault) -> None:
        """Let those requests go wrong that ask for any of these bytes."""
        self.fault = lambda first, last: fault if first < stop and last >= start else None


@contextmanager
def bad_server(folder: Path) -> Iterator[BadServer]:
    """Serve the files of a folder on loopback."""
    state, stop = BadServer(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.refuse(404)
                return
            content = path.read_bytes()
            first, last, asked = 0, len(content) - 1, self.headers.get("Range")
            if asked:
                start, end = asked.removeprefix("bytes=").split("-")
                first, last = int(start), min(int(end), last)
            fault = state.fault(first, first if self.command == "HEAD" else last)
            state.asked.append((time.monotonic(), first, fault))
            if fault == "503":
                self.refuse(503)
                return
            if fault == "close":
                self.close_connection = True
                return
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            body = b"" if self.command == "HEAD" else content[first : last + 1]
            with suppress(OSError):  # the client may be gone
                self.wfile.write(body if fault is None else body[: len(body) // 2])
            if fault is not None:
                self.close_connection = True
            if fault == "stall":
                stop.wait()
            if fault == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        def refuse(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield state
        finally:
            stop.set()
            server.shutdown()


def write_cloud_raster(path: Path, labels: NDArray[Any]) -> Path:
    """Write known objects in small blocks, each far enough from the others to be asked for."""
    plain = write_labels(path.with_name("plain.tif"), labels)
    with rasterio.open(plain) as source:
        profile = source.profile | {
            "tiled": True,
            "blockxsize": 64,
            "blockysize": 64,
            "interleave": "pixel",
        }
        with rasterio.open(path, "w", **profile) as target:
            target.write(source.read())
    plain.unlink()
    return path
