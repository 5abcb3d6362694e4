"""Whether a raster is the one that it was."""

import hashlib
import os

import numpy as np
import rasterio
from rasterio.enums import Resampling

from workbench.raster.bands import Layers
from workbench.raster.sources import is_local


def fingerprint_of(dataset: rasterio.DatasetReader, name: str) -> str:
    """A digest of the layout and of pieces of the content: quick, so it may miss a change."""
    digest = hashlib.sha256()
    digest.update(repr((dataset.profile, dataset.colorinterp, dataset.nodatavals)).encode())
    files = [
        path
        for path in dataset.files
        # overviews and statistics are left out: QGIS writes both beside a raster when it shows it
        if os.path.isfile(path) and not path.lower().endswith((".ovr", ".aux.xml"))
    ]
    if not is_local(name):  # the part of a file, or an address
        folder = os.path.dirname(files[0]) + os.sep if files else ""
        digest.update((name.replace(folder, "", 1) if folder else name).encode())
    if not files and not is_local(name):
        if dataset.overviews(1):  # one small request; without overviews it would fetch everything
            layers = Layers(dataset, (1, 1, 1))
            digest.update(layers.read_decimated((64, 64), Resampling.nearest)[0].tobytes())
        return digest.hexdigest()
    pieces = max(1, 16 // max(1, len(files)))
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{os.path.basename(path)} {size}".encode())
        if len(files) > 256:
            continue  # a VRT of thousands of tiles: names and sizes must be enough
        last = max(0, size - 65536)
        with open(path, "rb") as file:
            for offset in (*np.linspace(0, last, pieces).astype(int), last):
                file.seek(int(offset))
                digest.update(file.read(65536))
    return digest.hexdigest()
