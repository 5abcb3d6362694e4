"""Random scenes to train on, of three kinds.

Odd numbers are those of `workbench.samples.demo`, varied far beyond realism. Even ones are shapes
laid over each other like leaves, or packed like houses or parcels: their colours say little, for
the textures come later. Of the later numbers, each third one is a grove: crowns of trees as rough
as real ones. Every scene is made from its number alone.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from workbench._support.files import atomic_path
from workbench.samples.appearance import Appearance, Colours, Palette
from workbench.samples.demo import make_sample

SIZE_PX = 1024
RESOLUTIONS_M = (0.08, 1.6)
FIRST_GROVE = 360
_ANGLES = np.linspace(0, 2 * np.pi, 180, endpoint=False)


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
    if number >= FIRST_GROVE and number % 3 == 0:
        return grove(rng)
    return countryside(rng) if number % 2 else leaves(rng)


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
        return TrainingScene(arrays["rgb"], arrays["labels"], arrays["part_of"])


def countryside(rng: np.random.Generator) -> TrainingScene:
    """A village, fields and woods, with invented colours, light and camera."""
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


# ------------------------------------------------------------------------------------- leaves


def leaves(rng: np.random.Generator) -> TrainingScene:
    """Shapes on ground, on parcels, or both; some with two sides, a shadow or a round body."""
    rgb = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
    rgb[:] = rng.uniform(20, 220, 3)
    labels = np.full((SIZE_PX, SIZE_PX), -1, np.int16)
    wholes: list[int] = []
    if rng.random() < 0.6:
        _parcels(rgb, labels, wholes, rng)
    for _ in range(int(rng.integers(1, 4))):
        _shapes(rgb, labels, wholes, rng)
    return TrainingScene(np.clip(rgb, 0, 255).astype(np.uint8), labels, np.array(wholes, np.int16))


def _parcels(
    rgb: NDArray[np.float32],
    labels: NDArray[np.int16],
    wholes: list[int],
    rng: np.random.Generator,
) -> None:
    """Cut the ground into parcels with straight or bent borders and, between some, a gap."""
    side = float(np.exp(rng.uniform(np.log(90), np.log(420))))
    turn, n = rng.uniform(0, np.pi), int(2 * SIZE_PX / side) + 2
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX].astype(np.float32) - SIZE_PX / 2
    for _ in range(int(rng.integers(0, 3))):  # bend
        phase, length = rng.uniform(0, 6), rng.uniform(200, 900)
        x, y = x + rng.uniform(0, 25) * np.sin(y * (6 / length) + phase), y
        x, y = y, x
    u = (np.cos(turn) * x + np.sin(turn) * y) / side + n / 2
    v = (np.cos(turn) * y - np.sin(turn) * x) / side / rng.uniform(0.4, 2.5) + n / 2
    row = np.floor(v).astype(int)
    u = (
        u * np.exp(rng.normal(0, 0.3, 6 * n))[row % (6 * n)]
        + rng.uniform(0, 9, 6 * n)[row % (6 * n)]
    )
    column = np.floor(u).astype(int)
    number = (row * 1009 + column) % 30011
    names, index = np.unique(number, return_inverse=True)
    index = index.reshape(labels.shape)
    joined = np.arange(len(names))
    again = rng.random(len(names)) < 0.3  # some are one with another
    joined[again] = np.maximum(joined[again] - 1, 0)
    index = joined[index]
    gap = rng.choice([0.0, rng.uniform(0.5, 4), rng.uniform(4, 14)]) / side
    du, dv = np.abs(u - np.round(u)), np.abs(v - np.round(v))
    inside = (np.minimum(du, dv) > gap / 2) & ~(rng.random(len(names)) < 0.1)[index]
    spread = np.exp(rng.uniform(np.log(4), np.log(50)))
    base = rng.uniform(40, 200, 3)
    colours = (
        base + rng.normal(0, spread, (len(names), 1)) + rng.normal(0, spread / 3, (len(names), 3))
    )
    rgb[inside] = colours[index[inside]]
    labels[inside] = index[inside] + len(wholes)
    wholes.extend(range(len(wholes), len(wholes) + len(names)))


def _shapes(
    rgb: NDArray[np.float32],
    labels: NDArray[np.int16],
    wholes: list[int],
    rng: np.random.Generator,
) -> None:
    """Lay shapes of about one size, anywhere or in rows as houses stand."""
    size = float(np.exp(rng.uniform(np.log(8), np.log(160))))
    n = int(min(rng.uniform(0.05, 0.7) * (SIZE_PX / size) ** 2 / 2, 900))
    kinds = rng.choice(4, int(rng.integers(1, 4)))
    rows, turn = rng.random() < 0.5, rng.uniform(0, np.pi)
    places = rng.uniform(0, SIZE_PX, (n, 2))
    if rows:
        step = size * rng.uniform(1.8, 3.2)
        places = np.round(places / step) * step + rng.normal(0, size * 0.15, (n, 2))
        c, s = np.cos(turn), np.sin(turn)
        places = (places - SIZE_PX / 2) @ np.array([[c, s], [-s, c]]) + SIZE_PX / 2
    light = rng.uniform(0, 2 * np.pi)
    shadow = size * rng.uniform(0.05, 0.4) * np.array([np.cos(light), np.sin(light)])
    shaded = rng.uniform(0.3, 0.8) if rng.random() < 0.6 else 1.0
    palette = rng.uniform(10, 245, (int(rng.integers(1, 6)), 3))
    if rng.random() < 0.5:
        palette = palette.mean(axis=1, keepdims=True) + rng.normal(0, 10, (len(palette), 3))
    jitter, roofed = rng.uniform(2, 30), rng.random() < 0.4
    for place in places:
        angle = (turn if rows else rng.uniform(0, np.pi)) + rng.normal(0, 0.05)
        outline = _outline(int(rng.choice(kinds)), size * np.exp(rng.normal(0, 0.35)), angle, rng)
        outline = outline + place
        low = np.floor(outline.min(0) - np.abs(shadow) - 2).astype(int).clip(0, SIZE_PX)
        high = np.ceil(outline.max(0) + np.abs(shadow) + 2).astype(int).clip(0, SIZE_PX)
        if (high - low).min() < 3 or len(wholes) > 30_000:
            continue
        there = np.s_[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros((high - low)[::-1], np.uint8)
        fixed = np.round((outline - low) * 16).astype(np.int32)
        if shaded < 1:
            cast = np.zeros_like(mask)
            cv2.fillPoly(
                cast, [np.round((outline - low + shadow) * 16).astype(np.int32)], 1, shift=4
            )
            rgb[there][cast > 0] *= shaded
        cv2.fillPoly(mask, [fixed], 1, shift=4)
        here = mask > 0
        if here.sum() < 12:
            continue
        colour = (
            palette[rng.integers(len(palette))]
            + rng.normal(0, jitter)
            + rng.normal(0, jitter / 4, 3)
        )
        whole = len(wholes)
        wholes.append(whole)
        y, x = np.nonzero(here)
        across = (x + low[0] - place[0]) * np.cos(angle) + (y + low[1] - place[1]) * np.sin(angle)
        tone = np.zeros(len(x))
        labels[there][here] = whole
        if roofed and size > 14:  # two sides, each a part
            other = across > rng.normal(0, 0.1) * size
            tone = np.where(other, rng.normal(0, 25), 0)
            if 10 < other.sum() < len(x) - 10:
                for side in (other, ~other):
                    labels[there][y[side], x[side]] = len(wholes)
                    wholes.append(whole)
        elif rng.random() < 0.3:  # brighter on one side, as trees and tanks are
            tone = across / size * rng.normal(0, 40)
        rgb[there][here] = colour + tone[:, None]


def _outline(
    kind: int, radius: float, angle: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A rectangle, an L, a polygon or a smooth blob around (0, 0), `(n, 2)` pixels."""
    stretch = np.array([1, np.exp(rng.normal(0, 0.45))]) * radius
    if kind == 0:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])
    elif kind == 1:
        a, b = rng.uniform(-0.5, 0.6, 2)
        points = np.array([[-1, -1], [1, -1], [1, b], [a, b], [a, 1], [-1, 1.0]])
    elif kind == 2:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.6, 1.2)
    else:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        lobes = np.arange(2, 9)[:, None]
        waves = np.sin(lobes * angles + rng.uniform(0, 6, lobes.shape))
        swell = rng.normal(0, 0.4, lobes.shape) / lobes * waves
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * (1 + swell.sum(0))[:, None]
        stretch = np.sqrt(stretch * radius)
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray((points * stretch) @ np.array([[c, s], [-s, c]]))


