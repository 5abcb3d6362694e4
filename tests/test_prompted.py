"""Runs with `prompts`: shapes, attributes, ledger, resume, and labels of the grid beside them."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from made_rasters import BACKGROUND, NORTH_UP, RECTANGLES, three_rectangles, write

from workbench import run
from workbench.candidates.rle import encode_masks
from workbench.candidates.table import SCHEMA, Candidates, Rules
from workbench.errors import JobError, ReviewError, RunFailedError
from workbench.polygons.overlap import iou_of
from workbench.review.tile_planes import tile_planes
from workbench.runs import choose
from workbench.runs.job import Job
from workbench.runs.prompted import LEDGER
from workbench.runs.result import read_run
from workbench.segmenters import at_points, defaults


class ProposesColours:
    """Finds all pixels of each colour; the background is no object."""

    def __init__(self) -> None:
        self.rules = Rules(1024, 1024)
        self.key = {"model": "colours"}
        self.proposed = 0

    def load(self) -> None:
        pass

    def begin(self, image: np.ndarray, watch: object = None):
        found = self.propose(image)
        return lambda: found

    def propose(self, image: np.ndarray, watch: object = None) -> Candidates:
        self.proposed += 1
        colours = np.unique(image.reshape(-1, 3), axis=0)
        colours = [c for c in colours if tuple(c) not in (BACKGROUND, (0, 0, 0))]
        return self._masks(image, [(image == c).all(2) for c in colours])

    def _masks(self, image: np.ndarray, masks: list) -> Candidates:
        n, rules = len(masks), self.rules.for_tile(*image.shape[:2])
        columns = {name: np.zeros(n, int) for name in SCHEMA.names}
        columns |= {"pred_iou": np.full(n, 0.95), "stability_score": np.full(n, 0.99)}
        columns |= {"ordinal": np.arange(n), "area_px": [mask.sum() for mask in masks]}
        columns["rle"] = encode_masks(np.stack(masks)) if n else []
        if n:
            y = np.array([np.flatnonzero(mask.any(1))[[0, -1]] for mask in masks])
            x = np.array([np.flatnonzero(mask.any(0))[[0, -1]] for mask in masks])
            columns |= {"x0": x[:, 0], "x1": x[:, 1], "y0": y[:, 0], "y1": y[:, 1]}
        return Candidates.from_columns(rules, columns)


class SameColour(ProposesColours):
    """Answers with all pixels of the colour at the point."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.boxed: list[bool] = []
        self.broken = False

    def answer(self, image: np.ndarray, points: np.ndarray, boxes: np.ndarray | None = None):
        if self.broken:
            raise ValueError("no answer today")
        self.asked.append(len(points))
        self.boxed.append(boxes is not None)
        colours = [image[int(y), int(x)] for x, y in points]
        rows = [i for i, c in enumerate(colours) if tuple(c.tolist()) != BACKGROUND]
        masks = [(image == colours[i]).all(2) for i in rows]
        return self._masks(image, masks), np.array(rows, int)


def test_a_mask_that_misses_its_point_is_no_answer() -> None:
    """A model may offer what lies beside the point; told a box, it knows what is meant."""
    image = three_rectangles().transpose(1, 2, 0)
    (x, y, *_), (there, down, *_) = list(RECTANGLES.values())[:2]
    points = np.array([[x + 1.5, y + 1.5], [there + 1.5, down + 1.5]])

    class Swapped(SameColour):
        def answer(self, image: np.ndarray, points: np.ndarray, boxes: np.ndarray | None = None):
            found, prompt = super().answer(image, points[[0, 0]], boxes)
            return found, prompt

    _, prompt = at_points.answer(Swapped(), image, points)
    assert prompt.tolist() == [0]
    boxes = np.column_stack([points, points + 1])
    _, prompt = at_points.answer(Swapped(), image, points, boxes)
    assert prompt.tolist() == [0, 1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SameColour:
    fake = SameColour()
    monkeypatch.setattr(choose, "segmenter_for", lambda *_: fake)
    return fake


@pytest.fixture
def job(tmp_path: Path) -> Job:
    raster = write(tmp_path / "three.tif", three_rectangles())
    return Job.create(
        source=str(raster), out_dir=str(tmp_path / "run"), model="vit_b", simplify_m=0
    )


def rectangle(column: float, row: float, width: float, height: float) -> shapely.Polygon:
    (x0, y0), (x1, y1) = NORTH_UP @ (column, row + height), NORTH_UP @ (column + width, row)
    return shapely.box(x0, y0, x1, y1)


TRUE = [rectangle(*place) for place in RECTANGLES.values()]


def saved(path: Path, shapes: list, **columns: list) -> str:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=32636).to_file(path)
    return str(path)


