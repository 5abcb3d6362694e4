"""SAM 3 against the library's own processor, model and post-processing, and its weights."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sams import picture, small_sam3, small_tokenizer

from workbench.candidates.concepts import MOST_OBJECTS
from workbench.candidates.table import Rules
from workbench.segmenters.exemplars import NO_EXEMPLARS, Exemplars
from workbench.segmenters.sam.concepts import ConceptSegmenter
from workbench.segmenters.sam.extras import is_installed
from workbench.segmenters.sam.sam3 import load_sam3

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
    ),
]
RULES = Rules(112, 112, 0.0, 0.0)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face saves it, with random weights."""
    folder = tmp_path_factory.mktemp("weights") / "sam3"
    small_sam3().save_pretrained(folder)
    small_tokenizer(folder)
    return folder


def exemplars(class_id: list[int], boxes: list[list[float]], like: list[bool]) -> Exemplars:
    return Exemplars(np.array(class_id), np.array(boxes, float).reshape(-1, 4), np.array(like))


class PlainCall:
    """The library's processor, model and post-processing, as its documentation shows them."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3Model, Sam3Processor

        size = {"height": 112, "width": 112}
        self.model = Sam3Model.from_pretrained(folder).eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.processor = Sam3Processor(Sam3ImageProcessor(size=size), tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray,
        text: str | None,
        boxes: np.ndarray | None = None,
        like: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and masks of all objects, in the order of the queries."""
        given = {}
        if boxes is not None and like is not None:
            given = {
                "input_boxes": [boxes.tolist()],
                "input_boxes_labels": [like.astype(int).tolist()],
            }
        inputs = self.processor(images=image, text=text, return_tensors="pt", **given)
        outputs = self.model(**{name: inputs[name] for name in inputs if name != "original_sizes"})
        (found,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=inputs["original_sizes"].tolist()
        )
        return found["scores"].numpy(), found["masks"].numpy().astype(bool)


BOXES = np.array([[10.0, 20.0, 60.0, 50.0], [40.0, 62.0, 100.0, 110.0], [3.0, 80.0, 21.0, 96.0]])
LIKE = np.array([True, True, False])
ASKED = {
    "words": ("pool", None, None),
    "exemplars": (None, BOXES, LIKE),
    "both": ("tree", BOXES, LIKE),
    "unlike": ("building", BOXES[:1], ~LIKE[:1]),
}


@cache
def plain(folder: Path) -> PlainCall:
    return PlainCall(folder)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("size", [(112, 112), (160, 160), (96, 144)], ids=str)
def test_masks_and_scores_are_those_of_the_plain_call(
    weights: Path, asked: str, size: tuple[int, int]
) -> None:
    text, boxes, like = ASKED[asked]
    image = picture(*size, seed=3)
    scores, masks = plain(weights)(image, text, boxes, like)
    words = {} if text is None else {7: text}
    segmenter = ConceptSegmenter(lambda: load_sam3(weights), words, rules=RULES)
    given = NO_EXEMPLARS if boxes is None else Exemplars(np.full(len(boxes), 7), boxes, like)
    ours = segmenter.begin_with(image, given, {})()
    query = ours.column("ordinal") - 7 * MOST_OBJECTS
    assert len(query) >= 15
    assert set(np.flatnonzero(masks.any(axis=(1, 2)))) == set(query)
    np.testing.assert_allclose(ours.column("pred_iou"), scores[query], atol=1e-3)
    ious = np.array([(a & b).sum() / (a | b).sum() for a, b in zip(ours.masks(), masks[query])])
    assert (ious >= 0.99).all()
