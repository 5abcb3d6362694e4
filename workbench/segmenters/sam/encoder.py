"""SAM's image encoder with little memory, for the same embedding.

The modules and weights are the official ones. The official attention keeps several copies of the
weight of every position for every other: 805 MB for the 12 heads of `vit_b` on 64 × 64 positions.
Here they are computed for some rows of positions at a time by PyTorch's fused attention. That
reorders its sums, so the embedding differs in its last bits (1e-6 of its range).
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import (
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# How many numbers may be computed at once. On the CPU 8 MB, which fits its caches; from 32 MB on
# glibc maps fresh pages for every tensor. Elsewhere 1 GB: a whole tile.
AT_ONCE = {"cpu": 2**21}


class Predictor(SamPredictor):
    """The official predictor around `encode`."""

    @torch.no_grad()
    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, int]
    ) -> None:
        """Embed a resized RGB image, `(1, 3, h, w)`, whose longer side is the encoder's."""
        self.reset_image()
        height, width = transformed_image.shape[-2:]
        self.original_size, self.input_size = original_image_size, (height, width)
        pixels = self.model.preprocess(transformed_image)
        self.features = encode(self.model.image_encoder, pixels)
        self.is_image_set = True


def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """Embed normalised square images, `(b, 3, h, w)`, as `(b, c, h / 16, w / 16)`.

    An encoder of another class than the official one is called unchanged.
    """
    if type(encoder) is not ImageEncoderViT:
        embedding: Tensor = encoder(pixels)
        return embedding
    x = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        x = _block(block, x)
    embedding = encoder.neck(x.permute(0, 3, 1, 2))
    return embedding


def _block(block: Any, x: Tensor) -> Tensor:
    """Pass `(b, h, w, c)` through a transformer block."""
    side, size = block.window_size, (x.shape[1], x.shape[2])
    y = block.norm1(x)
    if side > 0:
        y, padded = window_partition(y, side)
    y = _attention(block.attn, y)
    if side > 0:
        y = window_unpartition(y, side, padded, size)
    x = x + y
    rows = x.flatten(0, 2)
    step = max(1, _at_once(x) // block.mlp.lin1.out_features)
    change = torch.cat([block.mlp(block.norm2(some)) for some in rows.split(step)])
    return x + change.view_as(x)


def _attention(attention: Any, x: Tensor) -> Tensor:
    """Attend among the positions of each of `(b, h, w, c)`."""
    b, h, w, _ = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).view(b, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)  # (b, heads, hw, d)
    found = torch.empty((b, h * w, heads, q.shape[-1]), dtype=q.dtype, device=q.device)
    out = found.transpose(1, 2)
    row = heads * w * h * w
    images, rows = max(1, _at_once(x) // (row * h)), min(h, max(1, _at_once(x) // row))
    for i in range(0, b, images):
        for j in range(0, h, rows):
            places = slice(j * w, (j + rows) * w)
            some, all_ = q[i : i + images, :, places], slice(i, i + images)
            bias = _relative(attention, some, j, (h, w)) if attention.use_rel_pos else None
            out[all_, :, places] = scaled_dot_product_attention(some, k[all_], v[all_], bias)
    y: Tensor = attention.proj(found.view(b, h, w, -1))
    return y


def _relative(attention: Any, q: Tensor, first_row: int, size: tuple[int, int]) -> Tensor:
    """What the queries of some rows, `(b, heads, rows w, d)`, add for the way to each position."""
    h, w = size
    q = q.unflatten(2, (-1, w))
    rows = slice(first_row, first_row + q.shape[2])
    down = torch.einsum("bnhwc,hkc->bnhwk", q, get_rel_pos(h, h, attention.rel_pos_h)[rows])
    across = torch.einsum("bnhwc,wkc->bnhwk", q, get_rel_pos(w, w, attention.rel_pos_w))
    return (down[..., None] + across[..., None, :]).flatten(4).flatten(2, 3)


def _at_once(x: Tensor) -> int:
    return AT_ONCE.get(x.device.type, 2**28)
