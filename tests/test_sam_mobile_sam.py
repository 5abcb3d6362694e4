"""MobileSAM: its encoder against the published description, and the names in its file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_sams import picture, same_masks, small_mobile_sam, small_sam
from torch import Tensor
from torch.nn.functional import (
    batch_norm,
    conv2d,
    gelu,
    layer_norm,
    linear,
    pad,
)

from workbench.candidates.select import Thresholds, select
from workbench.candidates.table import Rules
from workbench.errors import CheckpointError
from workbench.segmenters.sam import MODELS, Download, SamSegmenter, sam_segmenter
from workbench.segmenters.sam.checkpoints import load_model
from workbench.segmenters.sam.extras import is_installed
from workbench.segmenters.sam.mobile_sam import names_of_timm

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything import SamAutomaticMaskGenerator  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")
needs_timm = pytest.mark.skipif(
    not is_installed("timm"), reason="timm is not installed (extra `models`)"
)

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)


def published(
    widths: tuple[int, ...] = WIDTHS,
    depths: tuple[int, ...] = DEPTHS,
    heads: tuple[int, ...] = HEADS,
    out: int = 256,
    classes: int = 1000,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the image encoder in MobileSAM's file."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, into: int, of: int, side: int) -> None:
        shapes[f"{name}.c.weight"] = (into, of, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (into,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def affine(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    convolution("patch_embed.seq.0", widths[0] // 2, 3, 3)
    convolution("patch_embed.seq.2", widths[0], widths[0] // 2, 3)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            if stage == 0:
                convolution(f"{block}.conv1", 4 * width, width, 1)
                convolution(f"{block}.conv2", 4 * width, 1, 3)
                convolution(f"{block}.conv3", width, 4 * width, 1)
                continue
            shapes[f"{block}.attn.attention_biases"] = (heads[stage], WINDOWS[stage] ** 2)
            affine(f"{block}.attn.norm", width)
            affine(f"{block}.attn.qkv", 3 * width, width)
            affine(f"{block}.attn.proj", width, width)
            affine(f"{block}.mlp.norm", width)
            affine(f"{block}.mlp.fc1", 4 * width, width)
            affine(f"{block}.mlp.fc2", width, 4 * width)
            convolution(f"{block}.local_conv", width, 1, 3)
        if stage < 3:
            convolution(f"layers.{stage}.downsample.conv1", widths[stage + 1], width, 1)
            convolution(f"layers.{stage}.downsample.conv2", widths[stage + 1], 1, 3)
            convolution(f"layers.{stage}.downsample.conv3", widths[stage + 1], widths[stage + 1], 1)
    affine("norm_head", widths[-1])
    affine("head", classes, widths[-1])
    shapes["neck.0.weight"], shapes["neck.2.weight"] = (out, widths[-1], 1, 1), (out, out, 3, 3)
    affine("neck.1", out)
    affine("neck.3", out)
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights; norms stay near one, so that nothing overflows."""
    torch.manual_seed(1)
    return {
        name: torch.tensor(1)
        if name.endswith("tracked")
        else 1 + 0.3 * torch.rand(shape)
        if ".running_var" in name or (name.endswith(".weight") and len(shape) == 1)
        else torch.randn(shape) / max(1, shape[-1] * shape[-2] * shape[1]) ** 0.5
        if len(shape) == 4
        else 0.2 * torch.randn(shape)
        for name, shape in shapes.items()
    }


