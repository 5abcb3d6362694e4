"""The preview of sample tiles: the same polygons as a run, and reasons for each."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from known_objects import TRANSFORM, UTM, candidates_of, scene_of
from known_runs import equal_layers, job_for
from pycocotools import mask as coco

from workbench import run
from workbench.candidates.offer import Offer, offered
from workbench.candidates.select import Thresholds, select
from workbench.candidates.store import TileRecord, valid_masks
from workbench.candidates.table import Candidates, Rules
from workbench.polygons.build import to_polygons
from workbench.polygons.clean import Cleaning, clean
from workbench.raster.open import open_scene
from workbench.raster.tiles import TileGrid
from workbench.runs.forecast import Forecast
from workbench.runs.plan import ScenePlan, prepare
from workbench.runs.segment import segment
from workbench.runs.tile_stream import SegmentedTile
from workbench.tuning.preview import Fate, Preview
from workbench.tuning.propose import propose_tiles

SIDE = 96
RULES = Rules(SIDE, SIDE)
GRID = TileGrid(240, 168, SIDE, 0.25)
PART = ScenePlan(scene_of(240, 168), GRID, tuple(GRID))


def rectangles(boxes, scores, stability=None, tile=PART.tiles[0], valid=None, part=PART):
    """A sample whose candidates are rectangles (x0, y0, x1, y1), tile pixels, end exclusive."""
    masks = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y0:y1, x0:x1] = True
        masks.append(mask)
    return sample_of(masks, scores, stability, tile, valid, part)


def sample_of(masks, scores, stability=None, tile=PART.tiles[0], valid=None, part=PART):
    """A sample whose candidates have these masks."""
    candidates = candidates_of(masks, scores, RULES)
    if stability is not None:
        place = candidates.table.schema.get_field_index("stability_score")
        field = candidates.table.schema.field(place)
        column = pd.Series(stability, dtype="float32").to_numpy()
        table = candidates.table.set_column(place, field, [column])
        candidates = replace(candidates, table=table)
    record = TileRecord(part.scene.name, tile.row, tile.col, "ok", valid_rle=valid)
    return SegmentedTile(part, tile, candidates.at_tile(tile.row, tile.col), record)


def random_sample(seed, tile):
    """Some hundred rectangles, many of them alike, with scores of all kinds."""
    rng = np.random.default_rng(seed)
    corner = np.repeat(rng.integers(0, SIDE - 30, (40, 2)), 4, axis=0)
    size = np.repeat(rng.integers(4, 28, (40, 2)), 4, axis=0)
    corner = np.clip(corner + rng.integers(-2, 3, corner.shape), 0, SIDE - 32)
    boxes = np.hstack([corner, corner + size])
    scores = rng.choice(np.linspace(0.5, 1, 30), len(boxes))
    return rectangles(boxes.tolist(), scores, rng.uniform(0.5, 1, len(boxes)), tile)


def directly(sample, thresholds, cleaning, offer):
    """What a run does with a tile, step by step."""
    valid = valid_masks([sample.record], RULES)
    chosen = offered(select(sample.candidates, thresholds), sample.part.grid, valid, offer)
    return clean(to_polygons(chosen, sample.part.scene, sample.part.grid, valid), cleaning)


def test_c2_a_view_is_what_a_run_makes_of_the_tiles_whatever_was_looked_at_before():
    samples = [random_sample(seed, PART.tiles[i]) for seed, i in ((1, 0), (2, 1), (3, 5))]
    preview = Preview(samples)
    rng = np.random.default_rng(0)
    cleanings = [
        Cleaning(min_area_px=0, simplify_m=0),
        Cleaning(min_area_px=60, min_solidity=0.9, simplify_m=0.7),
        Cleaning(min_area_px=20, simplify_m=0.5, planar=True),
    ]
    offers = [Offer(), Offer(overlaps="one"), Offer(None, None, "all"), Offer(0.05, 0.9, "all")]
    seen = set()
    for _ in range(40):
        thresholds = Thresholds(*rng.uniform(0.5, 1, 2))
        cleaning = cleanings[rng.integers(len(cleanings))]
        if rng.random() < 0.3:
            preview.prepare(cleaning, int(rng.integers(1, 100)))
        offer = offers[rng.integers(len(offers))]
        view = preview.look(thresholds, cleaning, offer)
        frames = [directly(sample, thresholds, cleaning, offer) for sample in samples]
        expected = pd.concat([f for f in frames if len(f)] or frames, ignore_index=True)
        got = view.polygons.drop(columns="row")
        assert len(got) == len(expected) == len(view.kept)
        if len(got):
            assert equal_layers(got[expected.columns].reset_index(drop=True), expected)
        seen.add(len(got))
    assert len(seen) > 20


@pytest.mark.usefixtures("known_objects_only")
def test_c2_what_is_clear_of_the_overlaps_is_in_the_layer_of_the_run(raster, tmp_path):
    job = job_for(raster, tmp_path / "run", simplify_m=0.5, fill_holes_m2=20)
    plan = prepare(job)
    samples = [t for t in segment(plan) if len(t.candidates)]
    view = Preview(samples).look(job.thresholds, job.cleaning, job.offer)
    layer = run(job).layer.set_index("id")
    whole = view.polygons[~view.polygons["seam"]]
    assert len(whole) >= 2
    for row in whole.itertuples():
        tuned = layer.loc[f"scene/r{row.tile_row}c{row.tile_col}/{row.ordinal}"]
        assert tuned.geometry == row.geometry
        assert tuned.area_m2 == row.area_m2


@pytest.mark.usefixtures("known_objects_only")
def test_c2_seams_between_samples_are_merged_as_in_the_run(raster, tmp_path):
    job = job_for(raster, tmp_path / "run", simplify_m=0.5, fill_holes_m2=20)
    samples = list(segment(prepare(job)))
    preview = Preview(samples)
    view = preview.look(job.thresholds, job.cleaning, job.offer)
    merged = preview.merge(view)
    layer = run(job).layer
    assert len(view.polygons) > len(merged.polygons) == len(layer)
    assert layer["n_tiles"].max() > 2
    shown = merged.polygons.sort_values(["tile_row", "tile_col", "ordinal"], ignore_index=True)
    assert shown.geometry.geom_equals_exact(layer.geometry, 0).all()
    assert not shown["seam"].any()
    assert (preview.merge(merged).fate == merged.fate).all()
    assert preview.figures(merged).n_seam == 0
    gone = np.flatnonzero(merged.fate == Fate.MERGED)
    assert len(gone)
    assert "beside it" in preview.explain(int(gone[0]), merged).reason


@pytest.mark.usefixtures("known_objects_only")
def test_what_reaches_a_tile_that_is_no_sample_stays_dashed(raster, tmp_path):
    job = job_for(raster, tmp_path / "run")
    samples = [each for each in segment(prepare(job)) if each.tile.col < 2]
    preview = Preview(samples)
    merged = preview.merge(preview.look(job.thresholds, job.cleaning, job.offer))
    grid, scene = samples[0].part.grid, samples[0].part.scene
    there = [scene.window_polygon(grid.tile(row, 2).window) for row in range(grid.n_rows)]
    overlap = shapely.area(shapely.intersection(merged.polygons.envelope, shapely.union_all(there)))
    assert (merged.polygons["seam"] == (overlap > 0)).all()
    assert 0 < merged.polygons["seam"].sum() < len(merged.polygons)
    apart = Preview([samples[0], samples[-1]])
    alone = apart.look(job.thresholds, job.cleaning, job.offer)
    assert apart.merge(alone) is alone


def test_a_slider_compares_no_masks_after_work_ahead(monkeypatch):
    cleaning, preview = Cleaning(min_area_px=30), Preview([random_sample(1, PART.tiles[0])])
    preview.look(Thresholds(0.8, 0.7), cleaning)
    while preview.prepare(cleaning, 50):
        pass
    monkeypatch.setattr(coco, "iou", None)
    for low in (0.5, 0.6, 0.9):
        preview.look(Thresholds(low, low), cleaning)


def test_work_done_ahead_changes_nothing_and_comes_to_an_end():
    cleaning, thresholds = Cleaning(min_area_px=30), Thresholds(0.8, 0.7)
    lazy, eager = (Preview([random_sample(1, PART.tiles[0])]) for _ in range(2))
    eager.look(thresholds, cleaning)
    left = [eager.prepare(cleaning, 50)]
    while left[-1]:
        left.append(eager.prepare(cleaning, 50))
    assert left == sorted(left, reverse=True)
    drawn = eager.look(Thresholds(0.5, 0.5), cleaning).drawn
    assert all(a is b for a, b in zip(eager.look(thresholds, cleaning).drawn, drawn, strict=True))
    assert eager.prepare(cleaning, 50) == 0
    again = eager.look(thresholds, cleaning).drawn  # else the browser gets all of them once more
    assert all(a is b for a, b in zip(again, drawn, strict=True))
    assert equal_layers(
        eager.look(thresholds, cleaning).polygons, lazy.look(thresholds, cleaning).polygons
    )


def test_each_candidate_is_told_why_it_is_there_or_not():
    sample = rectangles(
        [(10, 10, 40, 40), (11, 10, 40, 40), (50, 50, 53, 53), (60, 5, 80, 25), (5, 60, 30, 90)],
        [0.90, 0.95, 0.97, 0.6, 0.93],
        [0.95, 0.96, 0.97, 0.6, 0.95],
    )
    beyond_x = TRANSFORM.c + 0.5 * 50
    aoi = shapely.box(TRANSFORM.c, TRANSFORM.f - 0.5 * 55, beyond_x, TRANSFORM.f)
    preview = Preview([sample], aoi)
    view = preview.look(Thresholds(0.85, 0.92), Cleaning(min_area_px=20))
    assert view.fate.tolist() == [
        Fate.SUPPRESSED,
        Fate.KEPT,
        Fate.CLEANED,
        Fate.BELOW,
        Fate.OUTSIDE,
    ]
    reasons = [preview.explain(row, view) for row in range(5)]
    assert reasons[0].rival == 1
    assert "0.950" in reasons[0].reason
    assert reasons[1].reason == "kept"
    assert "min_area_px (20 px)" in reasons[2].reason
    assert "predicted IoU 0.600 is not above 0.85 and stability 0.600 is below" in reasons[3].reason
    assert "AOI" in reasons[4].reason
    # under a point of the map: both rectangles, the better one first
    x, y = TRANSFORM @ (20.5, 20.5)
    assert [verdict.row for verdict in preview.at(x, y, view)] == [1, 0]
    assert preview.at(*(TRANSFORM @ (45.5, 45.5)), view) == []
    assert preview.outline(0).area.sum() == pytest.approx(30 * 30 * 0.25)
    assert preview.key(3) == ("s", 0, 0, 3)


def test_what_is_not_offered_is_told_why():
    alone = ScenePlan(scene_of(SIDE, SIDE), TileGrid(SIDE, SIDE, SIDE), (PART.tiles[0],))
    drawn = [
        (0, 0, 96, 90),  # nearly all
        (0, 0, 96, 50),  # along three edges
        (30, 30, 70, 70),
        (30, 25, 70, 70),  # a double
        (55, 55, 81, 75),  # lies on it in part
        (40, 40, 50, 50),  # lies in it
    ]
    sample = rectangles(drawn, [1.0, 0.99, 0.95, 0.94, 0.93, 0.92], part=alone)
    preview = Preview([sample])
    thresholds, cleaning = Thresholds(0.85, 0.5), Cleaning(min_area_px=0)
    view = preview.look(thresholds, cleaning, Offer(overlaps="one"))
    rules = [Fate.WHOLE_TILE] * 2 + [Fate.KEPT] + [Fate.SUPPRESSED] + [Fate.OVERLAP] * 2
    assert view.fate.tolist() == rules
    nested = preview.look(thresholds, cleaning, Offer())
    assert nested.fate[4:].tolist() == [Fate.OVERLAP, Fate.KEPT]
    told = [preview.explain(row, view) for row in range(6)]
    assert "covers 94% of its tile, more than max_area_share (0.8)" in told[0].reason
    assert "touches three or four edges of the scene" in told[1].reason
    assert "lies on a better one (predicted IoU 0.950)" in told[4].reason
    assert "overlaps is `one`" in told[5].reason
    assert (told[4].rival, told[0].rival) == (2, -1)
    everything = preview.look(thresholds, cleaning, Offer(None, None, "all"))
    assert (everything.fate == Fate.KEPT).sum() == 5  # SAM's own suppression stays


def test_a_double_is_told_which_it_repeats():
    band = np.zeros((SIDE, SIDE), bool)
    band[20:60, 20:40] = True
    bump = band.copy()
    bump[20:23, 40:60] = True  # a longer box, so that SAM lets it pass
    preview = Preview([sample_of([band, bump], [0.9, 0.95])])
    view = preview.look(Thresholds(), Cleaning(min_area_px=0))
    assert view.fate.tolist() == [Fate.DUPLICATE, Fate.KEPT]
    verdict = preview.explain(0, view)
    assert "it repeats a better one (predicted IoU 0.950)" in verdict.reason
    assert verdict.rival == 1


@pytest.mark.parametrize(
    ("cleaning", "second_part", "reason"),
    [
        # its hole, once filled, makes it too large
        (
            Cleaning(min_area_px=0, fill_holes_m2=100, max_area_m2=200),
            False,
            "m² is above max_area_m2 (200)",
        ),
        # without its small part it is too small
        (Cleaning(min_area_px=200, min_area_m2=190), True, "m² is below min_area_m2 (190)"),
    ],
)
def test_steps_of_cleaning_that_remove_only_together_are_told_apart(cleaning, second_part, reason):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:40, 10:40] = True
    mask[20:32, 20:32] = False
    mask[60:70, 60:70] = second_part
    preview = Preview([sample_of([mask], [0.95])])
    view = preview.look(Thresholds(0.85, 0.9), cleaning)
    assert view.fate.tolist() == [Fate.CLEANED]
    assert reason in preview.explain(0, view).reason


def test_figures_count_what_is_shown_and_measure_the_ground():
    # a quarter and an eighth of the tile, overlapping by none
    sample = rectangles([(0, 0, 48, 48), (48, 48, 96, 72)], [0.9, 0.95])
    preview = Preview([sample])
    figures = preview.figures(preview.look(Thresholds(), Cleaning()))
    assert figures.n == 2
    assert figures.covered == pytest.approx(0.375, abs=0.02)
    assert figures.median_area_m2 == pytest.approx((48 * 48 + 48 * 24) / 2 * 0.25, rel=1e-2)
    nothing = preview.figures(preview.look(Thresholds(1.0, 1.0), Cleaning()))
    assert (nothing.n, nothing.covered) == (0, 0)


def test_nothing_proposed_is_nothing_shown():
    tile = PART.tiles[0]
    record = TileRecord("s", tile.row, tile.col, "empty")
    preview = Preview([SegmentedTile(PART, tile, Candidates.empty(RULES), record)])
    view = preview.look(Thresholds(), Cleaning())
    assert len(view.polygons) == 0
    assert view.polygons.crs == UTM
    assert preview.prepare(Cleaning(), 10) == 0
    assert Preview([]).n_candidates == 0


def test_thresholds_below_the_floors_are_refused():
    with pytest.raises(ValueError, match=r"below the floor of what is stored \(0\.5\)"):
        Preview([random_sample(1, PART.tiles[0])]).look(Thresholds(0.4, 0.9), Cleaning())


def test_proposed_tiles_show_all_that_there_is(tmp_path):
    rng = np.random.default_rng(0)
    rgb = np.full((3, 400, 800), 60, np.uint8)  # dark and even
    rgb[:, :, 700:] = rng.integers(0, 255, (3, 400, 100))  # a textured strip
    rgb[0, 300:, :100] = 220  # a red corner
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=800, height=400, count=3, dtype="uint8",
        crs="EPSG:32633", transform=TRANSFORM,
    ) as file:  # fmt: skip
        file.write(rgb)
    scene = open_scene(path)
    grid = TileGrid(800, 400, 100, 0)
    part = ScenePlan(scene, grid, tuple(grid))
    chosen = [tile for _, tile in propose_tiles([part], 4)]
    assert len({(tile.row, tile.col) for tile in chosen}) == 4
    assert any(tile.col == 7 for tile in chosen)
    assert any((tile.row, tile.col) == (3, 0) for tile in chosen)
    assert any(tile.col < 7 and tile.row < 3 for tile in chosen)
    assert propose_tiles([part], 4) == propose_tiles([part], 4)
    assert len(propose_tiles([part], 100)) == 32


def test_a_forecast_says_what_is_known():
    assert Forecast().text(1) == "1 tile"
    known = Forecast(8.0, 250e3)
    assert known.text(24) == "24 tiles · about 3 min 12 s · up to 6.0 MB of candidates"
    assert Forecast().after(8.0, 250_000) == known
    assert known.after(3.0, 250_000).seconds_per_tile == 7.0  # a fifth of the way
    assert "about 2 h 13 min" in Forecast(8.0).text(1000)
