"""Known objects brought up to date: shapes, attributes, ledger, resume."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from made_rasters import BACKGROUND, NORTH_UP, RECTANGLES, three_rectangles, write

from workbench.candidates.rle import encode_masks
from workbench.candidates.table import Candidates, Rules
from workbench.errors import JobError, RunFailedError
from workbench.runs import choose
from workbench.runs.job import Job
from workbench.runs.prompted import LAYER, LEDGER, answer_prompts


class SameColour:
    """Answers with all pixels of the colour at the point; the background is no object."""

    def __init__(self) -> None:
        self.key = {"model": "same colour"}
        self.asked: list[int] = []
        self.boxed: list[bool] = []
        self.broken = False

    def load(self) -> None:
        pass

    def answer(self, image: np.ndarray, points: np.ndarray, boxes: np.ndarray | None = None):
        if self.broken:
            raise ValueError("no answer today")
        self.asked.append(len(points))
        self.boxed.append(boxes is not None)
        colours = [image[int(y), int(x)] for x, y in points]
        rows = [i for i, c in enumerate(colours) if tuple(c.tolist()) != BACKGROUND]
        masks = np.stack([(image == colours[i]).all(2) for i in rows]) if rows else None
        n, rules = len(rows), Rules(*image.shape[:2])
        columns = dict.fromkeys(Candidates.empty(rules).table.column_names, np.zeros(n, int))
        columns |= {"pred_iou": np.full(n, 0.95), "stability_score": np.full(n, 0.99)}
        columns["rle"] = encode_masks(masks) if n else []
        if n:
            y = [np.flatnonzero(mask.any(1))[[0, -1]] for mask in masks]
            x = [np.flatnonzero(mask.any(0))[[0, -1]] for mask in masks]
            columns |= {"x0": np.array(x)[:, 0], "x1": np.array(x)[:, 1]}
            columns |= {"y0": np.array(y)[:, 0], "y1": np.array(y)[:, 1]}
        return Candidates.from_columns(rules, columns), np.array(rows, int)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SameColour:
    fake = SameColour()
    monkeypatch.setattr(choose, "segmenter_for", lambda *_: fake)
    return fake


@pytest.fixture
def job(tmp_path: Path) -> Job:
    raster = write(tmp_path / "three.tif", three_rectangles())
    return Job.create(source=str(raster), out_dir=str(tmp_path / "run"), model="tiny")


def rectangle(column: float, row: float, width: float, height: float) -> shapely.Polygon:
    (x0, y0), (x1, y1) = NORTH_UP @ (column, row + height), NORTH_UP @ (column + width, row)
    return shapely.box(x0, y0, x1, y1)


TRUE = [rectangle(*place) for place in RECTANGLES.values()]


def saved(path: Path, shapes: list, **columns: list) -> Path:
    gpd.GeoDataFrame(columns, geometry=shapes, crs=32636).to_file(path)
    return path


def moved(shapes: list, dx: float) -> list:
    return [shapely.transform(shape, lambda xy: xy + (dx, 0)) for shape in shapes]


def test_shapes_move_to_the_objects_and_attributes_stay(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    path = saved(tmp_path / "old.gpkg", moved(TRUE, 3.0), class_id=[4, 5, 6], owner=["a", "b", "c"])
    layer = answer_prompts(job, path)
    assert shapely.equals(layer.geometry.to_numpy(), TRUE).all()
    assert layer["class_id"].tolist() == [4, 5, 6]
    assert layer["owner"].tolist() == ["a", "b", "c"]
    assert layer["score"].tolist() == pytest.approx([0.95] * 3)
    widths = np.array([60, 40, 90]) / 2
    np.testing.assert_allclose(layer["prompt_iou"], (widths - 3) / (widths + 3))
    assert layer["changed"].all()
    written = gpd.read_file(tmp_path / "run" / LAYER)
    assert written["owner"].tolist() == ["a", "b", "c"]
    assert written.crs == layer.crs
    assert model.asked == [3]  # in one batch


def test_an_object_that_is_still_there_has_not_changed(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    layer = answer_prompts(job, saved(tmp_path / "old.gpkg", TRUE))
    assert layer["prompt_iou"].tolist() == pytest.approx([1, 1, 1])
    assert not layer["changed"].any()


def test_what_gets_no_mask_keeps_its_shape_and_the_ledger_says_so(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    gone = rectangle(200, 120, 20, 20)
    layer = answer_prompts(job, saved(tmp_path / "old.gpkg", [TRUE[0], gone]))
    assert shapely.equals(layer.geometry.iloc[1], gone)
    assert layer["score"].isna().tolist() == [False, True]
    assert layer["changed"].tolist() == [False, False]
    ledger = pd.read_parquet(tmp_path / "run" / LEDGER)
    assert ledger[["features", "kept", "error"]].to_numpy().tolist() == [[2, 1, ""]]


def test_thresholds_decide_what_is_sound(model: SameColour, job: Job, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.gpkg", TRUE)
    assert answer_prompts(job.changed(pred_iou_thresh=0.96), path)["score"].isna().all()
    assert answer_prompts(job, path)["score"].notna().all()


def test_only_models_that_gain_from_boxes_are_given_them(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    path = saved(tmp_path / "old.gpkg", TRUE)
    answer_prompts(job, path)
    answer_prompts(job.changed(model="vit_b", resume=False), path)
    assert model.boxed == [False, True]


def test_points_become_polygons(model: SameColour, job: Job, tmp_path: Path) -> None:
    points = [shape.centroid for shape in TRUE]
    layer = answer_prompts(job, saved(tmp_path / "trees.gpkg", points))
    assert shapely.equals(layer.geometry.to_numpy(), TRUE).all()
    assert layer["prompt_iou"].isna().all()


def test_answers_are_not_computed_twice(model: SameColour, job: Job, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.gpkg", moved(TRUE, 3.0))
    first = answer_prompts(job, path)
    again = answer_prompts(job, path)
    assert model.asked == [3]
    assert again.equals(first)
    answer_prompts(job, saved(tmp_path / "other.gpkg", TRUE))
    assert model.asked == [3, 3]


def test_C6_a_window_that_fails_is_in_the_ledger_and_is_tried_again(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    path = saved(tmp_path / "old.gpkg", moved(TRUE, 3.0))
    model.broken = True
    with pytest.raises(RunFailedError, match=r"1 of 1 windows.*3 features kept.*no answer today"):
        answer_prompts(job, path)
    assert len(gpd.read_file(tmp_path / "run" / LAYER)) == 3
    model.broken = False
    assert answer_prompts(job, path)["score"].notna().all()


def test_a_model_without_prompts_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"classic.*takes no prompts.*tiny"):
        answer_prompts(job.changed(model="classic"), saved(tmp_path / "old.gpkg", TRUE))


@pytest.mark.parametrize("name", ["old.gpkg", "old.geojson"])
def test_the_numbers_of_features_stay(
    name: str, model: SameColour, job: Job, tmp_path: Path
) -> None:
    path = tmp_path / name
    numbered = gpd.GeoDataFrame({"fid": [7, 20, 9]}, geometry=TRUE, crs=32636)
    numbered.to_file(path) if name.endswith("gpkg") else numbered.drop(columns="fid").to_file(path)
    layer = answer_prompts(job, path)
    before = gpd.read_file(path, fid_as_index=True)
    after = gpd.read_file(tmp_path / "run" / LAYER, fid_as_index=True)
    assert layer.index.tolist() == before.index.tolist()
    assert sorted(after.index) == sorted(before.index)


def test_a_feature_that_is_too_large_is_an_error_of_its_window(
    model: SameColour, job: Job, tmp_path: Path
) -> None:
    huge = rectangle(-5000, -5000, 10_000, 10_000)
    path = saved(tmp_path / "old.gpkg", [TRUE[0], huge])
    with pytest.raises(RunFailedError, match=r"1 of 2 windows.*13334 pixels.*resolution_m"):
        answer_prompts(job, path)
    assert gpd.read_file(tmp_path / "run" / LAYER)["score"].notna().tolist() == [True, False]
