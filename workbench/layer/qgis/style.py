"""How the layers look and how their forms work: styles for QGIS.

The elements of a style are valid in `<qgis>` (QML, in the GeoPackage and beside the GeoJSON) and
in `<maplayer>` (the project), so all three have the same style.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from workbench._support.palette import (
    CLASS_COLORS,
    CONFIDENCE_CLASSES,
    LABEL_STATUS_COLORS,
    LINE,
    LINE_RIM,
    NO_SCORE_COLOR,
    OTHER_COLOR,
    ROW_KEPT,
    ROW_REJECTED,
    TILE_STATUS_COLORS,
    ConfidenceClasses,
    confidence_labels,
)
from workbench.layer import schema
from workbench.layer.qgis.buttons import Action, actions_of
from workbench.layer.qgis.expressions import column, html, is_one_of, text
from workbench.layer.qgis.xml import el, option, qml

NO_SCORE = 99  # stands for the confidence of polygons that were drawn by hand

_REVIEWED = "reviewed"
# A GeoPackage counts the labels of a tile that wait (workbench.layer.progress). Elsewhere, as in a
# database, the plugin puts the names of the tiles that are reviewed into a variable of the layer.
_TILE_STATUS = (
    f"if({column(schema.WAITING)} = 0 or array_contains(string_to_array(coalesce(@reviewed_tiles, "
    f"''), '|'), {column('tile')}), '{_REVIEWED}', {column('status')})"
)
TILE_STATUSES: Mapping[str, str] = {
    _REVIEWED: "fully reviewed",
    "ok": "ok",
    "empty": "no object found",
    "nodata": "no valid pixels",
    "failed": "failed",
}
STATUSES: Mapping[schema.Status, str] = {
    "unreviewed": "Unreviewed",
    "accepted": "Accepted",
    "rejected": "Rejected",
    "edited": "Edited",
}
KEPT: tuple[schema.Status, ...] = ("accepted", "edited")
# labels that wait for review are strong, decided ones are faint
_FADE = f"if({is_one_of('status', 'rejected')}, 20, if({is_one_of('status', *KEPT)}, 45, 100))"

# The layer of the project that has the labels as last saved, even while they are being edited
SAVED_ID = "prelabels_as_saved_5b0b2f3a"


def _saved(field: str) -> str:
    """Look up the saved shape of a label; NULL for one that is not saved."""
    by = {"$id": f"get_feature_by_id({text(SAVED_ID)}, $id)",
          "id": f"get_feature({text(SAVED_ID)}, 'id', {column('id')})"}  # fmt: skip
    return f"geom_to_wkt(geometry({by[field]}), 6)"


# A label becomes `edited` when its own shape is changed, or when somebody draws it. QGIS evaluates
# this at every change, even of a class or a status, so the shape is compared with the saved one.
# QGIS: the fields of a new feature are filled in from left to right, so only `id` is known here.
# If the saved layer is missing (a GeoPackage opened alone), the import finds the change.
_STATUS = (
    f"if({is_one_of('status', 'accepted', 'rejected', 'edited')}, {column('status')}, "
    f"if(coalesce({column('id')}, {text(schema.DRAWN)}) like {text(schema.DRAWN + '%')}, 'edited', "
    "if(layer_property(" + text(SAVED_ID) + ", 'name') is null, 'unreviewed', "
    f"if(coalesce({_saved('$id')}, {_saved('id')}) = geom_to_wkt($geometry, 6), "
    "'unreviewed', 'edited'))))"
)


def _of_its_tile(name: str) -> str:
    """Look up a field of the tile that contains the middle of a polygon."""
    middle = "point_on_surface(geometry(@parent))"
    return (
        f"aggregate(layer:={text(schema.TILES)}, aggregate:='min', expression:={column(name)}, "
        f"filter:=intersects($geometry, {middle}))"
    )


def styles(
    classes: Mapping[int, str],
    planar: bool = False,
    confidence: ConfidenceClasses = CONFIDENCE_CLASSES,
    learned: Mapping[int, str] | None = None,
    more: Sequence[str] = (),
) -> dict[str, dict[str, str]]:
    """Return QML by name for the layers `prelabels` and `tiles`; the first is the default.

    The parameters are those of `label_styles`.
    """
    looks = label_styles(classes, planar, confidence, learned, more)
    labels = {name: qml(style) for name, style in looks.items()}
    return {schema.LABELS: labels, schema.TILES: {"Tiles": qml(tile_style())}}


def label_styles(
    classes: Mapping[int, str],
    planar: bool,
    confidence: ConfidenceClasses,
    learned: Mapping[int, str] | None = None,
    more: Sequence[str] = (),
) -> dict[str, list[ET.Element]]:
    """Return the looks of the pre-labels, which share their form, actions and table.

    `confidence` are the classes of confidence and their colours. `learned` are the colours of
    classes that the run has learned; then the look by class comes first. None: it has learned none.
    `more` are the columns that the layer has besides those of every layer.

    `planar` also makes QGIS check for overlaps when it saves; other layers may have overlaps.
    """
    by_class = [
        (
            number,
            _class_label(number, name),
            (learned or {}).get(number, CLASS_COLORS[i % len(CLASS_COLORS)]),
        )
        for i, (number, name) in enumerate(classes.items())
    ]
    by_status = [(status, label, LABEL_STATUS_COLORS[status]) for status, label in STATUSES.items()]
    looks = {
        "Confidence": [_confidence_renderer(confidence), *_review(classes, planar, more)],
        "Class": [_categorized("class_id", by_class), *_review(classes, planar, more)],
        "Status": [_categorized("status", by_status), *_review(classes, planar, more)],
    }
    if learned is None:
        return looks
    return {"Class": looks.pop("Class"), **looks}


def _class_label(number: int, name: str) -> str:
    return f"{number} – {name}"


def _review(classes: Mapping[int, str], planar: bool, more: Sequence[str] = ()) -> list[ET.Element]:
    """Make forms, actions, table, checks and map tips of the pre-labels."""
    # QGIS: not a slider, which shows a real number as 0 and may write it (qgis/QGIS#49127)
    score = {"Style": "SpinBox", "Min": 0.0, "Max": 1.0, "Step": 0.01, "Precision": 3,
             "AllowNull": True}  # fmt: skip
    form = [
        # QGIS: a widget of type Hidden lets *Merge Selected Features* delete both labels
        _Field("fid", "", editable=False, shown=False),
        # drawn polygons get an id of their own, and count as reviewed
        _Field(
            "id", "Id", editable=False, default=f"{text(schema.DRAWN)} || uuid('WithoutBraces')"
        ),
        _Field(
            "class_id",
            "Class",
            "ValueMap",
            _value_map({number: _class_label(number, name) for number, name in classes.items()}),
            reuse_last=True,
        ),
        _Field("class_score", "Class score", "Range", score, editable=False),
        _Field(
            "status",
            "Status",
            "ValueMap",
            _value_map(STATUSES),
            default=_STATUS,
            on_update=True,
        ),
        _Field("confidence", "Confidence", "Range", score, editable=False),
        _Field("stability", "Stability", "Range", score, editable=False),
        _Field("area_m2", "Area (m²)", editable=False, default="$area", on_update=True),
        _Field("area_px", "Area (pixels)", editable=False),
        _Field("source_tile", "Tile", editable=False, default=_of_its_tile("tile")),
        _Field("source", "Source", editable=False, default=_of_its_tile("source")),
        _Field("n_tiles", "Merged from tiles", editable=False),
        _Field("at_edge", "At the edge of the imagery", "CheckBox", editable=False),
        *(_Field(name, name, editable=False) for name in more),
    ]
    drawn = '"confidence" is null'
    of_prompts = {}
    if set(schema.ANSWER) <= set(more):
        of_prompts = {"Changed": '"changed"', "Old shape": f'{drawn} and "prompt_fid" is not null'}
        drawn += ' and "prompt_fid" is null'
    return [
        _checks(("QgsIsValidCheck", *(("QgsGeometryOverlapCheck",) if planar else ()))),
        *_form(
            form,
            display='concat("id", \' · \', round("confidence", 2))',
            actions=actions_of(classes),
        ),
        _rows(
            {
                is_one_of("status", "rejected"): ROW_REJECTED,
                is_one_of("status", *KEPT): ROW_KEPT,
            }
        ),
        _filters(
            {
                "To review": is_one_of("status", "unreviewed"),
                "To review, uncertain": f"{is_one_of('status', 'unreviewed')} "
                'and "confidence" < 0.9',
                "Accepted or edited": is_one_of("status", *KEPT),
                "Rejected": is_one_of("status", "rejected"),
                "Drawn by hand": drawn,
                **of_prompts,
                # a class for labels that nobody has judged would look like a judgement
                "Without class": f"{is_one_of('status', *KEPT)} and {column('class_id')} is null",
            }
        ),
        el(None, "mapTip", _MAP_TIP),
    ]


def tile_style() -> list[ET.Element]:
    """Make the style of the tiles: outlines by status, failed in red, reviewed in green."""
    names = ("fid", *schema.TILE_COLUMNS, schema.WAITING)
    form = [_Field(name, name, editable=False) for name in names]
    renderer = el(None, "renderer-v2", type="categorizedSymbol", attr=_TILE_STATUS, forceraster=0)
    categories, symbols = el(renderer, "categories"), el(renderer, "symbols")
    for number, (status, label) in enumerate(TILE_STATUSES.items()):
        el(categories, "category", symbol=number, value=status, label=label, type="string",
            render="true")  # fmt: skip
        symbol = el(symbols, "symbol", type="fill", name=number, alpha=1)
        fill = 30 if status == "failed" else 0
        if status == _REVIEWED:
            _outline(symbol, LABEL_STATUS_COLORS["accepted"], 0, width=0.8)
        else:
            _outline(symbol, TILE_STATUS_COLORS[status], fill, width=0.3, style="dash")
    return [renderer, *_form(form, display='"tile"')]


def saved_style() -> list[ET.Element]:
    """Make the style of the saved labels, which are only there for comparison."""
    renderer = el(None, "renderer-v2", type="nullSymbol", forceraster=0)
    return [renderer]


def area_symbol(item: ET.Element) -> None:
    """Add the symbol for the area of a run: a dashed white line on a dark one, as in the report."""
    symbol = el(item, "symbol", type="fill", name="area", alpha=1, clip_to_extent=1)
    _outline(symbol, LINE_RIM, 0, width=1.0, alpha=150)
    _outline(symbol, LINE, 0, width=0.6, style="dash")


def _confidence_renderer(classes: ConfidenceClasses) -> ET.Element:
    # QGIS: NULL is in no range, so a polygon just drawn would be invisible
    renderer = el(None, "renderer-v2", type="graduatedSymbol", graduatedMethod="GraduatedColor",
                   attr=f'coalesce("confidence", {NO_SCORE})', forceraster=0)  # fmt: skip
    ranges, symbols = el(renderer, "ranges"), el(renderer, "symbols")
    lows = [low for low, _ in classes]
    edges = [-NO_SCORE, *lows[1:], NO_SCORE - 1]
    colors = [color for _, color in classes]
    rows = [*zip(edges, edges[1:], confidence_labels(classes), colors, strict=False)]
    # QGIS takes the first range that fits, ends included: 0.9 must be in "0.9 – 0.95"
    rows = [*reversed(rows), (NO_SCORE - 0.5, NO_SCORE + 0.5, "no score", NO_SCORE_COLOR)]
    for number, (low, high, label, color) in enumerate(rows):
        el(ranges, "range", symbol=number, lower=float(low), upper=float(high), label=label,
            render="true")  # fmt: skip
        _fading_symbol(symbols, number, color)
    el(renderer, "classificationMethod", id="Custom")
    return renderer


def _categorized(field: str, rows: Sequence[tuple[Any, str, str]]) -> ET.Element:
    renderer = el(None, "renderer-v2", type="categorizedSymbol", attr=field, forceraster=0)
    categories, symbols = el(renderer, "categories"), el(renderer, "symbols")
    # QGIS: the empty value stands for everything that is in no other class, also NULL
    for number, (value, label, color) in enumerate([*rows, ("", "none or other", OTHER_COLOR)]):
        kind = "long" if isinstance(value, int) else "string"
        el(categories, "category", symbol=number, value=value, label=label, type=kind,
           render="true")  # fmt: skip
        _fading_symbol(symbols, number, color)
    return renderer


def _fading_symbol(symbols: ET.Element, number: int, color: str) -> None:
    """Draw a bright outline with a thin dark halo; decided labels fade, and no fill tints them."""
    symbol = el(symbols, "symbol", type="fill", name=number, alpha=1, clip_to_extent=1)
    option(
        el(symbol, "data_defined_properties"),
        {
            "name": "",
            "properties": {"alpha": {"active": True, "expression": _FADE, "type": 3}},
            "type": "collection",
        },
    )
    _outline(symbol, LINE_RIM, 0, width=0.75, alpha=150)  # the edge shows on bright roofs too
    _outline(symbol, color, 0, width=0.45)


def _outline(
    symbol: ET.Element,
    color: str,
    fill_alpha: int,
    *,
    width: float,
    alpha: int = 255,
    style: str = "solid",
) -> None:
    node = el(symbol, "layer", class_="SimpleFill", enabled=1, locked=0, pass_=0)
    option(
        node,
        {
            "color": _rgba(color, fill_alpha),
            "style": "solid" if fill_alpha else "no",
            "outline_color": _rgba(color, alpha),
            "outline_style": style,
            "outline_width": str(width),
            "outline_width_unit": "MM",
            "joinstyle": "round",
        },
    )


def _rgba(color: str, alpha: int) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"{red},{green},{blue},{alpha}"


@dataclass(frozen=True)
class _Field:
    """How the form shows one attribute; `default` is a QGIS expression."""

    name: str
    alias: str
    widget: str = "TextEdit"
    config: Mapping[str, Any] | None = None
    editable: bool = True
    default: str = ""
    on_update: bool = False  # the default is evaluated again at each change of the label
    reuse_last: bool = False  # a new polygon starts with the value of the last one
    shown: bool = True  # in the form and in the table


def _form(
    fields: Sequence[_Field], display: str, actions: Sequence[Action] = ()
) -> list[ET.Element]:
    names = ("fieldConfiguration", "aliases", "defaults", "editable", "reuseLastValue")
    configuration, aliases, defaults, editable, reuse = (el(None, name) for name in names)
    for index, field in enumerate(fields):
        entry = el(configuration, "field", name=field.name, configurationFlags="None")
        widget = el(entry, "editWidget", type=field.widget)
        option(el(widget, "config"), dict(field.config or {}))
        el(aliases, "alias", field=field.name, index=index, name=field.alias)
        el(defaults, "default", field=field.name, expression=field.default,
            applyOnUpdate=int(field.on_update))  # fmt: skip
        el(editable, "field", name=field.name, editable=int(field.editable))
        el(reuse, "field", name=field.name, reuseLastValue=int(field.reuse_last))
    return [
        configuration,
        aliases,
        defaults,
        editable,
        reuse,
        *((_buttons(actions), _table(fields), *_form_layout(fields, actions)) if actions else ()),
        el(None, "featformsuppress", 2),  # always open the form for a new polygon
        el(None, "previewExpression", display),
    ]


def _value_map(choices: Mapping[Any, str]) -> dict[str, Any]:
    return {"map": [{label: str(value)} for value, label in choices.items()]}


def _buttons(actions: Sequence[Action]) -> ET.Element:
    node = el(None, "attributeactions")
    el(node, "defaultAction", key="Canvas", value=actions[0].id)  # what a click on the map does
    for action in actions:
        setting = el(node, "actionsetting", id=action.id, type=1, name=action.name,
                     shortTitle=action.name, action=action.code, icon="", capture=0,
                     isEnabledOnlyWhenEditable=0, notificationMessage="")  # fmt: skip
        for scope in ("Layer",) if action.selection else ("Canvas", "Feature"):
            el(setting, "actionScope", id=scope)
    return node


def _table(fields: Sequence[_Field]) -> ET.Element:
    """Make the attribute table: buttons first, the least certain labels on top.

    Where classes were learned, the class score says how certain a label is.
    """
    table = el(None, "attributetableconfig", actionWidgetStyle="buttonList", sortOrder=0,
               sortExpression='coalesce("class_score", "confidence")')  # fmt: skip
    columns = el(table, "columns")
    el(columns, "column", type="actions", hidden=0, width=210)
    for field in fields:
        el(columns, "column", type="field", name=field.name, hidden=int(not field.shown),
           width=-1)  # fmt: skip
    return table


def _form_layout(fields: Sequence[_Field], actions: Sequence[Action]) -> list[ET.Element]:
    """Put the fields that a reviewer sets above those that the model set."""
    form = el(None, "attributeEditorForm")
    for title, wanted in (("Review", True), ("Model", False)):
        box = el(form, "attributeEditorContainer", name=title, showLabel=1, columnCount=1,
                 groupBox=1, type="GroupBox", visibilityExpressionEnabled=0,
                 visibilityExpression="")  # fmt: skip
        for index, field in enumerate(fields):
            if field.shown and field.editable == wanted:
                el(box, "attributeEditorField", name=field.name, index=index, showLabel=1)
        for action in actions if wanted else ():
            if action.selection:
                continue
            el(box, "attributeEditorAction", name=action.id, showLabel=1, ActionUUID=action.id)
    return [el(None, "editorlayout", "tablayout"), form]


def _rows(colors: Mapping[str, str]) -> ET.Element:
    conditional = el(None, "conditionalstyles")
    rows = el(conditional, "rowstyles")
    for rule, color in colors.items():
        el(rows, "style", name="", rule=rule, background_color=color, background_color_alpha=255)
    el(conditional, "fieldstyles")
    return conditional


def _filters(filters: Mapping[str, str]) -> ET.Element:
    stored = el(None, "storedexpressions")
    for name, expression in filters.items():
        el(stored, "storedexpression", name=name, expression=expression, tag=1)  # 1: kept
    return stored


def _checks(names: Iterable[str]) -> ET.Element:
    """Make QGIS check shapes while a layer is edited; it does not save bad ones."""
    options = el(None, "geometryOptions", removeDuplicateNodes=1, geometryPrecision=0)
    active = el(options, "activeChecks", type="StringList")
    for name in names:
        el(active, "Option", type="QString", value=name)
    el(options, "checkConfiguration")
    return options


# a map tip is HTML, and anybody may have typed these values
_CLASS = html(f"coalesce(represent_value({column('class_id')}), 'no class')")
_STATUS_SHOWN = html(f"coalesce(represent_value({column('status')}), '')")
_MAP_TIP = (
    f"<b>[% {_CLASS} %]</b><br>[% {_STATUS_SHOWN} %], confidence "
    '[% coalesce(round("confidence", 2), \'–\') %]<br>[% round("area_m2", 1) %] m²'
)
