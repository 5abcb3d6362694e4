// Draws a PolygonOverlay on every view of its ipyleaflet map, on one canvas each. The kernel decides
// which polygons are shown; this file only draws. It uses internals of ipyleaflet 0.20.0
// (`model.views`, `view.obj`) and of its Leaflet (`_loaded`, `_animatingZoom`,
// `_getNewPixelOrigin`), so ipyleaflet is pinned.

const HALF_WORLD = Math.PI * 6378137; // EPSG:3857 runs from -HALF_WORLD to HALF_WORLD, metres
const PADDING = 0.5; // of the map's size, drawn beyond each side: a drag shows no gap
const DETAIL = 0.5; // px: a vertex closer than this to the last one is skipped
const REACH = 3; // px: a click this close hits a polygon that is too small to aim at
const MANY = 300; // above this, lines are 1 px wide: 5 times faster than any other width
const MOST_MARKS = 3000; // above this, verdicts of a person have a colour but no mark
const [LINE_REACH, MARK_REACH] = [5, 12]; // px: drawn beyond the box of a polygon, of one with a mark
const MOST_PATCHES = 100; // above this, all is drawn again
const BLOCK = 1000; // rows that may share a path: a path of thousands fills slowly
const LOOK_MS = 500; // how often to look for views of the map: there is no event for them
const PATIENCE_MS = 20000;

const CLICK_MS = 3000; // what the kernel highlights this soon after a click is its answer
const WHEEL_MS = 150; // between two steps of the wheel: a trackpad sends many
const STILL = 8; // px: if the mouse has moved less, keys still mean what was highlighted

const [SEAM, GOOD, BAD] = [1, 2, 4]; // overlay.Flag
const FADED = 255; // overlay.FADED
const [REFUSED, UNSAID] = [254, 255]; // overlay.REFUSED, overlay.UNSAID
const FADED_COLOUR = "#e0e0e0";
const NONE_COLOUR = "#bdbdbd"; // for none of the classes
const SELECTED = "#00ffff";
// colours that differ in lightness, and marks that need no colour; px from the centre
const VERDICTS = {
  [GOOD]: { colour: "#1de9b6", lines: [[[-6, 0], [-2, 5], [6, -6]]] }, // a tick
  [BAD]: { colour: "#ff5722", lines: [[[-5, -5], [5, 5]], [[-5, 5], [5, -5]]] }, // a cross
};

/**
 * A part of a canvas, px.
 * @typedef {{ x0: number, y0: number, x1: number, y1: number }} Rect
 *
 * Polygons as `decodeOutlines` has read them; boxes are W, S, E, N of each row in metres from the
 * origin.
 * @typedef {{
 *   count: number, coords: Float32Array, vertexOf: Uint32Array, ringOf: Uint32Array,
 *   boxes: Float32Array, origin: number[], sequence: number, confidence: Float32Array,
 *   stability: Float32Array, area_m2: Float32Array, flags: Uint8Array,
 * }} Outlines
 *
 * From metres to px of the canvas: `left + x * scale`, `top - y * scale`.
 * @typedef {{ scale: number, left: number, top: number }} Affine
 *
 * What is drawn, and in which colours.
 * @typedef {{
 *   outlines: Outlines, shown: Uint32Array | number[], flags: Uint8Array | number[],
 *   kinds: Uint8Array | number[], said: Uint8Array | number[], scores: Float32Array | number[],
 *   selected: number,
 * }} Frame
 * @typedef {{
 *   colourBy: string, bounds: number[], colours: string[], fill: boolean, opacity: number,
 *   classes: [number, string, string][],
 * }} Look
 *
 * All that a picture depends on; with `few` polygons in it, the lines are wide.
 * @typedef {{ frame: Frame, look: Look, affine: Affine, pixels: number[], few: boolean }} Picture
 */

// ---------------------------------------------------------------------------------- pure parts

/** Copy a buffer of a message, where it may start at any byte: a typed array may not. */
export function typed(Type, value) {
  if (!value) return new Type(0);
  const view = ArrayBuffer.isView(value) ? value : new DataView(value);
  return new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/** @param {Uint32Array} sizes */
function starts(sizes) {
  const places = new Uint32Array(sizes.length + 1); // the last one is the end
  for (let i = 0; i < sizes.length; i++) places[i + 1] = places[i] + sizes[i];
  return places;
}

/**
 * `outlines` as typed arrays, with the places of rings and vertices and W, S, E, N of each row.
 * @returns {Outlines}
 */
export function decodeOutlines(outlines) {
  const coords = typed(Float32Array, outlines.coords);
  const vertexOf = starts(typed(Uint32Array, outlines.ring_sizes));
  const ringOf = starts(typed(Uint32Array, outlines.rings));
  const count = ringOf.length - 1;
  if (ringOf[count] !== vertexOf.length - 1 || 2 * vertexOf[vertexOf.length - 1] !== coords.length)
    throw new Error("coordinates, rings and polygons do not fit together");
  const boxes = new Float32Array(4 * count);
  for (let row = 0; row < count; row++) {
    let [west, south, east, north] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let v = 2 * vertexOf[ringOf[row]]; v < 2 * vertexOf[ringOf[row + 1]]; v += 2) {
      west = Math.min(west, coords[v]);
      east = Math.max(east, coords[v]);
      south = Math.min(south, coords[v + 1]);
      north = Math.max(north, coords[v + 1]);
    }
    boxes.set([west, south, east, north], 4 * row);
  }
  return {
    ...{ count, coords, vertexOf, ringOf, boxes },
    origin: outlines.origin ?? [0, 0],
    sequence: outlines.sequence ?? -1,
    confidence: typed(Float32Array, outlines.confidence),
    stability: typed(Float32Array, outlines.stability),
    area_m2: typed(Float32Array, outlines.area_m2),
    flags: typed(Uint8Array, outlines.flags),
  };
}

