"""Masks measured without enlarging all of them, against those of the enlarged logits."""

import numpy as np
import pytest
import torch

from workbench.candidates.rle import encode_edges, encode_masks
from workbench.segmenters.sam.measure import (
    Measured,
    edges_of,
    edges_of_bits,
    measure_enlarged,
    measure_resized,
    measure_whole,
)
from workbench.segmenters.sam.network import InputFrame

pytestmark = pytest.mark.usefixtures("one_thread")


def logits() -> torch.Tensor:
    """`(3 n, 64, 64)`: blobs of all sizes and places, at the edges, too; some hardly exist."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    at = torch.rand(60, 3, 1, 1) * 70 - 3
    size = 10 ** (torch.rand(60, 1, 1) * 2 - 0.7)
    distance = torch.hypot(x - at[:, 0], y - at[:, 1])
    blobs = 6 * (1 - distance / size) + 0.3 * torch.randn(60, 64, 64)
    return torch.cat(
        [blobs, torch.full((1, 64, 64), -9.0), torch.full((1, 64, 64), -0.5), blobs[:1]]
    )


def plain(masks: Measured) -> list[tuple]:
    edges = np.split(masks.edges, np.cumsum(masks.n_edges)[:-1])
    numbers = (masks.stability.tolist(), masks.boxes.tolist(), masks.areas.tolist())
    return [
        (str(stability), box, area, sorted(map(tuple, some.tolist())))
        for stability, box, area, some in zip(*numbers, edges, strict=True)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("channels", [3, 6])
def test_C1_each_bit_is_that_of_the_whole(channels: int, scale: int, threads: int) -> None:
    torch.set_num_threads(threads)
    low_res = torch.cat([logits(), logits()[-3:]])
    whole = torch.nn.functional.interpolate(
        low_res.view(-1, channels, 64, 64), scale_factor=scale, mode="bilinear", align_corners=False
    ).flatten(0, 1)
    expected = plain(measure_whole(whole, 0.0))
    assert plain(measure_enlarged(low_res, scale, channels, 0.0)) == expected
    assert len({tuple(box) for _, box, *_ in expected}) > 30
    assert any(np.isnan(float(stability)) for stability, *_ in expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(256, 256), (264, 281), (281, 200), (97, 60), (700, 900)])
def test_C1_at_the_size_of_any_image_each_bit_is_that_of_the_whole(
    size: tuple[int, int], threads: int
) -> None:
    torch.set_num_threads(threads)
    low_res, frame = logits(), InputFrame(256, size)
    whole = frame.enlarged(low_res.view(-1, 3, 64, 64)).flatten(0, 1)
    expected = plain(measure_whole(whole, 0.0))
    assert plain(measure_resized(low_res, frame, 4, 3, 0.0)) == expected
    # a number of masks that the channels do not divide
    assert plain(measure_resized(low_res[:4], frame, 4, 3, 0.0)) == expected[:4]
    assert len(measure_resized(low_res[:0], frame, 4, 3, 0.0)) == 0
    assert len({tuple(box) for _, box, *_ in expected}) > 30
    assert any(np.isnan(float(stability)) for stability, *_ in expected)


@pytest.mark.parametrize("width", [32, 37])
def test_edges_are_what_masks_are_encoded_from(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole columns, too, of which one run joins the next, and masks of all or no pixels."""
    masks = np.random.default_rng(0).random((40, 11, width)) < np.linspace(0, 1, 40)[:, None, None]
    masks[5:20, :, 3:9] = True
    masks[10:30, :5] = masks[10:30, 5:7] = False
    assert masks[-1].all()
    assert not masks[0].any()
    n_edges, edges = edges_of(masks)
    bits = torch.from_numpy(np.packbits(masks, axis=2))
    of_bits = edges_of_bits(bits)
    monkeypatch.setattr("workbench.segmenters.sam.measure.BYTES_AT_ONCE", 100)
    in_pieces = edges_of_bits(bits)
    for one, other in zip(in_pieces, of_bits, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(of_bits[0], n_edges)
    # in another order, which does not matter
    number = np.repeat(np.arange(len(masks)), n_edges)
    both = (np.column_stack((number, some)).tolist() for some in (edges, of_bits[1]))
    assert sorted(next(both)) == sorted(next(both))
    place = edges[:, 0].astype(int) * 11 + edges[:, 1]
    assert encode_edges(number, place, len(masks), 11, width) == encode_masks(masks)
    assert edges_of(masks[:0])[0].shape == (0,)
    assert edges_of_bits(torch.zeros((0, 11, 5), dtype=torch.uint8))[1].shape == (0, 2)
