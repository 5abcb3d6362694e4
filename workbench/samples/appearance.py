"""What a synthetic countryside is built from: its look, its plan, and the things on it.

A *plan* in metres is bent onto the picture by a gentle warp. Everything on it is a `Thing`: a
polygon in pixels with a `Paint`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import LineString
from shapely.geometry.base import BaseGeometry

Colour = tuple[float, float, float]
Colours = tuple[Colour, ...]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Pose = tuple[Points, float]  # pixel (x, y) and angle in the picture


@dataclass(frozen=True)
class Palette:
    """Colours that things are picked from, RGB 0–255."""

    verge: Colours = ((116, 122, 80),)
    crop: Colours = ((76, 102, 54), (92, 116, 62), (110, 126, 72), (126, 134, 80), (64, 92, 54))
    ripe: Colours = ((186, 166, 116), (172, 152, 106), (198, 184, 138), (168, 146, 84))
    soil: Colours = ((140, 113, 89), (152, 128, 104), (122, 99, 80))
    meadow: Colours = ((104, 124, 72), (118, 130, 80), (94, 116, 66), (132, 134, 90))
    lawn: Colours = ((98, 122, 68), (112, 128, 78), (126, 132, 88))
    woodland: Colours = ((46, 57, 37), (55, 63, 42))
    crown: Colours = ((62, 86, 46), (76, 98, 52), (54, 78, 46), (90, 106, 58), (48, 66, 48))
    water: Colours = ((50, 68, 70), (58, 77, 72), (46, 60, 66))
    asphalt: Colours = ((128, 127, 126), (138, 137, 135))
    paving: Colours = ((174, 166, 152), (188, 181, 170), (160, 152, 143), (150, 130, 118))
    tiled_roof: Colours = (
        *((158, 94, 72), (142, 80, 62), (122, 72, 60), (172, 110, 84)),
        *((106, 86, 78), (98, 98, 102), (82, 84, 90)),
    )
    flat_roof: Colours = ((170, 168, 164), (140, 140, 140), (204, 202, 197), (116, 116, 119))
    vehicle: Colours = (
        *((232, 232, 232), (202, 204, 208), (42, 44, 48), (124, 128, 134)),
        *((150, 40, 38), (46, 66, 114), (74, 78, 84)),
    )


@dataclass(frozen=True)
class Appearance:
    """How a scene looks: colours, textures, light and camera; 1 is the strength of a usual photo.

    Sun azimuth counts clockwise from north. `unevenness`, `vignetting`, `haze` and
    `shadow_strength` are shares of the brightness, `noise` is in grey values.
    """

    palette: Palette = field(default_factory=Palette)
    colour_jitter: float = 7.0
    grain: float = 1.0
    mottle: float = 1.0
    patches: float = 1.0
    rows: float = 1.0
    sun_azimuth_deg: float = 148.0
    sun_elevation_deg: float = 46.0
    relief: float = 1.0
    shadow_strength: float = 0.62
    shadow_tint: Colour = (0.95, 1.0, 1.08)
    village_spacing_m: float = 620.0
    village_radius_m: float = 165.0
    trees: float = 1.0
    vehicles: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    haze: float = 0.09
    haze_colour: Colour = (188, 198, 208)
    unevenness: float = 0.05
    vignetting: float = 0.06
    blur_px: float = 0.65
    noise: float = 2.2
    jpeg_quality: int | None = None


class Paint(NamedTuple):
    """Colour and texture of a surface; strengths are shares of its brightness.

    `grain`, `mottle` and `patches` are noise of about 1 pixel, 1 m and 15 m; rows and tracks have
    a distance (m) and an angle in the plan; `tilt` brightens along (x, y) and `bowl` darkens
    outward, per pixel of distance from (`x`, `y`).
    """

    red: float
    green: float
    blue: float
    grain: float = 0.03
    mottle: float = 0.03
    patches: float = 0.02
    row_angle: float = 0.0
    row_m: float = 1.0
    rows: float = 0.0
    track_m: float = 1.0
    tracks: float = 0.0
    x: float = 0.0
    y: float = 0.0
    tilt_x: float = 0.0
    tilt_y: float = 0.0
    bowl: float = 0.0

    def towards(self, grey: float, share: float) -> "Paint":
        """Mix with a grey."""
        red, green, blue = (c + share * (grey - c) for c in self[:3])
        return self._replace(red=red, green=green, blue=blue)


Details = tuple[tuple[BaseGeometry, Paint], ...]


@dataclass(frozen=True)
class Thing:
    """Something on the ground: outline in pixels, paint, painted details, and parts of its own."""

    kind: str
    outline: BaseGeometry
    paint: Paint
    height_m: float = 0.0
    details: Details = ()
    parts: tuple["Thing", ...] = ()


class Rect(NamedTuple):
    """A rectangle of the plan, metres."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def size(self) -> tuple[float, float]:
        """Extent along u and v."""
        return self.u1 - self.u0, self.v1 - self.v0

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (u, v)."""
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    def inset(self, by: float) -> "Rect":
        """Shrink on all sides."""
        return Rect(self.u0 + by, self.v0 + by, self.u1 - by, self.v1 - by)

    def cut(self, share: float) -> tuple["Rect", "Rect", LineString]:
        """Cut across the longer side; also give the line of the cut."""
        u0, v0, u1, v1 = self
        if u1 - u0 > v1 - v0:
            u = u0 + share * (u1 - u0)
            return Rect(u0, v0, u, v1), Rect(u, v0, u1, v1), LineString([(u, v0), (u, v1)])
        v = v0 + share * (v1 - v0)
        return Rect(u0, v0, u1, v), Rect(u0, v, u1, v1), LineString([(u0, v), (u1, v)])


class SceneSite(NamedTuple):
    """Axes of a garden in the plan: s along its street, t away from it, metres."""

    u: float
    v: float
    angle: float

    def plan(self, st: Points) -> Points:
        """Plan points of `(n, 2)` points (s, t)."""
        return turned(st, self.angle) + self[:2]


def turned(points: Points, angle: float, scale: float = 1.0) -> Points:
    """Turn `(n, 2)` points around (0, 0), radians from the first axis to the second."""
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    return points @ np.array([[c, s], [-s, c]])


@dataclass(frozen=True)
class Site:
    """Where and how a plan is built: warp from plan metres to pixels, looks, random numbers."""

    shape: tuple[int, int]
    px_per_m: float
    turn: float
    waves: Points  # (n, 5): amplitude along u and v, wave vector, phase
    villages: Points  # (n, 3): u, v, radius
    looks: Appearance
    rng: np.random.Generator

    @property
    def to_sun(self) -> Points:
        """Direction to the sun in pixel axes (y down)."""
        azimuth = math.radians(self.looks.sun_azimuth_deg)
        return np.array([math.sin(azimuth), -math.cos(azimuth)])

    def plan(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Plan coordinates of pixels."""
        c, s = math.cos(self.turn) / self.px_per_m, math.sin(self.turn) / self.px_per_m
        x, y = x - self.shape[1] / 2, y - self.shape[0] / 2
        a, b = c * x + s * y, c * y - s * x
        u, v = a, b
        for du, dv, ku, kv, phase in self.waves.tolist():
            wave = np.sin(ku * a + (kv * b + phase))
            u, v = u + du * wave, v + dv * wave
        return u, v

    def pixels(self, uv: Points) -> Points:
        """Pixels (x, y) of plan points `(n, 2)`: the inverse of `plan`."""
        ab = uv
        for _ in range(10):  # the waves are gentle: each turn shrinks the error to a third
            ab = uv - np.sin(ab @ self.waves[:, 2:4].T + self.waves[:, 4]) @ self.waves[:, :2]
        return turned(ab, self.turn, self.px_per_m) + np.array(self.shape[::-1]) / 2

    def warped(self, shape: BaseGeometry) -> Any:
        """Bend a shape of the plan onto the picture."""
        return shapely.transform(shapely.segmentize(shape, 6.0), self.pixels)

    def pose(self, u: float, v: float, angle: float = 0.0) -> Pose:
        """Pixel and picture angle of something that stands in the plan at an angle."""
        here, ahead = self.pixels(np.array([[u, v], [u + 0.5, v]]))
        return here, angle + math.atan2(*(ahead - here)[::-1])

    def placed(self, metres: BaseGeometry, pose: Pose) -> BaseGeometry:
        """Put a shape drawn around (0, 0) in metres into the picture."""
        return shapely.transform(metres, lambda st: turned(st, pose[1], self.px_per_m) + pose[0])

    def in_view(self, rect: Rect) -> bool:
        """Whether things on the rectangle may touch the picture, or their shadows."""
        x, y = self.pixels(np.array([rect.centre]))[0]
        reach = (math.hypot(*rect.size) / 2 + 15) * self.px_per_m * 1.3
        return -reach < x < self.shape[1] + reach and -reach < y < self.shape[0] + reach

    def built_up(self, rect: Rect) -> bool:
        """Whether the inner part of a village reaches the rectangle."""
        u, v, radius = self.villages.T
        du = np.maximum(np.maximum(rect.u0 - u, u - rect.u1), 0)
        dv = np.maximum(np.maximum(rect.v0 - v, v - rect.v1), 0)
        return bool((np.hypot(du, dv) < 0.7 * radius).any())

    def tint(self, colours: Colours) -> Colour:
        """Pick a colour and vary it, mostly in brightness."""
        base = np.array(colours[int(self.rng.random() * len(colours))])
        hue, brightness = self.rng.normal(0, 0.3, 3), self.rng.normal()
        red, green, blue = (base + self.looks.colour_jitter * (hue + brightness)).tolist()
        return red, green, blue

    def chance(self, share: float) -> bool:
        """Return whether something with this probability happens."""
        return bool(self.rng.random() < share)


