"""SAM 3: all objects of a concept in an image, through transformers, an optional extra.

A concept is a few words, or boxes around objects like it (and unlike it), or both. The network
makes rows of features of either (`ConceptFeatures`), and reads all rows of a concept as one
sequence. The rows of a box come from the image that shows it and from its place there, but nothing
after them reads that image again. So a concept that one image has shown can be looked for in
another one. The network is trained with exemplars on the same image only (Carion et al., "SAM 3:
Segment Anything with Concepts", arXiv 2511.16719); how well others work has not been measured here.

The weights are gated and have a licence of their own: a person brings them, as the folder that
Hugging Face saves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.errors import CheckpointError, JobError
from workbench.segmenters.sam.extras import require

require_transformers = partial(require, "SAM 3", "transformers")

PAGE = "https://huggingface.co/facebook/sam3"
INSTEAD = (
    "Without them, `examples` teach classes to any other model from a few labels, and `prompts` "
    "segment objects that you have already."
)
HOW_TO_GET = (
    f"accept their licence (Meta's SAM License) at {PAGE}, download the whole folder, for example "
    "with `hf download facebook/sam3 --local-dir sam3`, and set checkpoint to that folder."
)
KINDS = ("sam3", "sam3_video")  # of config.json; the published one is that for videos
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
MOST_TOKENS = 32  # of a concept's words, with one at the start and one at the end
WITHOUT_WORDS = "visual"  # the text that SAM 3 was trained with where boxes alone say what is meant
MEAN = SPREAD = 127.5  # of pixels, in units of 0 to 255


@dataclass(frozen=True, eq=False)
class ConceptFeatures:
    """What a concept looks like to the network: rows for its words and boxes."""

    features: Tensor  # (1, n, c)
    counts: Tensor  # (1, n), boolean; padding does not count

    def along_with(self, other: ConceptFeatures) -> ConceptFeatures:
        """One concept of both."""
        return ConceptFeatures(
            torch.cat([self.features, other.features], 1), torch.cat([self.counts, other.counts], 1)
        )


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """The objects of a concept in an image, as many as the network has queries, `q`."""

    scores: Tensor  # (q,), 0 to 1
    logits: Tensor  # (q, h, w) of the whole image, at the network's own size
    boxes: Tensor  # (q, 4) XYXY, as shares of the image


class Sam3:
    """SAM 3 of transformers, with the tokenizer of its words."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self._tokenizer = model, tokenizer
        size = model.config.image_size
        self.side = int(size if isinstance(size, int) else size[0])

    def pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """Scale an RGB image `(h, w, 3)` to the network's square; `(1, 3, side, side)`.

        SAM 3 stretches images that are not square.
        """
        # as the library does it; takes a moment to import, which no other model should wait for
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        pixels = resize(pixels, [self.side] * 2, InterpolationMode.BILINEAR, antialias=True)
        return (pixels.to(self.model.device).float() - MEAN) / SPREAD

    def words(self, text: str) -> ConceptFeatures:
        """Read the words of a concept; raises `JobError` if there are too many."""
        read = self._tokenizer(
            text, return_tensors="pt", padding="max_length", max_length=MOST_TOKENS
        )
        tokens, counts = read["input_ids"], read["attention_mask"]
        if tokens.shape[1] > MOST_TOKENS:
            raise JobError(
                f"Parameter `concepts`: {shorten(text, 60, placeholder=' …')!r} is too long: SAM 3 "
                f"reads up to {MOST_TOKENS - 2} tokens, and this has {tokens.shape[1] - 2}. Take "
                "one or two words, for example `swimming pool`."
            )
        tokens, counts = tokens.to(self.model.device), counts.to(self.model.device)
        features = self.model.get_text_features(input_ids=tokens, attention_mask=counts)
        return ConceptFeatures(features.pooler_output, counts.bool())

    def look(self, image: NDArray[np.uint8]) -> Seen:
        """Encode an RGB image `(h, w, 3)`."""
        features = self.model.get_vision_features(pixel_values=self.pixels(image))
        return Seen(self.model, features, image.shape[:2])


class Seen:
    """An image that SAM 3 has encoded."""

    def __init__(self, model: Any, features: Any, size: tuple[int, ...]) -> None:
        self._model, self._features = model, features
        self._height, self._width = size[:2]

    def like(self, boxes: NDArray[np.float64], like: NDArray[np.bool_]) -> ConceptFeatures:
        """What boxes `(n, 4)` XYXY, pixels of the image, show: objects `like` `(n,)`, or unlike."""
        device = self._model.device
        shares = boxes / np.tile([self._width, self._height], 2)
        corners = torch.as_tensor(shares, dtype=torch.float32, device=device).view(1, -1, 2, 2)
        low, high = corners.unbind(2)
        # Of the last level but one, as the library itself does where words and boxes come in one
        # call. In fp32: its pooling turns bf16 into fp16, which autocast to bf16 does not take.
        features, places = (
            levels[-2].float()
            for levels in (self._features.fpn_hidden_states, self._features.fpn_position_encoding)
        )
        with torch.autocast(device.type, enabled=False):
            seen = self._model.geometry_encoder(
                box_embeddings=torch.cat([(low + high) / 2, high - low], -1),
                box_mask=torch.ones(corners.shape[:2], dtype=torch.bool, device=device),
                box_labels=torch.as_tensor(like[None], dtype=torch.long, device=device),
                img_feats=(features,),
                img_pos_embeds=(places,),
            )
        return ConceptFeatures(seen.last_hidden_state, seen.attention_mask.bool())

    def find(self, concept: ConceptFeatures) -> FoundObjects:
        """Find all objects of a concept."""
        found = self._model(
            vision_embeds=self._features,
            text_embeds=SimpleNamespace(pooler_output=concept.features),
            attention_mask=concept.counts,
        )
        # the concept's score of an object counts only if the image has the concept at all
        scores = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
        return FoundObjects(
            scores[0].float(), found.pred_masks[0].float(), found.pred_boxes[0].float()
        )


