"""Masks measured without enlarging all of them, against those of the enlarged logits."""

import numpy as np
import pytest
import torch

from workbench.sam.measure import Measured, measure_enlarged, measure_whole

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


def plain(mask: Measured) -> tuple:
    assert mask.area_px == mask.pixels.sum()
    return str(mask.stability_score), mask.box, mask.pixels.shape, mask.pixels.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [2, 4])
def test_C1_each_bit_is_that_of_the_whole(scale: int, threads: int) -> None:
    torch.set_num_threads(threads)
    low_res = logits()
    whole = torch.nn.functional.interpolate(
        low_res.view(-1, 3, 64, 64), scale_factor=scale, mode="bilinear", align_corners=False
    ).flatten(0, 1)
    expected = [plain(mask) for mask in measure_whole(whole, 0.0)]
    assert [plain(mask) for mask in measure_enlarged(low_res, scale, 0.0)] == expected
    assert len({shape for _, _, shape, _ in expected}) > 30
    assert any(np.isnan(float(stability)) for stability, *_ in expected)