# ------------------------------------------------------------------------------------- groves


def grove(rng: np.random.Generator) -> TrainingScene:
    """Crowns with ragged outlines and clumps of leaves, and their shadows, on uneven ground."""
    radius = float(np.exp(rng.uniform(np.log(9), np.log(90))))
    rgb = rng.uniform(60, 220) + rng.normal(0, 25, 3) + _patches(rng, radius)
    rgb = rgb + _rough(1.5, rng)[..., None] * rng.uniform(0, 14)
    n = int(rng.uniform(0.15, 1.6) * SIZE_PX**2 / (np.pi * radius**2))
    radii = np.sort(radius * np.exp(rng.normal(0, 0.3, n)))  # the largest covers others
    centres = _apart(rng.uniform(0, SIZE_PX, (n, 2)), radius * rng.uniform(0.5, 1.3))
    ragged = _rough(radius / rng.uniform(3, 8), rng) * rng.uniform(0.02, 0.09)
    clumps = _rough(radius / rng.uniform(2, 5), rng) * rng.uniform(4, 26)
    fine = _rough(max(radius / 12, 1.0), rng) * rng.uniform(4, 26)
    light = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(light), np.sin(light)])
    length, dark = rng.uniform(0.2, 1.6), rng.uniform(0.25, 0.75)
    relief = rng.uniform(5, 55)
    kinds = rng.uniform(30, 160, (int(rng.integers(1, 4)), 1)) + rng.normal(0, 20, 3)
    colours = kinds[rng.integers(len(kinds), size=n)] + rng.normal(0, rng.uniform(2, 16), (n, 1))
    labels = np.full((SIZE_PX, SIZE_PX), -1, np.int16)
    shaded = np.zeros(labels.shape, bool)
    painted = np.zeros((*labels.shape, 3))
    for i, (centre, r) in enumerate(zip(centres, radii, strict=True)):
        waves = 1 + 0.12 * np.sin(np.arange(2, 5)[:, None] * _ANGLES + rng.uniform(0, 6, (3, 1)))
        outline = waves.prod(axis=0)
        there, inside, _ = _crown(centre - sun * length * r, r, outline, ragged)
        shaded[there] |= inside
        there, inside, (x, y) = _crown(centre, r, outline, ragged)
        tone = relief * (x * sun[0] + y * sun[1] - 0.6 * (x * x + y * y))
        tone = tone + clumps[there] + fine[there]
        painted[there][inside] = colours[i] + tone[inside, None]
        labels[there][inside] = i
    rgb[shaded] *= dark
    rgb[labels >= 0] = painted[labels >= 0]
    pixels = np.clip(rgb, 0, 255).astype(np.uint8)
    return TrainingScene(pixels, labels, np.arange(n, dtype=np.int16))


