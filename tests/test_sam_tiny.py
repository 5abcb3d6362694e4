"""The embedded model: what ships with the package is a SAM like any other."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from pycocotools import mask
from rasterio.features import rasterize
from small_sams import Code
from test_sam_segmenter import Replay, best_ious, generated, rows_of

from workbench import Job
from workbench.candidates.rle import encode_masks
from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.errors import CheckpointError
from workbench.evaluation.metrics import calibration
from workbench.runs.plan import prepare
from workbench.samples.demo import make_sample
from workbench.segmenters.sam import (
    MODELS,
    Embedded,
    Model,
    SamSegmenter,
    load_model,
    sam_segmenter,
)
from workbench.segmenters.sam.device import PROMPTS_AT_ONCE
from workbench.segmenters.sam.tiny import build_tiny

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # isort: skip
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam  # isort: skip

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
    return SamSegmenter(
        tiny,
        "tiny",
        "",
        points_per_side=3,
        rules=Rules(256, 256, 0, 0, box_nms_thresh),
    ).propose(image())


# ------------------------------------------------------------------------------- the model


def test_it_is_a_sam_with_the_official_decoder() -> None:
    model = tiny()
    assert type(model) is Sam
    assert type(model.prompt_encoder) is PromptEncoder
    assert type(model.mask_decoder) is MaskDecoder
    assert model.image_encoder.img_size == 1024
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_official_predictor_takes_it_and_its_masks_are_sharp() -> None:
    predictor = SamPredictor(tiny())
    predictor.set_image(image().repeat(4, axis=0).repeat(4, axis=1))
    masks, scores, low_res = predictor.predict(np.array([[500.0, 300.0]]), np.array([1]))
    assert masks.shape == (3, 1024, 1024)
    assert np.isfinite(scores).all()
    assert min(low_res.shape[1:]) >= 256


def test_the_official_generator_takes_it() -> None:
    generator = SamAutomaticMaskGenerator(
        tiny(), points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0
    )
    records = generator.generate(image())
    assert records
    assert {record["segmentation"].shape for record in records} == {(256, 256)}


@pytest.mark.parametrize("box_nms_thresh", [0.7, 1.0])  # at 1 nothing is suppressed
def test_C1_the_generator_keeps_the_same_masks(box_nms_thresh: float) -> None:
    """Our decoder adds in another order, so what it gives may differ in the last bits."""
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
    ours = SamSegmenter(tiny, "tiny", "", 8, Rules(1024, 1024, 0.2, box_nms_thresh=1.0))
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
    proposals = SamSegmenter(
        tiny, "tiny", "", points_per_side=12, rules=Rules(1024, 1024, 0, 0, 1)
    ).propose(sample.rgb)
    outlines = shapely.transform(
        sample.objects.geometry.to_numpy(),
        lambda xy: np.column_stack(~sample.transform @ (xy[:, 0], xy[:, 1])),
    )
    shape = sample.labels.shape
    objects = [encode_masks(rasterize([one], shape)[None].astype(bool))[0] for one in outlines]
    rles = [
        [{"size": shape, "counts": rle} for rle in some]
        for some in (proposals.column("rle").tolist(), objects)
    ]
    true_iou = mask.iou(*rles, [0] * len(objects)).max(axis=1)
    scores = calibration(proposals.column("pred_iou"), true_iou)
    assert scores.n > 300
    assert scores.spearman >= 0.7
    assert scores.mean_gap <= 0.1


def test_two_runs_are_equal_in_every_bit() -> None:
    first = propose()
    tiny.cache_clear()  # the second loads its weights anew
    assert propose().table == first.table


# -------------------------------------------------------------------------------- its file


def test_the_file_is_small_enough_for_the_package() -> None:
    assert FILE.stat().st_size <= 10_000_000


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
