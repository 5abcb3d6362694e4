"""Synthetic aerial scenes with ground truth.

The things of a countryside are stacked in painter's order, which gives the picture (the paint of
the topmost one per pixel) and the ground truth (each polygon less what lies above it) from the
same polygons, so that the two cannot disagree.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

from workbench._support.files import atomic_path
from workbench.errors import SceneError
from workbench.samples.appearance import Appearance, Floats, Paint, Site, Thing, choose_site
from workbench.samples.countryside import things_on

# the kinds whose outline can be seen: between gardens, there often is neither fence nor hedge
OUTLINED = ("building", "parcel", "water", "forest")
DEMO_SIZE, DEMO_SEED, DEMO_RESOLUTION_M = (1536, 2048), 71, 0.3
CRS = pyproj.CRS.from_epsg(32632)
ORIGIN = (691_240.0, 5_334_910.0)  # upper left corner of every sample, farmland east of Munich
MIN_AREA_PX, MIN_WIDTH_PX = (
    6.0,
    0.8,
)  # less visible objects are left out of the truth

# what covers what; things of one level cover each other in the order in which they are made
LEVELS = {"parcel": 0, "forest": 0, "bank": 1, "water": 2, "driveway": 3, "pavement": 4, "road": 5}
LEVELS |= {"garden": 0, "vehicle": 6, "building": 7, "roof_side": 7, "hedge": 8, "tree": 9}
UNLABELLED = {"bank", "pavement"}  # painted like grass verges: part of the ground between objects


USUAL = Appearance()


@dataclass(frozen=True)
class Sample:
    """A scene and its ground truth.

    `rgb` is `(h, w, 3)`. `objects` has one row per visible piece of an object: `kind`, `part_of`
    (position of the row of the whole, for roof sides and the trees of a forest, else -1) and a
    polygon in map coordinates without what other objects hide; an object that is cut in two gives
    two rows, and wholes come before their parts. `labels` `(h, w)` holds per pixel the position
    of the topmost row, -1 for verges and pavements; pixels belong to a polygon by their centre.
    """

    rgb: NDArray[np.uint8]
    objects: gpd.GeoDataFrame
    labels: NDArray[np.int32]
    transform: Affine
    crs: pyproj.CRS


def make_sample(
    size: int | tuple[int, int],
    seed: int = 0,
    *,
    resolution_m: float = 0.3,
    appearance: Appearance = USUAL,
) -> Sample:
    """Make a scene of `size` pixels (height, width); equal arguments give equal bits.

    The first village lies near the middle, whatever the size. Raises `SceneError` for a size or
    resolution that is not positive.
    """
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 1 or not resolution_m > 0:
        raise SceneError(
            f"No sample scene of {shape[0]}×{shape[1]} pixels at {resolution_m} m: "
            "give a height and width of at least 1 pixel and a resolution above 0."
        )
    plan_seed, photo_seed = np.random.SeedSequence(seed).spawn(2)
    site = choose_site(plan_seed, shape, resolution_m, appearance)
    things, wholes = _stack(list(things_on(site)))
    rgb = _photograph(site, things, np.random.default_rng(photo_seed))
    kinds, part_of, polygons = _ground_truth(site, things, wholes)
    transform = Affine(resolution_m, 0, ORIGIN[0], 0, -resolution_m, ORIGIN[1])
    pixel = np.array([resolution_m, -resolution_m])
    on_map = shapely.transform(np.array(polygons, dtype=object), lambda xy: xy * pixel + ORIGIN)
    objects = gpd.GeoDataFrame(
        {"kind": pd.Series(kinds, dtype="str"), "part_of": pd.Series(part_of, dtype="int64")},
        geometry=gpd.GeoSeries(on_map, crs=CRS),
    )
    return Sample(rgb, objects, _burn(polygons, shape), transform, CRS)


def write_sample(sample: Sample, folder: Path) -> Path:
    """Write `sample.tif` and, as layer `objects`, `sample_objects.gpkg`; return the raster's path.

    The raster is written last, so if it exists, the ground truth exists too.
    """
    path = Path(folder) / "sample.tif"
    with atomic_path(path.with_name("sample_objects.gpkg")) as temporary:
        sample.objects.to_file(temporary, layer="objects", driver="GPKG")
    height, width = sample.labels.shape
    with atomic_path(path) as temporary:
        with rasterio.open(
            temporary, "w", driver="GTiff", dtype="uint8", count=3, height=height, width=width,
            crs=sample.crs.to_wkt(), transform=sample.transform, photometric="RGB",
            tiled=True, blockxsize=256, blockysize=256, compress="deflate", predictor=2,
        ) as raster:  # fmt: skip
            raster.write(sample.rgb.transpose(2, 0, 1))
        factors = [f for f in (2, 4, 8, 16) if max(height, width) // f >= 128]
        if factors:
            with rasterio.open(temporary, "r+") as raster:
                raster.build_overviews(factors, rasterio.enums.Resampling.average)
    return path


def sample_scene(folder: Path | None = None) -> Path:
    """Return the path of the sample scene's raster, which the first call makes.

    Args:
        folder: Where to keep it; None is the user's cache.

    Returns:
        `sample.tif`, 2048 × 1536 pixels of 0.3 m in EPSG:32632. `sample_objects.gpkg` beside it
        holds the true objects.

    Example:
        >>> scene = open_scene(sample_scene())
    """
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "sam-workbench" / "sample-2"  # goes up when the demo scene changes
    path = Path(folder) / "sample.tif"
    if path.exists():
        return path
    return write_sample(make_sample(DEMO_SIZE, DEMO_SEED, resolution_m=DEMO_RESOLUTION_M), folder)


def sample_truth() -> gpd.GeoDataFrame:
    """The objects of the demo scene that have an outline of their own and 500 pixels: the truth."""
    truth = gpd.read_file(sample_scene().with_name("sample_objects.gpkg"))
    large = truth.area >= 500 * DEMO_RESOLUTION_M**2
    return truth[truth["kind"].isin(OUTLINED) & large].reset_index(drop=True)


# ---------------------------------------------------------------- ground truth and picture


def _stack(things: Sequence[Thing]) -> tuple[list[Thing], list[int]]:
    """Things and their parts in painter's order, and for each the position of its whole or -1."""
    flat = [(thing, -1) for thing in things]
    flat += [(part, whole) for whole, thing in enumerate(things) for part in thing.parts]
    order = sorted(range(len(flat)), key=lambda i: LEVELS[flat[i][0].kind])
    place = {i: position for position, i in enumerate(order)} | {-1: -1}
    return [flat[i][0] for i in order], [place[flat[i][1]] for i in order]