def _crown(
    centre: NDArray[np.float64],
    radius: float,
    outline: NDArray[np.float64],
    ragged: NDArray[np.float32],
) -> tuple[tuple[slice, slice], NDArray[np.bool_], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Where a crown is: a window, its pixels there, and how far they are right and below.

    `outline` is the radius by `_ANGLES`, `ragged` `(h, w)` what it has more at each place.
    """
    low = np.floor(centre - 1.6 * radius).astype(int).clip(0, SIZE_PX)
    high = np.ceil(centre + 1.6 * radius).astype(int).clip(0, SIZE_PX)
    there = slice(low[1], high[1]), slice(low[0], high[0])
    rows, columns = np.mgrid[there]
    x, y = (columns - centre[0]) / radius, (rows - centre[1]) / radius
    turn = np.arctan2(y, x) % (2 * np.pi) * (len(_ANGLES) / (2 * np.pi))
    inside = np.hypot(x, y) < outline[turn.astype(int) % len(_ANGLES)] + ragged[there]
    return there, inside, (x, y)


def _apart(points: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Push points `(n, 2)` that are nearer to each other than this apart, as crowns do."""
    for _ in range(4):
        away, near = KDTree(points).query(points, k=2)
        step = np.clip(distance - away[:, 1], 0, None)[:, None] / 2
        between = points - points[near[:, 1]]
        points = points + step * between / np.maximum(away[:, 1], 1e-6)[:, None]
    return points


def _rough(grain_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of one grain and of half of it, `(SIZE_PX, SIZE_PX)`, with a deviation of about 1."""
    return sum(noise(SIZE_PX, max(grain, 1), rng) for grain in (grain_px, grain_px / 2))


def noise(size: int, grain_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of one grain, `(size, size)`."""
    coarse = max(int(size / grain_px), 1) + 3
    field = rng.standard_normal((coarse, coarse), dtype=np.float32)
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))


def _patches(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    """Brighter and darker places of the ground, soft or with an edge, `(h, w, 1)`."""
    field = _rough(radius * rng.uniform(0.5, 6), rng)
    if rng.random() < 0.5:
        field = np.tanh(field * rng.uniform(1, 6))
    return (field * rng.uniform(0, 35))[..., None]


# -------------------------------------------------------------------------------- countryside


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
