"""Make a torchvision that was built for CUDA importable beside a CPU-only torch."""

from __future__ import annotations

import math
import sys

import torch

from workbench.candidates.select import nms


def mend_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not load beside this torch.

    The package index pairs a CPU-only torch with a torchvision built against CUDA, whose import
    then fails (pytorch#122494, vision#8985). The operators that SAM needs are `nms`, in its own
    generator, and SAM 3's `roi_align`. Does nothing if torchvision can be imported.
    """
    try:
        import torchvision

        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # left half imported

    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # torchvision describes both while it is imported
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.impl("nms", _nms_on_cpu, "CPU")
    import torchvision.ops.boxes

    # SAM 3's boxes: torchvision would compile its own replacement, for which a C++ compiler must be
    # there
    vars(sys.modules["torchvision.ops.roi_align"])["_roi_align"] = roi_align_on_cpu

    # only the check before nms is switched off: the other operators are still missing, and their
    # own errors say so
    torchvision.ops.boxes._assert_has_ops = lambda: None
    # an operator lives as long as its Library, and must outlive a reload of this module
    torchvision.ops.boxes._workbench_operators = operators


def _nms_on_cpu(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    return torch.from_numpy(nms(boxes.numpy(), scores.numpy(), iou_threshold))


def roi_align_on_cpu(
    features: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Do what `torchvision.ops.roi_align` does: `(n, c, pooled_height, pooled_width)`.

    Bilinear sampling and the mean of each bin are linear along y and along x, so each is a matrix.
    """
    pooled = [features.new_zeros((0, features.shape[1], pooled_height, pooled_width))]
    for image, *corners in rois.tolist():
        x0, y0, x1, y1 = (corner * spatial_scale - 0.5 * aligned for corner in corners)
        down = _means(features, 2, y0, y1, pooled_height, sampling_ratio, aligned)
        along = _means(features, 3, x0, x1, pooled_width, sampling_ratio, aligned)
        pooled.append((down @ features[int(image)] @ along.T)[None])
    return torch.cat(pooled)


def _means(
    features: torch.Tensor,
    axis: int,
    start: float,
    end: float,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Weights `(bins, size)` of the pixels along an axis in the mean of each bin of a box."""
    size = features.shape[axis]
    length = end - start if aligned else max(end - start, 1.0)
    samples = sampling_ratio if sampling_ratio > 0 else max(1, math.ceil(length / bins))
    at = start + (torch.arange(bins * samples, dtype=torch.float64) + 0.5) * length / bins / samples
    outside = (at < -1) | (at > size)
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    weights = torch.zeros(len(at), size, dtype=torch.float64)
    row = torch.arange(len(at))
    weights[row, low] += 1 - (at - low)
    weights[row, high] += at - low
    weights[outside] = 0
    return weights.view(bins, samples, size).mean(1).to(features)
