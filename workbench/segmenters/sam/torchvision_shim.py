"""Make a torchvision that was built for CUDA importable beside a CPU-only torch."""

from __future__ import annotations

import sys

import torch

from workbench.candidates.select import nms


def mend_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not load beside this torch.

    The package index pairs a CPU-only torch with a torchvision built against CUDA, whose import
    then fails (pytorch#122494, vision#8985). The only operator that SAM needs is `nms`, in its own
    generator. Does nothing if torchvision can be imported.
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

    # only the check before nms is switched off: the other operators are still missing, and their
    # own errors say so
    torchvision.ops.boxes._assert_has_ops = lambda: None
    # an operator lives as long as its Library, and must outlive a reload of this module
    torchvision.ops.boxes._workbench_operators = operators


def _nms_on_cpu(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    return torch.from_numpy(nms(boxes.numpy(), scores.numpy(), iou_threshold))
