"""SAM models that take milliseconds, with random weights, and pictures for them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

from workbench.candidates.table import Candidates
from workbench.segmenters.sam.edgetam import build_edgetam
from workbench.segmenters.sam.mobile_sam import build_mobile_sam
from workbench.segmenters.sam.sam2 import Trunk, build_sam2
from workbench.segmenters.sam.sam_hq import Vit, build_sam_hq

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything.modeling import (  # isort: skip
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)


def among_prompts(values: torch.Tensor) -> torch.Tensor:
    """Centre and scale what the prompts of one batch were given."""
    return (values - values.mean(0)) / (values.std(0, unbiased=False) + 1e-6)


class BlobDecoder(MaskDecoder):
    """SAM's decoder with random weights, its output shaped to look like masks and scores.

    Blobs lie around their prompts, in three sizes; scores spread over 0.3 to 1 in `steps` steps.
    """

    steps = 0

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masks, iou = super().forward(
            image_embeddings=image_embeddings,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=dense_prompt_embeddings,
            multimask_output=multimask_output,
        )
        return shaped(masks, iou, sparse_prompt_embeddings, image_pe, self.steps)


def shaped(
    masks: torch.Tensor, iou: torch.Tensor, sparse: torch.Tensor, image_pe: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn random logits `(b, 3, h, w)` into blobs around their prompts, `(b, n, c)`."""
    # random Fourier features: their product is large where the prompt is
    near = torch.einsum("bc,chw->bhw", sparse[:, 0], image_pe[0])
    near = near[:, None] / (image_pe.shape[1] / 2)
    near = torch.nn.functional.interpolate(near, masks.shape[-2:], mode="bilinear")
    texture = torch.nn.functional.avg_pool2d(masks, 5, 1, 2)
    texture = texture - texture.mean((2, 3), keepdim=True)
    texture = texture / (texture.std((2, 3), keepdim=True) + 1e-6)
    size = torch.tensor([6.0, 4.0, 2.0])[None, :, None, None]
    sharpness = torch.tanh(among_prompts(masks.mean((2, 3), keepdim=True)))
    iou = 0.65 + 0.35 * torch.tanh(among_prompts(iou))
    if steps:
        iou = torch.round(iou * steps) / steps
    return 4 * 3**sharpness * (8 * near + 2 * texture - size), iou


def small_sam(seed: int = 0, steps: int = 0, embed_dim: int = 32) -> Sam:
    """SAM for images of 128 pixels, in every part as small as it can be."""
    torch.manual_seed(seed)
    model = Sam(
        ImageEncoderViT(
            img_size=128,
            embed_dim=embed_dim,
            depth=1,
            num_heads=2,
            out_chans=32,
            use_rel_pos=True,
            global_attn_indexes=(0,),
        ),
        PromptEncoder(
            embed_dim=32,
            image_embedding_size=(8, 8),
            input_image_size=(128, 128),
            mask_in_chans=4,
        ),
        BlobDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32),
            iou_head_depth=2,
            iou_head_hidden_dim=32,
        ),
    )
    model.mask_decoder.steps = steps
    with torch.no_grad():  # so that prompts differ in their place alone
        model.prompt_encoder.point_embeddings[1].weight *= 0.1
    return model.eval()


SMALL_TRUNK = Trunk(16, 1, (1, 1, 2, 1), (3,), windows=(8, 4, 4, 2))


def small_sam2(seed: int = 0, blobs: bool = True) -> torch.nn.Module:
    """SAM 2.1 for images of 128 pixels, with random weights and the blobs of `BlobDecoder`.

    Without `blobs` the decoder is the library's own, which the engine has a shorter way for.
    """
    torch.manual_seed(seed)
    return _stirred(build_sam2(SMALL_TRUNK, side=128, width=32, mlp=32), blobs)


def small_edgetam(seed: int = 0, blobs: bool = True) -> torch.nn.Module:
    """EdgeTAM in the same way, with its whole image encoder."""
    torch.manual_seed(seed)
    return _stirred(build_edgetam(side=128, width=32, mlp=32), blobs)


