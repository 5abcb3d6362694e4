"""A cut piece is continued by what the neighbour stored but did not select."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from known_objects import candidates_of, write_labels
from pycocotools import mask as coco

from workbench import Job, run
from workbench.candidates.offer import Offer, TileMasks
from workbench.candidates.rle import cropped, encode_masks
from workbench.candidates.table import Rules
from workbench.polygons.continuation import Continuations
from workbench.raster.tiles import TileGrid
from workbench.runs import choose

# windows are x 0..96 and 72..168
GRID = TileGrid(168, 96, 96, 0.25)
RULES = Rules(96, 96)


def mask(x0, y0, x1, y1):
    """Of the scene; the tile sees what lies in its window."""
    whole = np.zeros((96, 168), bool)
    whole[y0:y1, x0:x1] = True
    return whole


def seen(tile, masks, scores):
    x = GRID.tile(0, tile).window.col_off
    windows = [whole[:, x : x + 96] for whole in masks]
    return candidates_of(windows, scores, RULES).at_tile(0, tile)


def continued(left, right, stored, offer=Offer()):  # noqa: B008
    """Rows of what the right tile stored that continue something, beside what it selected."""
    cut = Continuations(GRID)
    one, other = GRID.tile(0, 0), GRID.tile(0, 1)
    cut.see(other, seen(1, right, [0.9] * len(right)))
    cut.see(one, seen(0, left, [0.95] * len(left)))
    everything = seen(1, [*right, *stored], [0.9] * len(right) + [0.6] * len(stored))
    masks = TileMasks(everything, other, GRID, None)
    assert set(cut.wanted) <= {(0, 0), (0, 1)}
    return cut.found(other, everything, np.arange(len(right)), masks, offer).tolist()


FIELD = mask(30, 20, 140, 60)


def test_a_cut_piece_is_continued_by_a_mask_below_the_thresholds():
    assert continued([FIELD], [], [FIELD]) == [0]
    assert continued([FIELD], [], [mask(72, 70, 140, 90)]) == []  # does not agree


def test_of_several_the_one_that_agrees_best_continues_it():
    near = mask(30, 22, 140, 64)
    assert continued([FIELD], [], [near, FIELD, near]) == [1]


def test_what_the_neighbour_has_selected_needs_no_other():
    assert continued([FIELD], [mask(30, 21, 140, 60)], [FIELD]) == []


def test_what_is_not_cut_is_not_continued():
    assert continued([mask(30, 20, 80, 60)], [], [mask(72, 20, 140, 60)]) == []
    # the neighbour sees all of it, and has not proposed it
    assert continued([mask(76, 20, 96, 60)], [], [FIELD]) == []


def test_it_must_be_free_to_stand_beside_what_is_selected():
    other = mask(100, 10, 160, 60)
    assert continued([FIELD], [other], [FIELD]) == []
    assert continued([FIELD], [other], [FIELD], Offer(overlaps="all")) == [1]
    assert continued([mask(30, 0, 168, 95)], [], [mask(30, 0, 168, 95)]) == []  # all of its tile


boxes = st.tuples(*[st.integers(0, 30)] * 4)


@given(st.integers(0, 2**32 - 1), boxes)
def test_cropping_is_exact(seed, box):
    masks = np.random.default_rng(seed).random((3, 31, 37)) < 0.5
    x0, y0 = box[:2]
    x1, y1 = min(x0 + 1 + box[2], 37), min(y0 + 1 + box[3], 31)
    parts = cropped(encode_masks(masks), 31, 37, (x0, y0, x1, y1))
    for part, whole in zip(parts, masks, strict=True):
        assert (coco.decode(part).view(bool) == whole[y0:y1, x0:x1]).all()


class Unsure:
    """Sees one field, and is less sure of it where it sees less of it."""

    @property
    def key(self):
        return {"model": "unsure"}

    @property
    def rules(self):
        return Rules(96, 96)

    def load(self):
        pass

    def begin(self, image, watch=None):
        found = self.propose(image, watch)
        return lambda: found

    def propose(self, image, watch=None):
        there = image[..., 0] == 1
        score = 0.95 if there.mean() > 0.3 else 0.6
        rules = Rules(*there.shape)
        return candidates_of([there] if there.any() else [], [score], rules)


def test_a_run_leaves_no_straight_cut_where_the_rest_is_stored(tmp_path: Path, monkeypatch):
    labels = np.zeros((96, 168), int)
    labels[20:70, 30:110] = 1
    raster = write_labels(tmp_path / "scene.tif", labels)
    monkeypatch.setattr(choose, "segmenter_for", lambda job, before: Unsure())
    job = Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), tile_size=96, overlap=0.25,
        min_area_px=0, simplify_m=0,
    )  # fmt: skip
    layer = run(job).layer
    assert layer["area_px"].tolist() == [50 * 80]
    assert layer["n_tiles"].tolist() == [2]
    assert not layer["at_edge"].any()
