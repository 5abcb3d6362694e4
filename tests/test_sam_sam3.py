"""SAM 3 against the library's own processor, model and post-processing, and its weights."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_sams import picture, small_sam3, small_tokenizer

from workbench.candidates.concepts import MOST_OBJECTS, concept_of
from workbench.candidates.table import Candidates, Rules
from workbench.errors import CheckpointError, JobError
from workbench.segmenters.exemplars import NO_EXEMPLARS, Exemplars
from workbench.segmenters.sam import concept_segmenter
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


def looking_for(folder: Path, words: dict[int, str], rules: Rules = RULES) -> ConceptSegmenter:
    return ConceptSegmenter(lambda: load_sam3(folder), words, rules=rules)


def of_class(found: Candidates, class_id: int) -> Candidates:
    return found.take(concept_of(found) == class_id)


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
    segmenter = looking_for(weights, words)
    given = NO_EXEMPLARS if boxes is None else Exemplars(np.full(len(boxes), 7), boxes, like)
    ours = segmenter.begin_with(image, given, {})()
    query = ours.column("ordinal") - 7 * MOST_OBJECTS
    assert len(query) >= 15
    assert set(np.flatnonzero(masks.any(axis=(1, 2)))) == set(query)
    np.testing.assert_allclose(ours.column("pred_iou"), scores[query], atol=1e-3)
    pairs = zip(ours.masks(), masks[query], strict=True)
    ious = np.array([(a & b).sum() / (a | b).sum() for a, b in pairs])
    assert (ious >= 0.99).all()


def test_each_concept_finds_what_it_finds_alone(weights: Path) -> None:
    image, shares = picture(112, 112), []
    segmenter = looking_for(weights, {2: "pool", 1: "tree"})
    both = segmenter.begin(image, lambda share, so_far: shares.append((share, len(so_far()))))()
    assert sorted(set(concept_of(both).tolist())) == [1, 2]
    for number, words in segmenter.words.items():
        alone = looking_for(weights, {number: words}).propose(image)
        assert of_class(both, number).table == alone.table
    assert shares == [(0.5, len(of_class(both, 1))), (1.0, len(both))]


def test_floors_leave_out_what_scores_less(weights: Path) -> None:
    image = picture(112, 112)
    every = looking_for(weights, {1: "pool"}).propose(image)
    score, stability = (every.column(name) for name in ("pred_iou", "stability_score"))
    floors = float(np.median(score)), float(np.median(stability))
    some = looking_for(weights, {1: "pool"}, Rules(112, 112, *floors)).propose(image)
    passing = (score > np.float32(floors[0])) & (stability >= np.float32(floors[1]))
    assert 0 < passing.sum() < len(every)
    assert some.table == every.take(passing).table


def test_what_another_image_shows_is_looked_for(weights: Path) -> None:
    here, there = picture(112, 112, seed=1), picture(112, 112, seed=2)
    shown = Exemplars(np.array([5, 5, 0]), BOXES, LIKE)
    segmenter = looking_for(weights, {})
    looks = segmenter.look_at(there, shown)
    assert list(looks) == [5]
    own = segmenter.begin_with(there, shown, {})()
    assert segmenter.begin_with(there, NO_EXEMPLARS, looks)().table == own.table
    assert segmenter.begin_with(there, shown, segmenter.look_at(here, shown))().table == own.table
    carried = segmenter.begin_with(here, NO_EXEMPLARS, looks)()
    # more than the text that stands for boxes would find without them
    alone = looking_for(weights, {5: "visual"}).propose(here)
    assert len(carried) > 0
    assert carried.table != alone.table
    assert len(segmenter.begin_with(here, NO_EXEMPLARS, {})()) == 0


def test_what_is_unlike_here_counts_beside_what_another_image_shows(weights: Path) -> None:
    here, there = picture(112, 112, seed=1), picture(112, 112, seed=2)
    segmenter = looking_for(weights, {})
    looks = segmenter.look_at(there, Exemplars(np.array([5]), BOXES[:1], LIKE[:1]))
    unlike = Exemplars(np.array([5]), BOXES[1:2], np.array([False]))
    found = segmenter.begin_with(here, unlike, looks)()
    assert len(found) > 0
    assert found.table != segmenter.begin_with(here, NO_EXEMPLARS, looks)().table
    assert len(segmenter.begin_with(here, unlike, {})()) == 0


def test_a_box_of_no_class_is_unlike_each(weights: Path) -> None:
    image, words = picture(112, 112), {1: "pool", 2: "tree"}
    none = Exemplars(np.array([0]), BOXES[:1], np.array([False]))
    found = looking_for(weights, words).begin_with(image, none, {})()
    without = looking_for(weights, words).propose(image)
    for number in words:
        unlike = Exemplars(np.array([number]), BOXES[:1], np.array([False]))
        same = looking_for(weights, {number: words[number]}).begin_with(image, unlike, {})()
        assert of_class(found, number).table == same.table != of_class(without, number).table


def test_it_runs_in_bf16_too(weights: Path) -> None:
    given = picture(160, 160), Exemplars(np.full(3, 1), BOXES, LIKE), {}
    exact = looking_for(weights, {1: "pool"}).begin_with(*given)()
    fast = ConceptSegmenter(
        lambda: load_sam3(weights), {1: "pool"}, rules=RULES, precision="bf16"
    ).begin_with(*given)()
    assert len(fast) >= 0.8 * len(exact)
    both = np.intersect1d(fast.column("ordinal"), exact.column("ordinal"))
    scores = [
        made.take(np.isin(made.column("ordinal"), both)).column("pred_iou")
        for made in (fast, exact)
    ]
    np.testing.assert_allclose(*scores, atol=0.1)


def test_the_key_is_known_before_loading_and_tells_concepts_apart(weights: Path) -> None:
    one = concept_segmenter({1: "pool"}, checkpoint=weights)
    assert one.key == concept_segmenter({1: "pool"}, checkpoint=str(weights)).key
    for other in (
        concept_segmenter({1: "tree"}, checkpoint=weights),
        concept_segmenter({2: "pool"}, checkpoint=weights),
        concept_segmenter({1: "pool"}, checkpoint=weights, exemplars="abc"),
    ):
        assert other.key != one.key
    one.load()
    assert len(one.propose(picture(112, 112)).table.schema.names) > 10


def test_words_that_are_too_many_are_refused_when_it_is_loaded(weights: Path) -> None:
    told = r"'pool pool .* …' is too long: .*up to 30 tokens, and this has 31"
    with pytest.raises(JobError, match=told):
        concept_segmenter({1: "pool " * 31}, checkpoint=weights).load()


# ------------------------------------------------------------------------------- weights


def test_without_weights_it_says_how_to_get_them_and_what_works_instead() -> None:
    told = r"hf download facebook/sam3.*set checkpoint to that folder.*`examples` teach.*`prompts`"
    with pytest.raises(CheckpointError, match=rf"does not download them.*licence.*{told}"):
        concept_segmenter({1: "pool"}, checkpoint=None)
    with pytest.raises(CheckpointError, match=rf"nowhere is not a folder.*{told}"):
        concept_segmenter({1: "pool"}, checkpoint="nowhere")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def of_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "sam2"}')


def half_downloaded(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_part_is_missing(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "has no config.json, so it is not the whole folder"),
        (of_another_model, "is a model of kind 'sam2', not SAM 3"),
        (half_downloaded, r"model.safetensors is cut short or damaged \([\d,]+ bytes\)"),
        (no_weights, "has no model.safetensors"),
        (a_part_is_missing, r"has no model-2.safetensors"),
        (a_pointer, "model.safetensors is cut short or damaged"),
        (no_tokenizer, "has no tokenizer.json"),
    ],
)
def test_a_folder_that_is_not_sam3_or_not_whole_is_refused_before_loading(
    weights: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    folder = tmp_path / "sam3"
    shutil.copytree(weights, folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=rf"checkpoint {folder}.*{message}"):
        concept_segmenter({1: "pool"}, checkpoint=folder)


def test_a_file_is_refused_because_words_need_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "sam3.pt"
    file.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"is a file\. SAM 3 is read from a folder"):
        concept_segmenter({1: "pool"}, checkpoint=file)


def test_weights_that_lack_some_are_refused_when_they_are_loaded(
    weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sam3"
    shutil.copytree(weights, folder)
    held = load_file(folder / "model.safetensors")
    held.pop("text_projection.weight")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 are missing \(no text_projection.weight\)"):
        concept_segmenter({1: "pool"}, checkpoint=folder).load()


def test_the_folder_that_is_published_also_holds_the_tracker_for_videos(
    weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sam3"
    shutil.copytree(weights, folder)
    held = load_file(folder / "model.safetensors")
    held = {f"detector_model.{name}": value for name, value in held.items()}
    held["tracker_model.memory_encoder.projection.bias"] = torch.zeros(3)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "sam3_video", "detector_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    words, image = {1: "pool"}, picture(112, 112)
    segmenter = concept_segmenter(words, checkpoint=folder, rules=RULES)
    assert segmenter.propose(image).table == looking_for(weights, words).propose(image).table


def test_without_its_package_it_says_what_to_install(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.segmenters.sam.extras.is_installed", lambda _: False)
    with pytest.raises(CheckpointError, match=r"SAM 3 needs the package transformers.*models"):
        concept_segmenter({1: "pool"}, checkpoint=weights).load()


def test_the_model_has_the_published_size() -> None:
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        model = Sam3Model(Sam3Config())
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(840, abs=2)
    assert model.config.image_size == 1008
