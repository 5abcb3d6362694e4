"""The embedded model: what ships with the package is a SAM like any other."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import rasterio
import shapely
import torch
from pycocotools import mask
from rasterio.features import rasterize
from small_sams import Code
from test_sam_segmenter import Replay, best_ious, generated, rows_of
from torch.nn.functional import interpolate

from workbench import Job
from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.errors import CheckpointError
from workbench.evaluation.metrics import calibration
from workbench.runs.plan import prepare
from workbench.samples.demo import Sample, make_sample
from workbench.segmenters.sam import (
    MODELS,
    Embedded,
    Model,
    SamSegmenter,
    load_model,
    sam_segmenter,
)
from workbench.segmenters.sam.device import PROMPTS_AT_ONCE
from workbench.segmenters.sam.tiny import Chooser, Tiny, build_tiny

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # isort: skip
from segment_anything.modeling import Sam  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = MODELS["tiny"].weights.fetch()
EVERYTHING = Thresholds(0, 0)


@cache
def tiny() -> Sam:
    return load_model("tiny", FILE)


@cache
def image() -> np.ndarray:
    return make_sample(256, 3).rgb


def propose(box_nms_thresh: float = 0.7) -> Candidates:
    return engine(3, Rules(256, 256, 0, 0, box_nms_thresh)).propose(image())


def engine(points_per_side: int, rules: Rules) -> SamSegmenter:
    return SamSegmenter(tiny, "tiny", "", points_per_side, rules, network_of=Tiny)


# ------------------------------------------------------------------------------- the model


def test_it_is_a_sam() -> None:
    model = tiny()
    assert type(model) is Sam
    assert model.image_encoder.img_size == 1024
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_official_predictor_takes_it_and_its_masks_are_sharp() -> None:
    predictor = SamPredictor(tiny())
    predictor.set_image(image().repeat(4, axis=0).repeat(4, axis=1))
    masks, scores, low_res = predictor.predict(np.array([[500.0, 300.0]]), np.array([1]))
    assert masks.shape == (6, 1024, 1024)
    assert np.isfinite(scores).all()
    assert min(low_res.shape[1:]) >= 256
    assert masks[:, 300, 500].any()
    areas = masks.sum(axis=(1, 2)).tolist()
    assert areas == sorted(areas)  # from part to whole


def test_the_official_generator_takes_it() -> None:
    generator = SamAutomaticMaskGenerator(
        tiny(), points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0
    )
    records = generator.generate(image())
    assert records
    assert {record["segmentation"].shape for record in records} == {(256, 256)}


# ----------------------------------------------------------------------------- its prompts


class Scene(NamedTuple):
    """A made scene that it has not seen, ready for prompts, and the masks of its buildings."""

    predictor: SamPredictor
    roofs: list[np.ndarray]


@cache
def scene() -> Scene:
    sample = make_sample(1024, 5)
    predictor = SamPredictor(tiny())
    predictor.set_image(sample.rgb)
    rows = np.flatnonzero(sample.objects["kind"] == "building")
    masks = rasterized(sample, rows)
    return Scene(predictor, [roof for roof in masks if roof.sum() > 400][:40])


def rasterized(sample: Sample, rows: np.ndarray) -> np.ndarray:
    outlines = shapely.transform(
        sample.objects.geometry.to_numpy()[rows],
        lambda xy: np.column_stack(~sample.transform @ (xy[:, 0], xy[:, 1])),
    )
    shape = sample.labels.shape
    return np.array([rasterize([one], shape).astype(bool) for one in outlines])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def inner_point(roof: np.ndarray) -> np.ndarray:
    """The pixel deepest inside, XY."""
    depth = cv2.distanceTransform(np.pad(roof, 1).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return np.array([[x - 1.0, y - 1.0]])


def box_of(roof: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(roof)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


def test_a_box_finds_its_roof() -> None:
    predictor, roofs = scene()
    found = []
    for roof in roofs:
        masks, _, _ = predictor.predict(box=box_of(roof), multimask_output=False)
        found.append(iou(masks[0], roof))
    assert len(found) >= 20
    assert np.median(found) >= 0.6


def test_a_second_point_leads_to_a_region_that_holds_both_or_neither() -> None:
    predictor, roofs = scene()
    for roof in roofs[:10]:
        first = inner_point(roof)
        outside = np.argwhere(~cv2.dilate(roof.astype(np.uint8), np.ones((61, 61))).astype(bool))
        away = outside[np.abs(outside[:, ::-1] - first).sum(1).argmin()][::-1].astype(float)
        both = np.concatenate([first, away[None]])
        x, y = both.astype(int).T
        wide, _, _ = predictor.predict(both, np.array([1, 1]), multimask_output=False)
        assert wide[0][y, x].all()
        narrow, _, _ = predictor.predict(both, np.array([1, 0]), multimask_output=False)
        assert narrow[0][y[0], x[0]]
        assert not narrow[0][y[1], x[1]]


def test_its_own_mask_as_a_prompt_gives_that_mask_again() -> None:
    predictor, roofs = scene()
    masks, _, low_res = predictor.predict(inner_point(roofs[0]), np.array([1]))
    for i in range(len(masks)):
        again, _, _ = predictor.predict(mask_input=low_res[i : i + 1], multimask_output=False)
        assert iou(again[0], masks[i]) >= 0.95


def test_a_picture_that_is_not_square_is_not_cut_along_its_padding() -> None:
    predictor = SamPredictor(tiny())
    predictor.set_image(np.ascontiguousarray(make_sample(1024, 5).rgb[:512]))
    point = np.array([[700.0, 500.0]]), np.array([1])
    masks, _, _ = predictor.predict(*point, multimask_output=False)
    assert masks.shape == (1, 512, 1024)
    assert masks[0, 500, 700]


def test_a_grid_of_prompts_overlooks_hardly_any_region() -> None:
    """Small ones between its points are chosen too, by a point that misses them by little."""
    chooser = Chooser(scene().predictor.features)
    at = np.arange(16.0, 1024, 32)
    points = np.stack(np.meshgrid(at, at), -1).reshape(-1, 1, 2)
    prompts = torch.from_numpy(np.concatenate([points, np.ones_like(points[..., :1])], 2)).float()
    _, rows = chooser.chosen(prompts, None)
    x, y = ((chooser.table.boxes[:, :2] + chooser.table.boxes[:, 2:] + 1) / 2).T
    away = torch.maximum((x[rows] - prompts[:, :, 0]).abs(), (y[rows] - prompts[:, :, 1]).abs())
    holds = chooser._inside(prompts[:, :, :2])[:, 0].gather(1, rows)
    assert holds.any(1).all()
    assert (holds | (away <= 16)).all()
    assert len(rows.unique()) >= 0.9 * len(chooser.table.area)


def test_thin_things_and_corners_pass() -> None:
    """Masks are drawn at half of the resolution: an area of 100 pixels keeps its shape."""
    predictor, _ = scene()
    chooser = Chooser(predictor.features)
    rows = (chooser.table.area > 100).nonzero()[::20, 0]
    drawn = interpolate(chooser.drawn(rows)[None], scale_factor=2, mode="bilinear")[0] > 0
    for row, mask_ in zip(rows.tolist(), drawn.numpy(), strict=True):
        table = chooser.table
        ranks = chooser.ranks[int(table.tree[row])]
        exact = (ranks >= int(table.first[row])) & (ranks < int(table.last[row]))
        assert iou(mask_, exact) >= 0.75


# ------------------------------------------------------------------- what the engine makes of it


@pytest.mark.parametrize("box_nms_thresh", [0.7, 1.0])  # at 1 nothing is suppressed
def test_C1_the_generator_keeps_the_same_masks(box_nms_thresh: float) -> None:
    candidates = propose(box_nms_thresh)
    generator = SamAutomaticMaskGenerator(
        tiny(),
        points_per_side=3,
        points_per_batch=PROMPTS_AT_ONCE["cpu"],
        box_nms_thresh=box_nms_thresh,
        output_mode="coco_rle",
    )
    generator.predictor = Replay(tiny())
    iou, stability = (
        min(float(np.nanmedian(candidates.column(name))), 1.0)
        for name in ("pred_iou", "stability_score")
    )
    for thresholds in (EVERYTHING, Thresholds(iou * 0.99, stability * 0.99)):
        kept = rows_of(select(candidates, thresholds))
        official = generated(generator, image(), thresholds)
        assert len(kept) == len(official) >= (5 if box_nms_thresh == 1 else 1)
        assert best_ious(kept, official, (256, 256)).min() >= 0.99
        scores = [sorted(row[3] for row in rows) for rows in (kept, official)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_C1_999_of_1000_masks_are_the_same_on_real_tiles(data_dir: Path) -> None:
    """The network as it is on both sides, and nothing suppressed, so that each mask counts."""
    rasters = [
        data_dir / "kampala/kampala_z20_a.tif",
        *sorted((data_dir / "naip_fields").glob("*.tif"))[:2],
    ]
    generator = SamAutomaticMaskGenerator(
        tiny(),
        points_per_side=8,
        points_per_batch=PROMPTS_AT_ONCE["cpu"],
        box_nms_thresh=1.0,
        output_mode="coco_rle",
    )
    ours = engine(8, Rules(1024, 1024, 0.2, box_nms_thresh=1.0))
    thresholds = Thresholds(0.2, 0.5)
    overlaps = []
    for path in rasters:
        with rasterio.open(path) as raster:
            tile = raster.read([1, 2, 3], window=((0, 1024), (0, 1024))).transpose(1, 2, 0)
        kept = rows_of(select(ours.propose(tile), thresholds))
        official = generated(generator, tile, thresholds)
        overlaps.append(best_ious(kept, official, tile.shape[:2]))
    ious = np.concatenate(overlaps)
    assert len(ious) > 300
    assert (ious >= 0.99).mean() >= 0.999


def test_the_weights_tell_objects_apart() -> None:
    """Random ones give the same mask everywhere."""
    assert len(select(propose(), EVERYTHING)) >= 5


def test_its_scores_are_honest() -> None:
    """On a scene that it has not seen, predicted IoUs rank masks by the true ones and are close."""
    sample = make_sample(1024, 5)
    proposals = engine(12, Rules(1024, 1024, 0, 0, 1)).propose(sample.rgb)
    shape = sample.labels.shape
    truth = rasterized(sample, np.arange(len(sample.objects)))
    objects = [encode_masks(one[None])[0] for one in truth]
    rles = [
        [{"size": shape, "counts": rle} for rle in some]
        for some in (proposals.column("rle").tolist(), objects)
    ]
    true_iou = mask.iou(*rles, [0] * len(objects)).max(axis=1)
    scores = calibration(proposals.column("pred_iou"), true_iou)
    assert scores.n > 300
    assert scores.spearman >= 0.7
    assert scores.mean_gap <= 0.1


def test_a_region_that_many_prompts_choose_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = Chooser.drawn

    def noted(chooser: Chooser, rows: torch.Tensor) -> torch.Tensor:
        drawn.extend(rows.tolist())
        return draw(chooser, rows)

    monkeypatch.setattr(Chooser, "drawn", noted)
    sam = engine(4, Rules(256, 256, 0.3, 0))
    points = np.random.default_rng(0).uniform(0, 256, (12, 2))
    found, _ = sam.answer(image(), points)
    assert len(drawn) == len(set(drawn)) < len(found)
    alone = [sam.answer(image(), point[None])[0] for point in points]
    for name in ("pred_iou", "stability_score", "x0", "y0", "x1", "y1", "area_px", "rle"):
        expected = [value for one in alone for value in one.table[name].to_pylist()]
        assert found.table[name].to_pylist() == expected


def test_half_precision_hardly_changes_its_masks() -> None:
    """Regions and places are kept in full precision; only borders and scores are rounded."""
    exact = engine(4, Rules(256, 256, 0.3, 0, 1))
    rounded = replace(exact, load_model=lambda: load_model("tiny", FILE), precision="bf16")
    above = Thresholds(0.3, 0)
    rows, others = (rows_of(select(one.propose(image()), above)) for one in (exact, rounded))
    assert len(rows) >= 5
    assert np.mean(best_ious(rows, others, (256, 256)) >= 0.9) >= 0.7


def test_two_runs_are_equal_in_every_bit() -> None:
    first = propose()
    tiny.cache_clear()  # the second loads its weights anew
    assert propose().table == first.table


# -------------------------------------------------------------------------------- its file


def test_the_file_is_small_enough_for_the_package() -> None:
    assert FILE.stat().st_size <= 12_000_000


def test_it_needs_neither_download_nor_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path / "cache"))
    segmenter = sam_segmenter("tiny")
    segmenter.load()
    assert segmenter.key["model"] == "tiny"
    assert segmenter.key["weights_sha256"] == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert not (tmp_path / "cache").exists()


def test_a_job_may_ask_for_it(raster: Path, tmp_path: Path) -> None:
    plan = prepare(Job(source=str(raster), out_dir=str(tmp_path / "run"), model="tiny"))
    assert plan.segmenter.key["model"] == "tiny"


def test_retrained_weights_are_a_checkpoint_of_it(tmp_path: Path) -> None:
    path = tmp_path / "retrained.pth"
    torch.save(build_tiny().state_dict(), path)
    segmenter = sam_segmenter("tiny", checkpoint=path)
    segmenter.load()
    assert segmenter.key["weights_sha256"] != sam_segmenter("tiny").key["weights_sha256"]


def test_its_weights_are_recognised_under_another_name() -> None:
    told = r"not a checkpoint of vit_b.*It fits tiny: set model"
    with pytest.raises(CheckpointError, match=told):
        load_model("vit_b", FILE)


def embed(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    monkeypatch.setitem(MODELS, "tiny", Model(build_tiny, Embedded(path)))
    return path


def test_code_in_its_place_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, embed(monkeypatch, tmp_path / "tiny.pth"))
    with pytest.raises(CheckpointError, match=r"tiny\.pth holds Python code or objects"):
        sam_segmenter("tiny").load()
    assert not (tmp_path / "ran").exists()


def test_an_installation_without_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embed(monkeypatch, tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"tiny\.pth should have come.*Install"):
        sam_segmenter("tiny")


def test_another_file_is_another_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = embed(monkeypatch, tmp_path / "tiny.pth")
    path.write_bytes(b"one")
    before = sam_segmenter("tiny").key
    path.write_bytes(b"two")
    assert sam_segmenter("tiny").key["weights_sha256"] != before["weights_sha256"]