/**
 * From metres from `origin` to a canvas whose corner is at `world`, px from the map's corner.
 * @param {number} zoom
 * @param {number[]} origin
 * @param {{ x: number, y: number }} world
 * @returns {Affine}
 */
export function affineAt(zoom, origin, world) {
  const scale = (256 * 2 ** zoom) / (2 * HALF_WORLD);
  const left = (HALF_WORLD + origin[0]) * scale - world.x;
  return { scale, left, top: (HALF_WORLD - origin[1]) * scale - world.y };
}

/**
 * The box of a row on the canvas, and some px around it.
 * @param {Outlines} outlines
 * @param {number} row
 * @param {Affine} affine
 * @param {number} around
 * @returns {Rect}
 */
function boxOf({ boxes }, row, { scale, left, top }, around = 0) {
  const b = 4 * row;
  const [x0, x1] = [left + boxes[b] * scale - around, left + boxes[b + 2] * scale + around];
  return { x0, y0: top - boxes[b + 3] * scale - around, x1, y1: top - boxes[b + 1] * scale + around };
}

/**
 * @param {Rect} one
 * @param {Rect} other
 */
function meet(one, other) {
  return one.x0 <= other.x1 && one.x1 >= other.x0 && one.y0 <= other.y1 && one.y1 >= other.y0;
}

/**
 * The shown rows whose boxes meet a part of the canvas.
 * @param {Frame} frame
 * @param {Affine} affine
 * @param {Rect} rect
 */
export function rowsIn({ outlines, shown }, affine, rect) {
  return [...shown].filter((row) => meet(boxOf(outlines, row, affine), rect));
}

/**
 * How far beyond its box a row is drawn, px.
 * @param {Frame} frame
 * @param {number} row
 */
function reachOf({ flags, said }, row) {
  const marked = flags[row] & (GOOD | BAD) || (said[row] ?? UNSAID) !== UNSAID;
  return marked ? MARK_REACH : LINE_REACH;
}

/**
 * Where two pictures differ, px of the canvas; null if that may be everywhere.
 * @param {Picture | null} before
 * @param {Picture} now
 * @returns {Rect[] | null}
 */
export function differences(before, now) {
  const { outlines } = now.frame;
  if (before?.frame.outlines !== outlines) return null;
  const all = ({ look, affine, pixels, few }) => JSON.stringify([look, affine, pixels, few]);
  if (all(before) !== all(now)) return null;
  const [old, frame] = [before.frame, now.frame];
  const differs = new Uint8Array(outlines.count);
  for (const { shown } of [old, frame]) for (const row of shown) differs[row] ^= 1;
  for (const name of /** @type {const} */ (["flags", "kinds", "said"]))
    if (old[name] !== frame[name])
      for (const row of frame.shown) if (old[name][row] !== frame[name][row]) differs[row] = 1;
  if (old.selected !== frame.selected)
    for (const row of [old.selected, frame.selected]) if (row >= 0) differs[row] = 1;
  /** @type {Rect[]} */
  const rects = [];
  for (let row = 0; row < outlines.count; row++) {
    if (!differs[row]) continue;
    const reach = Math.max(reachOf(old, row), reachOf(frame, row));
    let { x0, y0, x1, y1 } = boxOf(outlines, row, now.affine, reach);
    for (let i = rects.length - 1; i >= 0; i--) {
      if (!meet(rects[i], { x0, y0, x1, y1 })) continue;
      const [other] = rects.splice(i, 1);
      [x0, y0] = [Math.min(x0, other.x0), Math.min(y0, other.y0)];
      [x1, y1] = [Math.max(x1, other.x1), Math.max(y1, other.y1)];
    }
    rects.push({ x0, y0, x1, y1 });
    if (rects.length > MOST_PATCHES) return null;
  }
  return rects;
}

/** Lower bounds of the colour classes, in float32 like the scores, so that 0.9 is in "0.9–1". */
export function classBounds(ramp) {
  return ramp.map(([low]) => Math.fround(low));
}

/**
 * The class of a score, or the one after the last for none; the first has no lower bound.
 * @param {number[]} bounds
 * @param {number | undefined} score
 */
export function classOf(bounds, score) {
  if (score === undefined || Number.isNaN(score)) return bounds.length;
  let i = bounds.length - 1;
  while (i > 0 && score < bounds[i]) i--;
  return i;
}

/**
 * Whether a point is in a polygon (even-odd), in metres from the origin.
 * @param {Outlines} outlines
 * @param {number} row
 * @param {number} x
 * @param {number} y
 */
