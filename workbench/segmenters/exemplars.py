"""Exemplars: boxes on an image that show a model what to look for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.table import Candidates
from workbench.segmenters.protocol import Watch

EVERY_CLASS = 0  # the class of a box that shows what no class looks like


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Boxes on one image: like the objects of a class, or unlike them."""

    class_id: NDArray[np.int64]  # (n,); EVERY_CLASS: unlike the objects of all classes
    boxes: NDArray[np.float64]  # (n, 4) XYXY, pixels of the image
    like: NDArray[np.bool_]  # (n,)

    def about(self, class_id: int) -> NDArray[np.bool_]:
        """Which boxes say something of a class, `(n,)`."""
        return (self.class_id == class_id) | (self.class_id == EVERY_CLASS)

    @property
    def shown(self) -> set[int]:
        """The classes with a box that is like their objects."""
        return set(self.class_id[self.like].tolist())


NO_EXEMPLARS = Exemplars(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, bool))


@runtime_checkable
class TakesExemplars(Protocol):
    """A model that finds objects like those in boxes."""

    def look_at(self, image: NDArray[np.uint8], exemplars: Exemplars) -> Mapping[int, Any]:
        """What each class that is shown looks like, as the model sees it; for other images."""

    def begin_with(
        self,
        image: NDArray[np.uint8],
        exemplars: Exemplars,
        elsewhere: Mapping[int, Any],
        watch: Watch | None = None,
    ) -> Callable[[], Candidates]:
        """Do as `Segmenter.begin`, with exemplars.

        A class that `exemplars` do not show on this image is as `elsewhere`, from `look_at`. What
        is unlike it here counts all the same.
        """
