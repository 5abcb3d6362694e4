"""SAM against the official generator, on small models with random weights."""

import gc
import json
import math
import weakref
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from small_sams import picture, small_sam
from torch import nn

from workbench.candidates.rle import encode_edges
from workbench.candidates.select import Thresholds, prune, select
from workbench.candidates.table import SCHEMA, Candidates, Rules
from workbench.errors import WorkbenchError
from workbench.raster.tiles import TileGrid
from workbench.segmenters.sam import SamSegmenter, measure
from workbench.segmenters.sam.device import PROMPTS_AT_ONCE
from workbench.segmenters.sam.encoder import Predictor
from workbench.segmenters.sam.loaded import upsampled
from workbench.segmenters.sam.network import InputFrame

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # isort: skip
from segment_anything.modeling import Sam  # isort: skip
from segment_anything.utils.amg import generate_crop_boxes  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")


LAYERED = Rules(1024, 1024, crop_n_layers=1)


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    return SamSegmenter(small_sam, "small", "0" * 64, points_per_side=8, points_per_batch=12)


# ------------------------------------------------------------------------------ C1: parity


class Replay(Predictor):
    """Runs our encoder and the official decoder once for each input, then repeats them."""

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
    "a little larger than a tile": Case(7, size=(136, 136)),
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
        rules=Rules(
            *case.size,
            *case.floors,
            case.box_nms_thresh,
            case.crop_nms_thresh,
            case.crop_n_layers,
        ),
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


def test_a_scene_a_tenth_larger_than_a_tile_is_one_window_of_its_own_size() -> None:
    """The official generator resizes such an image, too: the case above compares the masks."""
    height, width = CASES["a little larger than a tile"].size
    (tile,) = TileGrid(width, height, tile_size=128)
    assert (tile.window.width, tile.window.height) == (width, height)
    candidates, _, _ = proposed("a little larger than a tile")
    assert (candidates.rules.width, candidates.rules.height) == (width, height)
    right, bottom = candidates.boxes[:, 2:].max(axis=0)
    assert right >= width - 2  # masks reach beyond the first 128 pixels
    assert bottom >= height - 2
    assert len(select(candidates, Thresholds(0.6, 0.6)))


@pytest.mark.parametrize("predictor", [Predictor, SamPredictor])
def test_C1_without_a_replay(predictor: type[SamPredictor]) -> None:
    """The same as above, from the pixels on, with the generator's own calls of the network.

    Bit for bit with our encoder, mask for mask with the official one, whose sums are in another
    order.
    """
    candidates, generator, image = proposed("crops")
    generator = SamAutomaticMaskGenerator(
        generator.predictor.model,
        points_per_side=8,
        points_per_batch=12,
        crop_n_layers=1,
        output_mode="coco_rle",
    )
    generator.predictor = predictor(generator.predictor.model)
    for thresholds in (Thresholds(0.4, 0.4), Thresholds(0.7, 0.6), Thresholds(0.999, 0.999)):
        ours = rows_of(select(candidates, thresholds))
        theirs = generated(generator, image, thresholds)
        assert len(ours) == len(theirs)
        if predictor is Predictor:
            assert ours == theirs
        elif theirs:
            assert best_ious(ours, theirs, image.shape[:2]).min() >= 0.99
            for column in (3, 4):
                scores = [sorted(float(row[column]) for row in rows) for rows in (ours, theirs)]
                np.testing.assert_allclose(*scores, atol=1e-3 if column == 4 else 1e-5)


def best_ious(rows: list[tuple], others: list[tuple], size: tuple[int, int]) -> np.ndarray:
    """Each mask's best IoU among those of the other side."""
    ours, theirs = ([{"size": size, "counts": row[0]} for row in some] for some in (rows, others))
    overlaps = coco.iou(ours, theirs, [0] * len(theirs))
    return np.concatenate([overlaps.max(axis=0), overlaps.max(axis=1)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(128, 128), (96, 72), (152, 264)])
def test_C1_upsampling_some_masks_gives_their_bits_among_all(
    size: tuple[int, int], threads: int, segmenter: SamSegmenter
) -> None:
    """The reason why masks below the floor may be dropped before they are upsampled."""
    torch.set_num_threads(threads)
    frame = InputFrame(segmenter.model.image_encoder.img_size, size)
    logits = torch.randn(5, 3, 32, 32)
    sizes = frame.input_size, frame.original_size
    whole = segmenter.model.postprocess_masks(logits, *sizes).flatten(0, 1)
    for rows in ([7], [0, 1], [0, 1, 2], [0, 2, 4, 5], [1, 5, 6, 11, 14], list(range(15))):
        part = upsampled(frame, logits.flatten(0, 1)[rows], 3)
        assert torch.equal(part, whole[rows])


