"""The torchvision that segment_anything gets, also beside a torch that it was not built for."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from test_candidates import suppress

from workbench.segmenters.sam.torchvision_shim import mend_torchvision, roi_align_on_cpu


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
    mend_torchvision()
    import torchvision as after

    assert after is torchvision


def torchvisions_own_roi_align():
    """Its replacement in Python, which it would compile, as its file has it."""
    import torchvision

    path = Path(torchvision.__file__).parent / "ops" / "roi_align.py"
    spec = spec_from_file_location("torchvision.ops._again", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._roi_align.__wrapped__


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_the_operator_that_replaces_roi_align_equals_torchvisions_own_in_python(
    aligned: bool, ratio: int
) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 9, 11)
    corners = torch.rand(12, 2) * 5  # beyond the image, it differs from the compiled operator
    boxes = torch.cat([corners, corners + torch.rand(12, 2) * 4], 1)
    rois = torch.cat([torch.randint(0, 2, (12, 1)).float(), boxes], 1)
    given = (features, rois, 0.9, 4, 3, ratio, aligned)
    theirs = torchvisions_own_roi_align()
    assert roi_align_on_cpu(features, rois[:0], 0.9, 4, 3, ratio, aligned).shape == (0, 3, 4, 3)
    torch.testing.assert_close(roi_align_on_cpu(*given), theirs(*given), rtol=1e-4, atol=1e-5)
