"""SAM against the official generator, on small models with random weights."""

import gc
import hashlib
import http.server
import json
import math
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_candidates import suppress

from workbench import sam
from workbench.candidates import SCHEMA, Candidates, Thresholds, prune, select
from workbench.errors import CheckpointError, JobError, WorkbenchError
from workbench.sam import SamSegmenter, sam_segmenter

# after workbench.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # isort: skip
from segment_anything.modeling import (  # isort: skip
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -------------------------------------------------------------------------- small models


def among_prompts(values: torch.Tensor) -> torch.Tensor:
    """Centre and scale what the prompts of one batch were given."""
    return (values - values.mean(0)) / (values.std(0, unbiased=False) + 1e-6)


class BlobDecoder(MaskDecoder):
    """SAM's decoder with random weights, its output shaped to look like masks and scores.

    Blobs lie around their prompts, in three sizes; scores spread over 0.3 to 1 in `steps` steps.
    """

    steps = 0

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masks, iou = super().forward(
            image_embeddings=image_embeddings,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=dense_prompt_embeddings,
            multimask_output=multimask_output,
        )
        # random Fourier features: their product is large where the prompt is
        near = torch.einsum("bc,chw->bhw", sparse_prompt_embeddings[:, 0], image_pe[0])
        near = near[:, None] / (image_pe.shape[1] / 2)
        near = torch.nn.functional.interpolate(near, masks.shape[-2:], mode="bilinear")
        texture = torch.nn.functional.avg_pool2d(masks, 5, 1, 2)
        texture = texture - texture.mean((2, 3), keepdim=True)
        texture = texture / (texture.std((2, 3), keepdim=True) + 1e-6)
        size = torch.tensor([6.0, 4.0, 2.0])[None, :, None, None]
        sharpness = torch.tanh(among_prompts(masks.mean((2, 3), keepdim=True)))
        iou = 0.65 + 0.35 * torch.tanh(among_prompts(iou))
        if self.steps:
            iou = torch.round(iou * self.steps) / self.steps
        return 4 * 3**sharpness * (8 * near + 2 * texture - size), iou


def small_sam(seed: int = 0, steps: int = 0, embed_dim: int = 32) -> Sam:
    """SAM for images of 128 pixels, in every part as small as it can be."""
    torch.manual_seed(seed)
    model = Sam(
        ImageEncoderViT(
            img_size=128,
            embed_dim=embed_dim,
            depth=1,
            num_heads=2,
            out_chans=32,
            use_rel_pos=True,
            global_attn_indexes=(0,),
        ),
        PromptEncoder(
            embed_dim=32,
            image_embedding_size=(8, 8),
            input_image_size=(128, 128),
            mask_in_chans=4,
        ),
        BlobDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32),
            iou_head_depth=2,
            iou_head_hidden_dim=32,
        ),
    )
    model.mask_decoder.steps = steps
    with torch.no_grad():  # so that prompts differ in their place alone
        model.prompt_encoder.point_embeddings[1].weight *= 0.1
    return model.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.kron(cells, np.ones((8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    return SamSegmenter(small_sam, "small", "0" * 64, points_per_side=8, points_per_batch=12)


# ------------------------------------------------------------------------------ C1: parity


class Replay(SamPredictor):
    """Runs the network once for each crop and batch, then repeats what it said."""

    def __init__(self, model: Sam) -> None:
        super().__init__(model)
        self.said: dict[tuple, tuple] = {}

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        self.image, self.image_format = image, image_format

    def predict_torch(self, point_coords: torch.Tensor, *rest: object, **more: object) -> tuple:
        key = (self.image.shape, self.image.tobytes(), point_coords.numpy().tobytes())
        if key not in self.said:
            super().set_image(self.image, self.image_format)
            self.said[key] = super().predict_torch(point_coords, *rest, **more)
        return self.said[key]


@dataclass(frozen=True)
class Case:
    """A model, an image and rules under which both ways must agree."""

    seed: int
    steps: int = 0  # of the scores; few make ties
    size: tuple[int, int] = (128, 128)
    points_per_side: int = 8
    crop_n_layers: int = 0
    floors: tuple[float, float] = (0.4, 0.4)
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7


CASES = {
    "plain": Case(0),
    "ties": Case(8, steps=20, points_per_side=9, box_nms_thresh=0.5),
    "no floors": Case(2, steps=32, size=(96, 72), floors=(0.0, 0.0)),
    "large image": Case(3, size=(152, 264), points_per_side=7),
    "crops": Case(4, size=(200, 160), crop_n_layers=1),
    "crops and ties": Case(
        5, 20, (160, 240), 7, crop_n_layers=1, box_nms_thresh=0.6, crop_nms_thresh=0.3
    ),
    "crops of crops": Case(6, 16, (320, 320), 5, 2, floors=(0.0, 0.0), crop_nms_thresh=0.5),
}


@cache
def proposed(name: str) -> tuple[Candidates, SamAutomaticMaskGenerator, np.ndarray]:
    case = CASES[name]
    model, image = small_sam(case.seed, case.steps), picture(*case.size, case.seed)
    segmenter = SamSegmenter(
        lambda: model,
        "small",
        "",
        points_per_side=case.points_per_side,
        crop_n_layers=case.crop_n_layers,
        pred_iou_floor=case.floors[0],
        stability_floor=case.floors[1],
        box_nms_thresh=case.box_nms_thresh,
        crop_nms_thresh=case.crop_nms_thresh,
        points_per_batch=12,
    )
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=case.points_per_side,
        points_per_batch=12,
        box_nms_thresh=case.box_nms_thresh,
        crop_n_layers=case.crop_n_layers,
        crop_nms_thresh=case.crop_nms_thresh,
        output_mode="coco_rle",
    )
    generator.predictor = Replay(model)
    return segmenter.propose(image), generator, image


def generated(
    generator: SamAutomaticMaskGenerator, image: np.ndarray, thresholds: Thresholds
) -> list[tuple]:
    """The official masks as rows that compare bit for bit."""
    generator.pred_iou_thresh = thresholds.pred_iou_thresh
    generator.stability_score_thresh = thresholds.stability_score_thresh
    try:
        records = generator.generate(image)
    except IndexError:  # its way of saying that no crop has any mask
        records = []
    return sorted(
        (
            record["segmentation"]["counts"].encode(),
            tuple(record["bbox"]),
            record["area"],
            record["predicted_iou"],
            str(record["stability_score"]),  # NaN is equal to NaN
            tuple(record["point_coords"][0]),
            tuple(record["crop_box"]),
        )
        for record in records
    )


def rows_of(candidates: Candidates) -> list[tuple]:
    boxes, crop_boxes = candidates.boxes, candidates.crop_boxes
    boxes[:, 2:] -= boxes[:, :2]
    crop_boxes[:, 2:] -= crop_boxes[:, :2]
    points = np.column_stack([candidates.column("point_x"), candidates.column("point_y")])
    return sorted(
        zip(
            candidates.table.column("rle").to_pylist(),
            map(tuple, boxes.tolist()),
            candidates.column("area_px").tolist(),
            candidates.column("pred_iou").tolist(),
            map(str, candidates.column("stability_score").tolist()),
            map(tuple, points.tolist()),
            map(tuple, crop_boxes.tolist()),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_C1_the_generator_keeps_the_same_rows(name: str, draw: st.DataObject) -> None:
    candidates, generator, image = proposed(name)
    floors = CASES[name].floors

    def threshold(column: str, floor: float) -> st.SearchStrategy[float]:
        scores = candidates.column(column)
        exactly = st.sampled_from(sorted(set(scores[scores >= floor].tolist())))
        decimals = st.integers(math.ceil(20 * floor), 20).map(lambda n: n / 20)
        return st.one_of(exactly, decimals, st.floats(floor, 1))

    thresholds = Thresholds(
        draw.draw(threshold("pred_iou", floors[0])),
        draw.draw(threshold("stability_score", floors[1])),
    )
    assert rows_of(select(candidates, thresholds)) == generated(generator, image, thresholds)


@pytest.mark.parametrize("name", CASES)
def test_the_cases_above_have_something_to_decide(name: str) -> None:
    """Else parity would be that of empty lists."""
    case = CASES[name]
    candidates, _, _ = proposed(name)
    kept = [
        len(select(candidates, Thresholds(iou, stability)))
        for iou in (0.4, 0.6, 0.8, 0.9)
        for stability in (0.4, 0.6, 0.8)
    ]
    assert len(candidates) > 20
    assert len(set(kept)) > 5, kept
    crops = {tuple(crop) for crop in candidates.crop_boxes.tolist()}
    assert len(crops) > 2 * case.crop_n_layers
    if case.steps:
        assert len(set(candidates.column("pred_iou").tolist())) < len(candidates) / 2


def test_C1_without_a_replay() -> None:
    """The same as above, from the pixels on, with the generator's own network call."""
    candidates, generator, image = proposed("crops")
    generator = SamAutomaticMaskGenerator(
        generator.predictor.model,
        points_per_side=8,
        points_per_batch=12,
        crop_n_layers=1,
        output_mode="coco_rle",
    )
    for thresholds in (Thresholds(0.4, 0.4), Thresholds(0.7, 0.6), Thresholds(0.999, 0.999)):
        ours = rows_of(select(candidates, thresholds))
        assert ours == generated(generator, image, thresholds)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(128, 128), (96, 72), (152, 264)])
def test_C1_upsampling_some_masks_gives_their_bits_among_all(
    size: tuple[int, int], threads: int, segmenter: SamSegmenter
) -> None:
    """The reason why masks below the floor may be dropped before they are upsampled."""
    torch.set_num_threads(threads)
    predictor = SamPredictor(segmenter.model)
    predictor.set_image(picture(*size))
    logits = torch.randn(5, 3, 32, 32)
    frame = predictor.input_size, predictor.original_size
    whole = segmenter.model.postprocess_masks(logits, *frame).flatten(0, 1)
    for rows in ([7], [0, 1], [0, 1, 2], [0, 2, 4, 5], [1, 5, 6, 11, 14], list(range(15))):
        part = segmenter._upsample(predictor, logits.flatten(0, 1)[rows], 3)
        assert torch.equal(part, whole[rows])


def test_the_operator_that_replaces_nms_equals_plain_loops() -> None:
    import torchvision

    rng = np.random.default_rng(0)
    for thresh in (0.3, 0.5, 0.7, 1.0):
        for _ in range(20):
            corner = rng.integers(0, 8, (40, 2))
            boxes = np.hstack([corner, corner + rng.integers(0, 8, (40, 2))])
            scores = rng.integers(0, 9, 40) / 8
            kept = torchvision.ops.nms(
                torch.tensor(boxes).float(), torch.tensor(scores).float(), thresh
            )
            assert kept.tolist() == suppress(boxes.tolist(), scores.tolist(), thresh)
    assert torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_a_torchvision_that_imports_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torch.library, "Library", None)  # would raise if it were called
    sam._mend_torchvision()
    import torchvision as after

    assert after is torchvision


# ---------------------------------------------------------------------------- propose


def test_candidates_are_the_same_every_time(segmenter: SamSegmenter) -> None:
    image = picture(96, 128)
    assert segmenter.propose(image).table == segmenter.propose(image).table


def test_what_can_never_be_selected_is_not_proposed(segmenter: SamSegmenter) -> None:
    candidates = segmenter.propose(picture(128, 128))
    assert prune(candidates).table == candidates.table


def test_boxes_and_areas_are_those_of_the_masks(segmenter: SamSegmenter) -> None:
    candidates = replace(segmenter, crop_n_layers=1).propose(picture(160, 200))
    assert len(candidates)
    for box, area, mask in zip(
        candidates.boxes, candidates.column("area_px"), candidates.masks(), strict=True
    ):
        assert mask.shape == (160, 200)
        y, x = mask.nonzero()
        assert area == len(x)
        assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]


