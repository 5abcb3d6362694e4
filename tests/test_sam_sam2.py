"""SAM 2.1 and EdgeTAM against the plain call of transformers, and Meta's names of their weights."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sams import picture, same_masks, small_edgetam, small_sam, small_sam2

from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Candidates, Rules
from workbench.errors import CheckpointError
from workbench.segmenters.sam import MODELS, Download, SamSegmenter, checkpoints, sam_segmenter
from workbench.segmenters.sam.extras import is_installed
from workbench.segmenters.sam.network import Prompts
from workbench.segmenters.sam.sam2 import (
    TRUNKS,
    Sam2,
    build_sam2,
    names_of_transformers,
)

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator  # isort: skip
from segment_anything.utils.transforms import ResizeLongestSide  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")
needs_transformers = pytest.mark.skipif(
    not is_installed("transformers"),
    reason="transformers is not installed (extra `models`)",
)


class PlainCall:
    """The predictor that SAM's generator expects, around the library's own call of the network.

    What surrounds the network is written here a second time, from the paper's description.
    """

    device = "cpu"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.model.mask_threshold = 0.0
        self.transform = ResizeLongestSide(128)

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]
        scaled = self.transform.apply_image(image)
        self.scaled_size = scaled.shape[:2]
        square = np.zeros((128, 128, 3), np.float32)
        colours = (scaled / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        square[: scaled.shape[0], : scaled.shape[1]] = colours
        self.pixels = torch.from_numpy(square.transpose(2, 0, 1)[None])

    def reset_image(self) -> None:
        pass

    @torch.no_grad()
    def predict_torch(
        self, points: torch.Tensor, labels: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        out = self.model(
            pixel_values=self.pixels, input_points=points[None].float(), input_labels=labels[None]
        )
        height, width = self.scaled_size
        large = torch.nn.functional.interpolate(out.pred_masks[0], (128, 128), mode="bilinear")
        masks = torch.nn.functional.interpolate(
            large[..., :height, :width], self.size, mode="bilinear"
        )
        return masks, out.iou_scores[0], None


SIZES = {"plain": ((128, 128), 0), "small": ((96, 72), 0), "crops": ((200, 160), 1)}


FAMILIES = {"sam2.1": small_sam2, "edgetam": small_edgetam}


@cache
def proposed(family: str, name: str) -> tuple[Candidates, SamAutomaticMaskGenerator, np.ndarray]:
    size, layers = SIZES[name]
    model, image = FAMILIES[family](), picture(*size)
    rules = Rules(*size, 0.4, 0.4, crop_n_layers=layers)
    ours = SamSegmenter(
        lambda: model, "small", "", 8, rules, points_per_batch=12, network_of=Sam2
    ).propose(image)
    generator = SamAutomaticMaskGenerator(
        small_sam(), 8, points_per_batch=12, crop_n_layers=layers, output_mode="coco_rle"
    )
    generator.predictor = PlainCall(FAMILIES[family]())
    return ours, generator, image


@needs_transformers
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("thresholds", [Thresholds(0.4, 0.4), Thresholds(0.7, 0.6)])
def test_C1_the_generator_keeps_the_same_masks_of_the_plain_call(
    family: str, name: str, thresholds: Thresholds
) -> None:
    """The rules are SAM 1's: transformers has a generator of its own only after suppression."""
    candidates, generator, image = proposed(family, name)
    generator.pred_iou_thresh = thresholds.pred_iou_thresh
    generator.stability_score_thresh = thresholds.stability_score_thresh
    theirs = generator.generate(image)
    ours = select(candidates, thresholds)
    assert len(ours) == len(theirs) > 10
    ious = same_masks(ours, theirs)
    assert (ious.max(axis=0) >= 0.99).mean() >= 0.999
    assert (ious.max(axis=1) >= 0.99).mean() >= 0.999
    best = [theirs[i] for i in ious.argmax(axis=1)]
    np.testing.assert_allclose(
        ours.column("pred_iou"), [record["predicted_iou"] for record in best], atol=1e-4
    )


