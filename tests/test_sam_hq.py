"""HQ-SAM against its paper's arithmetic on the library's modules, and the names of its weights."""

from functools import cache

import numpy as np
import pytest
import torch
from small_sams import picture, same_masks, small_sam, small_sam_hq
from test_sam_sam2 import PlainCall
from torch.nn.functional import gelu, interpolate

from workbench import Job
from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.errors import CheckpointError, JobError
from workbench.segmenters.sam import MODELS, SamSegmenter, load_model, sam_segmenter
from workbench.segmenters.sam.extras import is_installed
from workbench.segmenters.sam.network import Prompts
from workbench.segmenters.sam.sam_hq import VITS, SamHq, build_sam_hq, names_of_transformers

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator  # isort: skip

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
    ),
]


class Halved(SamHq):
    """A threshold near the middle of what random weights give."""

    mask_threshold = 8.0


class PaperCall(PlainCall):
    """Written from the paper with the library's modules.

    The library's own call of the decoder makes masks of the image before it has seen prompts.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.model.mask_threshold = Halved.mask_threshold

    @torch.no_grad()
    def low_res(
        self, input_masks: torch.Tensor | None = None, **prompts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model, d = self.model, self.model.mask_decoder
        features, between = model.get_image_embeddings(self.pixels)
        sparse, dense = model.prompt_encoder(input_masks=input_masks, **prompts)
        n = sparse.shape[1]
        tokens = torch.cat([d.iou_token.weight, d.mask_tokens.weight, d.hq_token.weight])
        tokens = torch.cat([tokens.expand(1, n, -1, -1), sparse], dim=2)
        positions = model.get_image_wide_positional_embeddings()
        seen, image = d.transformer(
            tokens, (features + dense).repeat(n, 1, 1, 1), positions.repeat(n, 1, 1, 1), None
        )
        image = image.transpose(2, 3).reshape(n, -1, *features.shape[2:])
        image = gelu(d.upscale_conv2(gelu(d.upscale_layer_norm(d.upscale_conv1(image)))))
        early = between[0].permute(0, 3, 1, 2)
        sharp = (
            d.mask_conv2(gelu(d.mask_norm(d.mask_conv1(image))))
            + d.encoder_conv2(gelu(d.encoder_norm(d.encoder_conv1(features))))
            + d.compress_vit_conv2(gelu(d.compress_vit_norm(d.compress_vit_conv1(early))))
        )
        iou, best = d.iou_prediction_head(seen[0, :, 0])[:, 1:].max(dim=1, keepdim=True)
        usual = torch.stack(
            [
                d.output_hypernetworks_mlps[1 + b](seen[0, i, 2 + b])
                for i, b in enumerate(best[:, 0])
            ]
        )
        masks = torch.einsum("bc,bchw->bhw", usual, image)
        masks = masks + torch.einsum("bc,bchw->bhw", d.hq_mask_mlp(seen[0, :, 5]), sharp)
        return masks[:, None], iou

    def predict_torch(
        self, points: torch.Tensor, labels: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        masks, iou = self.low_res(
            input_points=points[None].float(), input_labels=labels[None], input_boxes=None
        )
        height, width = self.scaled_size
        large = interpolate(masks, (128, 128), mode="bilinear")[..., :height, :width]
        return interpolate(large, self.size, mode="bilinear"), iou, None


SIZES = {"plain": ((128, 128), 0), "small": ((96, 72), 0), "crops": ((200, 160), 1)}


@cache
def proposed(name: str) -> tuple[Candidates, SamAutomaticMaskGenerator, np.ndarray]:
    size, layers = SIZES[name]
    model, image = small_sam_hq(), picture(*size)
    rules = Rules(*size, 0.0, 0.0, box_nms_thresh=1.0, crop_nms_thresh=1.0, crop_n_layers=layers)
    ours = SamSegmenter(
        lambda: model, "small", "", 8, rules, points_per_batch=12, network_of=Halved
    ).propose(image)
    generator = SamAutomaticMaskGenerator(
        small_sam(), 8, 12, box_nms_thresh=1.0, crop_nms_thresh=1.0, crop_n_layers=layers,
        output_mode="coco_rle",
    )  # fmt: skip
    generator.predictor = PaperCall(small_sam_hq())
    return ours, generator, image


@pytest.mark.parametrize("name", SIZES)
def test_C1_the_generator_keeps_the_same_masks(name: str) -> None:
    """The rules are SAM 1's, with one mask for each prompt; nothing is suppressed here."""
    candidates, generator, image = proposed(name)
    thresholds = Thresholds(0.4, 0.4)
    generator.pred_iou_thresh = thresholds.pred_iou_thresh
    generator.stability_score_thresh = thresholds.stability_score_thresh
    theirs = generator.generate(image)
    ours = select(candidates, thresholds)
    assert len(ours) == len(theirs) > 20
    theirs.sort(key=lambda record: (record["predicted_iou"], *record["point_coords"][0]))
    ours = ours.take(np.lexsort([ours.column(c) for c in ("point_y", "point_x", "pred_iou")]))
    ious = same_masks(ours, theirs)
    assert (np.diag(ious) >= 0.99).mean() >= 0.97
    assert (ious >= 0.99).mean() < 0.2  # so that a wrong one would be seen
    np.testing.assert_allclose(
        ours.column("pred_iou"), [record["predicted_iou"] for record in theirs], atol=1e-4
    )


