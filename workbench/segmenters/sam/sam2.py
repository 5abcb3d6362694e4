"""SAM 2.1 for images, through transformers: an optional extra, imported when a model is built.

transformers has its own names for the weights. `names_of_transformers` translates those of Meta's
files, so that the files can be checked against Meta's own sha256.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.segmenters.sam.decoder import Decode, DecoderParts, ImageDecoder, LogitsOf
from workbench.segmenters.sam.extras import require
from workbench.segmenters.sam.network import Ask, Prompts

# of ImageNet, in units of 0 to 255; the same numbers as the first SAM's
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

require_transformers = partial(require, "SAM 2.1", "transformers")


@dataclass(frozen=True)
class Trunk:
    """The sizes of an image encoder, Hiera."""

    width: int  # of the first stage; each stage doubles it
    heads: int  # the same
    blocks: tuple[int, ...]
    attend_to_all: tuple[int, ...]  # these blocks, the others attend within windows
    windows: tuple[int, ...] = (8, 4, 14, 7)
    background: int = 7  # side of the coarse position embedding


TRUNKS = {
    "tiny": Trunk(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Trunk(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base_plus": Trunk(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "large": Trunk(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}


def build_sam2(trunk: Trunk, side: int = 1024, width: int = 256, mlp: int = 2048) -> nn.Module:
    """Build SAM 2.1 with random weights, for squares of `side` pixels.

    `width` and `mlp` are those of neck, prompt encoder and mask decoder. Raises `CheckpointError`
    if transformers is not installed.
    """
    require_transformers()
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    widths = [trunk.width * 2**stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=trunk.width,
        num_attention_heads=trunk.heads,
        image_size=[side, side],
        window_positional_embedding_background_size=[trunk.background] * 2,
        blocks_per_stage=list(trunk.blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[trunk.heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(trunk.windows),
        global_attention_blocks=list(trunk.attend_to_all),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=width,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=width, image_size=side)
    decoder = Sam2MaskDecoderConfig(hidden_size=width, mlp_dim=mlp, iou_head_hidden_dim=width)
    model: nn.Module = Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    return model


class Sam2:
    """SAM 2.1 or EdgeTAM of transformers: a `Network`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.side = int(model.config.prompt_encoder_config.image_size)
        self.masks_per_prompt = int(model.mask_decoder.num_multimask_outputs)
        self.mask_threshold = 0.0

    def look(self, image: Tensor) -> Ask:
        """Embed an image; its features at strides 4, 8 and 16 are kept for all prompts.

        A decoder of another class than the library's is called as it is.
        """
        model = self.model
        *fine, features = model.get_image_embeddings(in_its_square(image, self.side))
        with torch.autocast(image.device.type, enabled=False):
            positions = model.get_image_wide_positional_embeddings()
        if type(model.mask_decoder).__module__.startswith("transformers."):
            no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
            decoder = model.mask_decoder
            tokens = decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens
            parts = parts_of_transformers(decoder, tokens, 1)
            return ask_with(
                lambda dense: ImageDecoder(parts, features, positions, dense, fine), no_mask, model
            )

        def as_it_is(prompts: Prompts) -> tuple[Tensor, LogitsOf]:
            sparse, dense = embedded(model, prompts)
            logits, iou, *_ = model.mask_decoder(
                image_embeddings=features,
                image_positional_embeddings=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                high_resolution_features=fine,
            )
            return iou[0], lambda wanted: logits[0][wanted]

        return as_it_is


def in_its_square(image: Tensor, side: int) -> Tensor:
    """Normalise an RGB image, `(1, 3, h, w)` and 0 to 255, and pad it to `(1, 3, side, side)`."""
    pixels = image.float()
    mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    height, width = pixels.shape[-2:]
    return pad((pixels - mean) / std, (0, side - width, 0, side - height))


def ask_with(decoder: Callable[[Tensor], Decode], no_mask: Tensor, model: Any) -> Ask:
    """Prompt a decoder, which is made for a mask prompt or for none, `(1, c, h, w)`."""
    decode = decoder(no_mask)

    def ask(prompts: Prompts) -> tuple[Tensor, LogitsOf]:
        sparse, dense = embedded(model, prompts)
        return (decode if prompts.mask is None else decoder(dense))(sparse[0])

    return ask


