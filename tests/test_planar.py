"""A planar layer in parts is the planar layer in one piece."""

from itertools import chain

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_objects import TRANSFORM, UTM, KnownObjects, candidates_of, scene_of, write_labels
from known_runs import job_for

from workbench import run
from workbench.candidates.table import Rules
from workbench.polygons import planar
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.polygons.planar import clean_planar
from workbench.raster.tiles import TileGrid


def patches(seed: int, side: int, n: int) -> gpd.GeoDataFrame:
    """Ragged overlapping patches all over a square of pixels, a few of them large."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = []
    for number in range(n):
        cy, cx = rng.uniform(0, side, 2)
        radius = rng.uniform(side / 5, side / 2) if number % 20 == 0 else rng.uniform(4, 16)
        angle = np.arctan2(y - cy, x - cx)
        edge = radius * (1 + 0.3 * np.sin(rng.integers(2, 7) * angle + rng.uniform(0, 6)))
        mask = np.hypot(y - cy, x - cx) < edge + rng.normal(0, 0.7, (side, side))
        masks.append(mask if mask.any() else y + x == 0)
    scene, grid = scene_of(side, side, TRANSFORM), TileGrid(side, side, side)
    candidates = candidates_of(masks, np.linspace(0.6, 0.9, n), Rules(side, side))
    return to_polygons(candidates, scene, grid, {})


@pytest.mark.parametrize("cleaning", [
    Cleaning(min_area_px=0, simplify_m=0, planar=True),
    Cleaning(min_area_px=30, simplify_m=1.5, planar=True),
    Cleaning(min_area_px=30, min_area_m2=20, max_area_m2=2000, fill_holes_m2=9, planar=True),
])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_parts_give_the_layer_of_one_piece(seed, cleaning, monkeypatch, tmp_path):
    polygons = patches(seed, 240, 140)
    whole = clean(polygons, cleaning)
    monkeypatch.setattr(planar, "PART_BYTES", 12_000)
    monkeypatch.setattr(planar, "BATCH", 16)
    cuts = np.array_split(np.arange(len(polygons)), 5)
    batches = [polygons.iloc[rows].reset_index(drop=True) for rows in cuts]
    acted = []
    cut = planar.cut_overlaps
    monkeypatch.setattr(
        planar, "cut_overlaps", lambda s, *more: acted.append(len(s)) or cut(s, *more)
    )
    made = pd.concat(clean_planar(iter(batches), cleaning, tmp_path), ignore_index=True)
    assert len(acted) > 10
    assert min(acted) < len(polygons) / 3
    assert made.drop(columns="geometry").equals(whole.drop(columns="geometry"))
    assert shapely.equals_exact(made.geometry.to_numpy(), whole.geometry.to_numpy(), 0).all()
    assert shapely.coverage_is_valid(made.geometry.to_numpy())
    assert len(made) > 50
    assert not list(tmp_path.iterdir())


def test_no_polygons_are_one_empty_batch(tmp_path):
    nothing = patches(0, 60, 3).iloc[:0]
    for some in ([nothing], [nothing, nothing]):
        (made,) = clean_planar(iter(some), Cleaning(planar=True), tmp_path)
        assert made.drop(columns="geometry").equals(
            clean(nothing, Cleaning(planar=True)).drop(columns="geometry")
        )
        assert made.crs == UTM


def test_what_is_too_small_everywhere_leaves_an_empty_batch(tmp_path):
    (made,) = clean_planar([patches(0, 60, 3)], Cleaning(min_area_px=10**6, planar=True), tmp_path)
    assert len(made) == 0
    assert "area_m2" in made


def test_every_row_is_in_one_part():
    rng = np.random.default_rng(1)
    corner, side = rng.uniform(0, 100, (500, 2)), rng.uniform(0, 3, (500, 2))
    side[:3] = 90
    bounds = np.hstack([corner, corner + side])
    parts = list(planar._parts(bounds, np.full(500, planar.PART_BYTES // 20)))
    assert sorted(chain.from_iterable(part.tolist() for part in parts)) == list(range(500))
    assert {0, 1, 2} <= {part[0] for part in parts if len(part) == 1}
    assert max(map(len, parts)) <= 20


def test_a_planar_run_is_the_cleaned_layer_of_another_run(tmp_path, monkeypatch):
    labels = np.zeros((230, 330), int)
    labels[20:70, 10:80] = 9
    labels[30:40, 20:40], labels[45:60, 30:50] = 1, 2
    labels[100:150, 150:260] = 3  # in several tiles
    labels[120:130, 200:215] = 4
    raster = write_labels(tmp_path / "scene.tif", labels)
    monkeypatch.setattr(
        "workbench.runs.choose.segmenter_for",
        lambda job, before: KnownObjects(job.rules, contains={9: (1, 2), 3: (4,)}),
    )
    monkeypatch.setattr(planar, "PART_BYTES", 400)
    overlapping = run(job_for(raster, tmp_path / "overlapping")).layer
    flat = run(job_for(raster, tmp_path / "flat", planar=True)).layer
    expected = clean(overlapping, Cleaning(min_area_px=0, simplify_m=0, planar=True))
    assert flat["id"].tolist() == expected["id"].tolist()
    assert flat.area.sum() == (labels > 0).sum() / 4 < overlapping.area.sum()
    assert flat.geometry.geom_equals(expected.geometry).all()
    assert not [path for path in (tmp_path / "flat").iterdir() if path.name.startswith(".tmp")]
