"""How the layers look and how their forms work: styles for QGIS.

The elements of a style are valid in `<qgis>` (QML: in the GeoPackage and beside the GeoJSON) and
in `<maplayer>` (the project), so the three never drift apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

from workbench.layer import schema
from workbench.layer.qgis.xml import el, option, qml

# lower bound of confidence and colour, bright enough for imagery and told apart by the colour
# blind; fixed, so that a colour means the same in every run, in QGIS and in the report
CONFIDENCE_CLASSES: Sequence[tuple[float, str]] = (
    (0.0, "#d32a8c"),
    (0.7, "#ff6f59"),
    (0.8, "#ffa62b"),
    (0.9, "#ffe45c"),
    (0.95, "#b9fbc0"),
)
NO_SCORE_COLOR = "#4cc9f0"
NO_SCORE = 99  # what a polygon drawn by hand is classified as

TILE_STATUSES: Mapping[str, tuple[str, str]] = {
    "ok": ("ok", "#e0e0e0"),
    "empty": ("no object found", "#9e9e9e"),
    "nodata": ("no valid pixels", "#616161"),
    "failed": ("failed", "#ff1744"),
}
STATUSES: Mapping[schema.Status, tuple[str, str]] = {
    "unreviewed": ("Unreviewed", "#ffe45c"),
    "accepted": ("Accepted", "#57e08a"),
    "rejected": ("Rejected", "#ff5252"),
    "edited": ("Edited", "#4cc9f0"),
}
# told apart by the colour blind and bright enough for imagery; again from the start after eight
_CLASS_COLORS = ("#ffe45c", "#4cc9f0", "#ff6f59", "#b9fbc0", "#d9a6ff", "#ffa62b", "#ffffff",
                 "#ff8fc7")  # fmt: skip
_OTHER_COLOR = "#ff00ff"
_FADE = "if(\"status\" = 'rejected', 25, 100)"
_IDS = uuid.UUID("5b0b2f3a-0f0c-4a26-9d4e-2f5c6c1f7d10")  # action ids are the same in every run

# What a label reviewed is becomes `edited` when somebody changes it. QGIS takes this at every
# change, of a status too, so it must leave alone what a person has chosen.
_STATUS = "if(coalesce(\"status\", 'unreviewed') = 'unreviewed', 'edited', \"status\")"


def _of_its_tile(column: str) -> str:
    """Look up a column of the tile in which the middle of a polygon lies."""
    middle = "point_on_surface(geometry(@parent))"
    return (
        f"aggregate(layer:='{schema.TILES}', aggregate:='min', expression:=\"{column}\", "
        f"filter:=intersects($geometry, {middle}))"
    )


def styles(classes: Mapping[int, str], planar: bool = False) -> dict[str, dict[str, str]]:
    """QML by name for the layers `prelabels` and `tiles`; the first of each is the default."""
    labels = {name: qml(style) for name, style in label_styles(classes, planar).items()}
    return {schema.LABELS: labels, schema.TILES: {"Tiles": qml(tile_style())}}


def label_styles(classes: Mapping[int, str], planar: bool) -> dict[str, list[ET.Element]]:
    """Return the looks of the pre-labels, which share their form, actions and table.

    `planar` also checks at saving that nothing overlaps; else overlaps are what labels do.
    """
    by_class = [
        (number, _class_label(number, name), _CLASS_COLORS[i % len(_CLASS_COLORS)])
        for i, (number, name) in enumerate(classes.items())
    ]
    by_status = [(status, label, color) for status, (label, color) in STATUSES.items()]
    return {
        "Confidence": [_confidence_renderer(), *_review(classes, planar)],
        "Class": [_categorized("class_id", by_class), *_review(classes, planar)],
        "Status": [_categorized("status", by_status), *_review(classes, planar)],
    }


def _class_label(number: int, name: str) -> str:
    return f"{number} – {name}"


def _review(classes: Mapping[int, str], planar: bool) -> list[ET.Element]:
    """Forms, actions, table, checks and map tips of the pre-labels."""
    # QGIS: no slider, which shows a real number as 0 and may write that (qgis/QGIS#49127)
    score = {"Style": "SpinBox", "Min": 0.0, "Max": 1.0, "Step": 0.01, "Precision": 3,
             "AllowNull": True}  # fmt: skip
    form = [
        _Field("fid", "", "Hidden", editable=False),
        # what a person draws: an id of its own, and it counts as reviewed
        _Field("id", "Id", editable=False, default="'drawn/' || uuid('WithoutBraces')"),
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
            _value_map({status: label for status, (label, _) in STATUSES.items()}),
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
    ]
    return [
        _checks(("QgsIsValidCheck", *(("QgsGeometryOverlapCheck",) if planar else ()))),
        *_form(
            form, display='concat("id", \' · \', round("confidence", 2))', actions=_actions(classes)
        ),
        _rows(
            {
                "\"status\" = 'rejected'": "#f4b6b6",
                "\"status\" in ('accepted', 'edited')": "#c7e9c0",
            }
        ),
        _filters(
            {
                "To review": "\"status\" = 'unreviewed'",
                "To review, uncertain": '"status" = \'unreviewed\' and "confidence" < 0.9',
                "Accepted or edited": "\"status\" in ('accepted', 'edited')",
                "Rejected": "\"status\" = 'rejected'",
                "Drawn by hand": '"confidence" is null',
                "Without class": '"class_id" is null',
            }
        ),
        el(None, "mapTip", _MAP_TIP),
    ]


def tile_style() -> list[ET.Element]:
    """How the tiles look: outlines by status, failed ones in red."""
    form = [_Field(name, name, editable=False) for name in ("fid", *schema.TILE_COLUMNS)]
    renderer = el(None, "renderer-v2", type="categorizedSymbol", attr="status", forceraster=0)
    categories, symbols = el(renderer, "categories"), el(renderer, "symbols")
    for number, (status, (label, color)) in enumerate(TILE_STATUSES.items()):
        el(categories, "category", symbol=number, value=status, label=label, type="string",
            render="true")  # fmt: skip
        symbol = el(symbols, "symbol", type="fill", name=number, alpha=1)
        fill = 30 if status == "failed" else 0
        _outline(symbol, color, fill, width=0.3, style="dash")
    return [renderer, *_form(form, display='"tile"')]


def area_symbol(item: ET.Element) -> None:
    """Add how the area of a run looks: a dashed white outline on a dark one, as in the report."""
    symbol = el(item, "symbol", type="fill", name="area", alpha=1, clip_to_extent=1)
    _outline(symbol, "#000000", 0, width=1.0, alpha=150)
    _outline(symbol, "#ffffff", 0, width=0.6, style="dash")


def _confidence_renderer() -> ET.Element:
    # QGIS: NULL falls in no range and would not be drawn, so a polygon just drawn would vanish
    renderer = el(None, "renderer-v2", type="graduatedSymbol", graduatedMethod="GraduatedColor",
                   attr=f'coalesce("confidence", {NO_SCORE})', forceraster=0)  # fmt: skip
    ranges, symbols = el(renderer, "ranges"), el(renderer, "symbols")
    lows = [low for low, _ in CONFIDENCE_CLASSES]
    edges = [-NO_SCORE, *lows[1:], NO_SCORE - 1]
    colors = [color for _, color in CONFIDENCE_CLASSES]
    rows = [*zip(edges, edges[1:], confidence_labels(), colors, strict=False)]
    # QGIS takes the first range that fits, both ends included: 0.9 is to be in "0.9 – 0.95"
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
    # QGIS: the empty value is all that is in no other class, NULL too
    for number, (value, label, color) in enumerate([*rows, ("", "none or other", _OTHER_COLOR)]):
        kind = "long" if isinstance(value, int) else "string"
        el(categories, "category", symbol=number, value=value, label=label, type=kind,
           render="true")  # fmt: skip
        _fading_symbol(symbols, number, color)
    return renderer


def _fading_symbol(symbols: ET.Element, number: int, color: str) -> None:
    """Draw a bright outline on a dark one; what is rejected fades."""
    symbol = el(symbols, "symbol", type="fill", name=number, alpha=1, clip_to_extent=1)
    option(
        el(symbol, "data_defined_properties"),
        {
            "name": "",
            "properties": {"alpha": {"active": True, "expression": _FADE, "type": 3}},
            "type": "collection",
        },
    )
    _outline(symbol, "#000000", 0, width=0.9, alpha=120)  # tells a bright roof's edge
    _outline(symbol, color, 40, width=0.5)


def confidence_labels() -> list[str]:
    """What the legend says of each of `CONFIDENCE_CLASSES`."""
    lows = [low for low, _ in CONFIDENCE_CLASSES]
    between = [f"{a:g} – {b:g}" for a, b in pairwise(lows[1:])]
    return [f"below {lows[1]:g}", *between, f"{lows[-1]:g} and above"]


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
    """How one attribute shows up in the form; `default` is a QGIS expression."""

    name: str
    alias: str
    widget: str = "TextEdit"
    config: Mapping[str, Any] | None = None
    editable: bool = True
    default: str = ""
    on_update: bool = False  # the default is taken again at each change of the label
    reuse_last: bool = False  # a new polygon begins with the value of the last one


@dataclass(frozen=True)
class _Action:
    """A button of the form and the table, and what a click on the map does; `code` is Python."""

    name: str
    code: str

    @property
    def id(self) -> str:
        return f"{{{uuid.uuid5(_IDS, self.name)}}}"


def _form(
    fields: Sequence[_Field], display: str, actions: Sequence[_Action] = ()
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


def _buttons(actions: Sequence[_Action]) -> ET.Element:
    node = el(None, "attributeactions")
    el(node, "defaultAction", key="Canvas", value=actions[0].id)  # what a click on the map does
    for action in actions:
        setting = el(node, "actionsetting", id=action.id, type=1, name=action.name,
                     shortTitle=action.name, action=action.code, icon="", capture=0,
                     isEnabledOnlyWhenEditable=0, notificationMessage="")  # fmt: skip
        for scope in ("Canvas", "Feature"):
            el(setting, "actionScope", id=scope)
    return node


def _table(fields: Sequence[_Field]) -> ET.Element:
    """The attribute table: buttons first, the least certain labels on top."""
    table = el(None, "attributetableconfig", actionWidgetStyle="buttonList", sortOrder=0,
               sortExpression='"confidence"')  # fmt: skip
    columns = el(table, "columns")
    el(columns, "column", type="actions", hidden=0, width=210)
    for field in fields:
        el(columns, "column", type="field", name=field.name, hidden=int(field.widget == "Hidden"),
           width=-1)  # fmt: skip
    return table


def _form_layout(fields: Sequence[_Field], actions: Sequence[_Action]) -> list[ET.Element]:
    """Put what a reviewer decides above what the model has said."""
    form = el(None, "attributeEditorForm")
    for title, wanted in (("Review", True), ("Model", False)):
        box = el(form, "attributeEditorContainer", name=title, showLabel=1, columnCount=1,
                 groupBox=1, type="GroupBox", visibilityExpressionEnabled=0,
                 visibilityExpression="")  # fmt: skip
        for index, field in enumerate(fields):
            if field.widget != "Hidden" and field.editable == wanted:
                el(box, "attributeEditorField", name=field.name, index=index, showLabel=1)
        for action in actions if wanted else ():
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
    """Checks that QGIS makes while a layer is edited: a bad shape is not saved."""
    options = el(None, "geometryOptions", removeDuplicateNodes=1, geometryPrecision=0)
    active = el(options, "activeChecks", type="StringList")
    for name in names:
        el(active, "Option", type="QString", value=name)
    el(options, "checkConfiguration")
    return options


# QGIS: names of classes may hold <, and a map tip is HTML
_MAP_TIP = (
    "<b>[% replace(replace(coalesce(represent_value(\"class_id\"), 'no class'), "
    "'&', '&amp;'), '<', '&lt;') %]</b><br>"
    '[% represent_value("status") %], confidence '
    '[% coalesce(round("confidence", 2), \'–\') %]<br>[% round("area_m2", 1) %] m²'
)


def _mark(status: schema.Status) -> str:
    """Python of an action: set the status, then go to the least certain unreviewed label."""
    return f"""\
