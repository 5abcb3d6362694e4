"""A small STAC API over HTTP, in a process of its own: items of a folder, and its other files.

    python stac_server.py FOLDER LOG

prints its port. `/` is the landing page, `/search` takes collections, bbox and datetime (a day).
"""

import functools
import http.server
import json
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from range_server import Handler

CORE = "https://api.stacspec.org/v1.0.0/"


class Api(Handler):
    """One request."""

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/":
            return self.json(self.landing())
        if url.path == "/search":
            query = {key: value[0] for key, value in parse_qs(url.query).items()}
            lists = {k: query[k].split(",") for k in ("collections", "bbox") if k in query}
            return self.json(self.search(query | lists))
        return self.answer(body=True)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.json(self.search(json.loads(body)))

    @property
    def root(self):
        return f"http://{self.headers['Host']}"

    def landing(self):
        return {
            "type": "Catalog", "id": "test", "description": "test", "stac_version": "1.0.0",
            "conformsTo": [CORE + "core", CORE + "item-search"],
            "links": [
                {"rel": "self", "href": f"{self.root}/"},
                {"rel": "root", "href": f"{self.root}/"},
                {"rel": "search", "href": f"{self.root}/search", "method": "POST",
                 "type": "application/geo+json"},
            ],
        }  # fmt: skip

    def search(self, query):
        found = []
        for path in sorted(Path(self.directory).glob("*.item.json")):
            item = json.loads(path.read_text())
            item["links"].append({"rel": "self", "href": f"{self.root}/{path.name}"})
            west, south, east, north = map(float, query.get("bbox") or (-180, -90, 180, 90))
            w, s, e, n = item["bbox"]
            if not (w <= east and e >= west and s <= north and n >= south):
                continue
            if query.get("collections") and item["collection"] not in query["collections"]:
                continue
            day = query.get("datetime", "").split("T")[0].split("/")[0]
            if day and not item["properties"]["datetime"].startswith(day):
                continue
            found.append(item)
        return {"type": "FeatureCollection", "features": found, "links": []}

    def json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    handler = functools.partial(Api, directory=sys.argv[1], log=Path(sys.argv[2]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        print(serving.server_port, flush=True)
        serving.serve_forever()
