"""EdgeTAM for images: SAM 2's prompt encoder and mask decoder behind a small image encoder, RepViT.

It comes from transformers, its image encoder from timm, both in the extra `models`. The engine
speaks to it as to SAM 2, and Meta's file is read as those of SAM 2 are.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from workbench.segmenters.sam.extras import require

require_edgetam = partial(require, "EdgeTAM", "transformers", "timm")


def build_edgetam(side: int = 1024, width: int = 256, mlp: int = 2048) -> nn.Module:
    """Build EdgeTAM with random weights, for squares of `side` pixels.

    `width` and `mlp` are those of neck, prompt encoder and mask decoder. Raises `CheckpointError`
    if transformers or timm is not installed.
    """
    require_edgetam()
    from transformers import (
        EdgeTamConfig,
        EdgeTamMaskDecoderConfig,
        EdgeTamModel,
        EdgeTamPromptEncoderConfig,
        EdgeTamVisionConfig,
        TimmWrapperConfig,
    )

    # without a name transformers would build another backbone
    levels = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    vision = EdgeTamVisionConfig(
        backbone_config=TimmWrapperConfig(architecture="repvit_m1", model_args=levels),
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=width,
    )
    prompts = EdgeTamPromptEncoderConfig(hidden_size=width, image_size=side)
    decoder = EdgeTamMaskDecoderConfig(hidden_size=width, mlp_dim=mlp, iou_head_hidden_dim=width)
    model: nn.Module = EdgeTamModel(
        EdgeTamConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
        )
    )
    return model
