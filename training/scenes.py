"""Random scenes to train on: those of `workbench.samples.demo`, varied far beyond realism.

Every scene is made from its number alone, so the pool is the same wherever it is made.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench._support.files import atomic_path
from workbench.samples.appearance import Appearance, Colours, Palette
from workbench.samples.demo import make_sample

SIZE_PX = 768
RESOLUTIONS_M = (0.08, 1.6)


@dataclass(frozen=True)
class TrainingScene:
    """A picture and which object each pixel shows.

    `rgb` is `(h, w, 3)`; `labels` `(h, w)` numbers the topmost object, -1 for ground that is none;
    `part_of` `(n,)` gives for each object the whole that it belongs to, or itself.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int16]
    part_of: NDArray[np.int16]


def make_scene(number: int) -> TrainingScene:
    """Make the scene of this number, equal in every bit wherever it is made."""
    rng = np.random.default_rng([2, number])
    low, high = np.log(RESOLUTIONS_M)
    sample = make_sample(
        SIZE_PX,
        int(rng.integers(2**31)),
        resolution_m=float(np.exp(rng.uniform(low, high))),
        appearance=random_appearance(rng),
    )
    own = np.arange(len(sample.objects))
    whole = sample.objects["part_of"].to_numpy()
    part_of = np.where(whole >= 0, whole, own)
    return TrainingScene(sample.rgb, sample.labels.astype(np.int16), part_of.astype(np.int16))


def pooled_scene(number: int, pool: Path) -> TrainingScene:
    """Return the scene of this number, kept as a file in the folder `pool` once it is made."""
    path = pool / f"{number:06d}.npz"
    if not path.exists():
        scene = make_scene(number)
        pool.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, rgb=scene.rgb, labels=scene.labels, part_of=scene.part_of)
        return scene
    with np.load(path, allow_pickle=False) as arrays:
        return TrainingScene(**{field.name: arrays[field.name] for field in fields(TrainingScene)})


def random_appearance(rng: np.random.Generator) -> Appearance:
    """Choose colours, textures, light and camera; half of the palettes are not of this world."""

    def about(usual: float, spread: float = 2.0) -> float:
        return float(usual * spread ** rng.normal(0, 0.7))

    village_m = float(np.exp(rng.uniform(np.log(60), np.log(700))))
    return Appearance(
        palette=_random_palette(rng),
        colour_jitter=about(9, 2.5),
        grain=about(1.0, 2.5),
        mottle=about(1.0, 2.5),
        patches=about(1.0, 2.5),
        rows=about(1.0, 2.5),
        sun_azimuth_deg=float(rng.uniform(0, 360)),
        sun_elevation_deg=float(rng.uniform(18, 80)),
        relief=about(1.0, 1.8),
        shadow_strength=float(rng.uniform(0.1, 0.85)),
        shadow_tint=tuple(rng.uniform(0.85, 1.15, 3).tolist()),
        village_spacing_m=village_m * float(rng.uniform(2.2, 5)),
        village_radius_m=village_m,
        trees=about(0.8, 2.2),
        vehicles=about(1.0, 2.0),
        contrast=float(rng.uniform(0.6, 1.6)),
        gamma=float(np.exp(rng.normal(0, 0.25))),
        haze=float(rng.uniform(0, 0.25)),
        haze_colour=tuple(rng.uniform(150, 230, 3).tolist()),
        unevenness=about(0.06, 2.0),
        vignetting=float(rng.uniform(0, 0.15)),
        blur_px=float(rng.uniform(0.0, 1.3)),
        noise=about(2.2, 2.0),
        jpeg_quality=int(rng.integers(35, 96)) if rng.random() < 0.5 else None,
    )


def _random_palette(rng: np.random.Generator) -> Palette:
    """Natural colours turned and shifted a little, or for each kind of thing any colours at all."""
    usual = Palette()
    share_invented = rng.choice([0.0, 0.3, 1.0], p=[0.35, 0.35, 0.3])
    shift = rng.normal(0, [8, 0.15, 0.12], 3)
    chosen: dict[str, Colours] = {}
    for kind in fields(Palette):
        if rng.random() < share_invented:
            chosen[kind.name] = _invented(rng)
        else:
            chosen[kind.name] = _shifted(getattr(usual, kind.name), shift, rng)
    return Palette(**chosen)


def _invented(rng: np.random.Generator) -> Colours:
    """One to six colours around a centre, from nearly grey to vivid."""
    centre = np.array([rng.uniform(0, 180), rng.beta(1.2, 3) * 255, rng.uniform(40, 235)])
    spread = np.array([25, 30, 30]) * rng.uniform(0.2, 1.5)
    hsv = centre + rng.normal(0, 1, (int(rng.integers(1, 7)), 3)) * spread
    return _from_hsv(hsv)


def _shifted(colours: Colours, shift: NDArray[np.float64], rng: np.random.Generator) -> Colours:
    rgb = np.array(colours, np.float32)[None] / 255
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[0].astype(float)
    hsv = hsv * [0.5, 255, 255]  # degrees in halves, as in 8 bit
    hsv[:, 0] += shift[0] + rng.normal(0, 4)
    hsv[:, 1:] *= np.exp(shift[1:] + rng.normal(0, 0.1, 2))
    return _from_hsv(hsv)


def _from_hsv(hsv: NDArray[np.float64]) -> Colours:
    hsv = np.column_stack([hsv[:, 0] % 180, np.clip(hsv[:, 1:], 0, 255)]).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return tuple((float(r), float(g), float(b)) for r, g, b in rgb)