# ---------------------------------------------------------------------------- propose


def test_candidates_are_the_same_every_time(segmenter: SamSegmenter) -> None:
    image = picture(96, 128)
    assert segmenter.propose(image).table == segmenter.propose(image).table


def test_what_can_never_be_selected_is_not_proposed(segmenter: SamSegmenter) -> None:
    candidates = segmenter.propose(picture(128, 128))
    assert prune(candidates).table == candidates.table


def test_boxes_and_areas_are_those_of_the_masks(segmenter: SamSegmenter) -> None:
    candidates = replace(segmenter, rules=LAYERED).propose(picture(160, 200))
    assert len(candidates)
    for box, area, mask in zip(
        candidates.boxes, candidates.column("area_px"), candidates.masks(), strict=True
    ):
        assert mask.shape == (160, 200)
        y, x = mask.nonzero()
        assert area == len(x)
        assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]


def test_ordinals_count_crops_then_prompts_then_masks(segmenter: SamSegmenter) -> None:
    layered = replace(segmenter, rules=Rules(160, 200, 0.0, 0.0, crop_n_layers=1))
    candidates = layered.propose(picture(160, 200))
    ordinals = candidates.column("ordinal")
    assert (np.diff(ordinals) > 0).all()
    crop_boxes, _ = generate_crop_boxes((160, 200), 1, 512 / 1500)
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
    low = replace(segmenter, rules=Rules(128, 128, 0.0, 0.0)).propose(image)
    high = replace(segmenter, rules=Rules(128, 128, 0.7, 0.8)).propose(image)
    assert 0 < len(high) < len(low)
    assert select(low, thresholds).table == select(high, thresholds).table


def test_nothing_above_the_floors_is_an_empty_table(segmenter: SamSegmenter) -> None:
    for floors in ({"pred_iou_floor": 1.0}, {"stability_floor": 1.01}):
        candidates = replace(segmenter, rules=replace(LAYERED, **floors)).propose(picture(64, 72))
        assert len(candidates) == 0
        assert candidates.table.schema == SCHEMA
        assert (candidates.rules.height, candidates.rules.width) == (64, 72)


def test_the_rules_are_those_of_the_segmenter() -> None:
    odd = SamSegmenter(small_sam, "small", "", 4, Rules(9, 9, 0.6, 0.7, 0.8, 0.5, 1))
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
    at_once, measured = [], []
    original, joined = InputFrame.cut_out, measure.joined

    def counted(frame: InputFrame, square: torch.Tensor) -> torch.Tensor:
        at_once.append(square.shape[:2].numel())
        return original(frame, square)

    def counted_masks(parts: list) -> Any:
        measured.append(len(parts))
        return joined(parts)

    monkeypatch.setattr(InputFrame, "cut_out", counted)
    monkeypatch.setattr(measure, "joined", counted_masks)
    segmenter.propose(picture(96, 128))
    assert set(at_once) == {3}
    # those below the floor are not upsampled at all
    assert 64 <= sum(measured) < 64 * 3


