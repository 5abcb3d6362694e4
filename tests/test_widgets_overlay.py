import json
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from traitlets import TraitError

import workbench
from workbench._support.palette import CONFIDENCE_CLASSES
from workbench.tuning.webmap import web_from_degrees
from workbench.widgets.overlay import Flag, PolygonOverlay

WIDGETS = Path(workbench.__file__).parent / "widgets"
ORIGIN = (1_113_194.9, 6_446_275.8)  # EPSG:3857 of 10° E, 50° N


class Sent(list):
    """What a widget has told the browser: the state of each update, buffers put back."""

    def __init__(self, widget, monkeypatch):
        monkeypatch.setattr(widget, "_send", self._take)

    def _take(self, message, buffers=None):
        state = message["state"]
        for (*path, last), buffer in zip(message["buffer_paths"], buffers or (), strict=True):
            part = state
            for key in path:
                part = part[key]
            part[last] = buffer
        self.append(state)


def tell(widget, **message):
    """Let the widget hear what its JavaScript sends."""
    content = {"data": {"method": "custom", "content": message}}
    widget._handle_msg({"content": content, "buffers": []})


def in_javascript(name, code, folder):
    """Run statements that `return` a value, with the exports of a widget's module as `module`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the JavaScript is tested in the browser only")
    shutil.copy(WIDGETS / name, folder / "module.mjs")  # a suffix that node takes for a module
    test = folder / "test.mjs"
    test.write_text(
        "import * as module from './module.mjs';\n"
        f"const value = (() => {{ {code} }})();\n"
        "console.log(JSON.stringify(value));\n",
        encoding="utf-8",
    )
    done = subprocess.run([node, test], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def overlay():
    return PolygonOverlay(map_id="a map")


def polygons(*geometry, confidence=0.92):
    """Polygons in metres of EPSG:3857 off ORIGIN."""
    moved = shapely.transform(np.array(geometry), lambda xy: xy + np.array(ORIGIN))
    columns = {"confidence": confidence, "stability": 0.95, "seam": False}
    return gpd.GeoDataFrame(
        columns | {"area_m2": shapely.area(moved)}, geometry=list(moved), crs=3857
    )


# ---- what the kernel says ----------------------------------------------------------------------


def test_polygons_arrive_in_one_update_as_binary(overlay, monkeypatch):
    sent = Sent(overlay, monkeypatch)
    overlay.draw(polygons(shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10)), np.array([1]))
    [update] = sent
    outlines = update["outlines"]
    assert outlines["sequence"] == update["for_sequence"]
    assert isinstance(outlines["coords"], bytes)
    assert np.frombuffer(outlines["ring_sizes"], "<u4").tolist() == [4, 4]
    assert np.frombuffer(outlines["rings"], "<u4").tolist() == [1, 1]
    assert np.frombuffer(outlines["area_m2"], "<f4") == pytest.approx([100, 100])
    assert np.frombuffer(update["shown"], "<u4").tolist() == [1]


def test_other_rows_and_judgements_do_not_send_coordinates_again(overlay, monkeypatch):
    overlay.draw(polygons(shapely.box(0, 0, 10, 10)))
    sent = Sent(overlay, monkeypatch)
    overlay.shown = b""
    overlay.flags = bytes([Flag.GOOD])
    assert sent == [{"shown": b""}, {"flags": b"\x02"}]


def test_other_polygons_get_another_sequence(overlay):
    sequences = []
    some = polygons(shapely.box(0, 0, 10, 10))
    for frame in (some, polygons(shapely.box(0, 0, 5, 5)), some[:0]):
        overlay.draw(frame)
        sequences.append(overlay.for_sequence)
        assert overlay.outlines["sequence"] == overlay.for_sequence
    assert len(set(sequences)) == 3
    assert (overlay.shown, overlay.flags) == (b"", b"")


def test_polygons_at_a_seam_are_flagged(overlay):
    both = polygons(shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10))
    overlay.draw(both.assign(seam=[False, True]))
    assert list(overlay.flags) == [0, Flag.SEAM]


def test_clicks_reach_python(overlay):
    clicks = []
    overlay.on_click(lambda *click: clicks.append(click))
    now = overlay.for_sequence
    tell(overlay, kind="click", lon=10.5, lat=50.25, row=7, sequence=now)
    tell(overlay, kind="click", lon=10.5, lat=50.25, row=-1, sequence=now)
    tell(overlay, kind="something else", lon=10.5, lat=50.25, row=7, sequence=now)
    tell(overlay, kind="click", lon=10.5, lat=50.25, row=-1, sequence=now, again=True)
    first = (10.5, 50.25, -1, False)
    assert clicks == [(10.5, 50.25, 7, False), first, (10.5, 50.25, -1, True)]
    overlay.draw(polygons(shapely.box(0, 0, 10, 10)))  # row 7 was another polygon
    tell(overlay, kind="click", lon=10.5, lat=50.25, row=7, sequence=now)
    assert clicks[3:] == [first]


def test_colours_are_those_of_qgis(overlay):
    assert overlay.get_state("ramp")["ramp"] == [list(each) for each in CONFIDENCE_CLASSES]


@pytest.mark.parametrize("looks", [{"opacity": 1.5}, {"colour_by": "area"}, {"fill": "yes"}])
def test_looks_that_do_not_exist_are_refused(overlay, looks):
    with pytest.raises(TraitError):
        overlay.set_trait(*looks.popitem())


def test_javascript_is_packaged():
    project = Path(__file__).parent.parent / "pyproject.toml"
    patterns = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]
    scripts = {file.name for file in WIDGETS.glob("*.js")}
    assert {"overlay.js", "score_plane.js"} <= scripts
    for name in scripts:
        assert any(fnmatch(name, pattern) for pattern in patterns["*"]), name


# ---- what the browser makes of it --------------------------------------------------------------


def in_browser(overlay):
    """JavaScript for the outlines of an overlay, its buffers off any boundary as in a message."""
    fields = []
    for name, value in overlay.outlines.items():
        text = json.dumps(value) if not isinstance(value, bytes) else f"at({[0, *value]}, 1)"
        fields.append(f"{name}: {text}")
    return (
        "const at = (bytes, start) => new DataView(Uint8Array.from(bytes).buffer, start);"
        f"const outlines = module.decodeOutlines({{ {', '.join(fields)} }});"
    )


# instead of a canvas: remembers what is filled, and tells what the nonzero rule makes of it
RECORDER = """
let fills = [];
globalThis.Path2D = class {
  rings = [];
  moveTo(x, y) { this.rings.push([[x, y]]); }
  lineTo(x, y) { this.rings.at(-1).push([x, y]); }
  rect(x, y, w, h) { this.rings.push([[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]); }
};
const ctx = { translate() {}, setLineDash() {}, stroke() {}, lineTo() {},
  fill(path) { if (path.rings.length) fills.push({ colour: this.fillStyle, path }); } };
const winding = ({ rings }, x, y) => {
  let turns = 0;
  for (const ring of rings)
    for (let i = 1; i < ring.length; i++) {
      const [[x0, y0], [x1, y1]] = [ring[i - 1], ring[i]];
      if (y0 > y === y1 > y || x >= x0 + ((y - y0) / (y1 - y0)) * (x1 - x0)) continue;
      turns += y1 > y0 ? 1 : -1;
    }
  return turns;
};
const look = { colourBy: "confidence", bounds: module.classBounds([[0, "low"], [0.9, "high"]]),
  colours: ["low", "high", "none"], fill: true };
const draw = (shown, affine, width = 100, height = 100) => {
  fills = [];
  const frame = { outlines, shown, flags: outlines.flags, selected: -1 };
  const rows = module.rowsIn(frame, affine, { x0: 0, y0: 0, x1: width, y1: height });
  module.paint(ctx, { frame, look, affine, few: false }, rows);
  return rows.length;
};
const colours = (x, y) => fills.filter(({ path }) => winding(path, x, y)).map((f) => f.colour);
"""


def test_holes_stay_open_and_overlaps_filled(overlay, tmp_path):
    ring = shapely.box(0, 0, 60, 60, ccw=False) - shapely.box(20, 20, 40, 40)
    overlapping = shapely.box(50, 50, 90, 90)
    parts = shapely.MultiPolygon([shapely.box(70, 0, 80, 10), shapely.box(85, 0, 95, 10)])
    overlay.draw(polygons(ring, overlapping, parts))
    canvas = "{ scale: 1, left: left, top: top }"  # so that (0, 0) is at 0, 100
    x, y = overlay.outlines["origin"]
    code = (
        f"{in_browser(overlay)} {RECORDER}"
        f"const [left, top] = [{x - ORIGIN[0]}, {100 - y + ORIGIN[1]}];"
        f"draw([0, 1, 2], {canvas});"
        "return [[10, 90], [30, 70], [55, 45], [88, 12], [75, 95], [90, 95], [82, 95]]"
        ".map(([x, y]) => colours(x, y).length);"
    )
    # solid, hole, overlap (once, not twice), second polygon, two parts, between them
    assert in_javascript("overlay.js", code, tmp_path) == [1, 0, 1, 1, 1, 1, 0]


def test_only_what_is_shown_and_in_sight_is_drawn_by_its_score(overlay, tmp_path):
    boxes = [shapely.box(x, 0, x + 10, 10) for x in (0, 20, 40, 5000, 60)]
    boxes.append(shapely.box(80, 0, 80.2, 0.2))  # less than a pixel
    scores = [0.95, 0.9, 0.2, 0.95, 0.95, 0.95]
    overlay.draw(polygons(*boxes, confidence=scores))
    x, y = overlay.outlines["origin"]
    code = (
        f"{in_browser(overlay)} {RECORDER}"
        f"const affine = {{ scale: 1, left: {x - ORIGIN[0]}, top: {100 - y + ORIGIN[1]} }};"
        "const drawn = draw([0, 1, 2, 3, 5], affine);"
        "return [drawn, ...[5, 25, 45, 65, 80.5].map((x) => colours(x, x > 80 ? 99.5 : 95))]"
    )
    drawn, *found = in_javascript("overlay.js", code, tmp_path)
    assert drawn == 4  # not the one that is far away
    # 0.9 is in the class that begins there; the fourth is not shown, the last a dot
    assert found == [["high"], ["high"], ["low"], [], ["high"]]


def test_thousands_are_drawn_in_a_handful_of_fills(overlay, tmp_path):
    x = np.arange(3000.0) % 60
    overlay.draw(polygons(*shapely.box(x, x, x + 5, x + 5)))
    code = (
        f"{in_browser(overlay)} {RECORDER}"
        "draw([...Array(3000).keys()], { scale: 1, left: 50, top: 50 }); return fills.length"
    )
    assert in_javascript("overlay.js", code, tmp_path) == 3


def test_the_smallest_polygon_under_the_mouse_is_hit(overlay, tmp_path):
    ring = shapely.box(0, 0, 100, 100) - shapely.box(40, 40, 60, 60)
    small = shapely.box(10, 10, 20, 20)
    tiny = shapely.box(50, 50, 50.1, 50.1)
    overlay.draw(polygons(ring, small, tiny, shapely.box(200, 0, 300, 100)))
    x, y = np.array(overlay.outlines["origin"]) - ORIGIN
    code = (
        f"{in_browser(overlay)}"
        f"const hit = (x, y, rows) => module.hitTest(outlines, rows, x - {x}, y - {y}, 3);"
        "return [hit(15, 15, [0, 1]), hit(15, 15, [0]), hit(5, 5, [0, 1]), hit(45, 45, [0, 1, 2]),"
        " hit(52, 51, [0, 1, 2]), hit(250, 50, [0, 1]), hit(250, 50, [3]), hit(250, 50, [])]"
    )
    # in the hole only what is tiny is hit, from a little way off; what is not shown never is
    assert in_javascript("overlay.js", code, tmp_path) == [1, 0, 0, -1, 2, -1, 3, -1]


def test_places_agree_with_leaflet_and_the_kernel(tmp_path):
    places = [(0.0, 0.0), (10.0, 50.0), (-71.5, -33.25)]
    code = (
        f"const places = {json.dumps(places)};"
        "const at = (zoom, [lng, lat]) => {"
        "  const [x, y] = module.metresOf({ lng, lat });"
        "  const { scale, left, top } = module.affineAt(zoom, [1000, 2000], { x: 7, y: 9 });"
        "  return [left + (x - 1000) * scale + 7, top - (y - 2000) * scale + 9]; };"
        "return [places.map(([lng, lat]) => module.metresOf({ lng, lat })),"
        " places.map((place) => at(12, place))]"
    )
    metres, pixels = in_javascript("overlay.js", code, tmp_path)
    assert np.allclose(metres, [web_from_degrees(*place) for place in places], atol=1e-3)
    size = 256 * 2**12  # of the whole map, whose pixels are counted from the north-west
    share = np.array(metres) / (2 * np.pi * 6_378_137)
    assert np.allclose(pixels, np.column_stack([0.5 + share[:, 0], 0.5 - share[:, 1]]) * size)


def test_a_score_at_a_bound_is_in_the_class_above(tmp_path):
    code = (
        "const ramp = [[0, 'a'], [0.7, 'b'], [0.9, 'c'], [0.95, 'd']];"
        "const bounds = module.classBounds(ramp);"
        "const score = Math.fround(0.9);"
        "return [0.1, 0.84, score, 0.99, NaN, undefined].map((s) => module.classOf(bounds, s));"
    )
    assert in_javascript("overlay.js", code, tmp_path) == [0, 1, 2, 3, 4, 4]


def test_the_tooltip_tells_scores_area_and_seam(overlay, tmp_path):
    both = polygons(shapely.box(0, 0, 100, 100), shapely.box(0, 0, 2, 1))
    overlay.draw(both.assign(seam=[False, True]))
    code = (
        f"{in_browser(overlay)}"
        "return [0, 1].map((row) => module.describe(outlines, outlines.flags, row))"
    )
    plain, seam = in_javascript("overlay.js", code, tmp_path)
    assert plain == "confidence 0.92 · stability 0.95 · 1 ha"
    assert seam == ("confidence 0.92 · stability 0.95 · 2 m² · reaches another tile")


def test_incomplete_outlines_are_refused(overlay, tmp_path):
    overlay.draw(polygons(shapely.box(0, 0, 10, 10)))
    overlay.outlines = overlay.outlines | {"coords": overlay.outlines["coords"][:-8]}
    code = (
        f"try {{ {in_browser(overlay)} return 'drawn' }} catch (error) {{ return error.message }}"
    )
    assert "do not fit together" in in_javascript("overlay.js", code, tmp_path)