from qgis.core import NULL, QgsFeatureRequest, QgsProject, QgsProviderRegistry
from qgis.utils import iface
layer = QgsProject.instance().mapLayer('[% @layer_id %]')
if layer is not None and (layer.isEditable() or layer.startEditing()):
    status = layer.fields().indexOf('status')
    # without the defaults, of which that of the status would say edited
    layer.changeAttributeValue([% $id %], status, '{status}', NULL, True)
    edits = layer.editBuffer()
    gone = set(edits.deletedFeatureIds())
    now = {{fid: values[status] for fid, values in edits.changedAttributeValues().items()
           if status in values and fid not in gone}}
    seen = [layer.getFeature(fid) for fid, value in now.items() if value == 'unreviewed']
    seen += [f for f in edits.addedFeatures().values() if f['status'] == 'unreviewed']
    waiting = [(f['confidence'] or 0, f.id()) for f in seen]
    if layer.storageType() == 'GPKG':
        # by its index: to loop over all labels takes a second of 200,000. + 0: GDAL hides a fid
        place = QgsProviderRegistry.instance().decodeUri('ogr', layer.source())
        subset = layer.subsetString() and '(%s)' % layer.subsetString()
        where = ' AND '.join(filter(None, ["status = 'unreviewed'", subset]))
        query = 'SELECT confidence, fid + 0 FROM "%s" WHERE %s ORDER BY confidence, fid' % (
            place['layerName'], where)
        metadata = QgsProviderRegistry.instance().providerMetadata('ogr')
        stored = metadata.createConnection(place['path'], {{}}).executeSql(
            '%s LIMIT %d' % (query, len(now) + len(gone) + 1))
    else:
        request = QgsFeatureRequest().setFilterExpression('"status" = \\'unreviewed\\'')
        stored = [(f['confidence'], f.id()) for f in layer.dataProvider().getFeatures(request)]
    waiting += [(c or 0, fid) for c, fid in stored if fid not in now and fid not in gone]
    least = min(waiting, default=None)
    layer.selectByIds([least[1]] if least else [])
    if least and iface is not None:
        iface.mapCanvas().panToSelected(layer)
        iface.mapCanvas().flashFeatureIds(layer, [least[1]])
"""


# With several classes a label without one is not exported: better said at the first one than at
# the end. What is said is kept with the open layer, not in the project.
_ASK_FOR_CLASS = """\
    accepted = layer.getFeature([% $id %])
    if iface is not None and accepted['class_id'] == NULL and not layer.property('said_no_class'):
        layer.setProperty('said_no_class', True)
        iface.messageBar().pushWarning(
            'No class', 'You have accepted a label without a class. Set it in the form, or name '
            'one for all such labels when you take the review back (default_class).')
"""


def _actions(classes: Mapping[int, str]) -> tuple[_Action, ...]:
    return (
        _Action("Accept", _mark("accepted") + (_ASK_FOR_CLASS if len(classes) > 1 else "")),
        _Action("Reject", _mark("rejected")),
        _Action("Reopen", _mark("unreviewed")),
    )
