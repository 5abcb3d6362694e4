"""Controls for how the polygons on a map look."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.widgets.controls import row
from workbench.widgets.overlay import PolygonOverlay


def looks(overlay: PolygonOverlay) -> widgets.Widget:
    """Colour, fill and opacity of the polygons of an overlay."""
    colour = widgets.Dropdown(
        options=["confidence", "stability", "class", "none"], description="colour",
        layout=_wide(166),
        style={"description_width": "45px"},
    )  # fmt: skip
    fill = widgets.Checkbox(True, description="fill", indent=False, layout=_wide(50))
    opacity = widgets.FloatSlider(
        0.9, min=0.1, max=1, step=0.1, description="opacity", readout=False,
        layout=_wide(122), style={"description_width": "50px"},
    )  # fmt: skip
    for control, name in ((colour, "colour_by"), (fill, "fill"), (opacity, "opacity")):
        setattr(overlay, name, control.value)
        control.observe(lambda c, name=name: setattr(overlay, name, c["new"]), "value")
    overlay.observe(lambda c: setattr(colour, "value", c["new"]), "colour_by")
    return row(colour, fill, opacity)


def _wide(px: int) -> widgets.Layout:
    return widgets.Layout(width=f"{px}px")