def test_what_is_pruned_is_not_encoded(
    segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, encoded = [], []
    passing = SamSegmenter._passing

    def counted(self: SamSegmenter, *args: Any) -> Any:
        found = passing(self, *args)
        passed.extend(found.ordinals.tolist())
        return found

    def encode(mask: np.ndarray, place: np.ndarray, n: int, *size: int) -> list[bytes]:
        encoded.append(n)
        return encode_edges(mask, place, n, *size)

    monkeypatch.setattr(SamSegmenter, "_passing", counted)
    monkeypatch.setattr("workbench.segmenters.sam.proposals.encode_edges", encode)
    candidates = segmenter.propose(picture(96, 128))
    assert 0 < sum(encoded) == len(candidates) < len(passed)


def test_candidates_are_the_same_however_many_are_encoded_at_once(
    segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = replace(segmenter, rules=LAYERED).begin(picture(160, 200))
    expected = rest()
    monkeypatch.setattr("workbench.segmenters.sam.proposals.EDGES_AT_ONCE", 100)
    assert rest().table == expected.table
    assert len(expected)


def test_what_is_left_after_the_network_needs_no_model(segmenter: SamSegmenter) -> None:
    image = picture(160, 200)
    layered = replace(segmenter, load_model=lambda: segmenter.model, rules=LAYERED)
    expected = layered.propose(image)
    brief = replace(layered, load_model=small_sam)
    rest = brief.begin(image)
    gone = weakref.ref(brief.model)
    del brief
    gc.collect()
    assert gone() is None
    assert rest().table == expected.table
    assert len(expected)


def test_positions_are_encoded_once_for_each_crop(
    segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    original = segmenter.model.prompt_encoder.get_dense_pe

    def counted() -> torch.Tensor:
        encoded.append(1)
        return original()

    monkeypatch.setattr(segmenter.model.prompt_encoder, "get_dense_pe", counted)
    replace(segmenter, load_model=lambda: segmenter.model, rules=LAYERED).propose(picture(160, 200))
    assert len(encoded) == 5


def test_a_gpu_is_warmed_up_before_the_first_tile(
    segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = SamSegmenter.propose

    def counted(self: SamSegmenter, image: np.ndarray) -> Candidates:
        sizes.append(image.shape)
        return original(self, image)

    monkeypatch.setattr(SamSegmenter, "propose", counted)
    segmenter.load()
    assert sizes == []
    monkeypatch.setattr(SamSegmenter, "_device_type", "cuda")
    segmenter.load()
    assert sizes == [(64, 64, 3)]


def test_weights_are_cast_once_for_the_bits_of_autocast() -> None:
    plain = SamSegmenter(small_sam, "small", "", 4, Rules(128, 128, 0.3, 0.3))
    cast, each_time = replace(plain, precision="bf16"), replace(plain, precision="bf16")
    each_time.model = small_sam()
    image = picture(128, 128)
    expected = each_time.propose(image)
    assert cast.propose(image).table == expected.table
    assert plain.propose(image).table != expected.table
    assert len(expected)
    linear = [layer for layer in cast.model.modules() if isinstance(layer, nn.Linear)]
    assert {layer.weight.dtype for layer in linear} == {torch.bfloat16}


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
        "arithmetic": 5,
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
    assert automatic.key["points_per_batch"] == PROMPTS_AT_ONCE["cpu"]


# ------------------------------------------------------------------------------ answers


def test_answers_to_points_are_the_proposals_of_a_grid_there(segmenter: SamSegmenter) -> None:
    image = picture(128, 128)
    # the floor leaves out masks without pixels, whose stability NaN would be unequal to itself
    everything = replace(segmenter, rules=Rules(128, 128, 0.0, 0.01, 1.0), points_per_side=4)
    x, y = np.meshgrid(*[(np.arange(4) + 0.5) * 32] * 2)
    answers, prompt = everything.answer(image, np.column_stack([x.ravel(), y.ravel()]))
    assert prompt.tolist() == (answers.column("ordinal") // 3).tolist()
    assert set(prompt.tolist()) == set(range(16))
    proposed = everything.propose(image)
    kept = np.isin(answers.column("ordinal"), proposed.column("ordinal"))
    assert answers.table.filter(pa.array(kept)) == proposed.table


@torch.no_grad()
def test_answers_to_boxes_are_those_of_the_official_predictor(segmenter: SamSegmenter) -> None:
    image = picture(96, 128)
    points = np.array([[30.0, 40.0], [90.0, 50.0], [64.0, 20.0]])
    boxes = np.array([[10.0, 20.0, 60.0, 70.0], [80.0, 30.0, 120.0, 80.0], [40.0, 4.0, 99.0, 40.0]])
    floorless = replace(segmenter, rules=Rules(96, 128, 0.0, 0.0))
    answers, _ = floorless.answer(image, points, boxes)
    predictor = SamPredictor(segmenter.model)
    predictor.set_image(image)
    masks, ious, _ = predictor.predict_torch(
        predictor.transform.apply_coords_torch(torch.from_numpy(points)[:, None], (96, 128)),
        torch.ones(3, 1, dtype=torch.int),
        predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), (96, 128)),
        multimask_output=True,
    )
    assert answers.column("ordinal").tolist() == list(range(9))
    np.testing.assert_allclose(answers.column("pred_iou"), ious.flatten().numpy(), atol=1e-5)
    ours = np.stack(list(answers.masks()))
    assert (ours == masks.flatten(0, 1).numpy()).mean() > 0.999
