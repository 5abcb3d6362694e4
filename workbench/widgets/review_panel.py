"""Labels of a finished layer, answered one after another on the map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import numpy as np

from workbench._support.palette import LABEL_STATUS_COLORS, confidence_classes
from workbench._support.text import area_text
from workbench.errors import WorkbenchError
from workbench.learning.classifier import NONE
from workbench.raster.crs import from_lonlat
from workbench.review.job import ReviewJob
from workbench.review.read import STATUSES
from workbench.widgets.cells import CellWidget
from workbench.widgets.controls import button, row
from workbench.widgets.labelling import (
    CLASS_KEYS,
    CORRECT,
    DRAW,
    EDIT,
    NEXT_KEY,
    PROMPT,
    SHAPE_KEYS,
    Labelling,
    point_out,
)
from workbench.widgets.layer_session import LayerSession
from workbench.widgets.looks import looks
from workbench.widgets.map import SceneMap
from workbench.widgets.object_list import ObjectList
from workbench.widgets.overlay import PolygonOverlay, Pressed
from workbench.widgets.quiet import QuietMoments
from workbench.widgets.review_shapes import ReviewShapes
from workbench.widgets.safe_html import Markup, SafeHTML, paragraph, sentence
from workbench.widgets.shapes import NEW, ShapeTool
from workbench.widgets.toolbar import BY_CLICKS, MAP_KEYS, Toolbar, panel_of
from workbench.widgets.tuner_text import swatches

ACCEPT, REJECT, BACK, SKIP = "arz "
REVIEW_KEYS = (
    ("a", "accept: there is such a thing here, and the outline fits"),
    ("r, 0", "reject: there is no such thing here, or the outline is useless"),
    ("1 … 9", "set this class, and accept"),
    ("z", "back: take the last answer back, and show its label again"),
    ("space, n", "skip: show this label later"),
    (
        "d",
        "draw what was missed, in the class that was given last: double click or Enter ends it",
    ),
    ("e", "edit the outline of the label that is shown: Enter keeps it, Esc drops it"),
    ("p", f"outline what was missed by clicks, with the model: {BY_CLICKS}"),
    ("m", "mend the outline of the label that is shown by such clicks"),
    ("click", "show the label under the mouse; again, Tab or wheel: what else lies there"),
)
# where classes have colours of their own, kept labels of any class have these
_AMONG_CLASSES = {"unreviewed": "#ffffff", "edited": LABEL_STATUS_COLORS["accepted"]}
_TELLING_FIRST, _AS_LISTED = "Tiles that teach most first", "Tiles as they are listed"


class LayerReview(CellWidget[LayerSession, "ReviewPanel"]):
    """Answer the labels of a finished layer, one key a label, tile by tile.

    Answers go into the GeoPackage of the job at once, where QGIS finds them. In a batch run it
    makes no widgets and shows nothing.
    """

    text = "Labels are answered by hand, with the notebook open."

    def __init__(self, job: ReviewJob) -> None:
        if job.is_interactive:
            super().__init__(LayerSession(job), ReviewPanel)
        else:
            self.panel = self.frame = None


class LabelReview(Labelling):
    """The classes of a run, and how many labels were given each."""

    def __init__(self, session: LayerSession, panel: ReviewPanel) -> None:
        super().__init__(panel.tell)
        self._session = session
        self.palette.editable = False
        self.palette.on_answer(panel.say)

    @property
    def names(self) -> Mapping[int, str]:
        """The classes of the run."""
        return self._session.triage.classes

    @property
    def colors(self) -> Mapping[int, str]:
        """Their colours."""
        return self._session.colors

    @property
    def counts(self) -> Mapping[int, int]:
        """How many labels of each class were accepted, and how many were rejected."""
        return self._session.triage.n_by_class()


class ReviewPanel:
    """The widgets of a review: the map on the left, progress and bulk decisions on the right."""

    def __init__(self, session: LayerSession) -> None:
        self.session = session
        self.message, self.now, self.progress, self.legend = (SafeHTML() for _ in range(4))
        self.labelling = LabelReview(session, self)
        self.scene_map = SceneMap(session)
        self.overlay = PolygonOverlay(map_id=self.scene_map.map.model_id)
        self.overlay.hotkeys = ACCEPT + REJECT + BACK + SKIP + CLASS_KEYS + NEXT_KEY + SHAPE_KEYS
        self.overlay.keys_everywhere = True
        self.tool = ShapeTool(self.scene_map, session.asking, self.tell)
        self.shapes = ReviewShapes(session, self.tool)
        self._sent = -1  # which shapes the map has
        self.list = ObjectList(map_id=self.scene_map.map.model_id)
        self.quiet = QuietMoments(lambda: None, lambda: False, self._work)
        self.toolbar = Toolbar(session, self.tell, (*REVIEW_KEYS, *MAP_KEYS))
        self.rest = button(
            "", self._reject_rest, "reject all labels of this tile that nobody has judged; z undoes"
        )
        self.bar = widgets.FloatSlider(
            0.9, min=0.0, max=1.0, step=0.01, description="score", continuous_update=True,
            style={"description_width": "48px"}, layout={"width": "auto"},
        )  # fmt: skip
        self.above = button("", self._accept_above, "in all tiles; z takes it back")
        self.order = widgets.Dropdown(
            options=[_TELLING_FIRST, _AS_LISTED], description="order",
            style={"description_width": "48px"}, layout={"width": "auto"},
            tooltip="which tile comes after this one",
        )  # fmt: skip
        self.widget = self._layout()
        self._draw()
        self.overlay.on_key(self.pressed)
        self.overlay.on_click(self.clicked)
        self.list.on_go(self.go_to)
        self.bar.observe(self._show_above, "value")
        self.order.observe(lambda c: session.sort(c["new"] == _TELLING_FIRST), "value")
        self.tool.observe(self._show_tool, "mode")
        session.observe(self._show, "changes")
        session.observe(self._show_scores, "ranked")
        session.observe(lambda c: self.tell(c["new"]), "notice")
        session.start()
        self.quiet.start()
        self.quiet.touch()

    def tell(self, text: str) -> None:
        """Show an error beside the map, none if it is empty."""
        self.message.value = sentence(text) if text else ""

    def close(self) -> None:
        """Stop following the session, and end the threads and the process of the model."""
        self.quiet.close()
        self.session.unobserve_all()
        self.session.close()  # a cell that runs again has another session
        self.scene_map.close()

    # ------------------------------------------------------------------------------ what is shown

    def _layout(self) -> widgets.Widget:
        answers = row(
            button("Accept (a)", lambda: self._answer("accepted"), REVIEW_KEYS[0][1]),
            button("Reject (r)", lambda: self._answer("rejected"), REVIEW_KEYS[1][1]),
            button("Back (z)", self._back, REVIEW_KEYS[3][1]),
            button("Skip (space)", self._skip, REVIEW_KEYS[4][1]),
            button("Draw (d)", self._draw_missed, REVIEW_KEYS[5][1]),
            button("Edit (e)", self._edit_shape, REVIEW_KEYS[6][1]),
            button("Prompt (p)", self._prompt, REVIEW_KEYS[7][1]),
            button("Mend (m)", self._correct, REVIEW_KEYS[8][1]),
            self.toolbar,
        )
        self.now.add_class("sam-workbench-now")
        map_box = widgets.VBox([self.scene_map.widget, self.now])
        map_box.add_class("sam-workbench-mapbox")
        left = widgets.VBox(
            [
                answers, self.labelling.palette, map_box, self.overlay, self.tool, self.legend,
                self.list,
            ]
        )  # fmt: skip
        many = widgets.VBox([self.rest, self.bar, self.above])
        right = widgets.VBox(
            [
                # messages stand here, so that the map does not move when one comes
                widgets.VBox([self.message, self.progress, self.order]), many,
                looks(self.overlay, self.scene_map.imagery),
            ]
        )  # fmt: skip
        self.overlay.colour_by = "class"
        return panel_of("sam-workbench-review", left, right)

    def _draw(self) -> None:
        """Send all labels to the map."""
        triage, overlay, labelling = self.session.triage, self.overlay, self.labelling
        labels = triage.labels
        labelling.show_palette()
        several = len(labelling.names) > 1
        colours = {**LABEL_STATUS_COLORS, **(_AMONG_CLASSES if several else {})}
        statuses = [[0, name, colours[name]] for name in STATUSES]
        # first the statuses, in the order of STATUSES; then classes, if there are several
        overlay.class_colours = statuses + (labelling.colours if several else [])
        shown = [one for one in overlay.class_colours if not several or one[1] != "edited"]
        self.legend.value = paragraph(
            Markup("Colour: {}").format(swatches([(name, colour) for _, name, colour in shown])),
            "font-size: 12px",
        )
        classes = confidence_classes(labels["confidence"])
        overlay.ramp = [[low, colour] for low, colour in classes]
        with overlay.hold_sync():
            self._send()
        if len(labels):
            self.scene_map.fit(tuple(labels.total_bounds.tolist()))

    def _send(self) -> None:
        """Send the shapes of all labels."""
        triage, overlay = self.session.triage, self.overlay
        self._sent = triage.n_redrawn
        overlay.kinds, overlay.class_scores = self._kinds(), self._scores()
        overlay.draw(triage.labels.assign(seam=False))

    def _kinds(self) -> bytes:
        """The place in `class_colours` of each label: its status, or its class once accepted."""
        triage = self.session.triage
        kinds = triage.codes.copy()
        if len(self.labelling.names) > 1:
            kept = np.isin(kinds, [STATUSES.index("accepted"), STATUSES.index("edited")])
            for place, number in enumerate(self.labelling.names, len(STATUSES)):
                kinds[kept & (triage.class_ids == number)] = place
        return kinds.tobytes()

    def _scores(self) -> bytes:
        return self.session.triage.score.astype("<f4").tobytes()

    def _show(self, _: Any = None) -> None:
        """Show the label that comes next, and how far the review is."""
        session, overlay = self.session, self.overlay
        with session.lock:
            shown = session.row
            kinds = self._kinds()
            outline = session.triage.outline(shown) if shown >= 0 else None
            moved = shown != self.labelling.target
            self.labelling.target = shown
            self.tool.drop()
            with overlay.hold_sync():
                if self._sent != session.triage.n_redrawn:
                    self._send()
                overlay.kinds, overlay.selected = kinds, shown
            point_out(self.scene_map, overlay, shown, outline if moved else None)
            self.now.value = self._line(shown)
            self._show_progress()
        self.quiet.touch()

    def _show_tool(self, change: Any) -> None:
        """While something new is drawn, no label is pointed out."""
        self.overlay.selected = -1 if change["new"] in NEW else self.session.row
        self._show_now()

    def _show_now(self) -> None:
        is_new = self.tool.mode in NEW
        self.now.value = self._new_line() if is_new else self._line(self.session.row)

    def _show_scores(self, _: Any = None) -> None:
        """Show what was learned from the answers."""
        with self.session.lock:
            self.overlay.class_scores = self._scores()
            self._show_now()
            self._show_above()

    def _show_progress(self) -> None:
        triage = self.session.triage
        tile, here, n_here = triage.tile_progress()
        tiles, n_tiles, done, n = triage.progress()
        bars = [(f"Tile {tile}: {here:,} of {n_here:,}", here, n_here)] if tile else []
        bars += [(f"Tiles: {tiles:,} of {n_tiles:,} are done", tiles, n_tiles)]
        bars += [(f"All: {done:,} of {n:,}", done, n)]
        bar = Markup('{}<br><progress value="{}" max="{}" style="width: 100%"></progress><br>')
        lines = Markup("").join(bar.format(text, value, max(most, 1)) for text, value, most in bars)
        self.progress.value = paragraph(lines + triage.pace())
        self.rest.description = f"Reject the rest of this tile ({n_here - here:,})"
        self.rest.disabled = n_here == here
        self._show_above()
        self.labelling.show_palette()

    def _show_above(self, _: Any = None) -> None:
        n = self.session.triage.n_above(self.bar.value)
        self.above.description = f"Accept all above {self.bar.value:.2f} ({n:,})"
        self.above.disabled = n == 0

    def _line(self, shown: int) -> Markup | str:
        """What is known of a label, to be shown beside it."""
        triage = self.session.triage
        if shown < 0:
            return Markup("<b>All labels are reviewed.</b> Run the cells below.")
        labels, number = triage.labels, triage.class_of(shown)
        parts = [f"class {triage.classes.get(number, '?')}" if number is not None else "no class"]
        confidence = labels["confidence"].iloc[shown]
        if not np.isnan(confidence):
            parts.append(f"confidence {confidence:.2f}")
        parts.append(area_text(labels["area_m2"].iloc[shown]))
        ranking = self.session.ranking
        if ranking is not None and ranking.class_like(shown) != NONE:
            name = triage.classes.get(ranking.class_like(shown), "?")
            parts.append(f"your answers say {name}: {triage.score[shown]:.2f}")
        return Markup("<b>{}</b> · {}").format(triage.status[shown], " · ".join(parts))

    def _new_line(self) -> Markup:
        """What a label will be that is being drawn."""
        triage = self.session.triage
        number = triage.class_said
        what = "no class" if number is None else f"class {triage.classes.get(number, '?')}"
        return Markup("<b>new</b> · {}").format(what)

    # ----------------------------------------------------------------------------- what keys do

    def pressed(self, key: Pressed) -> None:
        """Answer about the label that is shown, or go on."""
        does = {BACK: self._back, SKIP: self._skip, NEXT_KEY: self._skip,
                DRAW: self._draw_missed, EDIT: self._edit_shape,
                PROMPT: self._prompt, CORRECT: self._correct}  # fmt: skip
        statuses = {ACCEPT: "accepted", REJECT: "rejected"}
        if key.key in does:
            does[key.key]()
        elif key.key in statuses:
            self._answer(statuses[key.key])
        else:
            self.say(int(key.key))

    def say(self, number: int) -> None:
        """Give the label that is shown a class, 0 for none of them, and go on."""
        if self.labelling.knows(number):
            if number == NONE:
                self._answer("rejected")
            else:
                self._answer("accepted", number)

    def clicked(self, lon: float, lat: float, place: int, again: int = 0) -> None:
        """Show the label at a place; clicks `again` go on to what else lies there, or back (-1)."""
        triage = self.session.triage
        if self.tool.busy:
            return  # it was one on the shape
        rows = triage.at(*from_lonlat(self.session.scenes[0].crs, lon, lat))
        if not rows and place >= 0:
            rows = [place]  # too small to be hit
        self.overlay.alternatives = len(rows)
        if rows:
            now = rows.index(triage.row) + again if again and triage.row in rows else 0
            self.session.choose(rows[now % len(rows)])

    def go_to(self, place: int, sequence: int) -> None:
        """Show a label of the list."""
        if 0 <= place < len(self.session.triage) and sequence == self.overlay.for_sequence:
            self.session.choose(place)

    def _answer(self, status: str, class_id: int | None = None) -> None:
        self._try(lambda: self.session.answer(status, class_id))

    def _back(self) -> None:
        self._try(self.session.undo)

    def _skip(self) -> None:
        self._try(self.session.skip)

    def _draw_missed(self) -> None:
        self._try(self.shapes.draw)

    def _edit_shape(self) -> None:
        self._try(self.shapes.edit)

    def _prompt(self) -> None:
        self._try(self.shapes.prompt)

    def _correct(self) -> None:
        self._try(self.shapes.correct)

    def _reject_rest(self) -> None:
        self._try(self.session.reject_rest)

    def _accept_above(self) -> None:
        self._try(lambda: self.session.accept_above(self.bar.value))

    def _try(self, step: Any) -> None:
        if self.tool.busy:
            self.tell("Finish the outline on the map first: Enter keeps it, Esc drops it.")
            return
        try:
            step()
        except WorkbenchError as error:
            self.tell(str(error))
        else:
            if self.message.value:
                self.message.value = ""

    # --------------------------------------------------------------------- while nobody answers

    def _work(self) -> None:
        """Learn from the answers; look at more labels, so that their order follows, too."""
        session, quiet = self.session, self.quiet
        try:
            while not quiet.overtaken:
                session.rank()
                if quiet.overtaken or not session.describe_one():
                    break
            session.rank()
        except Exception as error:  # in a thread, where nobody would see it
            self.tell(f"{type(error).__name__}: {error}")
