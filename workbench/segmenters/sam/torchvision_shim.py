"""Mends a torchvision that does not import beside a CPU-only torch."""

from __future__ import annotations

import sys

import torch

from workbench.candidates.select import nms


def mend_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not load beside this torch.

    The package index pairs a CPU-only torch with a torchvision built against CUDA, whose import
    then fails (pytorch#122494, vision#8985). SAM needs no operator but `nms`, and that one only
    in its own generator. Does nothing where torchvision imports.
    """
    try:
        import torchvision

        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left half made

    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # torchvision describes both while it is imported
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.impl("nms", _nms_on_cpu, "CPU")
    import torchvision.ops.boxes

    # only the gate of nms is opened: the other operators are still missing and still say so
    torchvision.ops.boxes._assert_has_ops = lambda: None
    # an operator lives as long as its Library, and must outlive a reload of this module
    torchvision.ops.boxes._workbench_operators = operators


def _nms_on_cpu(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    return torch.from_numpy(nms(boxes.numpy(), scores.numpy(), iou_threshold))