def small_sam_hq(seed: int = 0) -> torch.nn.Module:
    """HQ-SAM for images of 128 pixels, with random weights."""
    torch.manual_seed(seed)
    model = build_sam_hq(Vit(32, 3, 2, (1, 2)), side=128, width=32, mlp=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        decoder = model.mask_decoder  # steep enough to be stable
        for head in (*decoder.output_hypernetworks_mlps, decoder.hq_mask_mlp):
            for parameter in head.proj_out.parameters():
                parameter.mul_(5)
    return model.eval()


WORDS = ("building", "pool", "visual", "tree")


def small_sam3(seed: int = 2, queries: int = 20) -> torch.nn.Module:
    """SAM 3 for images of 112 pixels, with random weights."""
    from transformers import Sam3Config, Sam3Model

    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    mlp = {"intermediate_size": 64}
    backbone = {
        "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": 112, "patch_size": 14,
        "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 56, **sizes, **mlp,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 600, "projection_dim": 16,
        "num_hidden_layers": 2, "max_position_embeddings": 32, "hidden_act": "gelu",
        "bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 599, **sizes, **mlp,
    }  # fmt: skip
    config = Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text,
        geometry_encoder_config={"num_layers": 1, **sizes, **mlp},
        detr_encoder_config={"num_layers": 1, **sizes, **mlp},
        detr_decoder_config={"num_layers": 2, "num_queries": queries, **sizes, **mlp},
        mask_decoder_config=sizes,
    )
    torch.manual_seed(seed)
    model = Sam3Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for parameter in model.mask_decoder.mask_embedder.parameters():
            parameter.mul_(3)  # masks that differ from one another
    return model


def small_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer into a folder; it knows letters, and `WORDS` as one token each."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in WORDS:
        so_far = word[0]
        for i, letter in enumerate(word[1:], 1):
            end = letter + ("</w>" if i == len(word) - 1 else "")
            merges.append(f"{so_far} {end}")
            so_far += end
            tokens.append(so_far)
    tokens = list(dict.fromkeys(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    vocabulary |= {"<|startoftext|>": 598, "<|endoftext|>": 599}
    pairs = [tuple(merge.split(" ")) for merge in dict.fromkeys(merges)]
    CLIPTokenizer(vocab=vocabulary, merges=pairs).save_pretrained(folder)


def _stirred(model: torch.nn.Module, blobs: bool) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():  # biases and position embeddings, too
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.prompt_encoder.point_embed.weight[1] *= 0.1
        # one code of places for image and prompts, as in Meta's files
        model.shared_image_embedding.positional_embedding.copy_(
            model.prompt_encoder.shared_embedding.positional_embedding
        )

    class Blobs(type(model.mask_decoder)):
        def forward(self, **inputs: object) -> tuple:
            masks, iou, *rest = super().forward(**inputs)
            sparse = inputs["sparse_prompt_embeddings"][0]
            positions = inputs["image_positional_embeddings"]
            logits, scores = shaped(masks[0], iou[0], sparse, positions, 0)
            return logits[None], scores[None], *rest

    if blobs:
        model.mask_decoder.__class__ = Blobs
    else:  # as weak as they begin, tokens could be mistaken for each other
        with torch.no_grad():
            for parameter in model.mask_decoder.parameters():
                parameter.mul_(4)
    return model.eval()


def small_mobile_sam(seed: int = 0) -> Sam:
    """MobileSAM for images of 128 pixels, with random weights and the blobs of `BlobDecoder`."""
    torch.manual_seed(seed)
    model = build_mobile_sam(
        side=128,
        width=64,
        mlp=32,
        embed_dims=(8, 16, 16, 32),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 2),
    )
    transformer = TwoWayTransformer(depth=1, embedding_dim=64, num_heads=2, mlp_dim=32)
    model.mask_decoder = BlobDecoder(transformer_dim=64, transformer=transformer)
    with torch.no_grad():
        model.prompt_encoder.point_embeddings[1].weight *= 0.1
    return model.eval()


def same_masks(ours: Candidates, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """IoU of our masks (rows) with those that SAM's generator has returned as RLEs (columns)."""
    size = [ours.rules.height, ours.rules.width]
    rles = [{"size": size, "counts": rle} for rle in ours.table.column("rle").to_pylist()]
    return coco.iou(rles, [one["segmentation"] for one in records], [0] * len(records))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.kron(cells, np.ones((8, 8, 1), np.uint8))


class Code:
    """Makes a folder where it is unpickled: what a checkpoint must not be able to do."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)