class Described:
    """MobileSAM's image encoder a second time, as the papers describe it, on its file's names."""

    def __init__(self, weights: Mapping[str, Tensor], depths: tuple[int, ...], heads) -> None:
        self.weights, self.depths, self.heads = weights, depths, heads

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[f"image_encoder.{name}"]

    def convolved(self, x: Tensor, name: str, stride: int = 1, alone: bool = False) -> Tensor:
        weight = self[f"{name}.c.weight"]
        x = conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1] if alone else 1)
        mean, var, scale, bias = (
            self[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(x, mean, var, scale, bias)

    def normed(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])

    def mapped(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def attended(self, x: Tensor, name: str, heads: int, side: int) -> Tensor:
        """Attend among the places of one window, `(side², c)`."""
        width = x.shape[-1] // heads
        biases = self[f"{name}.attention_biases"]
        q, k, v = self.mapped(self.normed(x, f"{name}.norm"), f"{name}.qkv").view(
            len(x), heads, 3, width
        ).unbind(2)  # fmt: skip
        # the first place meets the offsets in the order in which they are numbered
        y, x_ = torch.arange(side**2) // side, torch.arange(side**2) % side
        offset = (y[:, None] - y).abs() * side + (x_[:, None] - x_).abs()
        scores = torch.einsum("ihc,jhc->hij", q, k) * width**-0.5 + biases[:, offset]
        found = torch.einsum("hij,jhc->ihc", scores.softmax(-1), v).flatten(1)
        return self.mapped(found, f"{name}.proj")

    def block(self, x: Tensor, name: str, heads: int, side: int) -> Tensor:
        _, _, h, w = x.shape
        right, below = -w % side, -h % side
        padded = pad(x, (0, right, 0, below))
        for top in range(0, h, side):
            for left in range(0, w, side):
                window = padded[0, :, top : top + side, left : left + side]
                found = self.attended(window.flatten(1).T, f"{name}.attn", heads, side)
                padded[0, :, top : top + side, left : left + side] = found.T.view(window.shape)
        x = self.convolved(x + padded[..., :h, :w], f"{name}.local_conv", alone=True)
        y = self.normed(x.permute(0, 2, 3, 1), f"{name}.mlp.norm")
        y = self.mapped(gelu(self.mapped(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return x + y.permute(0, 3, 1, 2)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.convolved(gelu(self.convolved(x, "patch_embed.seq.0", 2)), "patch_embed.seq.2", 2)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                name = f"layers.{stage}.blocks.{i}"
                if stage:
                    x = self.block(x, name, self.heads[stage], WINDOWS[stage])
                else:
                    y = gelu(self.convolved(x, f"{name}.conv1"))
                    y = gelu(self.convolved(y, f"{name}.conv2", alone=True))
                    x = gelu(x + self.convolved(y, f"{name}.conv3"))
            if stage < 3:
                name, stride = f"layers.{stage}.downsample", 1 if stage == 2 else 2
                y = gelu(self.convolved(x, f"{name}.conv1"))
                y = gelu(self.convolved(y, f"{name}.conv2", stride, alone=True))
                x = self.convolved(y, f"{name}.conv3")
        for i, side in ((0, 1), (2, 3)):
            x = conv2d(x, self[f"neck.{i}.weight"], None, padding=side // 2)
            mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
            x = (x - mean) / (var + 1e-6).sqrt()
            scale, bias = self[f"neck.{i + 1}.weight"], self[f"neck.{i + 1}.bias"]
            x = x * scale[:, None, None] + bias[:, None, None]
        return x


SMALL = (8, 16, 16, 32), (1, 1, 2, 1), (1, 2, 2, 2), 64


@needs_timm
@torch.no_grad()
def test_the_encoder_is_the_one_of_the_papers() -> None:
    widths, depths, heads, out = SMALL
    weights = filled(published(widths, depths, heads, out))
    model = small_mobile_sam()
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith("image_encoder.")}
    model.load_state_dict(names_of_timm(weights | rest))
    pixels = torch.randn(1, 3, 128, 128)
    expected = Described(weights, depths, heads)(pixels)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(model.image_encoder(pixels), expected, rtol=1e-4, atol=1e-4)


@needs_timm
def test_the_published_file_fits_to_the_last_weight(tmp_path: Path) -> None:
    """40,728,226 bytes: 10.13 million numbers of 4 bytes, of which a classifier has 0.32."""
    shapes = published()
    with torch.device("meta"):
        decoder = MODELS["vit_b"].build().state_dict()
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    weights |= {
        name: torch.zeros(value.shape)
        for name, value in decoder.items()
        if not name.startswith("image_encoder.")
    }
    numbers = sum(value.numel() for value in weights.values())
    assert 4 * numbers == pytest.approx(40_728_226, rel=0.01)  # the rest is names
    path = tmp_path / "mobile_sam.pt"
    torch.save(weights, path)
    model = load_model("mobile_sam", path)
    assert model.image_encoder.img_size == 1024
    everything = [*model.parameters(), *model.buffers()]
    assert {value.device.type for value in everything} == {"cpu"}
    # as SAM prepares images; not in the file
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@needs_timm
@pytest.mark.parametrize(("size", "layers"), [((128, 128), 0), ((96, 72), 0), ((200, 160), 1)])
def test_C1_the_generator_keeps_the_same_masks(size: tuple[int, int], layers: int) -> None:
    image, thresholds = picture(*size), Thresholds(0.5, 0.5)
    rules = Rules(*size, 0.4, 0.4, crop_n_layers=layers)
    ours = SamSegmenter(small_mobile_sam, "", "", 8, rules, points_per_batch=12).propose(image)
    generator = SamAutomaticMaskGenerator(
        small_mobile_sam(), 8, 12, 0.5, 0.5, crop_n_layers=layers, output_mode="coco_rle"
    )
    theirs = generator.generate(image)
    kept = select(ours, thresholds)
    assert len(kept) == len(theirs) > 5
    assert (same_masks(kept, theirs).max(axis=0) >= 0.99).mean() >= 0.999


def test_other_weights_keep_their_names() -> None:
    weights = dict(small_sam().state_dict())
    assert names_of_timm(weights) == weights


@needs_timm
def test_offline_the_message_says_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = MODELS["mobile_sam"]
    assert isinstance(model.weights, Download)
    nowhere = replace(model.weights, url="http://127.0.0.1:9/weights/mobile_sam.pt")
    monkeypatch.setitem(MODELS, "mobile_sam", replace(model, weights=nowhere))
    monkeypatch.setenv("SAM_WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CheckpointError) as caught:
        sam_segmenter("mobile_sam").load()
    for part in ("mobile_sam.pt", f"put the file at {tmp_path}/mobile_sam.pt", nowhere.sha256):
        assert part in str(caught.value)