def choose_site(seed: Any, shape: tuple[int, int], resolution_m: float, looks: Appearance) -> Site:
    """Choose the warp and the villages; the first lies near the middle, whatever the shape."""
    rng = np.random.default_rng(seed)
    lengths, headings = rng.uniform(280, 700, 4), rng.uniform(0, 2 * np.pi, (2, 4))
    amplitude = 0.14 * lengths / (2 * np.pi)  # bends of up to 0.14 radians each
    way, across = np.array([np.cos(headings), np.sin(headings)]).transpose(1, 0, 2)
    waves = np.stack([*amplitude * way, *2 * np.pi / lengths * across, rng.uniform(0, 6, 4)], 1)
    spacing = looks.village_spacing_m
    n = math.ceil(math.hypot(*shape) * resolution_m / 2 / spacing)
    grid = np.stack(np.meshgrid(*[np.arange(-n, n + 1.0)] * 2), axis=-1).reshape(-1, 2)
    centres = (grid + rng.uniform(-0.13, 0.13, grid.shape)) * spacing
    radii = looks.village_radius_m * rng.uniform(0.7, 1.2, len(grid))
    turn, villages = rng.uniform(0, 2 * np.pi), np.column_stack([centres, radii])
    return Site(shape, 1 / resolution_m, turn, waves, villages, looks, rng)
