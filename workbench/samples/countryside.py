"""A synthetic countryside: a village, fields, woods and roads, and the objects on them.

The plan is cut into blocks by roads, and then into fields and gardens.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from shapely import LineString, MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from workbench.samples.appearance import (
    Colours,
    Details,
    Paint,
    Points,
    Pose,
    Rect,
    SceneSite,
    Site,
    Thing,
    turned,
)

# ---------------------------------------------------------------- land: roads, fields, gardens


def things_on(site: Site) -> Iterator[Thing]:
    """Everything on a site that may touch the picture, wholes with their parts in them."""
    half = math.hypot(*site.shape) / site.px_per_m / 2 + 150
    yield from _divide(site, Rect(-half, -half, half, half), 0)


def _divide(site: Site, rect: Rect, depth: int) -> Iterator[Thing]:
    """Cut land into blocks by ever smaller roads, and fill the blocks."""
    if not site.in_view(rect):
        return
    built = site.built_up(rect)
    longest, shortest = (135, 78) if built else (430, 300)
    if max(rect.size) < longest and min(rect.size) < shortest:
        # parcels begin 6.5 m from the middle of the road
        yield from (_village_block if built else _farmland)(site, rect.inset(6.5))
        return
    first, second, line = rect.cut(site.rng.uniform(0.4, 0.6))
    yield from _divide(site, first, depth + 1)
    yield from _divide(site, second, depth + 1)
    yield from _road(site, line, max(4.5, 9.5 - 1.3 * depth), built)


def _road(site: Site, line: LineString, width_m: float, built: bool) -> Iterator[Thing]:
    """A road with markings and traffic, and with pavements in the village or trees outside."""
    rng, ppm, looks = site.rng, site.px_per_m, site.looks
    path = site.warped(line).intersection(box(0, 0, *site.shape[::-1]).buffer(25 * ppm))
    if not isinstance(path, LineString) or path.length < 2 * ppm:
        return
    gravel = width_m < 5.5 and not built and site.chance(0.6)
    colours = looks.palette.paving if gravel else looks.palette.asphalt
    paint = Paint(*site.tint(colours), 0.05, 0.03, 0.03)
    if built:
        slabs = path.buffer((width_m / 2 + 1.6) * ppm, cap_style="flat")
        yield Thing("pavement", slabs, Paint(*site.tint(looks.palette.paving), 0.05))
    details = () if width_m < 5.5 else _markings(site, path, width_m, paint)
    yield Thing("road", path.buffer(width_m * ppm / 2, cap_style="flat"), paint, details=details)

    def beside(along_m: float, offset_m: float) -> Pose:
        a, b = (path.interpolate(along_m * ppm + step) for step in (-ppm, ppm))
        angle = math.atan2(b.y - a.y, b.x - a.x)
        across = offset_m * ppm * np.array([-math.sin(angle), math.cos(angle)])
        return np.array([(a.x + b.x) / 2, (a.y + b.y) / 2]) + across, angle

    length_m = path.length / ppm
    for along_m in rng.uniform(0, length_m, rng.poisson(looks.vehicles * length_m / 60)):
        yield _vehicle(site, beside(along_m, rng.choice([-1, 1]) * width_m / (3 if built else 4)))
    if not built and width_m > 5 and site.chance(0.5 * looks.trees):
        for along_m in np.arange(6, length_m - 6, rng.uniform(10, 18)):
            for side in (-1, 1):
                xy, _ = beside(along_m + rng.uniform(-2, 2), side * (width_m / 2 + 2.6))
                yield _tree(site, xy, rng.uniform(1.6, 3.4))


def _markings(site: Site, path: LineString, width_m: float, paint: Paint) -> Details:
    """Dashes in the middle and, on wide roads, lines along the edges."""
    ppm = site.px_per_m
    starts = np.arange(0, path.length, 9 * ppm)
    lines: list[Any] = [substring(path, start, start + 3 * ppm) for start in starts]
    if width_m > 7:
        lines += [path.offset_curve(side * (width_m / 2 - 0.5) * ppm) for side in (-1, 1)]
    # a line thinner than a pixel would be broken, so paint a whole pixel, but fainter
    stripes = shapely.buffer(lines, max(0.1 * ppm, 0.5), cap_style="flat")
    return ((shapely.union_all(stripes), paint.towards(228, min(0.14 * ppm, 0.7))),)


def _farmland(site: Site, rect: Rect) -> Iterator[Thing]:
    """Cut a block into fields and woods, some with a hedge between them."""
    rng, (width, height) = site.rng, rect.size
    if not site.in_view(rect):
        return
    if max(width, height) > rng.uniform(150, 480) or width * height > 60_000:
        first, second, line = rect.cut(rng.uniform(0.3, 0.7))
        yield from _farmland(site, first)
        yield from _farmland(site, second)
        if site.chance(0.35 * site.looks.trees):
            yield _hedge(site, line, 1.6)
    elif width * height < 16_000 and min(width, height) > 25 and site.chance(0.2):
        yield from _forest(site, rect)
    else:
        yield from _field(site, rect)


def _field(site: Site, rect: Rect) -> Iterator[Thing]:
    """A field with rows along its longer side; in some a clump of trees or a pond."""
    rng, palette = site.rng, site.looks.palette
    lands = (  # colours, distance and strength of rows, strength of tracks, mottle, patches
        (palette.crop, (0.75, 1.5, 2.4, 3.2), (0.05, 0.16), (0, 0.16), (0.03, 0.08), (0.03, 0.09)),
        (palette.ripe, (3, 5, 8), (0.02, 0.07), (0, -0.18), (0.02, 0.05), (0.02, 0.06)),
        (palette.soil, (1.5, 2.5, 4), (0.03, 0.1), (0,), (0.03, 0.06), (0.03, 0.06)),
        (palette.meadow, (4, 6, 8), (0, 0.06), (0,), (0.05, 0.09), (0.05, 0.1)),
    )
    land = rng.choice(4, p=[0.4, 0.22, 0.13, 0.25])
    colours, row_m, rows, tracks, mottle, patches = lands[land]
    paint = Paint(
        *(*site.tint(colours), 0.05, rng.uniform(*mottle), rng.uniform(*patches)),
        *(0.0 if rect.size[1] > rect.size[0] else math.pi / 2, rng.choice(row_m)),
        *(rng.uniform(*rows), rng.uniform(15, 27), rng.choice(tracks)),
    )
    yield Thing("parcel", _parcel(site, rect, 4), paint)
    if min(rect.size) < 45 or not site.chance(0.45 if land == 3 else 0.25):
        return
    middle, clear = rect.inset(0.3 * min(rect.size)), 0.0
    place = rng.uniform(middle[:2], middle[2:], (1, 2))
    if land == 3:
        clear = rng.uniform(0.14, 0.24) * min(rect.size)
        shore, pose = _blob(rng, clear, 0.1, 96), site.pose(*place[0])
        reed = Paint(*site.tint(palette.lawn), 0.08, 0.14)
        yield Thing("bank", site.placed(shore.buffer(1.2), pose), reed)
        water = Paint(*site.tint(palette.water), 0.012, 0.01, 0.05)
        yield Thing("water", site.placed(shore, pose), water)
    for angle in rng.uniform(0, 2 * np.pi, rng.poisson(4 * site.looks.trees)):
        away = turned(np.array([[clear + rng.uniform(1, 7), 0]]), angle)
        yield _tree(site, site.pixels(place + away)[0], rng.uniform(1.8, 5))


def _parcel(site: Site, rect: Rect, corner_m: float) -> Polygon:
    """The outline of a parcel with round corners."""
    return site.warped(box(*rect.inset(0.7)).buffer(-corner_m, 2).buffer(corner_m, 3))


def _forest(site: Site, rect: Rect) -> Iterator[Thing]:
    """A forest is the whole of its floor and its trees."""
    rng, gap, (width, height) = site.rng, site.rng.uniform(5.2, 7), rect.size
    v, u = np.mgrid[0 : height : gap * 0.87, 0:width:gap]
    u[1::2] += gap / 2
    feet = np.stack([u.ravel(), v.ravel()], axis=-1) + rect[:2]
    feet += rng.normal(0, gap * 0.17, feet.shape)
    feet = feet[shapely.contains_xy(box(*rect.inset(11)).buffer(8), feet)]
    all_crowns = site.looks.palette.crown
    crowns = all_crowns[-1:] if site.chance(0.3) else all_crowns
    trees = tuple(
        _tree(site, xy, gap * rng.uniform(0.42, 0.72), crowns) for xy in site.pixels(feet)
    )
    floor = Paint(*site.tint(site.looks.palette.woodland), 0.1, 0.16, 0.08)
    yield Thing("forest", _parcel(site, rect.inset(2), 8), floor, parts=trees)


def _village_block(site: Site, rect: Rect) -> Iterator[Thing]:
    """Two rows of gardens back to back, or now and then a hall with its car park."""
    if min(rect.size) > 38 and site.chance(0.15):
        yield from _hall(site, rect)
        return
    upright = rect.size[1] > rect.size[0]
    length, depth = sorted(rect.size, reverse=True)
    if upright:
        corners = (rect.u1, rect.v0, math.pi / 2), (rect.u0, rect.v1, -math.pi / 2)
    else:
        corners = (rect.u0, rect.v0, 0.0), (rect.u1, rect.v1, math.pi)
    rows = corners if depth > 38 else corners[:1]
    for u, v, angle in rows:
        lots = max(1, round(length / site.rng.uniform(17, 25)))
        edges = np.linspace(0, length, lots + 1)
        edges[1:-1] += site.rng.uniform(-2, 2, lots - 1)
        for start, end in pairwise(edges):
            at_u, at_v = SceneSite(u, v, angle).plan(np.array([[start, 0]]))[0].tolist()
            yield from _garden(site, SceneSite(at_u, at_v, angle), end - start, depth / len(rows))


def _garden(site: Site, frame: SceneSite, width: float, depth: float) -> Iterator[Thing]:
    """A house with its driveway, lawn, terrace, beds, shed, hedges and trees."""
    rng, palette, looks = site.rng, site.looks.palette, site.looks
    corners = frame.plan(np.array([[0, 0], [width, depth]]))
    if not site.in_view(Rect(*corners.min(axis=0), *corners.max(axis=0))):
        return

    def land(s0: float, t0: float, s1: float, t1: float) -> BaseGeometry:
        return site.warped(shapely.transform(box(s0, t0, s1, t1), frame.plan))

    def spot(s: float, t: float) -> tuple[float, float]:
        u, v = frame.plan(np.array([[s, t]]))[0]
        return float(u), float(v)

    length, deep = min(rng.uniform(9, 16), width - 5.5), min(rng.uniform(7.5, 10.5), depth * 0.4)
    middle, front = width - 1.5 - length / 2, rng.uniform(3.5, 7)
    back = front + deep
    details = []
    if site.chance(0.6):
        terrace = land(middle - length * 0.3, back, middle + 3, min(back + 3, depth - 0.5))
        details.append((terrace, Paint(*site.tint(palette.paving), 0.05)))
    if depth - back > 12 and site.chance(0.35):
        s, t = rng.uniform(1, width - 7), depth - rng.uniform(6, 9)
        beds = Paint(*site.tint(palette.soil), 0.1, 0.15, 0, frame.angle, 1.4, 0.25)
        details.append((land(s, t, s + 6, t + 4), beds))
    lawn = Paint(*site.tint(palette.lawn), 0.07, rng.uniform(0.06, 0.12), rng.uniform(0.05, 0.12))
    parcel = land(0.25, 0.25, width - 0.25, depth - 0.25)
    yield Thing("garden", parcel, lawn, details=tuple(details))
    drive = land(0.6, -4.2, 3.8, front + deep * rng.uniform(0.3, 1.0))
    yield Thing("driveway", drive, Paint(*site.tint(palette.paving), 0.05, 0.05))
    if site.chance(0.55 * looks.vehicles):
        pose = site.pose(*spot(2.2, rng.uniform(1, 5)), frame.angle + math.pi / 2)
        yield _vehicle(site, pose)
    angle = frame.angle + rng.normal(0, 0.03)
    yield _building(site, SceneSite(*spot(middle, front + deep / 2), angle), length, deep, 5.5)
    if depth - back > 9 and site.chance(0.5):
        shed = spot(rng.uniform(3, width - 3), depth - rng.uniform(2.5, 5))
        yield _building(
            site, SceneSite(*shed, angle), rng.uniform(3, 5), rng.uniform(2.4, 3.4), 2.4
        )
    for s in (0.4, width - 0.4):
        if site.chance(0.3 * looks.trees):
            ends = [spot(s, rng.uniform(1, 4)), spot(s, depth - rng.uniform(0, 8))]
            yield _hedge(site, LineString(ends), 0.6)
    for _ in range(rng.poisson(2.6 * looks.trees)):
        foot = spot(rng.uniform(1, width - 1), rng.uniform(min(back + 2, depth - 2), depth))
        yield _tree(site, site.pixels(np.array([foot]))[0], rng.uniform(1.0, 3.6))


def _hall(site: Site, rect: Rect) -> Iterator[Thing]:
    """A flat-roofed hall beside rows of parked cars."""
    rng, palette = site.rng, site.looks.palette
    hall, park, _ = rect.cut(rng.uniform(0.45, 0.6))
    u0, v0, u1, v1 = park.inset(4)
    bays = [(u, v) for v in np.arange(v0 + 2.5, v1 - 2, 8.5) for u in np.arange(u0, u1 - 2, 2.6)]
    asphalt = Paint(*site.tint(palette.asphalt), 0.05, 0.05, 0.05)
    half = max(0.08, 0.5 / site.px_per_m)
    lines = MultiPolygon([box(u - half, v - 2.5, u + half, v + 2.5) for u, v in bays])
    white = asphalt.towards(220, min(0.15 * site.px_per_m, 1.0))
    yield Thing("parcel", _parcel(site, rect, 1.5), asphalt, details=((site.warped(lines), white),))
    for u, v in bays:
        if site.chance(0.6 * site.looks.vehicles):
            yield _vehicle(site, site.pose(u + 1.3, v, math.pi / 2 + rng.normal(0, 0.04)))
    length, deep = (0.78 * side for side in hall.size)
    yield _building(site, SceneSite(*hall.centre, 0.0), length, deep, rng.uniform(6, 9))
    for u in np.arange(rect.u0 + 4, rect.u1 - 4, 9):
        if site.chance(0.7 * site.looks.trees):
            foot = site.pixels(np.array([[u, rect.v0 + 1.5]]))[0]
            yield _tree(site, foot, rng.uniform(1.6, 2.8))


# ---------------------------------------------------------------- objects


def _building(site: Site, at: SceneSite, length: float, deep: float, eaves_m: float) -> Thing:
    """A building around a point of the plan: gabled, hipped or, if large or tiny, flat."""
    rng, pose, shortest = site.rng, site.pose(*at), min(length, deep)
    style = rng.choice(["gable", "hip", "flat"], p=[0.62, 0.23, 0.15])
    if style == "flat" or shortest > 17 or shortest < 2.6:
        return _flat_building(site, pose, max(length, 2), max(deep, 2), eaves_m)
    half, out = length / 2, deep / 2
    ridge = half - min(out * rng.uniform(0.6, 1.0), 0.9 * half) if style == "hip" else half
    faces = [
        ([(-half, -out), (half, -out), (ridge, 0), (-ridge, 0)], -math.pi / 2),
        ([(half, out), (-half, out), (-ridge, 0), (ridge, 0)], math.pi / 2),
    ]
    if style == "hip":
        faces.append(([(half, -out), (half, out), (ridge, 0)], 0.0))
        faces.append(([(-half, out), (-half, -out), (-ridge, 0)], math.pi))
    tiles, pitch = np.array(site.tint(site.looks.palette.tiled_roof)), rng.uniform(0.48, 0.8)
    texture = (0.04, rng.uniform(0.02, 0.05), 0.02, at.angle, rng.choice([0.35, 0.9]), 0.05)
    height = eaves_m + 0.6 * out * math.tan(pitch)
    sides = []
    for corners, facing in faces:
        light = _slope_light(site, pose[1] + facing, pitch)
        details = _roof_details(site, pose, facing, ridge, out) if len(corners) == 4 else ()
        red, green, blue = (tiles * light).tolist()
        paint = Paint(red, green, blue, *texture)
        side = site.placed(Polygon(corners), pose)
        sides.append(Thing("roof_side", side, paint, height, details))
    outline = site.placed(box(-half, -out, half, out), pose)
    return Thing("building", outline, sides[0].paint, height, parts=tuple(sides))


def _slope_light(site: Site, facing: float, pitch: float) -> float:
    """Brightness of a slope against flat ground, sunlight and skylight together."""
    sun = math.radians(max(site.looks.sun_elevation_deg, 15))
    towards = float(site.to_sun @ [math.cos(facing), math.sin(facing)])
    direct = math.cos(pitch) + math.sin(pitch) * towards / math.tan(sun)
    return 1 + site.looks.relief * 0.8 * (0.35 + 0.65 * max(direct, 0) - 1)


def _roof_details(site: Site, pose: Pose, facing: float, ridge: float, out: float) -> Details:
    """Perhaps solar panels, skylights or a chimney, all within one side of a roof."""
    rng, side, panel = site.rng, math.copysign(out, facing), Paint(44, 52, 74, 0.03, 0, 0)
    a, b, c, d = rng.uniform(-0.85, 0.75, 4) * ridge
    shapes = [(box(c, 0.4 * side, c + 0.9, 0.62 * side), Paint(70, 78, 88))]
    if site.chance(0.2):
        shapes = [(box(min(a, b), 0.2 * side, max(a, b), 0.75 * side), panel)]
    if site.chance(0.4):
        shapes.append((box(d, 0.03 * side, d + 0.8, 0.2 * side), Paint(66, 56, 52)))
    big = 4 * ridge > out * 2 and out > 2.5
    return tuple((site.placed(shape, pose), paint) for shape, paint in shapes) if big else ()


def _flat_building(site: Site, pose: Pose, length: float, deep: float, height: float) -> Thing:
    """A flat roof with a parapet and, if large, vents and skylights."""
    rng, outline = site.rng, box(-length / 2, -deep / 2, length / 2, deep / 2)
    roof = Paint(*site.tint(site.looks.palette.flat_roof), 0.04, 0.04, 0.05)
    edge = roof.towards(255 if roof.green < 150 else 60, 0.14)
    shapes = [(outline.difference(outline.buffer(-0.45, join_style="mitre")), edge)]
    for s, t in rng.uniform(-0.4, 0.4, (int(length * deep / 60), 2)) * [length, deep]:
        (w, h), grey = rng.uniform(0.3, 1, 2), rng.uniform(70, 215)
        shapes.append((box(s - w, t - h, s + w, t + h), Paint(grey, grey, grey)))
    details = tuple((site.placed(shape, pose), paint) for shape, paint in shapes)
    return Thing("building", site.placed(outline, pose), roof, height, details)


def _blob(rng: np.random.Generator, radius: float, roughness: float, corners: int) -> Polygon:
    """A closed lumpy curve around (0, 0)."""
    angle, lobes = np.arange(corners) * (2 * np.pi / corners), np.arange(2, 8)[:, None]
    sizes = rng.normal(0, roughness, (6, 1)) / np.sqrt(lobes - 1)
    swell = (sizes * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi, (6, 1)))).sum(axis=0)
    reach = radius * np.clip(1 + swell, 0.55, 1.5)
    return Polygon(np.column_stack([reach * np.cos(angle), reach * np.sin(angle)]))


def _tree(site: Site, xy: Points, radius: float, crowns: Colours | None = None) -> Thing:
    """A crown, lit from the sun's side; `xy` in pixels, `radius` in metres."""
    rng, looks, reach_px = site.rng, site.looks, radius * site.px_per_m
    crown = site.placed(_blob(rng, radius, 0.1, 24), (xy, 0.0))
    colour = site.tint(crowns or looks.palette.crown)
    tilt_x, tilt_y = looks.relief * rng.uniform(0.28, 0.42) / reach_px * site.to_sun
    bowl = looks.relief * rng.uniform(0.1, 0.35) / reach_px**2
    paint = Paint(*colour, 0.1, rng.uniform(0.13, 0.22))
    paint = paint._replace(x=xy[0], y=xy[1], tilt_x=tilt_x, tilt_y=tilt_y, bowl=bowl)
    return Thing("tree", crown, paint, 1.0 + 1.9 * radius)


