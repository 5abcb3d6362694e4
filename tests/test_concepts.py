"""Runs with `concepts` and `exemplars`: classes, seams, thresholds, prompts, and bad input."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from known_objects import TRANSFORM, AtOnce, candidates_of, write_labels
from known_runs import equal_layers, job_for

from workbench import Job, run
from workbench.candidates.concepts import concept_ordinals
from workbench.candidates.select import Thresholds
from workbench.candidates.table import Candidates, Rules
from workbench.errors import JobError, ReviewError, RunFolderError
from workbench.review.job import ReviewJob
from workbench.review.next_job import advise_run
from workbench.runs import choose
from workbench.runs import concepts as concept_labels
from workbench.runs.by_hand import ShapesByHand
from workbench.runs.exemplars import read_exemplars
from workbench.runs.plan import prepare
from workbench.runs.segment import segment
from workbench.segmenters.exemplars import NO_EXEMPLARS, Exemplars
from workbench.tuning.preview import Fate, Preview

SHAPE = (200, 320)
KINDS = {"roof": (1, 40), "pool": (40, 80), "tree": (80, 120)}  # object numbers


def kind_of(number: int) -> str:
    return next(name for name, (low, high) in KINDS.items() if low <= number < high)


def garden() -> np.ndarray:
    """Roofs, pools and trees in rows, none touching another, many on seams."""
    labels, count = np.zeros(SHAPE, int), dict.fromkeys(KINDS, 0)
    sizes = {"roof": (18, 14), "pool": (9, 9), "tree": (13, 17)}
    for row, y in enumerate(range(4, SHAPE[0] - 20, 24)):
        for col, x in enumerate(range(4, SHAPE[1] - 20, 24)):
            kind = list(KINDS)[(row + 2 * col) % 3]
            if count[kind] < 39:
                wide, tall = sizes[kind]
                labels[y : y + tall, x : x + wide] = KINDS[kind][0] + count[kind]
                count[kind] += 1
    return labels


class KnowsKinds(AtOnce):
    """Finds the objects of the kinds that words name, or that boxes show.

    `also` has more masks of a class, with their score, for every tile.
    """

    def __init__(
        self,
        rules: Rules,
        words: Mapping[int, str],
        exemplars: str = "",
        also: Mapping[int, tuple[Callable[[np.ndarray], np.ndarray], float]] | None = None,
    ) -> None:
        self.rules, self.words, self.exemplars = rules, words, exemplars
        self.also, self.computed = also or {}, 0

    @property
    def key(self) -> dict:
        return {"model": "kinds", "words": {str(n): w for n, w in self.words.items()},
                "exemplars": self.exemplars, **self.rules.limits}  # fmt: skip

    def propose(self, image: np.ndarray, watch: object = None) -> Candidates:
        return self.begin_with(image, NO_EXEMPLARS, {})()

    def look_at(self, image: np.ndarray, exemplars: Exemplars) -> dict[int, set[str]]:
        return {n: self._shown(image, exemplars, n) for n in exemplars.shown}

    def begin_with(self, image, exemplars, elsewhere, watch=None):
        self.computed += 1
        labels = image[..., 0].astype(int) + 256 * image[..., 1].astype(int)
        rules = replace(self.rules, height=labels.shape[0], width=labels.shape[1])
        masks, scores, ordinals = [], [], []
        for number in sorted({*self.words, *exemplars.shown, *elsewhere}):
            wanted = {self.words[number]} if number in self.words else set()
            wanted |= self._shown(image, exemplars, number) if number in exemplars.shown else (
                elsewhere.get(number, set())
            )  # fmt: skip
            wanted -= self._shown(image, exemplars, number, like=False)
            found = [
                (labels == v, 0.5 + (v % 97) / 200)
                for v in np.unique(labels[labels > 0]).tolist()
                if kind_of(v) in wanted
            ]
            if number in self.also:
                mask, score = self.also[number][0](labels), self.also[number][1]
                found += [(mask, score)] if mask.any() else []
            masks += [mask for mask, _ in found]
            scores += [score for _, score in found]
            ordinals += concept_ordinals(number, np.arange(len(found))).tolist()
        made = candidates_of(masks, scores, rules).with_column("ordinal", ordinals)
        return lambda: made

    def _shown(self, image, exemplars, number, like=True) -> set[str]:
        labels = image[..., 0].astype(int) + 256 * image[..., 1].astype(int)
        boxes = exemplars.boxes[exemplars.about(number) & (exemplars.like == like)]
        middles = [
            ((x0 + x1) // 2, (y0 + y1) // 2) for x0, y0, x1, y1 in boxes.astype(int).tolist()
        ]
        return {kind_of(labels[y, x]) for x, y in middles if labels[y, x]}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[KnowsKinds]:
    """The models that jobs make: one for each that is not loaded yet."""
    made: list[KnowsKinds] = []

    def make(job: Job, before: object) -> KnowsKinds:
        drawn = read_exemplars(job)
        digest = "" if drawn is None else drawn.digest
        made.append(KnowsKinds(job.rules, job.concepts or {}, digest))
        return made[-1]

    monkeypatch.setattr(choose, "segmenter_for", make)
    return made


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "garden.tif", garden())


def job_of(raster: Path, folder: Path, **parameters: object) -> Job:
    given = {"model": "sam3", "pred_iou_thresh": 0.3, **parameters}
    return job_for(raster, folder, **given)


def true_shapes(kind: str, labels: np.ndarray | None = None) -> list[shapely.Geometry]:
    labels = garden() if labels is None else labels
    shapes = []
    for number in np.unique(labels[labels > 0]).tolist():
        if kind_of(number) == kind:
            ys, xs = np.nonzero(labels == number)
            shapes.append(rectangle(xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1))
    return shapes


def rectangle(column: float, row: float, width: float, height: float) -> shapely.Polygon:
    (x0, y0), (x1, y1) = TRANSFORM @ (column, row + height), TRANSFORM @ (column + width, row)
    return shapely.box(x0, y0, x1, y1)


def same(shapes, others) -> bool:
    one, other = ({tuple(np.round(s.bounds, 6)) for s in some} for some in (shapes, others))
    return one == other and all(s.area == pytest.approx(s.envelope.area) for s in shapes)


def saved(path: Path, shapes: list, crs: object = 32633, **columns: object) -> str:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return str(path)


def test_words_find_all_objects_of_their_class_across_seams(models, raster, tmp_path) -> None:
    made = run(job_of(raster, tmp_path / "run", concepts={1: "roof", 2: "pool"}))
    layer = made.layer
    assert made.job.classes == {1: "roof", 2: "pool"}
    for number, kind in made.job.concepts.items():
        assert same(layer.geometry[layer["class_id"] == number], true_shapes(kind))
    assert (layer["n_tiles"] > 1).sum() > 5
    np.testing.assert_allclose(layer["class_score"], layer["confidence"])
    assert set(layer["status"]) == {"unreviewed"}
    assert layer["id"].is_unique
    report = (made.folder / "report.html").read_text(encoding="utf-8")
    assert "asked for as “pool”" in report


def test_C5_other_thresholds_use_the_stored_candidates(models, raster, tmp_path) -> None:
    job = job_of(raster, tmp_path / "run", concepts={7: "tree", 2: "pool"})
    everything = run(job).layer
    computed = sum(model.computed for model in models)
    assert computed > 4
    fewer = run(job.changed(pred_iou_thresh=0.6)).layer
    assert sum(model.computed for model in models) == computed
    assert 0 < len(fewer) < len(everything)
    assert (fewer["class_score"] > 0.6).all()
    fresh = run(job.changed(pred_iou_thresh=0.6, out_dir=str(tmp_path / "fresh"))).layer
    assert equal_layers(fewer, fresh)


def test_one_class_lies_at_a_place_and_neighbours_only_need_to_be_apart(
    models, tmp_path, monkeypatch
) -> None:
    """A class suppresses another one by the rule of learned classes, not by boxes as SAM does."""
    labels = np.zeros((96, 96), int)
    labels[10:40, 10:40] = 1
    labels[50:80, 10:60] = 2
    ell, rest = np.zeros((96, 96), bool), np.zeros((96, 96), bool)
    ell[50:80, 70:75] = ell[75:80, 70:88] = True  # two shapes that share their box, but no pixel
    rest[50:74, 76:88] = True
    raster = write_labels(tmp_path / "few.tif", labels)

    def make(job: Job, before: object) -> KnowsKinds:
        also = {1: (lambda _: ell, 0.9), 2: (lambda _: rest, 0.6), 3: (lambda n: n == 1, 0.45)}
        return KnowsKinds(job.rules, job.concepts, also=also)

    monkeypatch.setattr(choose, "segmenter_for", make)
    words = {1: "roof", 2: "pool", 3: "tree"}
    layer = run(job_of(raster, tmp_path / "run", concepts=words)).layer
    found = sorted(zip(layer["class_id"], layer["area_px"], strict=True))
    # class 3 is less sure of the first object than class 1; both neighbours stay
    assert found == [(1, ell.sum()), (1, 900), (1, 1500), (2, rest.sum())]


def test_C2_the_tuner_shows_what_a_run_makes(models, raster, tmp_path, monkeypatch) -> None:
    def make(job: Job, before: object) -> KnowsKinds:
        return KnowsKinds(job.rules, job.concepts, also={2: (lambda n: n == 1, 0.4)})

    monkeypatch.setattr(choose, "segmenter_for", make)
    job = job_of(raster, tmp_path / "run", concepts={1: "roof", 2: "tree"})
    with closing(prepare(job)) as plan:
        preview = Preview(list(segment(plan)))
        view = preview.merge(preview.look(job.thresholds, job.cleaning, job.offer))
    layer = run(job).layer
    assert same(view.polygons.geometry, layer.geometry)
    (lost,) = np.flatnonzero(view.fate == Fate.OVERLAP)
    told = preview.explain(lost, view)
    assert told.reason == "other objects at its place score more"
    assert preview.key(told.rival)[3] == 1000  # the first roof


def test_tiles_with_as_many_objects_as_the_model_can_find_are_told(
    models, raster, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(concept_labels, "QUERIES", 5)
    with caplog.at_level(logging.WARNING):
        made = run(job_of(raster, tmp_path / "run", concepts={1: "roof"}))
    told = "tiles have about as many objects of class 1 (roof) as SAM 3 finds in one image"
    assert told in caplog.text
    assert "smaller tile_size" in (made.folder / "report.html").read_text(encoding="utf-8")
    caplog.clear()
    monkeypatch.setattr(concept_labels, "QUERIES", 200)
    run(job_of(raster, tmp_path / "run", concepts={1: "roof"}))
    assert "as many objects" not in caplog.text


# ----------------------------------------------------------------------------- exemplars


def shown(path: Path, **columns: object) -> str:
    """A roof and a tree in the first tile."""
    shapes = [true_shapes("roof")[0], true_shapes("tree")[0]]
    return saved(path, shapes, **{"class_id": [1, 2], **columns})


CLASSES = {1: "house", 2: "wood"}


def test_exemplars_of_one_tile_find_their_like_in_all(models, raster, tmp_path, capsys) -> None:
    drawn = shown(tmp_path / "drawn.gpkg")
    job = job_of(raster, tmp_path / "run", exemplars=drawn, classes=CLASSES)
    made = run(job)
    layer = made.layer
    for number, kind in ((1, "roof"), (2, "tree")):
        assert same(layer.geometry[layer["class_id"] == number], true_shapes(kind))
    told = "Class 1 is shown in 1 of 15 tiles"
    assert told in capsys.readouterr().err
    assert told in (made.folder / "report.html").read_text(encoding="utf-8")
    computed = [model.computed for model in models]
    assert equal_layers(run(job).layer, layer)
    assert [model.computed for model in models] == [*computed, 0]


def test_words_and_exemplars_together(models, raster, tmp_path) -> None:
    drawn = saved(tmp_path / "drawn.gpkg", [true_shapes("roof")[0]], class_id=[1])
    made = run(job_of(raster, tmp_path / "run", exemplars=drawn, concepts={1: "pool"}))
    assert same(made.layer.geometry, [*true_shapes("roof"), *true_shapes("pool")])


@pytest.mark.parametrize(
    "columns", [{"class_id": [1, 0]}, {"class_id": [1, 1], "unlike": [False, True]}], ids=str
)
def test_unlike_exemplars_are_no_objects(models, raster, tmp_path, columns) -> None:
    drawn = shown(tmp_path / "drawn.gpkg", **columns)
    job = job_of(raster, tmp_path / "run", exemplars=drawn, concepts={1: "tree"})
    layer = run(job.changed(tile_size=400)).layer  # one tile, which shows all of them
    assert same(layer.geometry, true_shapes("roof"))


def test_what_is_unlike_in_one_tile_counts_there(models, raster, tmp_path) -> None:
    """Where a run has found trees that it should not: they are shown there as unlike."""
    tree = true_shapes("tree")[-1]
    drawn = shown(tmp_path / "drawn.gpkg", class_id=[1, 1])
    more = gpd.read_file(drawn)
    more.loc[2] = {"class_id": 1, "geometry": tree}
    drawn = saved(tmp_path / "more.gpkg", list(more.geometry), class_id=[1, 1, 1], unlike=[0, 0, 1])
    made = run(job_of(raster, tmp_path / "run", exemplars=drawn, classes={1: "any"}))
    found = {tuple(np.round(shape.bounds, 6)) for shape in made.layer.geometry}
    assert tuple(np.round(tree.bounds, 6)) not in found
    assert tuple(np.round(true_shapes("tree")[1].bounds, 6)) in found
    assert {tuple(np.round(shape.bounds, 6)) for shape in true_shapes("roof")} <= found


def test_the_area_does_not_change_what_tiles_are_shown(models, raster, tmp_path) -> None:
    drawn = shown(tmp_path / "drawn.gpkg")
    job = job_of(raster, tmp_path / "run", exemplars=drawn, classes=CLASSES)
    area = saved(tmp_path / "area.gpkg", [rectangle(200, 100, 120, 100)])
    inside = run(job.changed(aoi=area)).layer
    computed = sum(model.computed for model in models)
    whole = run(job).layer
    assert sum(model.computed for model in models) == 15
    assert 0 < computed < 15
    assert set(inside["id"]) < set(whole["id"])


def test_other_exemplars_do_not_fit_stored_candidates(models, raster, tmp_path) -> None:
    job = job_of(raster, tmp_path / "run", exemplars=shown(tmp_path / "a.gpkg"), classes=CLASSES)
    run(job)
    other = saved(tmp_path / "b.gpkg", [true_shapes("roof")[1]], class_id=[1])
    with pytest.raises(RunFolderError, match="another segmenter"):
        run(job.changed(exemplars=other))


# ------------------------------------------------------------- prompts, examples, concepts


def test_labels_of_prompts_win_over_those_of_concepts(models, raster, tmp_path) -> None:
    roofs = true_shapes("roof")
    gone = shapely.affinity.translate(true_shapes("pool")[0], 1, 0)  # overlaps that pool
    prompts = saved(tmp_path / "known.gpkg", [roofs[3], gone], owner=["a", "b"], class_id=[2, 1])
    made = run(job_of(raster, tmp_path / "run", concepts={1: "roof", 2: "pool"}, prompts=prompts))
    layer = made.layer
    of_prompt = layer["prompt_fid"].notna()
    assert of_prompt.sum() == 2
    assert layer["class_id"][of_prompt].tolist() == [2, 1]
    others = layer[~of_prompt]
    assert same(others.geometry[others["class_id"] == 1], [r for r in roofs if r != roofs[3]])
    assert same(others.geometry[others["class_id"] == 2], true_shapes("pool")[1:])
    assert others["owner"].isna().all()
    pairs = layer.sindex.query(layer.geometry, predicate="overlaps")
    assert pairs.shape[1] == 0


def test_examples_decide_about_the_classes_of_what_concepts_find(models, raster, tmp_path) -> None:
    """What is taught counts more than words: a review teaches the next run."""
    labels = gpd.GeoDataFrame(
        {"class_id": [2] * 12 + [0] * 12},
        geometry=[*true_shapes("roof")[:12], *true_shapes("tree")[:12]],
        crs=32633,
    )
    labels.to_file(tmp_path / "labels.gpkg")
    words = {1: "roof", 2: "tree"}
    job = job_of(raster, tmp_path / "run", concepts=words, examples=str(tmp_path / "labels.gpkg"))
    prompts = saved(tmp_path / "known.gpkg", [true_shapes("roof")[14]], class_id=[1])
    layer = run(job.changed(prompts=prompts)).layer
    roofs = true_shapes("roof")
    assert same(layer.geometry[layer["class_id"] == 2], [r for r in roofs if r != roofs[14]])
    assert layer["prompt_fid"].notna().sum() == 1  # taught candidates give way to it, too


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"concepts": {1: "roof", 2: " "}}, "`concepts`: class 2 has no words"),
        ({"concepts": {1: None}}, "`concepts`: class 1 has no words"),
        ({"concepts": {0: "roof"}}, "class 0: a whole number from 1 to 2,000,000"),
        ({"concepts": {1: True}}, "class 1 has the word True.*quotes"),
        ({"concepts": ["roof"]}, "class numbers with their words expected"),
        ({"concepts": {1: "a", "1": "b"}}, "two concepts have the same class"),
        (
            {"concepts": {3: "roof"}, "classes": {1: "house"}},
            r"concepts names class 3, which is not one of classes \{1: 'house'\}",
        ),
        ({"model": "tiny", "concepts": {1: "roof"}}, "concepts are for model sam3, and `tiny`"),
        ({"model": "vit_b", "exemplars": "e.gpkg"}, "exemplars are for model sam3, and `vit_b`"),
        ({}, "model sam3 finds only what it is told to: set concepts .* or exemplars"),
        ({"exemplars": "e.gpkg", "scheduler": "tcp://a:1"}, "exemplars are shown by one process"),
        (
            {"concepts": {1: "roof"}, "prompts": "p.gpkg", "grid": False},
            "concepts are looked for in every tile, and grid is false",
        ),
    ],
)
def test_jobs_that_cannot_be_are_refused(parameters, message) -> None:
    with pytest.raises(JobError, match=message):
        Job.create(**{"model": "sam3", "checkpoint": "sam3", **parameters})


def test_sam3_has_thresholds_and_floors_of_its_own() -> None:
    job = Job.create(model="sam3", concepts={1: "roof"})
    assert job.thresholds == Thresholds(0.5, 0.0)
    assert (job.rules.pred_iou_floor, job.rules.stability_floor) == (0.2, 0.0)


def test_papermill_may_give_concepts_as_text() -> None:
    job = Job.create(model="sam3", concepts="{1: building, '2': swimming pool}")
    assert job.concepts == job.classes == {1: "building", 2: "swimming pool"}
    again = Job.create(**job.parameters())
    assert again.classes == job.classes
    named = Job.create(model="sam3", concepts={1: "building"}, classes={1: "house", 5: "other"})
    assert named.classes == {1: "house", 5: "other"}


SMALL = rectangle(30, 30, 1.5, 40)
LARGE = rectangle(-60, -60, 440, 320)
FAR = rectangle(9000, 0, 20, 20)
ROOF = true_shapes("roof")[0]


@pytest.mark.parametrize(
    ("shapes", "more", "message"),
    [
        ([ROOF, SMALL], {"class_id": [1, 2]}, r"exemplar 2 is 1\.5 × 40 pixels, and the model"),
        ([LARGE], {"class_id": [1]}, r"exemplar 1 is 440 × 320 pixels, larger than a tile"),
        ([FAR], {"class_id": [1]}, r"lies outside garden\.tif: its bounds are"),
        ([ROOF], {}, "has no column class_id"),
        ([ROOF], {"class_id": [9]}, "has class_id 9, which is not one of classes"),
        ([ROOF], {"class_id": ["x"]}, "has class_id 'x', which is not a whole number"),
        ([ROOF.centroid], {"class_id": [1]}, "has a Point. Give only boxes"),
        ([ROOF], {"class_id": [0]}, "shows only what is of no class"),
        ([ROOF, FAR], {"class_id": [1, 2], "unlike": [0, 1]}, "only what is not of class 2"),
        ([None], {"class_id": [1]}, "has no features with a shape"),
    ],
)
def test_exemplars_that_cannot_be_used_are_refused(
    models, raster, tmp_path, shapes, more, message
) -> None:
    drawn = saved(tmp_path / "drawn.gpkg", shapes, **more)
    with pytest.raises(JobError, match=rf"Parameter `exemplars`: .*drawn\.gpkg:? .*{message}"):
        run(job_of(raster, tmp_path / "run", exemplars=drawn, classes=CLASSES))
    assert not (tmp_path / "run" / "run.yaml").exists()
    assert sum(model.computed for model in models) == 0


def test_exemplars_without_crs_are_refused(models, raster, tmp_path) -> None:
    path = tmp_path / "drawn.gpkg"
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        gpd.GeoDataFrame({"class_id": [1]}, geometry=[ROOF]).to_file(path)
    with pytest.raises(JobError, match=r"`exemplars`: .*has no CRS"):
        run(job_of(raster, tmp_path / "run", exemplars=str(path), classes=CLASSES))


def test_shapes_drawn_in_the_tuner_are_exemplars(models, raster, tmp_path) -> None:
    by_hand = ShapesByHand.none(pyproj.CRS.from_epsg(32633))
    by_hand = by_hand.with_shape(shapely.multipolygons([ROOF]), class_id=2)
    path = tmp_path / "drawn.parquet"
    by_hand.write(path)
    layer = run(job_of(raster, tmp_path / "run", exemplars=str(path), classes=CLASSES)).layer
    assert same(layer.geometry, true_shapes("roof"))
    assert set(layer["class_id"]) == {2}


def test_exemplars_beside_the_scene_are_told(models, raster, tmp_path, capsys) -> None:
    drawn = saved(tmp_path / "drawn.gpkg", [ROOF, FAR], class_id=[1, 1])
    made = run(job_of(raster, tmp_path / "run", exemplars=drawn, classes=CLASSES))
    assert same(made.layer.geometry, true_shapes("roof"))
    assert "1 of 2 exemplars lie outside the rasters" in capsys.readouterr().err


def test_a_review_of_concepts_gets_no_advice_about_thresholds(models, raster, tmp_path) -> None:
    made = run(job_of(raster, tmp_path / "run", concepts={1: "roof"}))
    labels = made.layer.assign(status="accepted")
    with pytest.raises(ReviewError, match="this run has looked for concepts"):
        advise_run(ReviewJob(run_dir=str(made.folder)), made, labels)