export function contains({ coords, vertexOf, ringOf }, row, x, y) {
  let inside = false;
  for (let ring = ringOf[row]; ring < ringOf[row + 1]; ring++) {
    const end = 2 * vertexOf[ring + 1];
    for (let v = 2 * vertexOf[ring], u = end - 2; v < end; u = v, v += 2) {
      const [y0, y1] = [coords[u + 1], coords[v + 1]];
      if (y0 > y === y1 > y) continue;
      if (x < coords[u] + ((y - y0) / (y1 - y0)) * (coords[v] - coords[u])) inside = !inside;
    }
  }
  return inside;
}

/**
 * The smallest of `rows` at a place, -1 if none; `reach` widens those too small to aim at.
 * @param {Outlines} outlines
 * @param {Iterable<number>} rows
 * @param {number} x
 * @param {number} y
 * @param {number} reach
 */
export function hitTest(outlines, rows, x, y, reach) {
  const { boxes, area_m2 } = outlines;
  let best = -1;
  for (const row of rows) {
    const b = 4 * row;
    if (x < boxes[b] - reach || x > boxes[b + 2] + reach) continue;
    if (y < boxes[b + 1] - reach || y > boxes[b + 3] + reach) continue;
    if (best >= 0 && area_m2[row] >= area_m2[best]) continue;
    const side = Math.max(boxes[b + 2] - boxes[b], boxes[b + 3] - boxes[b + 1]);
    if (side < 2 * reach || contains(outlines, row, x, y)) best = row;
  }
  return best;
}

export function metresOf({ lng, lat }) {
  const y = Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360));
  return [(lng / 180) * HALF_WORLD, (y / Math.PI) * HALF_WORLD];
}

export function degreesOf([x, y]) {
  const lat = (360 / Math.PI) * Math.atan(Math.exp((y / HALF_WORLD) * Math.PI)) - 90;
  return { lng: (x / HALF_WORLD) * 180, lat };
}

/**
 * The class of a polygon, as a person or the classifier says, and the colour in which it is drawn.
 * @param {Frame} frame
 * @param {Look} look
 * @param {number} row
 */
export function classNameOf({ outlines, kinds, said }, look, row) {
  if (look.colourBy !== "class") {
    const scores = outlines[look.colourBy] ?? [];
    return { name: "", colour: look.colours[classOf(look.bounds, scores[row])] };
  }
  const spoken = said[row] ?? UNSAID;
  if (spoken === REFUSED) return { name: "none (you)", colour: NONE_COLOUR };
  const [mine, guess] = [look.classes[spoken], look.classes[kinds[row]]];
  if (mine) return { name: `${mine[1]} (you)`, colour: mine[2] };
  return guess ? { name: guess[1], colour: guess[2] } : { name: "none", colour: FADED_COLOUR };
}

/**
 * What a person or the classifier says of a polygon; empty without classes.
 * @param {Frame} frame
 * @param {Look} look
 * @param {number} row
 */
export function classText({ kinds, said, scores }, look, row) {
  if (look.colourBy !== "class") return "";
  const spoken = said[row] ?? UNSAID;
  if (spoken === REFUSED) return "you: none of these · ";
  const named = look.classes[spoken];
  if (named) return `you: ${named[1]} · `;
  const guess = look.classes[kinds[row]];
  if (!guess) return kinds[row] === FADED ? "none of the classes · " : "";
  const score = scores[row] ?? NaN;
  return Number.isNaN(score) ? `${guess[1]} · ` : `${guess[1]} ${score.toFixed(2)} · `;
}

/**
 * An area as people write it, like `_support.text.area_text`.
 * @param {number} m2
 */
export function areaText(m2) {
  const round = (/** @type {number} */ value, /** @type {number} */ digits) =>
    value.toLocaleString("en", { maximumFractionDigits: digits });
  if (m2 < 10_000) return `${round(m2, m2 < 10 ? 1 : 0)} m²`;
  return m2 < 1e6 ? `${round(m2 / 1e4, 2)} ha` : `${round(m2 / 1e6, 2)} km²`;
}

/**
 * @param {Outlines} outlines
 * @param {Uint8Array | number[]} flags
 * @param {number} row
 */
export function describe(outlines, flags, row) {
  const score = (/** @type {number} */ value) => (Number.isNaN(value) ? "–" : value.toFixed(2));
  const size = areaText(outlines.area_m2[row]);
  const scores = [outlines.confidence[row], outlines.stability[row]].map(score);
  const text = `confidence ${scores[0]} · stability ${scores[1]} · ${size}`;
  return flags[row] & SEAM ? `${text} · reaches another tile` : text;
}

// ------------------------------------------------------------------------------------- drawing

/**
 * @param {Path2D} path
 * @param {Outlines} outlines
 * @param {number} row
 * @param {Affine} affine
 */
function trace(path, { coords, vertexOf, ringOf }, row, { scale, left, top }) {
  for (let ring = ringOf[row]; ring < ringOf[row + 1]; ring++) {
    const first = 2 * vertexOf[ring];
    const [x0, y0] = [left + coords[first] * scale, top - coords[first + 1] * scale];
    path.moveTo(x0, y0);
    let [px, py] = [x0, y0];
    for (let v = first + 2; v < 2 * vertexOf[ring + 1]; v += 2) {
      const x = left + coords[v] * scale;
      const y = top - coords[v + 1] * scale;
      if (Math.abs(x - px) < DETAIL && Math.abs(y - py) < DETAIL) continue;
      path.lineTo(x, y);
      px = x;
      py = y;
    }
    path.lineTo(x0, y0); // Chromium's closePath() gets slower the longer the path is
  }
}