def test_ordinals_count_crops_then_prompts_then_masks(segmenter: SamSegmenter) -> None:
    layered = replace(segmenter, crop_n_layers=1, pred_iou_floor=0.0, stability_floor=0.0)
    candidates = layered.propose(picture(160, 200))
    ordinals = candidates.column("ordinal")
    assert (np.diff(ordinals) > 0).all()
    crop_boxes, _ = sam.generate_crop_boxes((160, 200), 1, 512 / 1500)
    crops, prompts = ordinals // (64 * 3), ordinals // 3 % 64
    np.testing.assert_array_equal(candidates.crop_boxes, np.array(crop_boxes)[crops])
    x0, y0, x1, y1 = candidates.crop_boxes.T
    np.testing.assert_allclose(
        candidates.column("point_x"), x0 + (prompts % 8 + 0.5) / 8 * (x1 - x0)
    )
    np.testing.assert_allclose(
        candidates.column("point_y"), y0 + (prompts // 8 + 0.5) / 8 * (y1 - y0)
    )


def test_C5_higher_floors_select_the_same(segmenter: SamSegmenter) -> None:
    image, thresholds = picture(128, 128), Thresholds(0.7, 0.8)
    low = replace(segmenter, pred_iou_floor=0.0, stability_floor=0.0).propose(image)
    high = replace(segmenter, pred_iou_floor=0.7, stability_floor=0.8).propose(image)
    assert 0 < len(high) < len(low)
    assert select(low, thresholds).table == select(high, thresholds).table


def test_nothing_above_the_floors_is_an_empty_table(segmenter: SamSegmenter) -> None:
    for floors in ({"pred_iou_floor": 1.0}, {"stability_floor": 1.01}):
        candidates = replace(segmenter, crop_n_layers=1, **floors).propose(picture(64, 72))
        assert len(candidates) == 0
        assert candidates.table.schema == SCHEMA
        assert (candidates.rules.height, candidates.rules.width) == (64, 72)


def test_the_rules_are_those_of_the_segmenter() -> None:
    odd = SamSegmenter(small_sam, "small", "", 4, 1, 0.6, 0.7, 0.8, 0.5)
    rules = odd.propose(picture(64, 72)).rules
    assert rules == type(rules)(64, 72, 0.6, 0.7, 0.8, 0.5, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_overflows_is_an_error_not_an_empty_tile(value: float) -> None:
    model = small_sam()
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.layers[-1].bias[1] = value
    with pytest.raises(WorkbenchError, match=r"not finite in precision fp32.*Set precision"):
        SamSegmenter(lambda: model, "small", "", points_per_side=2).propose(picture(64, 64))


def test_few_masks_are_at_full_resolution_at_once(
    segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsampled = []
    original = segmenter.model.postprocess_masks

    def counted(masks: torch.Tensor, *frame: tuple) -> torch.Tensor:
        upsampled.append(masks.shape[0] * masks.shape[1])
        return original(masks, *frame)

    monkeypatch.setattr(segmenter.model, "postprocess_masks", counted)
    segmenter.propose(picture(128, 128))
    assert 1 <= max(upsampled) <= 4
    assert sum(upsampled) < 64 * 3  # those below the floor are not upsampled at all


def test_the_model_goes_with_its_segmenter() -> None:
    segmenter = SamSegmenter(small_sam, "small", "", points_per_side=2)
    segmenter.propose(picture(64, 64))
    gone = weakref.ref(segmenter.model)
    del segmenter
    gc.collect()
    assert gone() is None


def test_the_key_names_all_that_candidates_depend_on(segmenter: SamSegmenter) -> None:
    assert json.loads(json.dumps(dict(segmenter.key))) == {
        "model": "small",
        "weights_sha256": "0" * 64,
        "points_per_side": 8,
        "crop_n_layers": 0,
        "pred_iou_floor": 0.5,
        "stability_floor": 0.5,
        "box_nms_thresh": 0.7,
        "crop_nms_thresh": 0.7,
        "device": "cpu",
        "precision": "fp32",
        "points_per_batch": 12,
        "threads": torch.get_num_threads(),
    }
    automatic = replace(segmenter, points_per_batch=None)
    assert automatic.key["points_per_batch"] == sam.POINTS_PER_BATCH["cpu"]


# ------------------------------------------------------------------- device and precision


def test_device_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    has = dict.fromkeys(("cuda", "mps"), False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has["mps"])
    assert sam.resolve_device("auto") == "cpu"
    for asked in ("cuda", "mps", "cuda:1"):
        with pytest.raises(JobError, match=rf"device {asked} was asked for, .* sees 0"):
            sam.resolve_device(asked)
    has["mps"] = True
    assert sam.resolve_device("auto") == sam.resolve_device("mps") == "mps"
    has["cuda"] = True
    assert sam.resolve_device("auto") == sam.resolve_device("cuda") == "cuda"
    assert sam.resolve_device("cuda:1") == "cuda:1"
    assert sam.resolve_device("cpu") == "cpu"
    for unknown in ("gpu", "cuda:x", "cuda:9", ""):
        with pytest.raises(JobError, match="device"):
            sam.resolve_device(unknown)


def test_precision_auto_is_the_fastest_that_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert sam.resolve_precision("auto", "cuda") == expected
    assert sam.resolve_precision("auto", "cpu") == "fp32"
    assert sam.resolve_precision("auto", "mps") == "fp32"
    assert sam.resolve_precision("fp16", "cuda:0") == "fp16"
    with pytest.raises(JobError, match="precision bf16 needs device cuda"):
        sam.resolve_precision("bf16", "cpu")
    with pytest.raises(JobError, match="precision 'half' is unknown"):
        sam.resolve_precision("half", "cpu")


# ---------------------------------------------------------------------------- checkpoints


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two small models in place of the official ones, and an empty cache folder."""
    nowhere = "http://127.0.0.1:9/{}.pth"
    models = {
        "small": sam.Model(nowhere.format("small"), "0" * 64, small_sam),
        "wide": sam.Model(nowhere.format("wide"), "1" * 64, lambda: small_sam(embed_dim=64)),
    }
    monkeypatch.setattr(sam, "MODELS", models)
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def loaded_segmenter(*arguments: Any, **settings: Any) -> SamSegmenter:
    segmenter = sam_segmenter(*arguments, **settings)
    segmenter.load()
    return segmenter


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_local_checkpoint_gives_the_model_that_was_saved(registry: Path) -> None:
    model, image = small_sam(seed=7), picture(96, 128)
    path = saved(registry / "own.pth", model.state_dict())
    loaded = loaded_segmenter("small", checkpoint=path, points_per_side=4, points_per_batch=8)
    given = SamSegmenter(lambda: model, "small", "", points_per_side=4, points_per_batch=8)
    assert loaded.propose(image).table == given.propose(image).table
    assert loaded.key["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_in_half_precision_are_run_in_fp32(registry: Path) -> None:
    half = {name: value.half() for name, value in small_sam().state_dict().items()}
    loaded = loaded_segmenter("small", checkpoint=str(saved(registry / "half.pth", half)))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_all_settings_reach_the_segmenter(registry: Path) -> None:
    path = saved(registry / "own.pth", small_sam().state_dict())
    odd = {
        "points_per_side": 3,
        "crop_n_layers": 1,
        "pred_iou_floor": 0.11,
        "stability_floor": 0.12,
        "box_nms_thresh": 0.13,
        "crop_nms_thresh": 0.14,
        "points_per_batch": 5,
        "threads": 1,
    }
    key = loaded_segmenter("small", checkpoint=path, device="cpu", precision="fp32", **odd).key
    assert {name: key[name] for name in odd} == odd


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "is not a file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("<html>log in first</html>"), "cannot be read"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "cannot be read"),
    "noise": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "cannot be read",
    ),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "cut short": (
        lambda path: path.write_bytes(saved(path, small_sam().state_dict()).read_bytes()[:50_000]),
        "cannot be read",
    ),
    "code": (lambda path: saved(path, {"a": Code()}), r"Python code or objects \(posix.mkdir\)"),
    "old pickle with code": (
        lambda path: path.write_bytes(pickle.dumps(Code(), protocol=2)),
        r"Python code or objects \(posix.mkdir\)",
    ),
    "whole model": (lambda path: saved(path, small_sam()), "Python code or objects"),
    "nested": (lambda path: saved(path, {"model": small_sam().state_dict()}), "plain state_dict"),
    "tensor": (lambda path: saved(path, torch.zeros(3)), "plain state_dict"),
    "other model": (
        lambda path: saved(path, small_sam(embed_dim=64).state_dict()),
        "no checkpoint of small: .* is .*64.*It fits wide: set model to wide",
    ),
    "other network": (
        lambda path: saved(path, torch.nn.Linear(2, 2).state_dict()),
        r"no checkpoint of small: \d+ weights are missing and 2 unknown.*none of small, wide",
    ),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(
    kind: str, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registry)
    make, message = BAD_CHECKPOINTS[kind]
    path = registry / "bad.pth"
    make(path)
    with pytest.raises(CheckpointError, match=rf"bad\.pth.*{message}") as caught:
        loaded_segmenter("small", checkpoint=path)
    assert "weights_only" not in str(caught.value)
    assert not (registry / "ran").exists()


def test_offline_the_message_says_what_to_download_and_where_to_put_it(registry: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded_segmenter("small")
    for part in ("http://127.0.0.1:9/small.pth", f"{registry}/cache/small.pth", "checkpoint"):
        assert part in str(caught.value)


def test_offline_a_damaged_file_in_the_cache_is_named(registry: Path) -> None:
    path = registry / "cache" / "small.pth"
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=f"{path} is damaged: its sha256 is "):
        loaded_segmenter("small")


def test_an_unwritable_cache_is_a_checkpoint_error(registry: Path) -> None:
    (registry / "cache").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        loaded_segmenter("small")


@pytest.fixture
def server(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], list]]:
    """Serve some bytes as the checkpoint of `small`; gives the list of requests."""
    servers = []

    def serve(content: bytes) -> list[str]:
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/small.pth"
        monkeypatch.setitem(sam.MODELS, "small", replace(sam.MODELS["small"], url=url))
        return requests

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_checkpoint_is_downloaded_once(
    server: Callable[[bytes], list], registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(registry / "own.pth", small_sam().state_dict()).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    requests = server(content)
    official = replace(sam.MODELS["small"], sha256=sha256)
    monkeypatch.setitem(sam.MODELS, "small", official)
    for _ in range(2):
        assert loaded_segmenter("small").key["weights_sha256"] == sha256
    assert requests == ["/small.pth"]
    assert (registry / "cache" / "small.pth").read_bytes() == content


def test_a_download_with_another_hash_is_refused(
    server: Callable[[bytes], list], registry: Path
) -> None:
    server(b"<html>please log in</html>")
    with pytest.raises(CheckpointError, match="hash of downloaded file"):
        loaded_segmenter("small")
    assert not (registry / "cache" / "small.pth").exists()


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(JobError, match=r"model 'vit_x' is unknown.*vit_b, vit_l, vit_h"):
        loaded_segmenter("vit_x")


@pytest.mark.parametrize(("name", "width"), [("vit_b", 768), ("vit_l", 1024), ("vit_h", 1280)])
def test_the_official_models_are_built_without_filling_them(name: str, width: int) -> None:
    with torch.device("meta"):
        model = sam.MODELS[name].build()
    assert model.state_dict()["image_encoder.pos_embed"].shape == (1, 64, 64, width)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # not in the checkpoint, so it must hold its values already
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
