"""The imagery of a map: an overview first, then the visible part at screen resolution."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipyleaflet
import numpy as np

from workbench.raster.scene import Scene
from workbench.tuning.webmap import Bounds, Picture, mosaic, web_bounds
from workbench.widgets.safe_html import Markup, sentence

MOST_OVERVIEWS = 20
OVERVIEW_PX = 2048  # longer side of a single overview; several overviews share its number of pixels
SHARP_PX = 2048  # longer side of the sharp part, at most
MARGIN = 0.25  # of the screen, added on each side: a short pan shows no gap
SETTLE_SECONDS = 0.06  # pans and zooms closer together than this count as one
SWAP_SECONDS = 0.15  # more than a browser needs to decode a picture
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@dataclass(frozen=True)
class Screen:
    """The part of EPSG:3857 that a map shows, and the pixels of its longer side."""

    bounds: Bounds
    px: float

    @property
    def pixel(self) -> float:
        """Width of a pixel in EPSG:3857."""
        left, bottom, right, top = self.bounds
        return max(right - left, top - bottom) / self.px

    def grown(self, share: float) -> Screen:
        """Return the screen with a margin on each side."""
        left, bottom, right, top = self.bounds
        dx, dy = share * (right - left), share * (top - bottom)
        return Screen((left - dx, bottom - dy, right + dx, top + dy), self.px * (1 + 2 * share))

    def covers(self, other: Screen) -> bool:
        """Whether it shows all of the other screen, at the same resolution or better."""
        low, high = np.array(self.bounds[:2]), np.array(self.bounds[2:])
        return bool(
            (low <= other.bounds[:2]).all()
            and (high >= other.bounds[2:]).all()
            and self.pixel <= other.pixel * 1.01
        )

    def meets(self, bounds: Bounds) -> bool:
        """Whether it overlaps some bounds; infinite ones never do."""
        left, bottom, right, top = self.bounds
        return bounds[0] < right and bounds[2] > left and bounds[1] < top and bounds[3] > bottom


class LastWish:
    """A thread that paints the last requested screen once requests pause for a moment.

    `paint` may check whether it is `overtaken`; the thread calls `end` when it stops.
    """

    def __init__(self, paint: Callable[[Screen], None], end: Callable[[], None]) -> None:
        self._paint, self._end = paint, end
        self._changed = threading.Condition()
        self._wish: Screen | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def overtaken(self) -> bool:
        """Whether there is a newer request, or the thread should end."""
        return self._wish is not None or self._closed

    def wish(self, screen: Screen) -> None:
        """Request a screen; an earlier request that has not started is dropped."""
        with self._changed:
            self._wish = screen
            self._changed.notify()

    def close(self) -> None:
        """End the thread after its current work; calling this again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (screen := self._settled()) is not None:
            self._paint(screen)
        self._end()

    def _settled(self) -> Screen | None:
        with self._changed:
            self._changed.wait_for(lambda: self.overtaken)
            while self._changed.wait(SETTLE_SECONDS) and not self._closed:
                pass  # another request has come
            screen, self._wish = self._wish, None
            return None if self._closed else screen


class Imagery:
    """Pictures of scenes as layers of an ipyleaflet map, read in a separate thread.

    `say(about, text)` gets notes about the imagery; an empty text removes a note.
    """

    def __init__(self, scenes: Sequence[Scene], say: Callable[[str, str], None]) -> None:
        self.scenes, self._say = scenes, say
        self._boxes = [web_bounds(scene) for scene in scenes]
        self._slots = [_image() for _ in scenes[:MOST_OVERVIEWS]]
        # two: one stays visible while the browser decodes the other
        self._fresh, self._old = _image(), _image()
        self._shown: dict[int, ipyleaflet.ImageOverlay] = {}  # the overview of each scene
        self._sharp: Screen | None = None
        self._damaged: list[str] = []  # found by the overviews
        self._painter = LastWish(self._paint, self._close_scenes)

    @property
    def layers(self) -> tuple[ipyleaflet.ImageOverlay, ...]:
        """All layers, lowest first."""
        return (*self._slots, self._fresh, self._old)

    def fade(self, opacity: float) -> None:
        """Show the imagery with an opacity from 0 to 1."""
        for layer in self.layers:
            layer.opacity = opacity

    def look_at(self, screen: Screen) -> None:
        """Read the imagery of a screen soon, unless another screen follows at once."""
        self._painter.wish(screen)

    def close(self) -> None:
        """End the thread, and close the scenes; the pictures stay."""
        self._painter.close()

    def _paint(self, screen: Screen) -> None:
        problems: list[str] = []
        try:
            in_sight = [i for i, box in enumerate(self._boxes) if screen.meets(box)]
            seen = in_sight[:MOST_OVERVIEWS]
            self._say(
                "rasters",
                f"Imagery of {len(seen)} of the {len(in_sight)} rasters in view is shown: zoom in "
                "for the others."
                if len(seen) < len(in_sight)
                else "",
            )
            self._paint_overviews(seen)
            if not self._painter.overtaken:
                self._sharpen(seen, screen, problems.append)
        except Exception as error:  # in a thread, where nobody would see it
            problems.append(f"The imagery cannot be shown: {type(error).__name__}: {error}")
        said = list(dict.fromkeys([*self._damaged, *problems]))[:3]
        self._say("imagery", Markup("").join(sentence(text) for text in said))

    def _paint_overviews(self, seen: Sequence[int]) -> None:
        px = max(256, round(OVERVIEW_PX / math.sqrt(len(self._slots))))
        for i in seen:
            if i in self._shown or self._painter.overtaken:
                continue
            away = [other for other in self._shown if other not in seen]
            free = [slot for slot in self._slots if slot not in self._shown.values()]
            self._shown[i] = free[0] if free else self._shown.pop(away[0])
            scene = self.scenes[i]
            px_here = min(px, max(scene.width, scene.height))
            _put(self._shown[i], mosaic([scene], self._boxes[i], px_here, self._damaged.append))

    def _sharpen(self, seen: Sequence[int], screen: Screen, tell: Callable[[str], None]) -> None:
        if self._sharp is not None and self._sharp.covers(screen):
            return
        wanted = screen.grown(min(MARGIN, max(0.0, (SHARP_PX / screen.px - 1) / 2)))
        wanted = Screen(wanted.bounds, min(SHARP_PX, wanted.px))
        scenes = [self.scenes[i] for i in seen]
        _put(self._fresh, mosaic(scenes, wanted.bounds, round(wanted.px), tell))
        time.sleep(SWAP_SECONDS)
        self._old.url = _BLANK
        self._fresh, self._old = self._old, self._fresh
        self._sharp = wanted

    def _close_scenes(self) -> None:
        for scene in self.scenes:
            scene.close()


def _image() -> ipyleaflet.ImageOverlay:
    return ipyleaflet.ImageOverlay(url=_BLANK, bounds=((0, 0), (0, 0)))


def _put(image: ipyleaflet.ImageOverlay, picture: Picture | None) -> None:
    with image.hold_sync():
        image.url = _BLANK if picture is None else picture.url
        image.bounds = ((0, 0), (0, 0)) if picture is None else picture.bounds
