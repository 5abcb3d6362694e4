"""What a model must offer to propose masks for tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

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


@runtime_checkable
class SharesNetwork(Protocol):
    """A Segmenter that can go on with the network of another one, which is loaded."""

    def with_network_of(self, loaded: Segmenter) -> Self:
        """This Segmenter with the network of another if that has the same; else as it is."""


Begin = Callable[[NDArray[np.uint8], Watch | None], Callable[[], Candidates]]


@dataclass(frozen=True)
class AskedInItsWay:
    """A loaded Segmenter that is asked for each image by `ask`, instead of by its own `begin`."""

    segmenter: Segmenter
    ask: Begin

    @property
    def rules(self) -> Rules:
        """Those of the Segmenter."""
        return self.segmenter.rules

    @property
    def key(self) -> Mapping[str, Any]:
        """That of the Segmenter."""
        return self.segmenter.key

    def load(self) -> None:
        """Nothing to do: the Segmenter is loaded."""

    def propose(self, image: NDArray[np.uint8], watch: Watch | None = None) -> Candidates:
        """As `Segmenter.propose`."""
        return self.ask(image, watch)()

    def begin(
        self, image: NDArray[np.uint8], watch: Watch | None = None
    ) -> Callable[[], Candidates]:
        """As `Segmenter.begin`."""
        return self.ask(image, watch)
