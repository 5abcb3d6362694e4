"""SAM 3 as a `Segmenter`: all objects of some concepts, each with its class and its score.

The score stands in for the predicted IoU, stability is that of the logits as for any SAM. Nothing
is suppressed here: SAM 3 finds each object once, and which class lies where is decided as for
learned classes. The class of a candidate is in its ordinal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from workbench._support.cores import usable_cores
from workbench.candidates.concepts import concept_ordinals
from workbench.candidates.table import SAM_RULES, Candidates, Rules, concat
from workbench.errors import WorkbenchError
from workbench.segmenters.exemplars import NO_EXEMPLARS, Exemplars
from workbench.segmenters.protocol import Segmenter, Watch
from workbench.segmenters.sam.device import (
    DTYPES,
    device_kind,
    resolve_device,
    resolve_precision,
)
from workbench.segmenters.sam.measure import joined, measure_whole
from workbench.segmenters.sam.proposals import Crop, Proposals
from workbench.segmenters.sam.sam3 import (
    WITHOUT_WORDS,
    ConceptFeatures,
    FoundObjects,
    Sam3,
    digest_of,
    load_sam3,
    refuse_without_weights,
)

NAME = "sam3"
ARITHMETIC = 1  # goes up when a change moves the last bits of the masks
MASKS_AT_ONCE = {"cpu": 3}  # enlarged together: more do not fit the CPU's caches
ELSEWHERE = 32


@dataclass(eq=False)
class ConceptSegmenter:
    """SAM 3 and the concepts that it looks for; a `Segmenter` that also `TakesExemplars`.

    `words` are those of each class, by its number. `exemplars` stands for all exemplars of a job:
    candidates depend on them. The network is loaded when first used, and the key is known before.
    """

    load_network: Callable[[], Sam3]
    words: Mapping[int, str]
    weights_sha256: str = ""
    exemplars: str = ""
    rules: Rules = SAM_RULES
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    _words: dict[str, ConceptFeatures] = field(default_factory=dict, init=False)

    @cached_property
    def network(self) -> Sam3:
        """The network on its device."""
        if self._device_type == "cpu":
            torch.set_num_threads(self._threads)
        network = self.load_network()
        network.model.to(self.device)
        return network

    @torch.inference_mode()
    def load(self) -> None:
        """Load the network and read the words now: whatever is wrong with either raises here."""
        resolve_device(self.device)
        for text in (*self.words.values(), WITHOUT_WORDS):
            self._read(text)

    def with_network_of(self, loaded: Segmenter) -> ConceptSegmenter:
        """This Segmenter with the network of another, which may look for something else."""
        if not isinstance(loaded, ConceptSegmenter) or "network" not in loaded.__dict__:
            return self
        place = "weights_sha256", "_device_type", "precision", "_threads"
        if all(getattr(self, name) == getattr(loaded, name) for name in place):
            self.network, self._words = loaded.network, loaded._words
        return self

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on, except torch's version."""
        return {
            "model": NAME,
            "arithmetic": ARITHMETIC,
            "weights_sha256": self.weights_sha256,
            "concepts": {str(number): self.words[number] for number in sorted(self.words)},
            "exemplars": self.exemplars,
            "pred_iou_floor": self.rules.pred_iou_floor,
            "stability_floor": self.rules.stability_floor,
            "device": self._device_type,
            "precision": self.precision,
            "threads": self._threads,
        }

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return all objects of one RGB tile `(h, w, 3)` that the words name."""
        return self.begin(image, watch)()

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Run the network; the rest of `propose` is work for the host alone."""
        return self.begin_with(image, NO_EXEMPLARS, {}, watch)

    @torch.inference_mode()
    def look_at(
        self, image: NDArray[np.uint8], exemplars: Exemplars
    ) -> Mapping[int, ConceptFeatures]:
        """What each class that exemplars show on an image looks like."""
        with self._autocast():
            seen = self.network.look(image)
            return {
                number: seen.like(exemplars.boxes[about], exemplars.like[about])
                for number in sorted(exemplars.shown)
                if (about := exemplars.about(number)).any()
            }

    @torch.inference_mode()
    def begin_with(
        self,
        image: NDArray[np.uint8],
        exemplars: Exemplars,
        elsewhere: Mapping[int, ConceptFeatures],
        watch: Watch | None = None,
    ) -> Callable[[], Candidates]:
        """Look for each class by its words and by what shows it, here or else `elsewhere`.

        Boxes that are unlike a class count where they are.
        """
        rules = self.rules.for_tile(*image.shape[:2])
        classes = sorted({*self.words, *exemplars.shown, *elsewhere})
        found: list[_OfClass] = []
        with self._autocast():
            seen = self.network.look(image)
        for done, number in enumerate(classes, 1):
            about = exemplars.about(number)
            with self._autocast():
                concept = self._read(self.words.get(number, WITHOUT_WORDS))
                if number in elsewhere and number not in exemplars.shown:
                    concept = concept.along_with(elsewhere[number])
                if about.any():
                    here = seen.like(exemplars.boxes[about], exemplars.like[about])
                    concept = concept.along_with(here)
                objects = seen.find(concept)
            found.append(self._passing(number, objects, rules))
            if watch is not None:
                watch(done / len(classes), partial(_table, [*found], rules))
        return partial(_table, found, rules)

    def _read(self, text: str) -> ConceptFeatures:
        """The words of a concept, read once."""
        if text not in self._words:
            network = self.network
            with self._autocast():
                self._words[text] = network.words(text)
        return self._words[text]

    def _passing(self, class_id: int, objects: FoundObjects, rules: Rules) -> _OfClass:
        """Measure the objects of a class that score above the floor, and keep the stable ones."""
        scores = objects.scores.cpu().numpy()
        if not np.isfinite(scores).all() or not bool(objects.logits.isfinite().all()):
            raise WorkbenchError(
                f"{NAME} gave values that are not finite in precision {self.precision}. Set "
                "precision to fp32. If it is fp32 already, the weights are damaged: download them "
                "again."
            )
        floor = np.float32(rules.pred_iou_floor)
        rows = np.flatnonzero((scores > floor) | (floor <= 0))
        wanted = objects.logits[torch.from_numpy(rows).to(objects.logits.device)]
        size, at_once = (rules.height, rules.width), MASKS_AT_ONCE.get(self._device_type, ELSEWHERE)
        parts = (enlarged(some, size) for some in wanted.split(at_once) if len(some))
        masks = joined([measure_whole(logits, 0.0) for logits in parts])
        keep = masks.areas > 0
        if rules.stability_floor > 0:
            keep &= masks.stability >= np.float32(rules.stability_floor)
        corners = objects.boxes.cpu().numpy()[rows[keep]].reshape(-1, 2, 2).astype(np.float64)
        # the middle of each object's box is written down as its prompt
        tile = Crop((0, 0, rules.width, rules.height), 0, corners.mean(axis=1), 1, rules)
        kept = Proposals(tile, np.arange(keep.sum()), scores[rows[keep]], masks.take(keep))
        return _OfClass(class_id, rows[keep], kept)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device_type, DTYPES[self.precision])

    @property
    def _device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def _threads(self) -> int:
        return self.threads or min(torch.get_num_threads(), usable_cores())


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring `(n, h, w)` logits to the size of a tile, as the library does: as probabilities."""
    shares = interpolate(logits.sigmoid()[None], size, mode="bilinear", align_corners=False)[0]
    return torch.logit(shares, eps=1e-6)


@dataclass(frozen=True, eq=False)
class _OfClass:
    """The objects of one class in a tile, and the query that found each, `(n,)`."""

    class_id: int
    query: NDArray[np.int64]
    masks: Proposals

    def table(self) -> Candidates:
        """All of them, with their RLEs."""
        table = self.masks.table()
        table = table.with_column("ordinal", concept_ordinals(self.class_id, self.query))
        return table.with_column("rle", self.masks.encode(np.ones(len(self.query), bool)))


def _table(found: Sequence[_OfClass], rules: Rules) -> Candidates:
    return concat([Candidates.empty(rules), *(objects.table() for objects in found)])


def concept_segmenter(
    words: Mapping[int, str],
    *,
    checkpoint: str | Path | None,
    exemplars: str = "",
    device: str = "auto",
    precision: str = "auto",
    rules: Rules = SAM_RULES,
    threads: int | None = None,
) -> ConceptSegmenter:
    """Make SAM 3 look for concepts, with a person's own weights.

    Nothing is loaded before `load`.

    Args:
        words: What the objects of each class are called, by its number; may be empty where
            exemplars show all classes.
        checkpoint: Folder with the weights of SAM 3, as Hugging Face saves it.
        exemplars: Stands for all exemplars in the key.
        device: As in `Job`, and so are all other arguments.

    Returns:
        The segmenter. Call `load` before `propose`.

    Raises:
        JobError: The device or precision is unknown.
        CheckpointError: There are no weights, or not those of SAM 3.

    Example:
        >>> segmenter = concept_segmenter({1: "building"}, checkpoint="sam3")
    """
    folder = refuse_without_weights(checkpoint)
    if "auto" in (device, precision):
        device = resolve_device(device)
    device_kind(device)
    return ConceptSegmenter(
        partial(load_sam3, folder),
        dict(words),
        weights_sha256=digest_of(folder),
        exemplars=exemplars,
        rules=rules,
        device=device,
        precision=resolve_precision(precision, device),
        threads=threads,
    )
