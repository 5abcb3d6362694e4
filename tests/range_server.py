"""Static files over HTTP with byte ranges, which GDAL needs, in a process of its own.

    python range_server.py FOLDER LOG

prints its port. LOG gets a line for each request: the path and how many bytes went out. Beside LOG
there may be a file with the suffix .signature: then only addresses that contain its text are
answered. In the process of a test it would wait for ever: rasterio keeps Python's lock in some of
its calls.
"""

import functools
import http.server
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, log: Path, **options):
        self.log = log
        super().__init__(*args, **options)

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        signature = self.log.with_suffix(".signature")
        if signature.exists() and signature.read_text() not in self.path:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, first, last, wanted = b"", 0, -1, None
        if path.is_file():
            content = path.read_bytes()
            last = len(content) - 1
            wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
        sent = content[first : last + 1] if body else b""
        with self.log.open("a") as file:
            file.write(f"{self.path} {len(sent)}\n")
        self.send_response((206 if wanted else 200) if path.is_file() else 404)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


class Served:
    """A folder that is being served: where, and what was asked for so far."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    @property
    def requests(self) -> list[tuple[str, int]]:
        """Path and bytes sent, for each request."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(path, int(n)) for path, n in (line.rsplit(" ", 1) for line in lines)]


@contextmanager
def serve(folder: Path, log: Path):
    """Serve a folder while the context lasts."""
    server = subprocess.Popen(
        [sys.executable, __file__, folder, log], stdout=subprocess.PIPE, text=True
    )
    try:
        yield Served(f"http://127.0.0.1:{server.stdout.readline().strip()}", log)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    handler = functools.partial(Handler, directory=sys.argv[1], log=Path(sys.argv[2]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        print(serving.server_port, flush=True)
        serving.serve_forever()
