"""Controls for how the polygons on a map look."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.widgets.controls import row
from workbench.widgets.imagery import Imagery
from workbench.widgets.overlay import PolygonOverlay


def looks(overlay: PolygonOverlay, imagery: Imagery) -> widgets.Widget:
    """Colour, fill and opacity of the polygons of an overlay, and opacity of the imagery below."""
    colour = widgets.Dropdown(
        options=["confidence", "stability", "class", "none"], description="colour by",
        layout=_wide(190), style={"description_width": "60px"},
    )  # fmt: skip
    outlines = widgets.Checkbox(
        False, description="outlines only", indent=False, layout=_wide(110),
        tooltip="polygons without a fill",
    )  # fmt: skip
    polygons, pictures = (
        _opacity(name, share) for name, share in (("polygons", 0.9), ("imagery", 1.0))
    )
    for control, name in ((colour, "colour_by"), (polygons, "opacity")):
        setattr(overlay, name, control.value)
        control.observe(lambda c, name=name: setattr(overlay, name, c["new"]), "value")
    outlines.observe(lambda c: setattr(overlay, "fill", not c["new"]), "value")
    pictures.observe(lambda c: imagery.fade(c["new"]), "value")
    overlay.observe(lambda c: setattr(colour, "value", c["new"]), "colour_by")
    return row(colour, outlines, polygons, pictures)


def _opacity(name: str, share: float) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        share, min=0.0, max=1.0, step=0.1, description=name, readout=False,
        layout=_wide(190), style={"description_width": "60px"}, tooltip=f"opacity of the {name}",
    )  # fmt: skip


def _wide(px: int) -> widgets.Layout:
    return widgets.Layout(width=f"{px}px")
