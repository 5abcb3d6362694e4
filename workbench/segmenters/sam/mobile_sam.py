"""MobileSAM: SAM's prompt encoder and mask decoder behind a small image encoder, TinyViT.

The encoder comes from timm, an optional extra that is imported when a model is built. MobileSAM
changed one thing in it: the last stage keeps the resolution of the stage before. Its file has other
names for the weights, which `names_of_timm` translates, so that the file can be checked against its
published sha256. Paper: Zhang et al., "Faster Segment Anything", arXiv 2306.14289.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from workbench.segmenters.sam.extras import require

STRIDE = 16  # of the embedding

require_timm = partial(require, "MobileSAM", "timm")


class TinyVitEncoder(nn.Module):
    """TinyViT and SAM's neck: normalised images `(n, 3, side, side)` to `(n, width, side / 16, …)`.

    `img_size` is the side that `Sam` resizes and pads to.
    """

    def __init__(self, side: int, width: int, **sizes: Any) -> None:
        super().__init__()
        import timm

        self.img_size = side
        with torch.device("cpu"):  # its table of offsets is no weight, so it needs its values here
            trunk: Any = timm.create_model("tiny_vit_5m_224", num_classes=0, **sizes)
        trunk.head = nn.Identity()
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.trunk: nn.Module = trunk
        self.neck = nn.Sequential(
            nn.Conv2d(trunk.num_features, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised images."""
        embedding: Tensor = self.neck(cast(Any, self.trunk).forward_features(x))
        return embedding


def build_mobile_sam(side: int = 1024, width: int = 256, mlp: int = 2048, **sizes: Any) -> Sam:
    """Build MobileSAM with random weights, for squares of `side` pixels.

    `width` and `mlp` are those of prompt encoder and mask decoder, `sizes` what timm may be told of
    TinyViT. Raises `CheckpointError` if timm is not installed.
    """
    require_timm()
    return Sam(
        image_encoder=TinyVitEncoder(side, width, **sizes),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side // STRIDE, side // STRIDE),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=mlp),
        ),
    )


# the head of a classifier, which the file still has
_OF_CLASSIFIER = re.compile(r"image_encoder\.(head|norm_head)\.")
# names in MobileSAM's file as timm has them, changed one after the other
_RENAMED = (
    (r"^image_encoder\.(patch_embed|layers)\.", r"image_encoder.trunk.\1."),
    (r"\.patch_embed\.seq\.0\.", ".patch_embed.conv1."),
    (r"\.patch_embed\.seq\.2\.", ".patch_embed.conv2."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"\.local_conv\.c\.", ".local_conv.conv."),
)
_DOWNSAMPLE = re.compile(r"\.layers\.(\d+)\.downsample\.")


def names_of_timm(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the weights of MobileSAM's file, and leave out those of its classifier.

    Other weights are returned as they are.
    """
    if "image_encoder.patch_embed.seq.0.c.weight" not in weights:
        return dict(weights)
    return {
        _renamed(name): value for name, value in weights.items() if not _OF_CLASSIFIER.match(name)
    }


def _renamed(name: str) -> str:
    if not name.startswith("image_encoder."):
        return name
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    # a stage there ends with the step to the next one, which begins with it here
    name = _DOWNSAMPLE.sub(lambda found: f".stages.{int(found[1]) + 1}.downsample.", name)
    return name.replace(".layers.", ".stages.")
