"""SAM's mask decoder for many prompts on one image, with less arithmetic for the same masks.

The modules and weights are those of the model. What is computed with them, and when, differs:

- The first layer's projections of the image are equal for all prompts, and are computed once.
- Elsewhere the image is not projected at all. A prompt has 7 tokens and 4,096 image positions, so
  the projections (of keys and queries into scores, of values and outputs after them) are moved to
  the tokens' side of the product: a matrix product of 56 columns instead of 128.
- Scores need only the tokens, so only prompts with a mask above a floor are upscaled.

The first and third keep every sum, except for the batch that it is computed in. The second reorders
sums, so logits differ in their last bits (1e-5 of their range).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

# which of (b, masks) are wanted -> their (n, h, w) logits
LogitsOf = Callable[[Tensor], Tensor]
# (b, tokens, c) prompts -> (b, masks) IoUs, and a way to the logits of some of the masks
Decode = Callable[[Tensor], tuple[Tensor, LogitsOf]]

# Only one upscaled image fits the CPU's caches; on other devices a batch is upscaled at once.
UPSCALED_AT_ONCE = {"cpu": 1}


@dataclass(frozen=True, eq=False)
class Numbered:
    """A `LogitsOf` of a network that gives several prompts the same mask of an image.

    Masks of equal numbers are equal, so only one of them needs to be drawn and measured.
    """

    numbers: Tensor  # (b, masks)
    drawn: Callable[[Tensor], Tensor]  # numbers (n,) -> their (n, h, w) logits

    def __call__(self, wanted: Tensor) -> Tensor:
        """Draw those that are `wanted`, `(b, masks)`."""
        return self.drawn(self.numbers[wanted])


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """The modules of a mask decoder, under the names that the first SAM has for them."""

    output_tokens: Tensor  # (k, c), before the tokens of the prompts
    iou_token: int  # its place among them; the tokens of the masks follow it
    layers: Sequence[Any]  # of the two-way transformer
    final_attention: Any
    final_norm: Any
    iou_head: Any
    mask_heads: Sequence[Any]  # one for each mask, that for a single mask first
    upscaling: tuple[Any, Any, Any]  # convolution, norm, convolution


def parts_of(decoder: Any) -> DecoderParts:
    """Take the official decoder apart."""
    transformer = decoder.transformer
    up1, norm, _, up2, _ = decoder.output_upscaling
    return DecoderParts(
        torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]),
        0,
        transformer.layers,
        transformer.final_attn_token_to_image,
        transformer.norm_final_attn,
        decoder.iou_prediction_head,
        decoder.output_hypernetworks_mlps,
        (up1, norm, up2),
    )


def decoder_of(decoder: Any, features: Tensor, image_pe: Tensor, no_mask: Tensor) -> Decode:
    """Get ready to decode prompts on one image.

    All are `(1, c, h, w)`: embeddings of the image, of its positions and of "no mask prompt". For a
    decoder of another class than the official ones, its own `forward` is called.
    """
    if type(decoder) is MaskDecoder and type(decoder.transformer) is TwoWayTransformer:
        return ImageDecoder(parts_of(decoder), features, image_pe, no_mask)

    def as_it_is(sparse: Tensor) -> tuple[Tensor, LogitsOf]:
        logits, iou = decoder(
            image_embeddings=features,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=no_mask.expand(len(sparse), -1, -1, -1),
            multimask_output=True,
        )
        return iou, lambda wanted: logits[wanted]

    return as_it_is


class ImageDecoder:
    """A mask decoder on one image: a `Decode`.

    `features`, `image_pe` and `no_mask` are as for `decoder_of`. SAM 2 adds finer features to the
    upscaled ones: `fine`, `(1, c / 8, 4h, 4w)` and `(1, c / 4, 2h, 2w)`.
    """

    def __init__(
        self,
        parts: DecoderParts,
        features: Tensor,
        image_pe: Tensor,
        no_mask: Tensor,
        fine: Sequence[Tensor] = (),
    ) -> None:
        self.parts = parts
        self.side = h, w = features.shape[-2:]
        self.keys = (features + no_mask).flatten(2).mT.contiguous()  # (1, hw, c)
        self.positions = image_pe.flatten(2).mT.contiguous()
        at = self.keys + self.positions
        first = parts.layers[0]
        inward, outward = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        self.shared_keys = _heads(inward, inward.k_proj(at))  # (1, heads, hw, d)
        self.shared_values = _heads(inward, inward.v_proj(self.keys))
        self.shared_queries = _heads(outward, outward.q_proj(at))
        # in the order of `_spread`: place, its four parts, and the four parts of each of those
        self.fine = [
            part[0].view(-1, h, *[2] * i, w, *[2] * i).permute(1, 2 + i, *order, 0)
            for i, part, order in zip((2, 1), fine, ((2, 5, 3, 6), (2, 4)), strict=bool(fine))
        ]

    def __call__(self, sparse: Tensor) -> tuple[Tensor, LogitsOf]:
        """Decode the embeddings of `b` prompts, `(b, n, c)`."""
        parts = self.parts
        queries, keys = self.transformed(sparse)
        iou = parts.iou_head(queries[:, parts.iou_token])[:, 1:]
        first, n = parts.iou_token + 2, len(parts.mask_heads) - 1
        masks = queries[:, first : first + n]
        return iou, lambda wanted: self._logits(keys, masks, wanted)

    def transformed(self, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens `(b, t, c)` and image `(b, hw, c)` have found in each other."""
        parts = self.parts
        tokens = torch.cat([parts.output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        queries, keys = tokens, self.keys
        for i, layer in enumerate(parts.layers):
            if layer.skip_first_layer_pe:
                queries = _among(layer.self_attn, queries, queries)
            else:
                queries = queries + _among(layer.self_attn, queries + tokens, queries)
            queries = layer.norm1(queries)
            inward, outward = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            at = None if i == 0 else keys + self.positions
            if at is None:
                found = self._first_inward(inward, queries + tokens)
            else:
                found = _inward(inward, queries + tokens, at, keys)
            queries = layer.norm2(queries + found)
            queries = layer.norm3(queries + layer.mlp(queries))
            if at is None:
                scores = self._first_scores(outward, queries + tokens)
            else:
                scores = _outward_scores(outward, queries + tokens, at)
            keys = layer.norm4(_outward(outward, scores, queries, keys))
        found = _inward(parts.final_attention, queries + tokens, keys + self.positions, keys)
        return parts.final_norm(queries + found), keys

    def _first_inward(self, attention: Any, queries: Tensor) -> Tensor:
        q = _heads(attention, attention.q_proj(queries)) / math.sqrt(_width(attention))
        weights = (q @ self.shared_keys.mT).softmax(-1)
        return _output(attention, weights @ self.shared_values)

    def _first_scores(self, attention: Any, tokens: Tensor) -> Tensor:
        k = _heads(attention, attention.k_proj(tokens)) / math.sqrt(_width(attention))
        return k @ self.shared_queries.mT

    def _logits(self, keys: Tensor, masks: Tensor, wanted: Tensor) -> Tensor:
        """`(n, 4h, 4w)` logits of the masks that are `wanted`, `(b, masks)`."""
        mlps = self.parts.mask_heads[1:]
        logits: list[Tensor] = []
        for some in self.groups(wanted.any(1)):
            hyper = torch.stack([mlp(masks[some, i]) for i, mlp in enumerate(mlps)], 1)
            flat = (hyper @ self.upscaled(keys[some]).mT)[wanted[some]]
            logits.append(self.on_grid(flat[..., None])[:, 0])
        return torch.cat(logits)

    def groups(self, wanted: Tensor) -> tuple[Tensor, ...]:
        """The prompts that are `wanted`, `(b,)`, as many at a time as should be upscaled."""
        at_once = UPSCALED_AT_ONCE.get(wanted.device.type, len(wanted))
        return wanted.nonzero()[:, 0].split(at_once)

    def upscaled(self, keys: Tensor) -> Tensor:
        """Bring images `(b, hw, c)` to `(b, 16hw, c / 8)`; see `on_grid` for their order."""
        up1, norm, up2 = self.parts.upscaling
        # a stride as long as its kernel makes a transposed convolution a matrix product
        x = self._with_fine(_spread(up1, keys.flatten(0, 1)), 1)  # (b hw, 4, c / 4)
        x = gelu(layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = self._with_fine(_spread(up2, x.flatten(0, 1)), 0)
        h, w = self.side
        return gelu(x).view(len(keys), 16 * h * w, up2.out_channels)

    def on_grid(self, x: Tensor) -> Tensor:
        """Bring `(n, 16hw, c)`: place, its four parts, the four parts of each, to the grid."""
        h, w = self.side
        grid = x.view(len(x), h, w, 2, 2, 2, 2, x.shape[-1]).permute(0, 7, 1, 3, 5, 2, 4, 6)
        return grid.reshape(len(x), x.shape[-1], 4 * h, 4 * w)  # (n, c, 4h, 4w)

    def _with_fine(self, x: Tensor, level: int) -> Tensor:
        if not self.fine:
            return x
        fine = self.fine[level].flatten(0, -2)
        return x.view(-1, *fine.shape).add_(fine).view(x.shape)


def _spread(up: Any, x: Tensor) -> Tensor:
    """A transposed 2 × 2 convolution of stride 2: `(n, c)` to `(n, 4, c_out)`, row by row."""
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return linear(x, weight, up.bias.repeat(4)).unflatten(-1, (4, -1))


def _width(attention: Any) -> int:
    return int(attention.internal_dim) // int(attention.num_heads)


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (b, heads, n, d)


def _output(attention: Any, x: Tensor) -> Tensor:
    out: Tensor = attention.out_proj(x.transpose(1, 2).flatten(2))
    return out


def _among(attention: Any, at: Tensor, values: Tensor) -> Tensor:
    """What tokens `(b, t, c)` find in each other; `at` they have their positions."""
    q, k = (_heads(attention, project(at)) for project in (attention.q_proj, attention.k_proj))
    weights = (q @ k.mT / math.sqrt(_width(attention))).softmax(-1)
    return _output(attention, weights @ _heads(attention, attention.v_proj(values)))


def _by_head(weight: Tensor, attention: Any) -> Tensor:
    return weight.unflatten(0, (attention.num_heads, -1))  # (heads, d, c)


def _inward(attention: Any, queries: Tensor, at: Tensor, keys: Tensor) -> Tensor:
    """What tokens `(b, t, c)` find in the image `(b, n, c)`, which is `at` with its positions."""
    q = _heads(attention, attention.q_proj(queries)) / math.sqrt(_width(attention))
    # the bias of k_proj adds the same to all scores of a token, which softmax does not see
    looks = (q @ _by_head(attention.k_proj.weight, attention)).flatten(1, 2)  # (b, heads t, c)
    weights = (looks @ at.mT).softmax(-1)
    found = (weights @ keys).unflatten(1, (attention.num_heads, -1))
    values = found @ _by_head(attention.v_proj.weight, attention).mT
    bias = attention.v_proj.bias.view(attention.num_heads, 1, -1)
    return _output(attention, values + bias)  # weights add up to one


def _outward_scores(attention: Any, tokens: Tensor, at: Tensor) -> Tensor:
    """How much each place `(b, n, c)` looks at each token `(b, t, c)`: `(b, heads, t, n)`."""
    k = _heads(attention, attention.k_proj(tokens)) / math.sqrt(_width(attention))
    looks = k @ _by_head(attention.q_proj.weight, attention)
    bias = k @ attention.q_proj.bias.view(attention.num_heads, -1, 1)
    scores = (looks.flatten(1, 2) @ at.mT).unflatten(1, (attention.num_heads, -1))
    return scores.add_(bias)


def _outward(attention: Any, scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Add to the image `(b or 1, n, c)` what its places find in the tokens."""
    weights = scores.softmax(2).flatten(1, 2)  # over the tokens
    v = _heads(attention, attention.v_proj(queries))
    out = attention.out_proj.weight.mT
    values = (v @ _by_head(out, attention)).flatten(1, 2)  # (b, heads t, c)
    values = values + attention.out_proj.bias / attention.num_heads  # each head adds up to one
    if torch.is_autocast_enabled(values.device.type):
        return keys + weights.mT @ values
    return torch.baddbmm(keys.expand(len(values), -1, -1), weights.mT, values)
