"""One scene in several files with a band in each: asked about, not run as several grey scenes."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import SceneError
from workbench.raster.bands import open_dataset
from workbench.raster.sources import GDAL_ERRORS, gdal_environment, is_local

_BAND = re.compile(
    r"(?<![A-Za-z0-9])(b(?:and)?[ _-]?\d{1,2}a?|red|green|blue|nir\d*|swir\d*|pan|coastal|"
    r"red[ _-]?edge\d*|r|g|b)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
# what is red, green and blue, by the names of Sentinel-2, of Landsat 8 and 9, and in plain words
_COLOURS = (("b04", "b03", "b02"), ("b4", "b3", "b2"), ("red", "green", "blue"), ("r", "g", "b"))


def refuse_separate_bands(names: Sequence[str]) -> None:
    """Raise `SceneError` if files are called like the bands of one scene, and lie on one another.

    Only files whose names differ in nothing else are opened.
    """
    scenes: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        stem = Path(name).stem
        found = list(_BAND.finditer(stem))
        if is_local(name) and found:
            last = found[-1]
            rest = f"{Path(name).parent}/{stem[: last.start()]}*{stem[last.end() :]}"
            scenes[rest][last[0].lower()] = name
    for rest, bands in scenes.items():
        single = set(bands) <= {"r", "g", "b"} and len(bands) < 3
        if len(bands) > 1 and not single and _lie_on_one_another(list(bands.values())):
            raise SceneError(_question(rest, bands))


def _lie_on_one_another(names: Sequence[str]) -> bool:
    places = set()
    for name in names:
        try:
            with gdal_environment(name), open_dataset(name) as dataset:
                bounds = tuple(round(value, 6) for value in dataset.bounds)
                places.add((dataset.count, str(dataset.crs), bounds))
        except GDAL_ERRORS:
            return False  # opening them as scenes will say why
    return len(places) == 1 and next(iter(places))[0] == 1


def _question(rest: str, bands: dict[str, str]) -> str:
    short = {band.replace("_", "").replace(" ", "").replace("and", ""): band for band in bands}
    chosen = next(([short[c] for c in rgb] for rgb in _COLOURS if set(rgb) <= set(short)), None)
    three = chosen or (list(bands)[:3] if len(bands) > 2 else [next(iter(bands))] * 3)
    files = " ".join(shlex.quote(bands[band]) for band in three)
    out = shlex.quote(os.path.join(os.path.dirname(bands[three[0]]), "rgb", "scene.tif"))
    return (
        f"{rest}: {len(bands)} files with one band each, called {', '.join(bands)}, lie on one "
        "another. They look like the bands of one scene, not like several grey scenes. Make one "
        f"raster of three of them, and name it as source: mkdir -p {os.path.dirname(out)} && "
        f"rio stack {files} -o {out}. If they are scenes of their own, run them one by one."
    )