def embedded(model: Any, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Embed prompts as `(1, b, n, c)`, and the mask prompt, or none, as `(1, c, h, w)`."""
    points, labels, boxes = (
        None if part is None else part[None]
        for part in (prompts.points, prompts.labels, prompts.boxes)
    )
    with torch.autocast(model.device.type, enabled=False):
        sparse, dense = model.prompt_encoder(
            input_points=points, input_labels=labels, input_boxes=boxes, input_masks=None
        )
    if prompts.mask is not None:
        dense = model.prompt_encoder.mask_embed(prompts.mask)
    return sparse, dense


def parts_of_transformers(decoder: Any, tokens: Sequence[Any], iou_token: int) -> DecoderParts:
    """Take a mask decoder of transformers apart; `tokens` and `iou_token` as in `DecoderParts`."""
    transformer = decoder.transformer
    return DecoderParts(
        torch.cat([token.weight for token in tokens]),
        iou_token,
        [_layer(layer) for layer in transformer.layers],
        _attention(transformer.final_attn_token_to_image),
        transformer.layer_norm_final_attn,
        decoder.iou_prediction_head,
        decoder.output_hypernetworks_mlps,
        (decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2),
    )


def _layer(layer: Any) -> SimpleNamespace:
    """Give a layer's modules the names that the first SAM has for them."""
    attentions = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    return SimpleNamespace(
        skip_first_layer_pe=layer.skip_first_layer_pe,
        mlp=layer.mlp,
        **{f"norm{i}": getattr(layer, f"layer_norm{i}") for i in range(1, 5)},
        **{name: _attention(getattr(layer, name)) for name in attentions},
    )


def _attention(attention: Any) -> SimpleNamespace:
    return SimpleNamespace(
        num_heads=attention.num_attention_heads,
        internal_dim=attention.internal_dim,
        q_proj=attention.q_proj,
        k_proj=attention.k_proj,
        v_proj=attention.v_proj,
        out_proj=getattr(attention, "o_proj", None) or attention.out_proj,  # HQ-SAM's name
    )


# what only videos need
_OF_VIDEO = re.compile(
    r"memory_|maskmem|spatial_perceiver|no_mem_pos|mask_downsample|obj_ptr|no_obj_"
)
# names in prompt encoder and mask decoder that all families share, as transformers has them
SHARED_NAMES = (
    (r"\.norm(\d|_final)", r".layer_norm\1"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
)
# Meta's other names, changed one after the other
_RENAMED = (
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^image_encoder\.trunk\.body\.", "vision_encoder.backbone.timm_model."),  # EdgeTAM
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.out_proj\.", ".o_proj."),
    # two layers in image encoder and transformer, three in the heads
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"(mlps\.\d+|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d+|_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d+|_head)\.layers\.2\.", r"\1.proj_out."),
)


def names_of_transformers(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the weights of one of Meta's files, and leave out what only videos need.

    Other weights are returned as they are.
    """
    inside = weights.get("model", weights)
    if not isinstance(inside, Mapping) or "sam_mask_decoder.iou_token.weight" not in inside:
        return dict(weights)
    renamed = {_renamed(name): value for name, value in inside.items() if not _OF_VIDEO.match(name)}
    points = [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    if all(isinstance(renamed.get(name), Tensor) for name in points):
        parts = [renamed.pop(name) for name in points]
        renamed["prompt_encoder.point_embed.weight"] = torch.cat(parts)
    return positions_twice(renamed)


def positions_twice(renamed: dict[str, Any]) -> dict[str, Any]:
    """Give the image the code of places that the prompts have: transformers keeps it twice."""
    name = "shared_embedding.positional_embedding"
    if f"prompt_encoder.{name}" in renamed:
        code = renamed[f"prompt_encoder.{name}"]
        renamed["shared_image_embedding.positional_embedding"] = code
    return renamed


def _renamed(name: str) -> str:
    for pattern, new in (*_RENAMED, *SHARED_NAMES):
        name = re.sub(pattern, new, name)
    return name
