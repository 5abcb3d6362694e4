"""The decoder with less arithmetic, against the official one."""

import pytest
import torch

from workbench.segmenters.sam.decoder import decoder_of

# after workbench.segmenters.sam, which makes torchvision importable
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def random_sam() -> tuple[PromptEncoder, MaskDecoder]:
    """Prompt encoder and decoder of another shape, with random weights, biases included."""
    torch.manual_seed(0)
    encoder = PromptEncoder(
        embed_dim=64,
        image_embedding_size=(16, 16),
        input_image_size=(256, 256),
        mask_in_chans=4,
    )
    decoder = MaskDecoder(
        transformer_dim=64,
        transformer=TwoWayTransformer(depth=3, embedding_dim=64, num_heads=8, mlp_dim=96),
    )
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize("n", [1, 5])
@torch.inference_mode()
def test_C1_scores_and_logits_are_those_of_the_official_decoder(n: int) -> None:
    encoder, decoder = random_sam()
    features = torch.randn(1, encoder.embed_dim, *encoder.image_embedding_size)
    points = torch.rand(n, 1, 2) * encoder.input_image_size[0]
    sparse, dense = encoder((points, torch.ones(n, 1, dtype=torch.int)), None, None)
    expected, expected_iou = decoder(
        image_embeddings=features,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    iou, logits_of = decoder_of(decoder, features, encoder.get_dense_pe(), dense[:1])(sparse)
    torch.testing.assert_close(iou, expected_iou, rtol=1e-4, atol=1e-5)
    spread = float(expected.std())
    assert spread > 0.01
    for wanted in (torch.ones_like(iou, dtype=torch.bool), torch.rand(iou.shape) > 0.6):
        torch.testing.assert_close(
            logits_of(wanted), expected[wanted], rtol=1e-4, atol=1e-4 * spread
        )
    nothing = logits_of(torch.zeros_like(iou, dtype=torch.bool))
    assert nothing.shape == (0, *expected.shape[2:])
