"""The torchvision that segment_anything gets, also beside a torch that it was not built for."""

import numpy as np
import pytest
import torch
from test_candidates import suppress

from workbench.segmenters.sam.torchvision_shim import mend_torchvision


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