@needs_transformers
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blobs", [True, False], ids=["as it is", "less arithmetic"])
@torch.no_grad()
def test_boxes_points_and_a_mask_are_those_of_the_plain_call(family: str, blobs: bool) -> None:
    model, plain = FAMILIES[family](blobs=blobs), PlainCall(FAMILIES[family](blobs=blobs))
    plain.set_image(picture(128, 128))
    boxes = torch.tensor([[10.0, 20.0, 60.0, 90.0], [40.0, 30.0, 120.0, 50.0]])
    points = torch.tensor([[[30.0, 50.0]], [[80.0, 40.0]]])
    labels = torch.ones(2, 1, dtype=torch.int)
    mask = torch.randn(1, 1, 32, 32) * 5
    for given in (
        Prompts(points, labels, boxes),
        Prompts(None, None, boxes),
        Prompts(points[:1], labels[:1], boxes[:1], mask),
    ):
        image = torch.from_numpy(picture(128, 128)).permute(2, 0, 1)[None]
        iou, logits_of = Sam2(model).look(image)(given)
        expected = plain.model(
            pixel_values=plain.pixels,
            input_points=None if given.points is None else given.points[None],
            input_labels=None if given.labels is None else given.labels[None],
            input_boxes=boxes[None, : len(given)],
            input_masks=given.mask,
        )
        torch.testing.assert_close(iou, expected.iou_scores[0], rtol=1e-3, atol=1e-4)
        wanted = torch.tensor([[True, False, True], [False, True, False]])[: len(given)]
        spread = float(expected.pred_masks.std())
        assert spread > 0.001
        torch.testing.assert_close(
            logits_of(wanted), expected.pred_masks[0][wanted], rtol=1e-3, atol=1e-3 * spread
        )


# ------------------------------------------------------------------------------- weights