def _burn(shapes: Iterable[BaseGeometry], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Position of the last shape over each pixel's centre, -1 where there is none."""
    numbered = [(one, i) for i, one in enumerate(shapes) if not one.is_empty]
    if not numbered:
        return np.full(shape, -1, dtype=np.int32)
    return rasterize(numbered, shape, fill=-1, dtype=np.int32)


def _ground_truth(
    site: Site, things: list[Thing], wholes: list[int]
) -> tuple[list[str], list[int], list[BaseGeometry]]:
    """Kind, position of the whole, and polygon (pixels) of every visible piece."""
    outlines = np.array([thing.outline for thing in things], dtype=object)
    below, above = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    hides = (above > below) & (np.array(wholes, dtype=int)[above] != below)
    pairs = sorted(zip(below[hides].tolist(), above[hides].tolist(), strict=True))
    seen = list(outlines)
    for i, over in groupby(pairs, key=itemgetter(0)):
        seen[i] = outlines[i].difference(shapely.union_all(outlines[[j for _, j in over]]))
    for forest in [i for i, thing in enumerate(things) if thing.kind == "forest"]:
        crowns = [seen[i] for i, whole in enumerate(wholes) if whole == forest]
        seen[forest] = shapely.union_all([seen[forest], *crowns])  # they reach over its floor
    # on this fine grid cuts stay valid when map coordinates round their last bits away
    seen = list(shapely.set_precision(seen, 2.0**-20))
    seen = list(shapely.intersection(seen, box(0, 0, site.shape[1], site.shape[0])))
    kinds: list[str] = []
    part_of: list[int] = []
    polygons: list[BaseGeometry] = []
    rows: dict[int, list[int]] = {-1: []}
    for i, thing in enumerate(things):
        rows[i] = []
        for piece in [] if thing.kind in UNLABELLED else shapely.get_parts(seen[i]):
            # twice the area over the perimeter is the width of a strip
            if piece.area < max(MIN_AREA_PX, MIN_WIDTH_PX * piece.length / 2):
                continue
            inside = piece.representative_point()
            part_of.append(next((r for r in rows[wholes[i]] if polygons[r].covers(inside)), -1))
            rows[i].append(len(polygons))
            kinds.append(thing.kind)
            polygons.append(piece)
    return kinds, part_of, polygons


def _photograph(site: Site, things: list[Thing], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint the topmost surface of each pixel, light it, and put it through a camera."""
    looks, shape, ppm = site.looks, site.shape, site.px_per_m
    layers: list[tuple[BaseGeometry, Paint, float]] = []
    for thing in things:
        layers.append((thing.outline, thing.paint, thing.height_m))
        layers += [(detail, paint, thing.height_m) for detail, paint in thing.details]
    top = _burn((outline for outline, _, _ in layers), shape)
    verge = Paint(*looks.palette.verge[0], 0.08, 0.12, 0.12)
    layers.append((Polygon(), verge, 0.0))  # last, so that a top of -1 finds it
    paints = np.array([paint for _, paint, _ in layers], dtype=np.float32)

    def each(name: str) -> Floats:
        return paints[:, Paint._fields.index(name)][top]

    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + np.float32(0.5)
    u, v = site.plan(x, y)
    patches = _noise(rng, shape, 15 * ppm) + 0.6 * _noise(rng, shape, 5 * ppm)
    mottle = _noise(rng, shape, 1.1 * ppm) + 0.5 * _noise(rng, shape, 2.5 * ppm)
    across = u * np.cos(each("row_angle")) + v * np.sin(each("row_angle")) + 0.04 * mottle
    row_m = each("row_m")
    # rows about two pixels apart would make a moiré that no camera sees
    rows = np.sin(across * (2 * np.pi / row_m)) * np.clip(row_m * ppm / 2 - 1, 0, 1)
    tracks = np.abs(np.sin(across * (np.pi / each("track_m")))) ** 60
    dx, dy = x - each("x"), y - each("y")
    gain = 1 + looks.grain * each("grain") * rng.standard_normal(shape, dtype=np.float32)
    gain += looks.mottle * each("mottle") * mottle + looks.patches * each("patches") * patches
    gain += looks.rows * (each("rows") * rows * (1 + 0.4 * patches) + each("tracks") * tracks)
    gain += each("tilt_x") * dx + each("tilt_y") * dy - each("bowl") * (dx * dx + dy * dy)
    rgb = paints[:, :3][top] * np.maximum(gain, 0.15)[..., None]
    dry = _noise(rng, shape, 20 * ppm)
    rgb[..., 0] *= 1 + 0.3 * looks.patches * each("patches") * dry

    height_m = np.array([height for _, _, height in layers], dtype=np.float32)[top]
    shade = looks.shadow_strength * _shade(site, things, height_m)
    rgb *= 1 - shade[..., None] * (2 - np.array(looks.shadow_tint, dtype=np.float32))
    light = 1 + looks.unevenness * _noise(rng, shape, 0.4 * max(shape))
    from_middle = 2 * ((x / shape[1] - 0.5) ** 2 + (y / shape[0] - 0.5) ** 2)
    rgb *= (light * (1 - looks.vignetting * from_middle))[..., None]
    return _camera(rgb, looks, rng)


def _shade(site: Site, things: list[Thing], height_m: Floats) -> Floats:
    """Share of sunlight that each pixel misses, with soft edges."""
    sun = math.radians(max(site.looks.sun_elevation_deg, 5))
    step = -site.to_sun / math.tan(sun) * site.px_per_m
    caster = np.zeros(site.shape, dtype=np.uint8)  # height of the tallest, in eighths of a metre
    for thing in sorted(things, key=lambda thing: thing.height_m):
        if thing.height_m > 0:
            corners = shapely.get_coordinates(thing.outline)
            for share in (0.2, 0.4, 0.6, 0.8, 1.0):
                edge = corners + share * thing.height_m * step - 0.5  # cv2 counts from centres
                value = min(int(8 * thing.height_m), 255)
                cv2.fillPoly(caster, [np.round(edge * 16).astype(np.int32)], value, shift=4)
    # shadows are drawn as they fall on the ground, so only what is far lower receives them
    hidden = (caster > 8 * (1.5 * height_m + 0.5)).astype(np.float32)
    return _blurred(hidden, max(0.2 * site.px_per_m, 0.3))


def _camera(rgb: Floats, looks: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Haze, tone curve, blur, sensor noise and compression."""
    rgb = rgb + looks.haze * (np.array(looks.haze_colour, dtype=np.float32) - rgb)
    rgb = np.clip((rgb - 118) * looks.contrast + 118, 0, 255)
    if looks.gamma != 1:
        rgb = (255 * (rgb / 255) ** looks.gamma).astype(np.float32)
    rgb = _blurred(rgb, looks.blur_px)
    rgb += looks.noise * rng.standard_normal(rgb.shape, dtype=np.float32)
    image = np.clip(np.round(rgb), 0, 255).astype(np.uint8)
    if looks.jpeg_quality is None:
        return image
    packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, looks.jpeg_quality])
    unpacked: Any = cv2.imdecode(packed[1], cv2.IMREAD_COLOR)
    return np.ascontiguousarray(unpacked[..., ::-1])


def _blurred(image: Floats, sigma_px: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px)) if sigma_px > 0 else image


def _noise(rng: np.random.Generator, shape: tuple[int, int], size_px: float) -> Floats:
    """Smooth noise of about unit deviation with lumps of a given size."""
    size = max(size_px, 1.0)
    height, width = (math.ceil(n / size) + 3 for n in shape)
    coarse = rng.standard_normal((height, width), dtype=np.float32) * np.float32(1.3)
    full = (math.ceil(width * size), math.ceil(height * size))
    fine = cv2.resize(coarse, full, interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine[: shape[0], : shape[1]])