@torch.no_grad()
def test_boxes_and_points_are_those_of_the_plain_call() -> None:
    model, plain = small_sam_hq(), PaperCall(small_sam_hq())
    plain.set_image(picture(96, 128))
    boxes = torch.tensor([[10.0, 20.0, 60.0, 90.0], [40.0, 30.0, 120.0, 50.0], [5, 5, 90, 90]])
    points = torch.tensor([[[30.0, 50.0]], [[80.0, 40.0]], [[20.0, 70.0]]])
    labels = torch.ones(3, 1, dtype=torch.int)
    image = torch.from_numpy(picture(96, 128)).permute(2, 0, 1)[None]
    ask = SamHq(model).look(image)
    for given in (
        Prompts(points, labels),
        Prompts(points, labels, boxes),
        Prompts(None, None, boxes),
        Prompts(points[:1], labels[:1], None, torch.randn(1, 1, 32, 32) * 5),
    ):
        iou, logits_of = ask(given)
        masks, expected = plain.low_res(
            input_points=None if given.points is None else given.points[None],
            input_labels=None if given.labels is None else given.labels[None],
            input_boxes=None if given.boxes is None else boxes[None],
            input_masks=given.mask,
        )
        torch.testing.assert_close(iou, expected, rtol=1e-3, atol=1e-4)
        wanted = torch.tensor([[True], [False], [True]])[: len(given)]
        spread = float(masks.std())
        torch.testing.assert_close(logits_of(wanted), masks[wanted], rtol=1e-3, atol=1e-3 * spread)


# ------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(("size", "millions"), [("vit_b", 95), ("vit_l", 314), ("vit_h", 643)])
def test_the_models_have_the_published_sizes(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = build_sam_hq(VITS[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert MODELS[f"sam_hq_{size}"].network_of(model).side == 1024


AUTHORS = {
    "image_encoder.blocks.2.norm1.weight": "vision_encoder.layers.2.layer_norm1.weight",
    "image_encoder.neck.3.bias": "vision_encoder.neck.layer_norm2.bias",
    "image_encoder.patch_embed.proj.bias": "vision_encoder.patch_embed.projection.bias",
    "prompt_encoder.point_embeddings.2.weight": "prompt_encoder.point_embed.2.weight",
    "mask_decoder.hf_token.weight": "mask_decoder.hq_token.weight",
    "mask_decoder.hf_mlp.layers.1.bias": "mask_decoder.hq_mask_mlp.layers.0.bias",
    "mask_decoder.hf_mlp.layers.2.bias": "mask_decoder.hq_mask_mlp.proj_out.bias",
    "mask_decoder.compress_vit_feat.3.bias": "mask_decoder.compress_vit_conv2.bias",
    "mask_decoder.embedding_encoder.1.bias": "mask_decoder.encoder_norm.bias",
    "mask_decoder.embedding_maskfeature.0.bias": "mask_decoder.mask_conv1.bias",
    "mask_decoder.output_upscaling.1.weight": "mask_decoder.upscale_layer_norm.weight",
    "mask_decoder.output_hypernetworks_mlps.3.layers.0.bias": (
        "mask_decoder.output_hypernetworks_mlps.3.proj_in.bias"
    ),
    "mask_decoder.iou_prediction_head.layers.1.weight": (
        "mask_decoder.iou_prediction_head.layers.0.weight"
    ),
    "mask_decoder.transformer.norm_final_attn.bias": (
        "mask_decoder.transformer.layer_norm_final_attn.bias"
    ),
}


def test_weights_of_the_authors_get_the_names_of_transformers() -> None:
    needed = small_sam_hq().state_dict()
    renamed = names_of_transformers(dict.fromkeys(AUTHORS, torch.zeros(1)))
    assert set(renamed) == set(AUTHORS.values())
    assert set(renamed) <= set(needed)
    code = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    both = names_of_transformers({code: torch.ones(1), "mask_decoder.hf_token.weight": 0})
    assert set(both) - {"mask_decoder.hq_token.weight"} == {
        "prompt_encoder.shared_embedding.positional_embedding",
        "shared_image_embedding.positional_embedding",
    }


def test_without_a_file_it_says_where_to_get_it(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"sam_hq_vit_b\.pth .*379 MB.*name the file"):
        sam_segmenter("sam_hq_vit_b")
    with pytest.raises(CheckpointError, match="is not a file"):
        sam_segmenter("sam_hq_vit_b", checkpoint=str(tmp_path / "sam_hq_vit_b.pth"))
    wrong = tmp_path / "wrong.pth"
    torch.save({"mask_decoder.hf_token.weight": torch.zeros(1, 256)}, wrong)
    with pytest.raises(CheckpointError, match="is not a checkpoint of sam_hq_vit_b"):
        load_model("sam_hq_vit_b", wrong)


def test_a_job_knows_it() -> None:
    assert Job.create(model="sam_hq_vit_b", checkpoint="weights.pth").model == "sam_hq_vit_b"
    with pytest.raises(JobError, match="sam_hq_"):
        Job.create(model="sam_hq")
