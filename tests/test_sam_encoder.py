"""The image encoder in parts, against the official one."""

from functools import partial

import pytest
import torch

import workbench.segmenters.sam  # noqa: F401
from workbench.segmenters.sam import encoder

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything.modeling import ImageEncoderViT  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def random_encoder(use_rel_pos: bool) -> ImageEncoderViT:
    """Windows that need padding and global attention, positions included in the random weights."""
    torch.manual_seed(0)
    model = ImageEncoderViT(
        img_size=160,
        embed_dim=48,
        depth=4,
        num_heads=3,
        out_chans=16,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=use_rel_pos,
        window_size=4,
        global_attn_indexes=(1, 3),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("at_once", [1, 1000, 7000, 2**21])
@torch.inference_mode()
def test_C1_the_embedding_is_that_of_the_official_encoder(
    at_once: int, use_rel_pos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of one row and of three, of which the last is smaller, and as a whole."""
    monkeypatch.setitem(encoder.AT_ONCE, "cpu", at_once)
    model = random_encoder(use_rel_pos)
    images = torch.randn(2, 3, 160, 160)
    expected = model(images)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(encoder.encode(model, images), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_attention_is_never_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a position gives every other: 3 heads, 100 × 100 positions."""
    seen = []
    original = encoder.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor):
        seen.append(bias.numel())
        return original(q, k, v, bias)

    monkeypatch.setattr(encoder, "scaled_dot_product_attention", counted)
    monkeypatch.setitem(encoder.AT_ONCE, "cpu", 7000)
    encoder.encode(random_encoder(True), torch.randn(1, 3, 160, 160))
    assert max(seen) <= 7000
    # all is attended to: windows of 4 × 4 on 12 × 12 padded positions twice, and 100 × 100 twice
    assert sum(seen) == 3 * (2 * 9 * 16 * 16 + 2 * 100 * 100)


@torch.inference_mode()
def test_it_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler needs; `benchmarks/throughput.py` says what one gives."""
    monkeypatch.setitem(encoder.AT_ONCE, "cpu", 7000)
    model, images = random_encoder(True), torch.randn(1, 3, 160, 160)
    traced = torch.compile(encoder.encode, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(model, images), encoder.encode(model, images))