@needs_transformers
@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 31), ("small", 38), ("base_plus", 73), ("large", 217)]
)
def test_the_models_have_the_published_sizes(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = build_sam2(TRUNKS[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert MODELS[f"sam2.1_{size}"].network_of(model).side == 1024


@needs_transformers
def test_edgetam_has_the_published_size_and_file() -> None:
    with torch.device("meta"):
        model = MODELS["edgetam"].build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(9, abs=0.2)
    assert MODELS["edgetam"].network_of(model).side == 1024
    weights = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
    video = {"spatial_perceiver.latents": torch.zeros(1), "obj_ptr_tpos_proj.bias": torch.zeros(1)}
    renamed = names_of_transformers({"model": meta_names(weights) | video})
    assert {name: value.shape for name, value in renamed.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


META = {
    "sam_prompt_encoder.point_embeddings.2.weight": None,
    "sam_mask_decoder.output_hypernetworks_mlps.3.layers.1.bias": (
        "mask_decoder.output_hypernetworks_mlps.3.layers.0.bias"
    ),
    "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.bias": (
        "mask_decoder.output_hypernetworks_mlps.3.proj_out.bias"
    ),
    "sam_mask_decoder.iou_prediction_head.layers.0.weight": (
        "mask_decoder.iou_prediction_head.proj_in.weight"
    ),
    "sam_mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
    "sam_mask_decoder.transformer.layers.1.mlp.layers.1.weight": (
        "mask_decoder.transformer.layers.1.mlp.proj_out.weight"
    ),
    "sam_mask_decoder.transformer.norm_final_attn.bias": (
        "mask_decoder.transformer.layer_norm_final_attn.bias"
    ),
    "image_encoder.trunk.blocks.9.norm2.bias": "vision_encoder.backbone.blocks.9.layer_norm2.bias",
    "image_encoder.neck.convs.2.conv.weight": "vision_encoder.neck.convs.2.weight",
    "no_mem_embed": "no_memory_embedding",
}


def test_weights_of_a_meta_file_get_the_names_of_transformers() -> None:
    video = {"memory_attention.norm.bias": 0, "maskmem_tpos_enc": 0, "obj_ptr_proj.bias": 0}
    renamed = names_of_transformers({"model": dict.fromkeys(META, 0) | video})
    for name, new in META.items():
        assert new is None or new in renamed, name
    assert not set(video) & set(renamed)


def meta_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the small model under the names of Meta's files, found by their values' place."""
    from_transformers = {}
    points = weights.pop("prompt_encoder.point_embed.weight")
    weights.pop("shared_image_embedding.positional_embedding")
    for i in range(4):
        from_transformers[f"sam_prompt_encoder.point_embeddings.{i}.weight"] = points[i : i + 1]
    back = (
        ("vision_encoder.backbone.timm_model.", "image_encoder.trunk.body."),
        ("vision_encoder.backbone.", "image_encoder.trunk."),
        ("patch_embed.projection", "patch_embed.proj"),
        ("mask_decoder.", "sam_mask_decoder."),
        ("prompt_encoder.", "sam_prompt_encoder."),
        ("no_memory_embedding", "no_mem_embed"),
        ("o_proj", "out_proj"),
        ("shared_embedding.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
        ("mask_embed.conv1", "mask_downscaling.0"),
        ("mask_embed.layer_norm1", "mask_downscaling.1"),
        ("mask_embed.conv2", "mask_downscaling.3"),
        ("mask_embed.layer_norm2", "mask_downscaling.4"),
        ("mask_embed.conv3", "mask_downscaling.6"),
        ("upscale_conv1", "output_upscaling.0"),
        ("upscale_layer_norm", "output_upscaling.1"),
        ("upscale_conv2", "output_upscaling.3"),
        ("layer_norm", "norm"),
        ("mlp.proj_in", "mlp.layers.0"),
        ("mlp.proj_out", "mlp.layers.1"),
    )
    for name, value in weights.items():
        for new, old in back:
            name = name.replace(new, old)
        if ".neck." in name:
            name = name.replace("vision_encoder", "image_encoder")
            name = name.replace(".weight", ".conv.weight").replace(".bias", ".conv.bias")
        elif "_head." in name or "hypernetworks" in name:
            name = name.replace("layers.0", "layers.1").replace("proj_in", "layers.0")
            name = name.replace("proj_out", "layers.2")
        from_transformers[name] = value
    return from_transformers


@pytest.fixture
def small_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small SAM 2.1 and a small SAM in place of the real ones."""
    real = MODELS["sam2.1_tiny"]
    nowhere = Download("http://127.0.0.1:9/small.pt", "0" * 64)
    registered = {
        "sam2.1_tiny": replace(real, build=small_sam2, weights=nowhere),
        "vit_b": replace(MODELS["vit_b"], build=small_sam, weights=nowhere),
    }
    monkeypatch.setattr(checkpoints, "MODELS", registered)
    monkeypatch.setattr("workbench.segmenters.sam.segmenter.MODELS", registered)
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@needs_transformers
def test_a_file_as_meta_publishes_it_gives_the_model_that_was_saved(small_registry: Path) -> None:
    model = small_sam2(seed=7)
    path = small_registry / "sam2.1.pt"
    named = meta_names(dict(model.state_dict())) | {"memory_encoder.out_proj.bias": torch.zeros(2)}
    torch.save({"model": named}, path)
    loaded = sam_segmenter("sam2.1_tiny", checkpoint=path, points_per_side=4, points_per_batch=8)
    loaded.load()
    given = SamSegmenter(lambda: model, "", "", 4, points_per_batch=8, network_of=Sam2)
    assert loaded.propose(picture(96, 128)).table == given.propose(picture(96, 128)).table
    everything = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert {value.device.type for value in everything} == {"cpu"}


@needs_transformers
def test_weights_of_another_family_are_named(small_registry: Path) -> None:
    first, second = small_registry / "sam.pth", small_registry / "sam2.pt"
    torch.save(small_sam().state_dict(), first)
    torch.save({"model": meta_names(dict(small_sam2().state_dict()))}, second)
    for model, path, fits in (("sam2.1_tiny", first, "vit_b"), ("vit_b", second, "sam2.1_tiny")):
        with pytest.raises(CheckpointError, match=rf"{path.name} .*It fits {fits}: set model to"):
            sam_segmenter(model, checkpoint=path).load()


@needs_transformers
def test_offline_the_message_says_where_to_put_the_weights(small_registry: Path) -> None:
    told = r"127\.0\.0\.1:9/small\.pt \(no connection to 127\.0\.0\.1\)\. .*put the file at"
    with pytest.raises(CheckpointError, match=told):
        sam_segmenter("sam2.1_tiny").load()
