"""The polygons on the map in a real browser: what is drawn again where little has changed."""

from pathlib import Path

import pytest

import workbench

SCRIPT = Path(workbench.__file__).parent / "widgets" / "overlay.js"

# a picture of polygons that overlap, with faded ones in the second block of rows alone, is drawn
# anew after the one before and by itself
DRAW = """
async ([source, density, before, after]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { decodeOutlines, differences, paintPart, classBounds } = await import(url);
  const n = 1400, corners = 23;
  let seed = 1;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const coords = [];
  for (let row = 0; row < n; row++) {
    const [x, y, size] = [random() * 500, -random() * 400, 3 + random() * 25];
    for (let i = 0; i < corners; i++) {
      const [turn, radius] = [(i / corners) * 2 * Math.PI, size * (0.7 + 0.3 * random())];
      coords.push(x + radius * Math.cos(turn), y + radius * Math.sin(turn));
    }
  }
  const bytes = (Type, values) => Type.from(values).buffer;
  const scores = bytes(Float32Array, Array.from({ length: n }, random));
  const outlines = decodeOutlines({
    coords: bytes(Float32Array, coords), confidence: scores, stability: scores, area_m2: scores,
    ring_sizes: bytes(Uint32Array, Array(n).fill(corners)),
    rings: bytes(Uint32Array, Array(n).fill(1)),
    flags: bytes(Uint8Array, Array.from({ length: n }, () => random() < 0.2 ? 1 : 0)),
  });
  const [width, height] = [500, 400];
  const whole = { x0: 0, y0: 0, x1: width, y1: height };
  const picture = ({ hidden = [], good = [], said = [], selected = -1, colourBy = "confidence" }) =>
  {
    const flags = outlines.flags.slice(), spoken = new Uint8Array(n).fill(255);
    for (const row of good) flags[row] |= 2;
    for (const row of said) spoken[row] = 0;
    const shown = [...Array(n).keys()].filter((row) => !hidden.includes(row));
    const frame = { outlines, shown, flags, said: spoken, selected, scores: [],
      kinds: new Uint8Array(n).map((_, row) => row > 1200 ? 255 : row % 2) };
    const look = { colourBy, bounds: classBounds([[0, ""], [0.5, ""]]), fill: true, opacity: 1,
      colours: ["#d7191c", "#1a9641", "#888888"],
      classes: [[1, "a", "#0000ff"], [2, "b", "#00ff00"]] };
    return { frame, look, affine: { scale: 1, left: 0, top: 0 }, pixels: [], few: false };
  };
  const canvas = () => {
    const made = Object.assign(document.createElement("canvas"),
      { width: width * density, height: height * density });
    return made.getContext("2d");
  };
  const pixels = (ctx) => ctx.getImageData(0, 0, ctx.canvas.width, ctx.canvas.height).data;
  const [one, other] = [canvas(), canvas()];
  const [old, now] = [picture(before), picture(after)];
  paintPart(one, old, whole, density);
  const stale = pixels(one);
  const parts = differences(old, now);
  for (const part of parts ?? []) paintPart(one, now, part, density);
  paintPart(other, now, whole, density);
  const [a, b] = [pixels(one), pixels(other)];
  const apart = (u, v) => {
    let [most, many] = [0, 0];
    for (let i = 0; i < u.length; i++) {
      const alpha = i | 3;  // colours of what is nearly clear do not count
      const d = i === alpha ? u[i] - v[i] : (u[i] * u[alpha] - v[i] * v[alpha]) / 255;
      most = Math.max(most, Math.abs(d));
      many += Math.abs(d) > 24;
    }
    return { most, many };
  };
  const area = parts?.reduce((sum, r) => sum + (r.x1 - r.x0) * (r.y1 - r.y0), 0);
  return { share: parts && area / (width * height), now: apart(a, b), stale: apart(stale, b) };
}
"""


@pytest.fixture(scope="module")
def compare(chromium):
    """Draw one picture over another where they differ, and compare it with all drawn anew."""
    page = chromium.new_page()
    source = SCRIPT.read_text(encoding="utf-8")
    yield lambda density, old, new: page.evaluate(DRAW, [source, density, old, new])
    page.close()


@pytest.mark.parametrize("density", [1, 1.25, 2])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"hidden": [1, 2, 3]}, {"hidden": [3, 77, 300, 301]}),
        ({"good": [5]}, {"good": [9], "hidden": [20, 21]}),
        ({"colourBy": "class", "said": [5, 6]}, {"colourBy": "class", "said": [6, 40]}),
        ({"colourBy": "class", "said": [*range(0, 600, 9)]},
         {"colourBy": "class", "said": [*range(0, 600, 9)], "hidden": [100, 200]}),
        ({"selected": 30}, {"selected": 31}),
    ],
)  # fmt: skip
def test_drawing_where_pictures_differ_makes_the_picture_of_drawing_all(
    compare, density, before, after
):
    found = compare(density, before, after)
    assert 0 < found["share"] < 0.3
    assert found["stale"]["many"] > 50  # what is drawn again is needed
    # Chromium smooths the edges of a path by its length: a few pixels are lighter or darker
    assert found["now"]["many"] < 0.01 * found["stale"]["many"], found


def test_all_is_drawn_where_colours_or_too_many_polygons_change(compare):
    assert compare(1, {}, {"colourBy": "stability"})["share"] is None
    half = [*range(0, 1400, 2)]
    found = compare(1, {}, {"hidden": half})
    assert found["share"] is None or found["now"]["many"] == 0


def test_nothing_is_drawn_where_nothing_changes(compare):
    found = compare(1, {"hidden": [4]}, {"hidden": [4]})
    assert found["share"] == 0
    assert found["now"] == {"most": 0, "many": 0}
