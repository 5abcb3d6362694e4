"""HQ-SAM: the first SAM with finer masks, through transformers, an optional extra.

A token and features of its own correct the best of SAM's three masks, so there is one mask for each
prompt. `names_of_transformers` translates the weights of the authors' files, which are not
downloaded: no sha256 of them is published. Paper: Ke et al., "Segment Anything in High Quality",
arXiv 2306.01567.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from workbench.segmenters.sam.decoder import ImageDecoder, LogitsOf
from workbench.segmenters.sam.extras import require
from workbench.segmenters.sam.network import Ask
from workbench.segmenters.sam.sam2 import (
    SHARED_NAMES,
    ask_with,
    in_its_square,
    parts_of_transformers,
    positions_twice,
)

require_transformers = partial(require, "HQ-SAM", "transformers")


@dataclass(frozen=True)
class Vit:
    """The sizes of an image encoder, ViT."""

    width: int
    depth: int
    heads: int
    attend_to_all: tuple[int, ...]  # these layers, the others attend within windows


VITS = {
    "vit_b": Vit(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Vit(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Vit(1280, 32, 16, (7, 15, 23, 31)),
}


def build_sam_hq(vit: Vit, side: int = 1024, width: int = 256, mlp: int = 2048) -> nn.Module:
    """Build HQ-SAM with random weights, for squares of `side` pixels.

    `width` and `mlp` are those of neck, prompt encoder and mask decoder. Raises `CheckpointError`
    if transformers is not installed.
    """
    require_transformers()
    from transformers import (
        SamHQConfig,
        SamHQMaskDecoderConfig,
        SamHQModel,
        SamHQPromptEncoderConfig,
        SamHQVisionConfig,
    )

    vision = SamHQVisionConfig(
        hidden_size=vit.width,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        global_attn_indexes=list(vit.attend_to_all),
        image_size=side,
        output_channels=width,
        num_pos_feats=width // 2,
    )
    prompts = SamHQPromptEncoderConfig(hidden_size=width, image_size=side)
    decoder = SamHQMaskDecoderConfig(
        hidden_size=width, mlp_dim=mlp, iou_head_hidden_dim=width, vit_dim=vit.width
    )
    model: nn.Module = SamHQModel(
        SamHQConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
        )
    )
    return model


class SamHq:
    """HQ-SAM of transformers: a `Network`."""

    masks_per_prompt = 1
    mask_threshold = 0.0

    def __init__(self, model: Any) -> None:
        self.model = model
        self.side = int(model.config.prompt_encoder_config.image_size)

    def look(self, image: Tensor) -> Ask:
        """Embed an image; the features after the first block that sees all of it are kept, too."""
        model = self.model
        features, between = model.get_image_embeddings(in_its_square(image, self.side))
        with torch.autocast(image.device.type, enabled=False):
            positions = model.get_image_wide_positional_embeddings()
        no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        early = between[0].permute(0, 3, 1, 2)
        return ask_with(
            lambda dense: HqDecoder(model.mask_decoder, features, positions, dense, early),
            no_mask,
            model,
        )


class HqDecoder(ImageDecoder):
    """HQ-SAM's mask decoder on one image.

    The library has its modules, but not this call: in transformers 5.24 masks are made of the image
    as it was before prompts were seen (`SamHQMaskDecoder.forward`), unlike the authors' ones.
    """

    def __init__(
        self, decoder: Any, features: Tensor, image_pe: Tensor, no_mask: Tensor, early: Tensor
    ) -> None:
        """`early` are features of the image encoder, `(1, vit, h, w)`; see `ImageDecoder`."""
        tokens = decoder.iou_token, decoder.mask_tokens, decoder.hq_token
        super().__init__(parts_of_transformers(decoder, tokens, 0), features, image_pe, no_mask)
        self._decoder = decoder
        self._sharp = _through(
            features, decoder.encoder_conv1, decoder.encoder_norm, decoder.encoder_conv2
        ) + _through(
            early, decoder.compress_vit_conv1, decoder.compress_vit_norm, decoder.compress_vit_conv2
        )

    def __call__(self, sparse: Tensor) -> tuple[Tensor, LogitsOf]:
        """Decode the embeddings of `b` prompts, `(b, n, c)`; one mask each."""
        queries, keys = self.transformed(sparse)
        iou, best = self.parts.iou_head(queries[:, 0])[:, 1:].max(dim=1)
        heads = self.parts.mask_heads[1:]
        masks = torch.stack([head(queries[:, 2 + i]) for i, head in enumerate(heads)], 1)
        usual = masks[torch.arange(len(best), device=best.device), best]  # (b, c / 8)
        fine = self._decoder.hq_mask_mlp(queries[:, -sparse.shape[1] - 1])
        return iou[:, None], lambda wanted: self._best(keys, usual, fine, wanted[:, 0])

    def _best(self, keys: Tensor, usual: Tensor, fine: Tensor, wanted: Tensor) -> Tensor:
        """`(n, 4h, 4w)` logits of the prompts that are `wanted`, `(b,)`."""
        decoder, logits = self._decoder, []
        for some in self.groups(wanted):
            image = self.on_grid(self.upscaled(keys[some]))
            sharp = self._sharp + _through(
                image, decoder.mask_conv1, decoder.mask_norm, decoder.mask_conv2
            )
            logits.append(_product(usual[some], image) + _product(fine[some], sharp))
        return torch.cat(logits)


def _through(x: Tensor, one: Any, norm: Any, other: Any) -> Tensor:
    """Two convolutions with a norm between them."""
    out: Tensor = other(gelu(norm(one(x))))
    return out


def _product(weights: Tensor, image: Tensor) -> Tensor:
    """Of `(b, c)` and `(b, c, h, w)`: `(b, h, w)`."""
    return (weights[:, None] @ image.flatten(2)).view(len(image), *image.shape[2:])


# the authors' other names as transformers has them, changed one after the other
_RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.blocks\.", ".layers."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"point_embeddings\.", "point_embed."),
    (r"hf_token\.", "hq_token."),
    (r"hf_mlp\.", "hq_mask_mlp."),
    (r"compress_vit_feat\.0\.", "compress_vit_conv1."),
    (r"compress_vit_feat\.1\.", "compress_vit_norm."),
    (r"compress_vit_feat\.3\.", "compress_vit_conv2."),
    (r"embedding_encoder\.0\.", "encoder_conv1."),
    (r"embedding_encoder\.1\.", "encoder_norm."),
    (r"embedding_encoder\.3\.", "encoder_conv2."),
    (r"embedding_maskfeature\.0\.", "mask_conv1."),
    (r"embedding_maskfeature\.1\.", "mask_norm."),
    (r"embedding_maskfeature\.3\.", "mask_conv2."),
    (r"(mlps\.\d+|_mlp|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d+|_mlp|_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d+|_mlp|_head)\.layers\.2\.", r"\1.proj_out."),
)


def names_of_transformers(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the weights of one of the authors' files; other weights are returned as they are."""
    if "mask_decoder.hf_token.weight" not in weights:
        return dict(weights)
    renamed = {}
    for name, value in weights.items():
        for pattern, new in (*_RENAMED, *SHARED_NAMES):
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return positions_twice(renamed)
