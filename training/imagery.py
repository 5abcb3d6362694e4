"""Textures of real ground, cut from pictures that nobody has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from crops import Texture

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SIDE_PX = 80  # of a texture
TRIED, KEPT = 40, 4  # of a picture: the most even ones of so many places


def textures(folders: Sequence[Path]) -> list[Texture]:
    """Cut even places from all pictures of 8 bits in some folders, in the order of their names."""
    found: list[Texture] = []
    for path in sorted(p for folder in folders for p in folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is not None and min(picture.shape[:2]) > SIDE_PX:
                found += _even_places(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), path.stem)
    return found


def _even_places(rgb: Texture, name: str) -> list[Texture]:
    """The places of a picture that change least from one eighth of them to the next."""
    rng = np.random.default_rng([3, *name.encode()])
    height, width = rgb.shape[:2]
    places = []
    for _ in range(TRIED):
        y, x = rng.integers(height - SIDE_PX + 1), rng.integers(width - SIDE_PX + 1)
        place = rgb[y : y + SIDE_PX, x : x + SIDE_PX]
        coarse = cv2.resize(place.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA)
        # what is black or blank all over is no ground
        if place.std() > 2:
            places.append((float(coarse.std((0, 1)).mean()), len(places), place))
    return [place for _, _, place in sorted(places, key=lambda one: one[:2])[:KEPT]]