def _hedge(site: Site, line: LineString, half_width: float) -> Thing:
    """Bushes along a line of the plan that have grown together."""
    along = np.arange(0, line.length, half_width * 1.1)
    feet = shapely.get_coordinates(shapely.line_interpolate_point(line, along))
    feet = site.pixels(feet + site.rng.normal(0, half_width * 0.15, feet.shape))
    radii = half_width * site.px_per_m * site.rng.uniform(0.75, 1.35, len(feet))
    bushes = shapely.buffer(shapely.points(feet), radii, quad_segs=3)
    outline = shapely.union_all([*bushes, site.warped(line).buffer(radii.min() * 0.8)])
    paint = Paint(*site.tint(site.looks.palette.crown), 0.1, 0.2)
    return Thing("hedge", outline, paint, 2 + half_width)


def _vehicle(site: Site, pose: Pose) -> Thing:
    """A car or a van with dark windows."""
    van = site.chance(0.15)
    half, out = (site.rng.uniform(2.6, 3.1), 1.02) if van else (site.rng.uniform(2.05, 2.4), 0.93)
    body = box(-half + 0.35, -out + 0.35, half - 0.35, out - 0.35).buffer(0.35, 2)
    panes = [box(half * 0.22, -out + 0.2, half * 0.48, out - 0.2)]
    panes += [] if van else [box(-half * 0.82, -out + 0.22, -half * 0.62, out - 0.22)]
    details = tuple((site.placed(pane, pose), Paint(34, 38, 44)) for pane in panes)
    paint = Paint(*site.tint(site.looks.palette.vehicle), 0.02, 0)
    return Thing("vehicle", site.placed(body, pose), paint, 2.3 if van else 1.5, details)