# ------------------------------------------------------------------------------- weights


def refuse_without_weights(folder: str | Path | None) -> Path:
    """Return the folder of a person's own weights.

    Raises `CheckpointError` if there are none, if they are of another model, or not whole. Reads
    only the beginning of large files.
    """
    if folder is None:
        raise CheckpointError(
            "SAM 3 needs weights that you bring: they do not come with sam-workbench, and it does "
            f"not download them. To get them, {HOW_TO_GET} {INSTEAD}"
        )
    path = Path(folder).expanduser()
    if path.is_file():
        raise CheckpointError(
            f"checkpoint {path} is a file. SAM 3 is read from a folder with config.json, weights "
            f"and tokenizer, as Hugging Face saves it. To get it, {HOW_TO_GET}"
        )
    if not path.is_dir():
        raise CheckpointError(
            f"checkpoint {path} is not a folder. To get the weights of SAM 3, {HOW_TO_GET} "
            f"{INSTEAD}"
        )
    if not (path / "config.json").is_file():
        raise _not_whole(path, "config.json")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise _not_whole(path, "a config.json that can be read") from error
    if kind not in KINDS:
        raise CheckpointError(
            f"checkpoint {path} is a model of kind {kind!r}, not SAM 3. To get SAM 3, {HOW_TO_GET}"
        )
    for file in _weights_of(path):
        _refuse_damaged(path, file)
    if not any(all((path / name).is_file() for name in names) for names in TOKENIZERS):
        raise _not_whole(path, "tokenizer.json")
    return path


def digest_of(folder: Path) -> str:
    """One sha256 of all files in a folder that the network and its words depend on."""
    names = ["config.json", *(name for names in TOKENIZERS for name in names)]
    files = [folder / name for name in names if (folder / name).is_file()]
    lines = []
    for file in (*files, *_weights_of(folder)):
        found = file.stat()
        lines.append(f"{file.name} {_hash_of(str(file), found.st_mtime_ns, found.st_size)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@lru_cache(maxsize=16)
def _hash_of(path: str, changed: int, size: int) -> str:
    """The sha256 of a file that was last changed then: gigabytes are read once in a process."""
    return pooch.file_hash(path)


def load_sam3(folder: Path) -> Sam3:
    """Load SAM 3 from the folder that Hugging Face saves, on the CPU and in fp32.

    No code in the folder is run. Raises `CheckpointError` if the extra is not installed, or the
    folder does not hold all of SAM 3.
    """
    require_transformers()
    refuse_without_weights(folder)
    from transformers import CLIPTokenizer, Sam3Model

    try:
        loaded: Any = Sam3Model.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever is wrong with files of other programs
        raise CheckpointError(
            f"checkpoint {folder} cannot be read as SAM 3 ({type(error).__name__}: {error}). "
            f"Download it again: {HOW_TO_GET}"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        example = f"no {missing[0]}" if missing else "other shapes"
        raise CheckpointError(
            f"checkpoint {folder} does not hold all weights of SAM 3: {len(missing)} are missing "
            f"({example}). Download it again: {HOW_TO_GET}"
        )
    return Sam3(model.eval().requires_grad_(False), tokenizer)


def _weights_of(folder: Path) -> Sequence[Path]:
    """The files of weights that a folder says it has."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise _not_whole(folder, f"an {index.name} that can be read") from error
        return [folder / str(name) for name in names]
    return [folder / "model.safetensors"]


def _refuse_damaged(folder: Path, file: Path) -> None:
    """Refuse a file of weights that is not there or not whole, by its size and its table."""
    if not file.is_file():
        raise _not_whole(folder, file.name)
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            table: Any = json.loads(opened.read(length)) if 0 < length < 2**27 else None
        ends = [entry["data_offsets"][1] for name, entry in table.items() if name[:2] != "__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        ends = None
    if not ends or 8 + length + max(ends) != file.stat().st_size:
        raise CheckpointError(
            f"checkpoint {folder}: {file.name} is cut short or damaged "
            f"({file.stat().st_size:,} bytes). Download it again: {HOW_TO_GET}"
        )


def _not_whole(folder: Path, lacking: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} has no {lacking}, so it is not the whole folder of SAM 3. Download "
        f"it again: {HOW_TO_GET}"
    )
