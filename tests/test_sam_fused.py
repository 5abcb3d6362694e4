"""The fused pass against SAM's own steps, in Triton's interpreter where there is no GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_sams import picture, small_sam

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from workbench.segmenters.sam import SamSegmenter
from workbench.segmenters.sam.fused import PackedMasks, measure_masks
from workbench.segmenters.sam.loaded import LoadedNetwork

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything.modeling import Sam  # isort: skip
from segment_anything.utils.amg import (  # isort: skip
    batched_mask_to_box,
    calculate_stability_score,
)

SIDE, LOW = 128, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# size after the longest side is scaled to SIDE, and original size
FRAMES = {
    "as large as the square": ((128, 128), (128, 128)),
    "not square": ((96, 128), (96, 128)),
    "enlarged": ((128, 72), (57, 32)),
    "reduced": ((80, 128), (166, 265)),
}


class Frame:
    """What `postprocess_masks` asks of its model."""

    image_encoder = type("Encoder", (), {"img_size": SIDE})


def in_steps(logits, frame, threshold, offset) -> PackedMasks:
    """SAM's way, with all logits at full resolution."""
    whole = Sam.postprocess_masks(Frame, logits[None], *frame)[0]
    masks = whole > threshold
    return PackedMasks(
        calculate_stability_score(whole, threshold, offset),
        masks.sum((1, 2)).int(),
        batched_mask_to_box(masks).int(),
        torch.from_numpy(np.packbits(masks.cpu().numpy(), axis=2)).to(masks.device),
    )


def blobs(n: int, seed: int = 0) -> torch.Tensor:
    rough = torch.randn((1, n, 5, 5), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(4 * rough, (LOW, LOW), mode="bicubic")[0]


@pytest.mark.parametrize("frame", ["as large as the square", "not square"])
@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_the_same_bits_where_arithmetic_is_exact(frame, threshold):
    """Of logits in steps of 1/64 and weights in steps of 1/8, no product or sum is rounded."""
    logits = (torch.round(blobs(6) * 64) / 64).to(DEVICE)
    logits[4] = -9  # no pixel
    logits[5] = 9  # every pixel
    logits[3, 0, 0] = logits[3, -1, -1] = 9  # corners
    expected = in_steps(logits, FRAMES[frame], threshold, 1.0)
    measured = measure_masks(logits, SIDE, *FRAMES[frame], threshold, 1.0)
    for name, ours, theirs in zip(PackedMasks._fields, measured, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=name)
    assert 0 < int(expected.areas[0]) < 128 * 96


@pytest.mark.parametrize("frame", FRAMES)
def test_C1_masks_agree_where_sums_are_rounded(frame):
    logits = blobs(4, seed=1).to(DEVICE)
    expected = in_steps(logits, FRAMES[frame], 0.0, 1.0)
    measured = measure_masks(logits, SIDE, *FRAMES[frame], 0.0, 1.0)
    ours, theirs = (
        np.unpackbits(masks.bits.cpu().numpy(), axis=2).astype(bool)
        for masks in (measured, expected)
    )
    iou = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert ours.shape == theirs.shape
    assert iou.min() > 0.999
    torch.testing.assert_close(measured.stability, expected.stability, rtol=1e-3, atol=0)
    torch.testing.assert_close(measured.areas, expected.areas, rtol=1e-3, atol=2)
    assert (measured.boxes - expected.boxes).abs().max() <= 1
    # what is measured is what is packed
    assert measured.areas.tolist() == ours.sum((1, 2)).tolist()


def test_no_masks_are_no_work():
    none = measure_masks(torch.empty((0, LOW, LOW)), SIDE, (128, 96), (128, 100), 0.0, 1.0)
    assert [tuple(part.shape) for part in none] == [(0,), (0,), (0, 4), (0, 128, 13)]


def test_a_segmenter_proposes_the_same_with_the_fused_pass(monkeypatch):
    plain = SamSegmenter(small_sam, "small", "", points_per_side=2)
    image = picture(96, 120)
    expected = plain.propose(image)
    monkeypatch.setattr(LoadedNetwork, "_fuses", True)
    fused = replace(plain, device=DEVICE).propose(image)
    assert len(expected) > 1
    for name in ("ordinal", "pred_iou"):
        np.testing.assert_array_equal(fused.column(name), expected.column(name))
    for ours, theirs in zip(fused.masks(), expected.masks(), strict=True):
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.99
    assert fused.column("area_px").tolist() == [int(mask.sum()) for mask in fused.masks()]