def moved(shapes: list, dx: float) -> list:
    return [shapely.transform(shape, lambda xy: xy + (dx, 0)) for shape in shapes]


def test_shapes_move_to_the_objects_and_attributes_stay(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    prompts = saved(
        tmp_path / "old.gpkg",
        moved(TRUE, 3.0),
        class_id=[4, 5, 6],
        owner=["a", None, "c"],
        built=[1990, 2001, 2020],
        status=["x", "y", "z"],
        seen=pd.to_datetime(["2020-01-01", None, "2021-01-01"]),
    )
    classes, formats = {4: "hut", 5: "house", 6: "hall"}, ["flatgeobuf", "pmtiles"]
    made = run(job.changed(prompts=prompts, classes=classes, formats=formats))
    layer = made.layer
    assert shapely.equals(layer.geometry.to_numpy(), TRUE).all()
    assert layer["class_id"].tolist() == [4, 5, 6]
    assert layer["owner"].fillna("-").tolist() == ["a", "-", "c"]
    assert layer["built"].tolist() == [1990, 2001, 2020]
    assert layer["prompt_status"].tolist() == ["x", "y", "z"]
    assert layer["status"].tolist() == ["unreviewed"] * 3
    assert layer["prompt_fid"].tolist() == [1, 2, 3]
    assert layer["id"].tolist() == ["three/r0c0/p1", "three/r0c0/p2", "three/r0c0/p3"]
    assert layer["source_tile"].tolist() == ["three/r0c0"] * 3
    assert layer["confidence"].tolist() == pytest.approx([0.95] * 3)
    widths = np.array([60, 40, 90]) / 2
    np.testing.assert_allclose(layer["prompt_iou"], (widths - 3) / (widths + 3))
    np.testing.assert_allclose(layer["moved_m"], 3, rtol=1e-3)
    assert layer["changed"].all()
    for name in ("prelabels.gpkg", "prelabels.geojson", "prelabels.parquet"):
        path = made.folder / name
        layer_name = "prelabels" if name.endswith("gpkg") else None
        written = (
            gpd.read_parquet(path)
            if name.endswith("parquet")
            else gpd.read_file(path, layer=layer_name)
        )
        assert written["owner"].fillna("-").tolist() == ["a", "-", "c"]
        assert written["changed"].tolist() == [True] * 3
    for style in pyogrio.read_dataframe(made.folder / "prelabels.gpkg", layer="layer_styles")[
        "styleQML"
    ][:3]:  # form and filters of QGIS
        assert 'field="owner"' in style
        assert 'name="Changed"' in style
    assert (made.folder / "prelabels.fgb").exists()
    assert (made.folder / "prelabels.pmtiles").exists()
    assert model.asked == [3]  # in one batch
    assert model.proposed == 0
    assert read_run(made.folder).layer.equals(layer)
    assert "Prompts" in (made.folder / "report.html").read_text()


def test_an_object_that_is_still_there_has_not_changed(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    layer = run(job.changed(prompts=saved(tmp_path / "old.gpkg", TRUE))).layer
    assert layer["prompt_iou"].tolist() == pytest.approx([1, 1, 1])
    assert layer["moved_m"].tolist() == [0, 0, 0]
    assert not layer["changed"].any()


def test_what_gets_no_mask_keeps_its_shape_and_the_ledger_says_so(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    gone, far = rectangle(200, 120, 20, 20), rectangle(2000, 120, 20, 20)
    made = run(job.changed(prompts=saved(tmp_path / "old.gpkg", [TRUE[0], gone, far, None])))
    layer = made.layer
    assert len(layer) == 2
    assert shapely.equals(layer.geometry.iloc[1], gone)
    assert layer["confidence"].isna().tolist() == [False, True]
    assert layer["changed"].isna().tolist() == [False, True]
    assert layer["area_m2"].iloc[1] == pytest.approx(100, rel=1e-3)
    assert layer["area_px"].iloc[1] == 400
    ledger = gpd.read_parquet(made.folder / LEDGER)
    assert ledger.index.tolist() == [1, 2, 3, 4]
    assert ledger["outcome"].tolist() == ["new", "kept", "none", "none"]
    assert ledger["why"].tolist() == ["", "no mask", "outside the rasters", "no shape"]


def test_other_thresholds_need_no_model(model: SameColour, job: Job, tmp_path: Path) -> None:
    job = job.changed(prompts=saved(tmp_path / "old.gpkg", TRUE))
    assert run(job).layer["confidence"].notna().all()
    made = run(job.changed(pred_iou_thresh=0.96))
    assert made.layer["confidence"].isna().all()
    assert set(gpd.read_parquet(made.folder / LEDGER)["why"]) == {"scores below the thresholds"}
    assert model.asked == [3]


def test_a_mask_that_fills_its_window_is_not_sound(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    tree = shapely.Point(*(NORTH_UP @ (130, 10)))
    raster = write(tmp_path / "plain.tif", np.full((3, 160, 240), 77, np.uint8))
    job = job.changed(source=str(raster), prompts=saved(tmp_path / "trees.gpkg", [tree]))
    made = run(job)
    assert made.layer.empty
    assert gpd.read_parquet(made.folder / LEDGER)["why"][1].startswith("the mask reaches the edge")


def test_only_models_that_gain_from_boxes_are_given_them(
    model: SameColour, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(defaults._OF, "tiny", defaults.ModelDefaults(takes_boxes=False))
    job = job.changed(prompts=saved(tmp_path / "old.gpkg", TRUE))
    run(job)
    run(job.changed(model="tiny", resume=False))
    assert model.boxed == [True, False]


def test_points_become_polygons(model: SameColour, job: Job, tmp_path: Path) -> None:
    points = [shape.centroid for shape in TRUE]
    layer = run(job.changed(prompts=saved(tmp_path / "trees.gpkg", points))).layer
    assert shapely.equals(layer.geometry.to_numpy(), TRUE).all()
    assert layer["prompt_iou"].isna().all()
    assert layer["changed"].isna().all()


def test_two_features_of_one_object_do_not_get_the_same_mask(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    part = rectangle(20, 15, 20, 30)
    made = run(job.changed(prompts=saved(tmp_path / "old.gpkg", [part, *moved(TRUE[:1], 1)])))
    assert shapely.equals(made.layer.geometry.to_numpy(), [part, TRUE[0]]).all()
    ledger = gpd.read_parquet(made.folder / LEDGER)
    assert ledger["outcome"].tolist() == ["kept", "new"]
    assert ledger["why"][1] == "same mask as another feature: fid 2"


def test_only_new_windows_are_computed(model: SameColour, job: Job, tmp_path: Path) -> None:
    job = job.changed(prompts=saved(tmp_path / "old.gpkg", moved(TRUE, 3.0)))
    first = run(job).layer
    assert run(job).layer.equals(first)
    assert model.asked == [3]
    run(job.changed(prompts=saved(tmp_path / "other.gpkg", TRUE)))
    assert model.asked == [3, 3]


def test_C3_a_stopped_run_goes_on_where_it_was(
    model: SameColour, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job.changed(tile_size=64, prompts=saved(tmp_path / "old.gpkg", moved(TRUE, 1.0)))
    whole = run(job.changed(out_dir=str(tmp_path / "whole"))).layer
    windows = len(model.asked)
    assert windows > 1
    answer, left = SameColour.answer, [windows - 1]

    def interrupted(*given, **named):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return answer(*given, **named)

    monkeypatch.setattr(SameColour, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(SameColour, "answer", answer)
    model.asked.clear()
    assert run(job).layer.equals(whole)
    assert len(model.asked) < windows


def test_C6_a_window_that_fails_is_in_the_ledger_and_is_tried_again(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    job = job.changed(prompts=saved(tmp_path / "old.gpkg", moved(TRUE, 3.0)))
    model.broken = True
    with pytest.raises(RunFailedError, match=r"1 of 1 tiles failed.*r0c0: .*no answer today"):
        run(job)
    made = read_run(tmp_path / "run")
    assert made.layer["confidence"].isna().tolist() == [True] * 3
    assert gpd.read_parquet(made.folder / LEDGER)["why"][1].startswith("failed: ValueError")
    model.broken = False
    assert run(job).layer["confidence"].notna().all()


@pytest.mark.parametrize("name", ["old.gpkg", "old.geojson"])
def test_the_numbers_of_features_stay(
    name: str, model: SameColour, job: Job, tmp_path: Path
) -> None:
    path = tmp_path / name
    numbered = gpd.GeoDataFrame({"fid": [7, 20, 9]}, geometry=TRUE, crs=32636)
    numbered.to_file(path) if name.endswith("gpkg") else numbered.drop(columns="fid").to_file(path)
    layer = run(job.changed(prompts=str(path))).layer
    before = gpd.read_file(path, fid_as_index=True)
    assert sorted(layer["prompt_fid"]) == sorted(before.index)


def test_a_feature_larger_than_a_tile_is_seen_with_larger_pixels(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    image = np.full((3, 700, 900), 40, np.uint8)
    image[0, 100:500, 100:700] = 250
    raster = write(tmp_path / "large.tif", image)
    job = job.changed(
        source=str(raster), tile_size=256, max_area_share=None,
        prompts=saved(tmp_path / "field.gpkg", [rectangle(110, 90, 600, 400)]),
    )  # fmt: skip
    (shape,) = run(job).layer.geometry
    assert iou_of(np.array([shape]), np.array([rectangle(100, 100, 600, 400)])) > 0.96


def test_prompts_and_grid_in_one_run(model: SameColour, job: Job, tmp_path: Path) -> None:
    """The label of the prompt is kept, with its own shape where the model finds nothing."""
    known, gone = TRUE[0], rectangle(150, 20, 38, 70)
    prompts = saved(tmp_path / "old.gpkg", [known, gone], owner=["a", "b"])
    made = run(job.changed(prompts=prompts, grid=True))
    assert model.proposed == 1
    layer = made.layer
    of_prompt = layer["prompt_fid"].notna()
    assert of_prompt.sum() == 2
    assert shapely.equals(layer.geometry[~of_prompt].to_numpy(), TRUE[2:]).all()
    assert layer["owner"][~of_prompt].isna().all()
    assert layer["id"].is_unique
    ledger = made.tiles
    assert ledger["n_candidates"].tolist() == [5]
    assert ledger["n_polygons"].tolist() == [3]


def test_tiles_without_prompts_are_not_in_the_ledger(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    """They were not looked at, so a data set must not take them for empty."""
    job = job.changed(tile_size=96, prompts=saved(tmp_path / "old.gpkg", TRUE[:1]))
    assert run(job).tiles["tile"].tolist() == ["three/r0c0"]


def test_prompts_outside_the_area_are_left_out(model: SameColour, job: Job, tmp_path: Path) -> None:
    area = saved(tmp_path / "aoi.gpkg", [TRUE[0].buffer(2)])
    prompts = saved(tmp_path / "old.gpkg", TRUE)
    made = run(job.changed(prompts=prompts, aoi=area))
    assert made.layer["prompt_fid"].tolist() == [1]
    assert gpd.read_parquet(made.folder / LEDGER)["why"].tolist() == ["", *["outside the area"] * 2]
    with pytest.raises(JobError, match="none inside aoi"):
        run(job.changed(prompts=saved(tmp_path / "else.gpkg", TRUE[1:]), aoi=area))


def test_a_model_without_prompts_gives_the_best_of_what_it_proposes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "segmenter_for", lambda *_: ProposesColours())
    prompts = saved(tmp_path / "old.gpkg", [*moved(TRUE, 3.0), rectangle(200, 120, 20, 20)])
    layer = run(job.changed(prompts=prompts)).layer
    assert shapely.equals(layer.geometry.to_numpy()[:3], TRUE).all()
    assert layer["confidence"].isna().tolist() == [False, False, False, True]


def test_without_prompts_again_their_ledger_is_gone(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    made = run(job.changed(prompts=saved(tmp_path / "old.gpkg", TRUE)))
    assert (made.folder / LEDGER).exists()
    assert "prompt_fid" not in run(job).layer
    assert not (made.folder / LEDGER).exists()


def test_labels_of_prompts_alone_advise_no_thresholds(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    made = run(job.changed(prompts=saved(tmp_path / "old.gpkg", TRUE)))
    with pytest.raises(ReviewError, match="all labels come from prompts"):
        tile_planes(made, made.layer, made.tiles["tile"])


def test_a_mask_that_shares_too_little_with_the_old_shape_does_not_count(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    yard = rectangle(0, 0, 155, 64)  # its middle is on the first rectangle, with an IoU of 0.18
    made = run(job.changed(prompts=saved(tmp_path / "old.gpkg", [yard])))
    assert shapely.equals(made.layer.geometry.to_numpy(), [yard]).all()
    why = gpd.read_parquet(made.folder / LEDGER)["why"].tolist()
    assert why == ["the mask shares too little with the old shape"]
