"""A small WMS over HTTP, in a process of its own: one image at one place.

    python wms_server.py IMAGE LEFT TOP PIXEL

prints its port. It answers GetMap in EPSG:3857, with nothing (black) beside the image, and
GetCapabilities.
"""

import functools
import http.server
import io
import sys
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

CAPABILITIES = b"""<?xml version="1.0"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms"><Service><Name>WMS</Name>
<ContactInformation><ContactPersonPrimary><ContactOrganization>Town hall</ContactOrganization>
</ContactPersonPrimary></ContactInformation><AccessConstraints>CC BY 4.0</AccessConstraints>
</Service><Capability><Layer><Title>All</Title><Attribution><Title>Land survey</Title></Attribution>
<Layer><Name>town</Name></Layer><Layer><Name>other</Name><Attribution><Title>Somebody</Title>
</Attribution></Layer></Layer></Capability></WMS_Capabilities>"""


class Wms(http.server.BaseHTTPRequestHandler):
    """One request."""

    def __init__(self, *args, image, left, top, pixel):
        self.image, self.left, self.top, self.pixel = image, left, top, pixel
        super().__init__(*args)

    def do_GET(self):
        query = {key.lower(): each[0] for key, each in parse_qs(urlsplit(self.path).query).items()}
        if query["request"] == "GetCapabilities":
            self.answer("text/xml", CAPABILITIES)
            return
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
        self.answer("image/png", body.getvalue())

    def answer(self, kind, content):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    image = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
    left, top, pixel = map(float, sys.argv[2:])
    handler = functools.partial(Wms, image=image, left=left, top=top, pixel=pixel)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        print(serving.server_port, flush=True)
        serving.serve_forever()