/** @param {string} colour */
function newPart(colour) {
  return { colour, whole: new Path2D(), seam: new Path2D(), dots: new Path2D() };
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {string} colour
 * @param {number} width
 * @param {Path2D[]} paths
 */
function stroke(ctx, colour, width, ...paths) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  for (const path of paths) ctx.stroke(path);
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {string} colour
 * @param {number} width
 * @param {Path2D} path
 */
function strokeCased(ctx, colour, width, path) {
  ctx.lineCap = "round"; // also at the ends of a ring
  stroke(ctx, "rgba(0, 0, 0, 0.7)", width + 2.5, path);
  stroke(ctx, colour, width, path);
}

/**
 * Mark a polygon that a person has given a class: a thick outline, and the number of the class.
 * @param {CanvasRenderingContext2D} ctx
 * @param {Frame} frame
 * @param {Look} look
 * @param {number} row
 * @param {Affine} affine
 * @param {Path2D} outline
 */
function mark(ctx, { outlines, said }, look, row, { scale, left, top }, outline) {
  const { boxes } = outlines;
  const named = look.classes[said[row]];
  const colour = named ? named[2] : NONE_COLOUR;
  strokeCased(ctx, colour, 2.5, outline);
  const x = left + ((boxes[4 * row] + boxes[4 * row + 2]) / 2) * scale;
  const y = top - ((boxes[4 * row + 1] + boxes[4 * row + 3]) / 2) * scale;
  ctx.beginPath();
  ctx.arc(x, y, 8, 0, 2 * Math.PI);
  ctx.fillStyle = "rgba(0, 0, 0, 0.75)";
  ctx.fill();
  ctx.fillStyle = colour;
  ctx.font = "bold 12px sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.fillText(String(named ? named[0] : 0), x, y + 0.5);
}

/**
 * Draw some rows of a picture.
 * @param {CanvasRenderingContext2D} ctx
 * @param {Picture} picture
 * @param {Iterable<number>} rows
 */
export function paint(ctx, { frame, look, affine, few }, rows) {
  const { outlines, flags, selected } = frame;
  const { boxes } = outlines;
  const { scale, left, top } = affine;
  const outline = (row) => {
    const path = new Path2D();
    trace(path, outlines, row, affine);
    return path;
  };
  // Few paths for each colour, filled by the nonzero rule: filling each polygon is slow, and
  // even-odd would leave overlaps open. Holes stay open, as they run against their outer rings.
  const byClass = look.colourBy === "class";
  // faded polygons first, so that they lie below
  const colours = byClass ? [FADED_COLOUR, ...look.classes.map(([, , c]) => c)] : look.colours;
  /** @type {ReturnType<newPart>[][]} */
  const partsOf = colours.map(() => []);
  const scores = outlines[look.colourBy] ?? [];
  const kindOf = (row) => {
    if (!byClass) return classOf(look.bounds, scores[row]);
    const kind = frame.kinds[row] ?? FADED;
    return kind < look.classes.length ? kind + 1 : 0;
  };
  const judged = [];
  const spoken = [];
  for (const row of rows) {
    const kind = kindOf(row);
    const block = Math.floor(row / BLOCK); // by row, so that overlaps keep their order
    const part = (partsOf[kind][block] ??= newPart(colours[kind]));
    const b = 4 * row;
    const side = Math.max(boxes[b + 2] - boxes[b], boxes[b + 3] - boxes[b + 1]) * scale;
    const [x, y] = [left + boxes[b] * scale, top - boxes[b + 3] * scale];
    if (side < 1) part.dots.rect(Math.floor(x), Math.floor(y), 1, 1);
    else trace(flags[row] & SEAM ? part.seam : part.whole, outlines, row, affine);
    if (flags[row] & (GOOD | BAD)) judged.push(row);
    if (byClass && (frame.said[row] ?? UNSAID) !== UNSAID) spoken.push(row);
  }

  ctx.lineJoin = "round";
  ctx.lineCap = "butt";
  if (byClass) {
    ctx.globalAlpha = 0.45;
    // without the blocks that have none
    for (const { colour, whole, seam } of partsOf[0].flat()) stroke(ctx, colour, 1, whole, seam);
    ctx.globalAlpha = 1;
  }
  const parts = partsOf.slice(byClass ? 1 : 0).flat();
  for (const { colour, whole, seam, dots } of parts) {
    ctx.fillStyle = colour;
    ctx.fill(dots);
    if (!look.fill) continue;
    ctx.globalAlpha = byClass ? 0.3 : 0.15;
    ctx.fill(whole);
    ctx.fill(seam);
    ctx.globalAlpha = 1;
  }
  const shadow = few ? 0 : 1; // px: dark beside bright shows on a bright roof
  ctx.translate(shadow, shadow);
  for (const { whole, seam } of parts) stroke(ctx, "rgba(0, 0, 0, 0.4)", few ? 3 : 1, whole, seam);
  ctx.translate(-shadow, -shadow);
  for (const { colour, whole, seam } of parts) {
    stroke(ctx, colour, few ? 1.6 : 1, whole);
    ctx.setLineDash([5, 4]);
    stroke(ctx, colour, few ? 1.6 : 1, seam);
    ctx.setLineDash([]);
  }

  // one by one, which takes long if there are thousands
  for (const row of judged.length > MOST_MARKS ? [] : judged) {
    const { colour, lines } = VERDICTS[flags[row] & GOOD || BAD];
    strokeCased(ctx, colour, 2.5, outline(row));
    const x = left + ((boxes[4 * row] + boxes[4 * row + 2]) / 2) * scale;
    const y = top - ((boxes[4 * row + 1] + boxes[4 * row + 3]) / 2) * scale;
    const mark = new Path2D();
    for (const [first, ...rest] of lines) {
      mark.moveTo(x + first[0], y + first[1]);
      for (const [dx, dy] of rest) mark.lineTo(x + dx, y + dy);
    }
    strokeCased(ctx, colour, 3, mark);
  }
  for (const row of spoken.length > MOST_MARKS ? [] : spoken) mark(ctx, frame, look, row, affine, outline(row));
  if (selected >= 0) strokeCased(ctx, SELECTED, 4, outline(selected));
}

/**
 * Draw a part of a picture, px of the canvas, in place of what was there.
 * @param {CanvasRenderingContext2D} ctx
 * @param {Picture} picture
 * @param {Rect} part
 * @param {number} density
 */
export function paintPart(ctx, picture, part, density) {
  const { frame, affine } = picture;
  const [x0, y0] = [Math.floor(part.x0 * density), Math.floor(part.y0 * density)];
  const [x1, y1] = [Math.ceil(part.x1 * density), Math.ceil(part.y1 * density)];
  ctx.save();
  ctx.setTransform(1, 0, 0, 1, 0, 0); // edges between pixels would show
  ctx.beginPath();
  ctx.rect(x0, y0, x1 - x0, y1 - y0);
  ctx.clip();
  ctx.clearRect(x0, y0, x1 - x0, y1 - y0);
  ctx.setTransform(density, 0, 0, density, 0, 0);
  const there = [];
  for (const row of frame.shown)
    if (meet(boxOf(frame.outlines, row, affine, 1 + reachOf(frame, row)), part)) there.push(row);
  paint(ctx, picture, there);
  ctx.restore();
}

// ----------------------------------------------------------------------------------- map views

/** Draw the polygons of `overlay` on a Leaflet map. */
function drawOn(map, overlay) {
  const container = map.getContainer();
  const canvas = document.createElement("canvas");
  // leaflet-zoom-animated: Leaflet's stylesheet animates the transform with the imagery
  canvas.className = "sam-workbench-polygons leaflet-zoom-animated";
  canvas.style.cssText =
    "position: absolute; left: 0; top: 0; max-width: none; pointer-events: none";
  map.getPane("overlayPane").append(canvas);
  const tip = document.createElement("div");
  tip.className = "sam-workbench-tip";
  tip.style.cssText =
    "position: absolute; display: none; z-index: 750; pointer-events: none; white-space: nowrap;" +
    "padding: 2px 8px; border-radius: 3px; box-shadow: 0 1px 4px rgba(0, 0, 0, 0.5);" +
    "font: 12px/1.5 var(--jp-ui-font-family, sans-serif); color: #1c1c1c; background: #ffffff";
  container.append(tip);

  /** @type {Picture | null} */
  let drawn = null;
  let placed = null; // how the canvas was drawn: zoom, size, corner in the pane and on the map
  let pointer = null; // the last mouse event on the map
  let cursor = null; // ipyleaflet's own cursor, while ours is shown
  let last = null; // where the mouse was last, px
  let anchor = null; // where it was when the kernel highlighted something
  let clicked = null; // where the last click was, until the map moves
  let hovered = -1; // the row under the mouse
  let answeredAt = 0; // when the last click was, ms
  let answered = null; // the place of the last click; its answer is shown beside it
  const waiting = new Map(); // at most one animation frame per task: the last value wins

  function soon(task) {
    if (waiting.has(task)) return;
    const run = () => waiting.delete(task) && task();
    waiting.set(task, requestAnimationFrame(run));
  }

  function place({ x, y }, scale) {
    canvas.style.transform = `translate3d(${x}px, ${y}px, 0) scale(${scale})`;
  }

  function draw() {
    if (map._animatingZoom) return; // the map is already at the end of the animation; moveend follows
    try {
      overlay.update();
      const { frame, look } = overlay;
      const size = map.getSize();
      const corner = map.containerPointToLayerPoint(size.multiplyBy(-PADDING)).round();
      const world = map.getPixelOrigin().add(corner);
      const { x: width, y: height } = size.multiplyBy(1 + 2 * PADDING).round();
      placed = { zoom: map.getZoom(), corner, world, width, height };
      place(corner, 1);
      const density = Math.min(window.devicePixelRatio || 1, 2);
      const pixels = [Math.round(width * density), Math.round(height * density)];
      // setting the size clears the canvas, even if it is the same
      if (canvas.width !== pixels[0] || canvas.height !== pixels[1])
        [canvas.width, canvas.height] = pixels;
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
      canvas.style.opacity = look.opacity;
      const ctx = canvas.getContext("2d");
      if (!ctx) throw new Error("the browser gives no canvas");
      const affine = affineAt(placed.zoom, frame.outlines.origin, world);
      const whole = { x0: 0, y0: 0, x1: width, y1: height };
      const inSight = rowsIn(frame, affine, whole).length;
      const picture = { frame, look, affine, pixels, few: inSight <= MANY };
      // a step of a slider changes few polygons, and without a GPU drawing all of them is slow
      const parts = differences(drawn, picture) ?? [whole];
      drawn = null; // unless all goes well
      for (const part of parts) paintPart(ctx, picture, part, density);
      drawn = picture;
      const { sequence } = frame.outlines;
      Object.assign(canvas.dataset, { shown: frame.shown.length, sequence, drawn: inSight });
      canvas.dataset.painted = String(performance.now());
      overlay.tell("drawn", {});
      point();
    } catch (error) {
      overlay.fail(error);
    }
  }

  const redraw = () => soon(draw);

  // a long drag goes beyond the padding before it ends
  function keepCovered() {
    if (!placed) return;
    const { x, y } = map.containerPointToLayerPoint([0, 0]).subtract(placed.corner);
    const size = map.getSize();
    if (x < 0 || y < 0 || x + size.x > placed.width || y + size.y > placed.height) redraw();
  }

  /** Scale the canvas until the zoom has ended, as Leaflet does with its own. */
  function follow({ center = map.getCenter(), zoom = map.getZoom() }) {
    if (!placed) return;
    const scale = map.getZoomScale(zoom, placed.zoom);
    place(placed.world.multiplyBy(scale).subtract(map._getNewPixelOrigin(center, zoom)), scale);
  }

  function rowAt({ latlng }) {
    const { outlines, shown } = overlay.frame;
    const { scale } = affineAt(map.getZoom(), outlines.origin, { x: 0, y: 0 });
    const [x, y] = metresOf(latlng).map((metres, i) => metres - outlines.origin[i]);
    return hitTest(outlines, shown, x, y, REACH / scale);
  }

  /** Whether mouse and keys belong to a shape that is drawn or edited (`shapes.js`). */
  const isShaping = () => container.classList.contains("sam-workbench-shaping");

  /** Whether the mouse is used for something else: a button, or a shape in Geoman. */
  function elsewhere({ originalEvent }) {
    if (isShaping()) return true;
    const modes = ["Draw", "Edit", "Drag", "Removal"].map((mode) => `global${mode}ModeEnabled`);
    if (modes.some((mode) => map.pm?.[mode]?.())) return true;
    return Boolean(originalEvent?.target?.closest?.(".leaflet-control, .leaflet-popup"));
  }

  function point() {
    const busy = !pointer || map.dragging?.moving() || map._animatingZoom || elsewhere(pointer);
    const row = busy ? -1 : rowAt(pointer);
    tip.style.display = row < 0 ? "none" : "block";
    if (row !== hovered) overlay.tell("hover", { row });
    hovered = row;
    if (row >= 0 && cursor === null) {
      cursor = container.style.cursor;
      container.style.cursor = "pointer";
    } else if (row < 0 && cursor !== null) {
      container.style.cursor = cursor;
      cursor = null;
    }
    if (row < 0) return;
    const { frame, look } = overlay;
    tip.textContent = classText(frame, look, row) + describe(frame.outlines, frame.flags, row);
    const { x, y } = pointer.containerPoint;
    const { offsetWidth: width, offsetHeight: height } = tip;
    const size = map.getSize();
    tip.style.left = `${Math.max(0, Math.min(x + 14, size.x - width - 4))}px`;
    tip.style.top = `${y + 18 + height > size.y ? y - 10 - height : y + 18}px`;
  }

  function hover(event) {
    pointer = event;
    last = event.containerPoint;
    takeFocus();
    soon(point);
  }

  /** Keys act on what the mouse is on, unless somebody is typing. */
  function takeFocus() {
    const there = document.activeElement;
    if (!overlay.keys() || container.contains(there)) return;
    if (there?.closest("input, textarea, select, [contenteditable]")) return;
    container.focus({ preventScroll: true });
  }

  /** The kernel has highlighted something, or nothing: keys act on it until the mouse moves away. */
  function pointedOut(something) {
    anchor = something ? last : null;
  }

  /** Keys may work in the whole panel, but not while somebody types; nor Space on a button. */
  function isMeant({ target, key }) {
    if (target === container || !overlay.everywhere()) return target === container;
    const panel = container.closest(".sam-workbench-panel") ?? container;
    if (!(target instanceof Element) || !panel.contains(target)) return false;
    if (target.closest("textarea, select, [contenteditable], input:not([type=checkbox])")) return false;
    return key !== " " || !target.closest("button, input, summary, [role=slider]");
  }

  function press(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key?.length !== 1 || !isMeant(event) || isShaping()) return;
    const key = event.key.toLowerCase();
    if (!overlay.keys().includes(key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.repeat) return; // a key that is held down is one answer
    const meant = pointer && !(anchor && last && last.distanceTo(anchor) < STILL);
    const { lng: lon, lat } = meant ? pointer.latlng : { lng: null, lat: null };
    const { sequence } = overlay.frame.outlines;
    const row = meant ? rowAt(pointer) : -1;
    overlay.send({ kind: "key", key, lon, lat, row, sequence });
  }

  /** The kernel has highlighted a polygon: show its answer beside it, unless somebody has clicked. */
  function answerAt(row) {
    if (performance.now() - answeredAt < CLICK_MS) return;
    answered = null;
    if (row >= 0) {
      const { boxes, origin } = overlay.frame.outlines;
      const middle = (/** @type {number} */ i) =>
        origin[i] + (boxes[4 * row + i] + boxes[4 * row + i + 2]) / 2;
      answered = degreesOf([middle(0), middle(1)]);
    }
    placeAnswer();
  }

  /** Keep the answer to the last click (class `sam-workbench-answer`) beside its place. */
  function placeAnswer() {
    const box = container.closest(".sam-workbench-mapbox");
    const answer = box?.querySelector(".sam-workbench-answer");
    if (!answer) return;
    if (!answered) {
      answer.classList.remove("below", "above", "away");
      return;
    }
    const { x, y } = map.latLngToContainerPoint(answered);
    const size = map.getSize();
    box.style.setProperty("--click-x", `${x}px`);
    const down = container.getBoundingClientRect().top - box.getBoundingClientRect().top;
    box.style.setProperty("--click-y", `${y + down}px`);
    answer.classList.toggle("below", y <= size.y / 2);
    answer.classList.toggle("above", y > size.y / 2);
    answer.classList.toggle("away", x < 0 || y < 0 || x > size.x || y > size.y);
  }

  function leave() {
    pointer = null;
    soon(point);
  }

  function moved() {
    clicked = null;
    leave();
  }

  function click(event) {
    // a double click zooms, unless clicks go through what lies there
    if (elsewhere(event) || (event.originalEvent?.detail > 1 && !overlay.keys())) return;
    const again = clicked !== null && clicked.distanceTo(event.containerPoint) < STILL;
    if (!again) clicked = event.containerPoint;
    tellClick(event, again ? 1 : 0);
  }

  /** @param {number} again how many steps after the previous click at the same place */
  function tellClick(event, again) {
    const { lng: lon, lat } = event.latlng;
    const { sequence } = overlay.frame.outlines;
    [answered, answeredAt] = [event.latlng, performance.now()];
    placeAnswer();
    overlay.send({ kind: "click", lon, lat, row: rowAt(event), sequence, again });
  }

  /** Whether the mouse is where it last clicked, and more than one thing lies there. */
  function hasMoreHere() {
    if (overlay.alternatives() < 2 || !clicked || !pointer || isShaping()) return false;
    return clicked.distanceTo(pointer.containerPoint) < STILL;
  }

  function tab(event) {
    if (event.key !== "Tab" || event.ctrlKey || event.altKey || event.metaKey) return;
    if (!isMeant(event) || !hasMoreHere()) return;
    event.preventDefault();
    event.stopPropagation();
    tellClick(pointer, event.shiftKey ? -1 : 1);
  }

  let turned = 0; // when the wheel was last used, ms
  function wheel(event) {
    if (event.ctrlKey || !event.deltaY || !hasMoreHere()) return;
    event.preventDefault();
    event.stopPropagation(); // the map would zoom
    if (performance.now() - turned < WHEEL_MS) return;
    turned = performance.now();
    tellClick(pointer, event.deltaY > 0 ? 1 : -1);
  }

  const handlers = {
    ...{ zoomend: redraw, viewreset: redraw, resize: redraw },
    move: () => { keepCovered(); placeAnswer(); },
    ...{ zoomanim: follow, zoom: () => follow({}), moveend: () => { redraw(); placeAnswer(); } },
    ...{ mousemove: hover, mouseout: leave, movestart: moved, zoomstart: moved, click },
  };
  map.on(handlers);
  document.addEventListener("keydown", press);
  document.addEventListener("keydown", tab);
  container.addEventListener("wheel", wheel, { capture: true, passive: false });
  if (overlay.keys()) map.doubleClickZoom.disable();
  redraw();
  const remove = () => {
    map.off(handlers);
    document.removeEventListener("keydown", press);
    document.removeEventListener("keydown", tab);
    container.removeEventListener("wheel", wheel, { capture: true });
    waiting.forEach((request) => cancelAnimationFrame(request));
    pointer = null;
    point();
    canvas.remove();
    tip.remove();
  };
  return { redraw, remove, pointedOut, answerAt };
}

// ---------------------------------------------------------------------------------- the widget

// a function, so that `initialize` and `render` of one model share its state
export default () => {
  const layers = new Map(); // by Leaflet map
  const elements = new Set(); // of the widget itself
  let seen = performance.now(); // when a map was last seen
  let failure = "";

  function tell() {
    if (layers.size || !elements.size) seen = performance.now();
    const lost = performance.now() - seen > PATIENCE_MS;
    const text = lost ? "The map of these polygons is not on this page: run its cell again." : "";
    for (const el of elements) el.textContent = failure || text;
  }

  // Not in `render`: the polygons belong to the map, even if this widget itself is not shown.
  // Not async: anywidget holds back all updates until this function has returned.
  function initialize({ model }) {
    const bytes = (Type, name) => typed(Type, model.get(name));
    let source = null; // the value that the outlines were decoded from
    const empty = { shown: [], flags: [], kinds: [], said: [], scores: [], selected: -1 };
    const overlay = {
      frame: { outlines: decodeOutlines({}), ...empty },
      look: /** @type {Look | null} */ (null),
      update() {
        const ramp = model.get("ramp");
        overlay.look = {
          colourBy: model.get("colour_by"),
          bounds: classBounds(ramp),
          colours: [...ramp.map(([, colour]) => colour), model.get("plain_colour")],
          classes: model.get("class_colours"),
          fill: model.get("fill"),
          opacity: model.get("opacity"),
        };
        const now = model.get("outlines");
        if ((now.sequence ?? -1) !== model.get("for_sequence")) return; // wait for the rest
        const outlines = now === source ? overlay.frame.outlines : decodeOutlines(now);
        source = now;
        const there = (row) => row >= 0 && row < outlines.count;
        const flags = bytes(Uint8Array, "flags");
        const fitting = (values) => (values.length === outlines.count ? values : []);
        overlay.frame = {
          outlines,
          shown: bytes(Uint32Array, "shown").filter(there),
          flags: flags.length === outlines.count ? flags : outlines.flags,
          kinds: fitting(bytes(Uint8Array, "kinds")),
          said: fitting(bytes(Uint8Array, "said")),
          scores: fitting(bytes(Float32Array, "class_scores")),
          selected: [overlay.hovered, model.get("selected")].find(there) ?? -1,
        };
        failure = "";
      },
      hovered: -1, // a row of the list that the mouse is on
      tell(what, detail) {
        const event = { detail: { map: model.get("map_id"), ...detail } };
        window.dispatchEvent(new CustomEvent(`sam-workbench-${what}`, event));
      },
      send: (message) => model.send(message),
      keys: () => model.get("hotkeys"),
      everywhere: () => model.get("keys_everywhere"),
      alternatives: () => model.get("alternatives"),
      fail(error) {
        console.error(error);
        failure = `The polygons could not be drawn (${error.message}): run all cells again.`;
        tell();
      },
    };

    let mapModel = null;
    let [asking, ended] = [false, false];
    const viewOf = new WeakMap(); // by its promise

    async function findMap() {
      const id = model.get("map_id");
      if (asking || mapModel?.model_id === id) return;
      mapModel?.off("change", look);
      mapModel = null;
      asking = true;
      try {
        const found = await model.widget_manager.get_model(id);
        if (ended) return;
        mapModel = found;
        mapModel.on("change", look); // a map that was just shown sends its bounds
      } catch {
        // not there yet: try again next time
      }
      asking = false;
    }

    function look() {
      findMap();
      const maps = new Set();
      for (const promise of Object.values(mapModel?.views ?? {})) {
        if (!viewOf.has(promise)) {
          viewOf.set(promise, null);
          promise.then((view) => viewOf.set(promise, view)).catch(() => {});
        }
        const map = viewOf.get(promise)?.obj;
        if (map?._loaded) maps.add(map);
      }
      for (const [map, layer] of layers) {
        if (maps.has(map)) continue;
        layer.remove();
        layers.delete(map);
      }
      for (const map of maps) if (!layers.has(map)) layers.set(map, drawOn(map, overlay));
      tell();
    }

    const redraw = () => layers.forEach((layer) => layer.redraw());
    // for the list beside the map, and for shapes that are drawn
    const shared = {
      get maps() {
        return [...layers.keys()];
      },
      get outlines() {
        return overlay.frame.outlines;
      },
      areaText,
      nameOf: (row) => classNameOf(overlay.frame, /** @type {Look} */ (overlay.look), row),
      inView() {
        const [map] = layers.keys();
        if (!map) return [];
        const world = map.getPixelBounds().min;
        const affine = affineAt(map.getZoom(), overlay.frame.outlines.origin, world);
        const { x, y } = map.getSize();
        return rowsIn(overlay.frame, affine, { x0: 0, y0: 0, x1: x, y1: y });
      },
      point(row) {
        overlay.hovered = row;
        redraw();
      },
    };
    const everybody = /** @type {any} */ (window);
    everybody.samWorkbenchOverlays ??= new Map();
    everybody.samWorkbenchOverlays.set(model.get("map_id"), shared);
    const rows = ["outlines", "shown", "flags", "selected", "for_sequence", "kinds", "said"];
    const looks = ["colour_by", "ramp", "plain_colour", "fill", "opacity", "class_colours"];
    for (const name of [...rows, ...looks]) model.on(`change:${name}`, redraw);
    model.on("change:selected", () => {
      const row = model.get("selected");
      layers.forEach((layer) => layer.answerAt(row < overlay.frame.outlines.count ? row : -1));
    });
    model.on("change:pointed", () => {
      layers.forEach((layer) => layer.pointedOut(model.get("pointed") > 0));
    });
    look();
    const timer = setInterval(look, LOOK_MS);
    return () => {
      ended = true;
      clearInterval(timer);
      everybody.samWorkbenchOverlays.delete(model.get("map_id"));
      mapModel?.off("change", look);
      layers.forEach((layer) => layer.remove());
      layers.clear();
    };
  }

  function render({ el }) {
    elements.add(el);
    tell();
    return () => elements.delete(el);
  }

  return { initialize, render };
};
