"""What a model must offer to propose masks for tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.table import Candidates

# called while a tile is computed, often: the share that is done, and how to get what there is
Watch = Callable[[float, Callable[[], "Candidates"]], None]


class Segmenter(Protocol):
    """Anything that proposes masks for a tile."""

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on, as plain values: model, weights, prompts, rules."""

    def load(self) -> None:
        """Get ready to propose: all that can be wrong with weights or device raises here."""

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return the pruned candidates of one RGB tile `(h, w, 3)`, at tile row and column 0.

        A Segmenter that takes long tells `watch` how far it is.
        """

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Do what a tile at a time can do, as with a network; return what is left of `propose`.

        That may be done in another thread, while the next tile has begun.
        """
        found = self.propose(image, watch)
        return lambda: found
