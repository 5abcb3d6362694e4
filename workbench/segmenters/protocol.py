"""What a model must offer to propose masks for tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.candidates.table import Candidates, Rules

# called often while a tile is computed, with the share that is done and a way to get the
# candidates so far
Watch = Callable[[float, Callable[[], "Candidates"]], None]


class Segmenter(Protocol):
    """Anything that proposes masks for a tile. Not to inherit from: it has nothing to give."""

    @property
    def rules(self) -> Rules:
        """What candidates are made under; a tile of another size gets the rules for its size."""

    @property
    def key(self) -> Mapping[str, Any]:
        """All that the candidates depend on, as plain values: model, weights, prompts, rules.

        It may change while tiles are computed: a model may go on with less memory than it began.
        """

    def load(self) -> None:
        """Get ready to propose. Whatever is wrong with weights or device raises here."""

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """Return the pruned candidates of one RGB tile `(h, w, 3)`, at tile row and column 0.

        A slow Segmenter tells `watch` how far it is.
        """

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """Do what one tile after the other must do, like a network; return the rest of `propose`.

        The rest may be done in another thread, after the next tile has begun.
        """
