"""A small WMS over HTTP, in a process of its own: one image at one place.

    python wms_server.py IMAGE LEFT TOP PIXEL

prints its port. It answers GetMap in EPSG:3857, with nothing (black) beside the image.
"""

import functools
import http.server
import io
import sys
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image


class Wms(http.server.BaseHTTPRequestHandler):
    """One request."""

    def __init__(self, *args, image, left, top, pixel):
        self.image, self.left, self.top, self.pixel = image, left, top, pixel
        super().__init__(*args)

    def do_GET(self):
        query = {key.lower(): each[0] for key, each in parse_qs(urlsplit(self.path).query).items()}
        west, south, east, north = map(float, query["bbox"].split(","))
        width, height = int(query["width"]), int(query["height"])
        x = west + (np.arange(width) + 0.5) * (east - west) / width
        y = north - (np.arange(height) + 0.5) * (north - south) / height
        column = np.floor((x - self.left) / self.pixel).astype(int)
        row = np.floor((self.top - y) / self.pixel).astype(int)
        tall, wide = self.image.shape[:2]
        inside = ((row >= 0) & (row < tall))[:, None] & ((column >= 0) & (column < wide))
        found = self.image[row.clip(0, tall - 1)[:, None], column.clip(0, wide - 1)]
        body = io.BytesIO()
        Image.fromarray(np.where(inside[..., None], found, 0).astype(np.uint8)).save(body, "png")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(body.tell()))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    image = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
    left, top, pixel = map(float, sys.argv[2:])
    handler = functools.partial(Wms, image=image, left=left, top=top, pixel=pixel)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        print(serving.server_port, flush=True)
        serving.serve_forever()
