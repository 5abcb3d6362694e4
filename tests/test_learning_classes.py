"""Examples, the classifier, what is held out, and what is kept at one place."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from known_objects import candidates_of
from range_server import serve

from workbench.candidates.table import Rules
from workbench.errors import ExamplesError
from workbench.learning.choose import select_classes
from workbench.learning.classifier import Classifier
from workbench.learning.examples import check, examples_from, join, match_labels, read_labels
from workbench.learning.features import FEATURES, FEATURES_VERSION
from workbench.learning.held_out import FALLBACK, held_out
from workbench.runs.job import Job
from workbench.runs.labels import labels_of

SIZE = 64


def box(x, y, width, height):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def described(n, seed=0, tiles=6):
    """Objects in a row, every second one roof-like: some figures tell, the others are noise."""
    rng = np.random.default_rng(seed)
    figures = rng.normal(size=(n, len(FEATURES))).astype(np.float32)
    figures[::2, :4] += 3
    shapes = [shapely.box(10 * i, 0, 10 * i + 8, 8) for i in range(n)]
    return gpd.GeoDataFrame(
        dict(zip(FEATURES, figures.T, strict=True))
        | {"source": "s", "tile": [f"s/r0c{i * tiles // n}" for i in range(n)]},
        geometry=shapes, crs="EPSG:32633",
    )  # fmt: skip


def known(n=60, seed=0, tiles=6):
    class_id = (np.arange(n) + 1) % 2
    return examples_from(described(n, seed, tiles), class_id, np.arange(n).astype(str), "person")


# --------------------------------------------------------------------------------- selection


def test_of_roof_half_roof_and_block_the_roof_remains():
    roof, half, block = box(10, 10, 20, 20), box(10, 10, 20, 11), box(5, 5, 50, 50)
    apart = box(40, 40, 10, 10)  # inside the block, not in the roof
    candidates = candidates_of([half, block, roof, apart], [0.9, 0.9, 0.8, 0.9], Rules(SIZE, SIZE))
    kept = select_classes(candidates, np.array([0.6, 0.5, 0.9, 0.7]), 0.4)
    assert kept.tolist() == [2, 3]


def test_masks_decide_and_not_their_boxes():
    ring = box(10, 10, 40, 40) & ~box(15, 15, 30, 30)
    inner = box(20, 20, 20, 20)
    candidates = candidates_of([ring, inner], [0.9, 0.8], Rules(SIZE, SIZE))
    kept = select_classes(candidates, np.array([0.9, 0.8]), 0.5)
    assert len(kept) == 2


def test_a_block_does_not_cost_its_roofs():
    block, roofs = box(5, 5, 50, 50), [box(7 + 24 * i, 7 + 24 * j, 18, 18) for i, j in CORNERS]
    candidates = candidates_of([block, *roofs], [0.9] * 5, Rules(SIZE, SIZE))
    score = np.array([0.8, 0.7, 0.7, 0.7, 0.7])
    kept = select_classes(candidates, score, 0.5)
    assert kept.tolist() == [1, 2, 3, 4]
    score[0] = 0.99  # worth more than parts that are hardly above the threshold
    kept = select_classes(candidates, score, 0.65)
    assert kept.tolist() == [0]


CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def random_masks(seed, n=12):
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 40, (n, 2)), rng.integers(4, 24, (n, 2))
    return [box(*corner, *side) for corner, side in zip(corners, sides, strict=True)], rng


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_shares_little_and_leaves_out_nothing_that_could_stay(seed):
    masks, rng = random_masks(seed, 40)
    candidates = candidates_of(masks, rng.integers(6, 9, 40) / 10, Rules(SIZE, SIZE))
    score = rng.integers(40, 90, 40) / 100
    kept = select_classes(candidates, score, 0.5)
    rows = kept.tolist()
    both = np.array([[(a & b).sum() / min(a.sum(), b.sum()) > 0.5 for a in masks] for b in masks])
    others = both[rows].sum(axis=0)
    assert (others[rows] == 1).all()  # itself
    assert (others[score >= 0.5] >= 1).all()


@pytest.mark.parametrize("seed", range(20))
def test_of_nested_masks_the_best_choice_is_kept(seed):
    rng = np.random.default_rng(seed)
    halves = [
        box(x, y, w, w) for w in (32, 16, 8) for x in range(0, 32, w) for y in range(0, 32, w)
    ]
    masks = [halves[i] for i in rng.choice(len(halves), 11, replace=False)]
    candidates = candidates_of(masks, [0.9] * 11, Rules(SIZE, SIZE))
    score = rng.uniform(0.3, 1, 11)
    kept = select_classes(candidates, score, 0.3)
    clash = np.array([[(a & b).any() for a in masks] for b in masks]) & ~np.eye(11, dtype=bool)
    best = 0.0
    for choice in range(2**11):
        rows = np.flatnonzero([choice >> i & 1 for i in range(11)])
        if not clash[np.ix_(rows, rows)].any():
            best = max(best, (score[rows] - 0.3).sum())
    assert (score[kept] - 0.3).sum() == pytest.approx(best)


def test_the_class_threshold_is_a_lower_limit():
    masks = [box(20 * i, 5, 10, 10) for i in range(3)]
    candidates = candidates_of(masks, [0.9, 0.7, 0.9], Rules(SIZE, SIZE))
    kept = select_classes(candidates, np.array([0.5, -1.0, 0.4]), 0.5)
    assert kept.tolist() == [0]


def test_the_order_of_rows_does_not_matter_and_ties_are_broken_alike():
    masks = [box(10, 10, 20, 20), box(11, 10, 20, 20), box(12, 10, 20, 20)]
    candidates = candidates_of(masks, [0.8, 0.9, 0.9], Rules(SIZE, SIZE))
    score = np.full(3, 0.7)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        moved = candidates.take(np.array(order))
        kept = moved.take(select_classes(moved, score, 0.5))
        assert kept.column("ordinal").tolist() == [1]


def test_nothing_above_the_threshold_keeps_nothing():
    candidates = candidates_of([box(1, 1, 5, 5)], [0.9], Rules(SIZE, SIZE))
    assert select_classes(candidates, np.array([0.2]), 0.5).tolist() == []
    assert select_classes(candidates.take(np.zeros(1, bool)), np.empty(0), 0.5).tolist() == []


# -------------------------------------------------------------------------------- classifier


def test_a_classifier_is_its_examples():
    examples = known()
    one = Classifier.fit(examples.figures, examples.class_id)
    order = np.random.default_rng(0).permutation(len(examples))
    other = Classifier.fit(examples.figures[order], examples.class_id[order])
    new = described(40, seed=1)[list(FEATURES)].to_numpy(np.float32)
    assert (one.probabilities(new) == other.probabilities(new)).all()


def test_a_candidate_scores_alone_what_it_scores_among_others():
    examples = known()
    classifier = Classifier.fit(examples.figures, examples.class_id, trees=20)
    new = described(60, seed=1)[list(FEATURES)].to_numpy(np.float32)
    alone = np.concatenate([classifier.probabilities(new[i : i + 7]) for i in range(0, 60, 7)])
    assert (classifier.probabilities(new) == alone).all()
    assert classifier.probabilities(new).sum(axis=1) == pytest.approx(np.ones(60))


def test_five_examples_a_class_are_enough_for_what_is_clear():
    few = known(10)
    new = described(100, seed=1)[list(FEATURES)].to_numpy(np.float32)
    _, score = Classifier.fit(few.figures, few.class_id).best(new)
    assert score[::2].min() > score[1::2].max() - 0.3
    assert np.mean((score > 0.5) == (np.arange(100) % 2 == 0)) > 0.9


def test_an_object_counts_once_however_many_candidates_show_it():
    frame = known(30).frame
    shown_often = frame["label"] == "4"
    often = pd.concat([frame, *[frame[shown_often]] * 30], ignore_index=True)
    weight = type(known())(often).weight
    assert weight[often["label"] == "4"].sum() == pytest.approx(1)
    assert (weight[often["label"] == "7"] == 1).all()
    none = frame.assign(label="", class_id=0)
    assert (type(known())(none).weight == 1).all()


def test_weights_are_learned_from():
    examples = known(40)
    figures, class_id = examples.figures, examples.class_id
    light = np.where(class_id == 1, 0.01, 1.0)
    one = Classifier.fit(figures, class_id, trees=20).best(figures)[1]
    other = Classifier.fit(figures, class_id, 20, light).best(figures)[1]
    assert other.mean() < one.mean() - 0.1


def test_nothing_to_score_gives_nothing():
    examples = known()
    class_id, score = Classifier.fit(examples.figures, examples.class_id).best(
        np.empty((0, len(FEATURES)), np.float32)
    )
    assert len(class_id) == len(score) == 0


# ----------------------------------------------------------------------------------- held out


def test_held_out_tiles_tell_what_to_expect():
    clear = held_out(known())
    assert clear.n_tiles == 6
    assert clear.n_known == 30
    assert clear.f1 > 0.9
    noise = known()
    shuffled = noise.frame["class_id"].sample(frac=1, random_state=0).to_numpy()
    assert held_out(type(noise)(noise.frame.assign(class_id=shuffled))).f1 < 0.8


def test_of_one_tile_its_quarters_are_held_out():
    result = held_out(known(tiles=1))
    assert (result.n_tiles, result.n_known) == (1, 30)
    assert result.f1 > 0.85


def test_where_nothing_can_be_held_out_nothing_is_promised():
    two = type(known())(known(tiles=2).frame.iloc[[0, 1, 2, 59]])  # a class in one tile only
    result = held_out(two)
    assert (result.n_tiles, result.class_thresh) == (0, FALLBACK)
    assert "not known" in result.text()


def test_the_threshold_is_the_cheapest_to_review():
    examples = known(200, tiles=10)
    best = held_out(examples)
    others = [held_out(examples, step / 100) for step in range(5, 95, 5)]
    assert best.seconds < 1.1 * min(other.seconds for other in others) + 15
    assert best.seconds < others[-1].seconds


def surer_and_less_sure(n, seed=5):
    """Pairs of rows that differ in their predicted IoU alone, `(n, k)` each."""
    figures = described(n, seed)[list(FEATURES)].to_numpy(np.float32).copy()
    low = figures.copy()
    figures[:, FEATURES.index("pred_iou")], low[:, FEATURES.index("pred_iou")] = 2, -2
    return figures, low


def mean_gain(classifier):
    sure, unsure = surer_and_less_sure(40)
    return (classifier.best(sure)[1] - classifier.best(unsure)[1]).mean()


def test_what_the_model_is_sure_of_counts_until_examples_say_otherwise():
    rng = np.random.default_rng(1)
    figures = rng.normal(size=(43, len(FEATURES))).astype(np.float32)
    class_id = (np.arange(43) < 3).astype(np.int64)
    few = Classifier.fit(figures, class_id)
    assert mean_gain(few) > 0.02
    figures = rng.normal(size=(400, len(FEATURES))).astype(np.float32)
    less_sure = (figures[:, FEATURES.index("pred_iou")] < -0.3).astype(np.int64)
    assert mean_gain(Classifier.fit(figures, less_sure)) < -0.2


def test_between_two_classes_what_the_model_is_sure_of_decides_nothing():
    figures = np.random.default_rng(1).normal(size=(6, len(FEATURES))).astype(np.float32)
    figures[:, FEATURES.index("pred_iou")] = 0
    classifier = Classifier.fit(figures, np.array([1, 1, 1, 2, 2, 2]))
    sure, unsure = surer_and_less_sure(40)
    assert np.allclose(classifier.probabilities(sure), classifier.probabilities(unsure))


def noise(n, share):
    """Examples of a class that nothing tells apart; it makes up this share of all."""
    figures = np.random.default_rng(3).normal(size=(n, len(FEATURES))).astype(np.float32)
    examples = known(n, tiles=10)
    class_id = (np.arange(n) % round(1 / share) == 0).astype(int)
    figures_of = dict(zip(FEATURES, figures.T, strict=True))
    return type(examples)(examples.frame.assign(class_id=class_id, **figures_of))


def test_the_threshold_stays_where_labels_do_not_clearly_tell_a_better_one():
    assert held_out(noise(120, 1 / 4)).class_thresh == FALLBACK  # 0.15 would be a little cheaper


def test_a_clearly_better_threshold_is_taken():
    clear = held_out(known())
    assert clear.class_thresh > FALLBACK
    assert clear.seconds < held_out(known(), FALLBACK).seconds - 30


def test_a_given_threshold_is_kept():
    assert held_out(known(), 0.65).class_thresh == 0.65


def test_candidates_of_one_object_count_once():
    frame = known().frame
    twice = type(known())(pd.concat([frame, frame], ignore_index=True))
    assert held_out(twice, 0.5).n_shown == held_out(known(), 0.5).n_shown


def test_only_what_can_be_shown_is_compared(monkeypatch):
    frame = known().frame
    wide = shapely.box(0, 0, 600, 8)  # everything lies on all that is none
    shapes = np.where(frame["class_id"] == 0, wide, frame.geometry.to_numpy())
    examples = type(known())(frame.set_geometry(shapes, crs=frame.crs))
    compared = []

    def counted(one, other):
        compared.append(len(one))
        return shapely.area(shapely.intersection(one, other))

    monkeypatch.setattr("workbench.learning.held_out.common_area", counted)
    assert held_out(examples, 0.5).n_right >= 28
    assert sum(compared) <= 30  # of 210 pairs whose frames meet


# ----------------------------------------------------------------------------------- examples


def labels(shapes, class_id=1):
    return gpd.GeoDataFrame(
        {"class_id": class_id, "label": [str(i) for i in range(len(shapes))], "said_by": "x"},
        geometry=shapes, crs="EPSG:32633",
    )  # fmt: skip


def test_labels_are_matched_and_the_rest_of_the_area_is_none():
    table = described(10)
    shown = [shapely.box(0, 0, 8, 7), shapely.box(20, 0, 28, 8)]
    half = [shapely.box(40, 0, 48, 3.6)]  # an IoU of 0.45: neither shown nor none
    examples = match_labels(labels(shown + half), table, shapely.box(0, 0, 58, 10))
    said = zip(examples.frame["label"], examples.class_id.tolist(), strict=True)
    assert sorted(said) == [("", 0), ("", 0), ("", 0), ("0", 1), ("1", 1)]
    assert set(examples.frame["features_version"]) == {FEATURES_VERSION}


def test_an_object_that_no_candidate_fits_well_is_shown_by_the_best():
    table = described(3, tiles=1)
    shapes = [shapely.box(0, 0, 8, 7), shapely.box(0, 0, 8, 4.5), shapely.box(0, 0, 8, 4.2)]
    one = labels([shapely.box(0, 0, 8, 8)])
    examples = match_labels(one, table.set_geometry(shapes, crs=table.crs), None)
    assert examples.frame.geometry.tolist() == shapes[:1]  # 0.88 is enough: 0.56 shows nothing
    worse = table.set_geometry([shapely.box(50, 0, 58, 8), *shapes[1:]], crs=table.crs)
    assert match_labels(one, worse, None).frame.geometry.tolist() == shapes[1:2]
    # each tile decides alone, so that it does not matter which are looked at together
    apart = worse.assign(tile=["s/a", "s/a", "s/b"])
    assert len(match_labels(one, apart, None)) == 2


def test_without_an_area_only_labels_count():
    assert match_labels(
        labels([shapely.box(0, 0, 8, 8)]), described(10), None
    ).class_id.tolist() == [1]


def test_none_of_these_is_taught_by_polygons_too():
    given = labels([shapely.box(0, 0, 8, 8), shapely.box(10, 0, 18, 8)], [1, 0])
    assert match_labels(given, described(10), None).class_id.tolist() == [1, 0]


def test_too_few_of_a_class_is_said_and_work_goes_on():
    examples = match_labels(
        labels([shapely.box(0, 0, 8, 8)]), described(10), shapely.box(0, 0, 99, 9)
    )
    assert check(examples) == [
        "Class 1: candidates show only 1 labelled object. Its scores mean little with fewer than 5."
    ]


def test_labels_that_no_candidate_shows_are_refused():
    examples = match_labels(
        labels([shapely.box(0, 50, 8, 58)]), described(10), shapely.box(0, 0, 99, 9)
    )
    with pytest.raises(ExamplesError, match="no candidate shows a labelled object"):
        check(examples)


def test_a_reviewed_layer_teaches_what_was_judged(tmp_path):
    shapes = [shapely.box(10 * i, 0, 10 * i + 8, 8) for i in range(4)]
    frame = gpd.GeoDataFrame(
        {"class_id": pd.array([2, 1, 1, 1], "Int64"),
         "status": ["accepted", "rejected", "unreviewed", "edited"]},
        geometry=shapes, crs="EPSG:32633",
    )  # fmt: skip
    frame.to_file(tmp_path / "reviewed.gpkg")
    read = read_labels(str(tmp_path / "reviewed.gpkg"), {1: "a", 2: "b"})
    assert read.polygons["class_id"].tolist() == [2, 0, 1]
    frame.assign(status="unreviewed").to_file(tmp_path / "nobody.gpkg")
    with pytest.raises(ExamplesError, match="no judged label"):
        read_labels(str(tmp_path / "nobody.gpkg"), {1: "a", 2: "b"})


def test_polygons_without_class_are_class_1(tmp_path):
    labels([shapely.box(0, 0, 8, 8)])[["geometry"]].to_file(tmp_path / "plain.gpkg")
    assert read_labels(str(tmp_path / "plain.gpkg"), {1: "a"}).polygons["class_id"].tolist() == [1]


def test_labels_of_two_files_with_one_name_are_different_objects(tmp_path):
    files = [tmp_path / year / "trees.gpkg" for year in ("2024", "2025")]
    for number, path in enumerate(files):
        path.parent.mkdir()
        box = shapely.box(20 * number, 0, 20 * number + 8, 8)
        labels([box])[["geometry"]].to_file(path)
    job = Job.create(examples=[*map(str, files), str(files[0])])  # one of them twice
    polygons = pd.concat([one.polygons for one in labels_of(job)], ignore_index=True)
    assert polygons["label"].tolist() == ["trees.gpkg:0", "2/trees.gpkg:0"]
    shown = match_labels(polygons, described(4), None)
    assert shown.objects().tolist() == [2]


def test_the_labels_of_a_run_are_meant_if_no_layer_is_named(tmp_path):
    path = tmp_path / "prelabels.gpkg"
    shapes = [shapely.box(0, 0, 8, 8), shapely.box(10, 0, 18, 8)]
    labels(shapes)[["geometry"]].to_file(path, layer="tiles")
    labels(shapes[:1])[["geometry"]].to_file(path, layer="prelabels")
    assert len(read_labels(str(path), {1: "a"}).polygons) == 1
    named = read_labels(f"{path}|layername=tiles", {1: "a"}).polygons
    assert named["label"].tolist() == [f"prelabels.gpkg|layername=tiles:{i}" for i in range(2)]
    assert named["said_by"].tolist() == ["prelabels.gpkg|layername=tiles"] * 2
    labels(shapes)[["geometry"]].to_file(tmp_path / "two.gpkg", layer="roofs")
    labels(shapes)[["geometry"]].to_file(tmp_path / "two.gpkg", layer="trees")
    with pytest.raises(ExamplesError, match=r"two\.gpkg has 2 layers of polygons"):
        read_labels(str(tmp_path / "two.gpkg"), {1: "a"})


def test_examples_at_an_address_hide_their_signature(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    shapes = [shapely.box(0, 0, 8, 8)]
    labels(shapes)[["geometry"]].to_parquet(tmp_path / "served" / "a.parquet")
    (tmp_path / "log.signature").write_text("s3cret")
    with serve(tmp_path / "served", tmp_path / "log") as server:
        read = read_labels(f"{server.url}/a.parquet?sig=s3cret", {1: "a"})
        assert read.polygons["label"].tolist() == ["a.parquet:0"]
        with pytest.raises(ExamplesError) as caught:
            read_labels(f"{server.url}/missing.gpkg?sig=s3cret", {1: "a"})
        assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"
        monkeypatch.setenv("WORKBENCH_SIGNED_URLS", f"{server.url}/a.parquet?sig=s3cret")
        assert len(read_labels(f"{server.url}/a.parquet", {1: "a"}).polygons) == 1


def test_examples_of_another_version_count_as_labels(tmp_path):
    examples = known(10)
    path = tmp_path / "examples.parquet"
    examples.write(path)
    assert len(read_labels(str(path), {1: "a"}).examples) == 10
    frame = examples.frame.assign(features_version=FEATURES_VERSION - 1)
    type(examples)(frame).write(path)
    read = read_labels(str(path), {1: "a"})
    assert read.examples is None
    assert len(read.polygons) == 10
    assert "another version" in read.notes[0]


def test_examples_of_two_scenes_are_joined_in_one_crs():
    one, other = known(10), known(10)
    moved = type(other)(other.frame.to_crs(32634))
    assert join([one, moved]).frame.crs == one.frame.crs


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ExamplesError, match="no such file"):
        read_labels(str(tmp_path / "none.gpkg"), {1: "a"})
    (tmp_path / "bad.gpkg").write_text("no database")
    with pytest.raises(ExamplesError, match=r"cannot be read as a vector file.*\. Open it in QGIS"):
        read_labels(str(tmp_path / "bad.gpkg"), {1: "a"})
