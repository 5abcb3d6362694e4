// Draws a ScorePlane: all candidates by predicted IoU and stability on one canvas. The two threshold
// lines and the ring around the selected candidate are elements above it, so that dragging a line
// does not redraw the canvas.

const HEIGHT = 300;
const MARGIN = { left: 46, top: 44, right: 74, bottom: 66 }; // px around the plot
const BARS = { top: 24, right: 32 }; // px of the margin for the histograms; the values stand beside them
const BINS = 50;
const KNOTS = 32; // of the axes, which adapt to the scores
const FEWEST = 20; // scores: fewer are not crowded
const GRID = 0.005; // thresholds are multiples of it, like those of the sliders
const STEP = 0.01; // of an arrow key; five times that with Shift
const REACH = 7; // px: how far a click may be from a point

// The fates of candidates (preview.Fate) in drawing order: those kept lie on top. Colours close to
// Okabe and Ito's, which colour-blind people can tell apart, for light and dark themes.
export const FATES = [
  { number: 0, label: "below a threshold", colour: "#8c8c8c", size: 2 },
  { number: 4, label: "outside the area", colour: "#c9c9c9", size: 2 },
  { number: 3, label: "cleaned away", colour: "#cc79a7", size: 3 },
  { number: 2, label: "suppressed", colour: "#e69f00", size: 3 },
  { number: 1, label: "kept", colour: "#1f8fd6", size: 3 },
];
const AXES = [
  { trait: "pred_iou_thresh", label: "predicted IoU", orientation: "horizontal" },
  { trait: "stability_score_thresh", label: "stability", orientation: "vertical" },
];
const MOVES = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 };

const STYLE = `
.sam-workbench-plane { position: relative; min-width: 240px; height: ${HEIGHT}px;
  color: var(--jp-ui-font-color1, #212121); overflow: hidden;
  font: 12px/1.3 var(--jp-ui-font-family, sans-serif); }
.sam-workbench-plane canvas { position: absolute; left: 0; top: 0; }
.sam-workbench-plane .legend { position: absolute; bottom: 0; display: flex; margin: 0; padding: 0;
  flex-wrap: wrap; gap: 0 12px; list-style: none; }
.sam-workbench-plane .legend span { display: inline-block; width: 9px; height: 9px;
  margin-right: 4px; }
.sam-workbench-plane .ring { position: absolute; width: 13px; height: 13px; margin: -8px;
  border: 2px solid var(--jp-ui-font-color0, #000000); border-radius: 50%; pointer-events: none; }
.sam-workbench-plane .line { position: absolute; touch-action: none; outline: none; }
.sam-workbench-plane .line::before { content: ""; position: absolute;
  background: var(--jp-ui-font-color1, #212121); }
.sam-workbench-plane .line.horizontal { width: 13px; margin-left: -6px; cursor: ew-resize; }
.sam-workbench-plane .line.horizontal::before { left: 6px; width: 1px; top: 14px; bottom: 0; }
.sam-workbench-plane .line.vertical { height: 13px; margin-top: -6px; cursor: ns-resize; }
.sam-workbench-plane .line.vertical::before { top: 6px; height: 1px; left: 0; right: 0; }
.sam-workbench-plane .line:hover::before, .sam-workbench-plane .line:focus::before {
  box-shadow: 0 0 0 1px var(--jp-brand-color1, #1976d2);
  background: var(--jp-brand-color1, #1976d2); }
.sam-workbench-plane .line span { position: absolute; padding: 0 3px; border-radius: 2px;
  background: var(--jp-ui-font-color1, #212121); color: var(--jp-layout-color1, #ffffff); }
.sam-workbench-plane .line:focus span { background: var(--jp-brand-color1, #1976d2); }
.sam-workbench-plane .line.horizontal span { left: 50%; top: 0; transform: translateX(-50%); }
.sam-workbench-plane .line.vertical span { right: 0; top: 50%; transform: translateY(-50%); }
`;

/** @typedef {ReturnType<typeof scalesOf>} Scales */

// ---------------------------------------------------------------------------------- pure parts

/** Copy a buffer of a message, where it may start at any byte: a typed array may not. */
export function typed(Type, value) {
  if (!value) return new Type(0);
  const view = ArrayBuffer.isView(value) ? value : new DataView(value);
  return new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/**
 * How an axis of the plane runs from its floor (0) to 1: half by score, half by rank, so that scores
 * that crowd together are spread. Returns positions on the axis, `to`, of ever higher scores, `from`.
 * @param {Float32Array} points
 * @param {number} axis
 * @param {number} floor
 */
export function stretchOf(points, axis, floor) {
  const n = points.length / 2;
  const even = { from: [0, 1], to: [0, 1] };
  if (n < FEWEST) return even;
  const step = Math.max(1, Math.floor(n / 4000));
  const shares = [];
  for (let row = 0; row < n; row += step)
    shares.push(Math.min(Math.max((points[2 * row + axis] - floor) / Math.max(1 - floor, 1e-6), 0), 1));
  shares.sort((a, b) => a - b);
  const [from, to] = [[0], [0]];
  for (let knot = 1; knot < KNOTS; knot++) {
    const share = shares[Math.floor((knot / KNOTS) * (shares.length - 1))];
    if (share <= from[from.length - 1] + 1e-4 || share >= 1 - 1e-4) continue;
    from.push(share);
    to.push(0.5 * share + (0.5 * knot) / KNOTS);
  }
  return { from: [...from, 1], to: [...to, 1] };
}

/**
 * Linear between the knots.
 * @param {number} value
 * @param {number[]} from
 * @param {number[]} to
 */
function between(value, from, to) {
  let i = 1;
  while (i < from.length - 1 && from[i] < value) i++;
  return to[i - 1] + ((value - from[i - 1]) / (from[i] - from[i - 1])) * (to[i] - to[i - 1]);
}

/**
 * The scores to write along an axis, round ones first, that are `room` apart.
 * @param {number} floor
 * @param {(score: number) => number} place
 * @param {number} room
 */
export function ticksOf(floor, place, room) {
  const ticks = [];
  for (const gap of [0.1, 0.05, 0.01])
    for (let i = Math.ceil(floor / gap - 1e-6); i * gap <= 1 + 1e-6; i++)
      if (ticks.every((tick) => Math.abs(place(tick) - place(i * gap)) >= room))
        ticks.push(Number((i * gap).toFixed(2)));
  return ticks;
}

/**
 * From scores to px and back; scores beyond the axes (SAM's IoU may exceed 1) lie at their ends.
 * @param {number} width
 * @param {number[]} floors
 * @param {Float32Array} points
 */
export function scalesOf(width, floors, points = new Float32Array(0)) {
  const spans = floors.map((floor) => Math.max(1 - floor, 1e-6));
  const plot = {
    left: MARGIN.left,
    top: MARGIN.top,
    width: Math.max(width - MARGIN.left - MARGIN.right, 1),
    height: HEIGHT - MARGIN.top - MARGIN.bottom,
  };
  const stretch = floors.map((floor, axis) => stretchOf(points, axis, floor));
  const share = (/** @type {number} */ axis, /** @type {number} */ score) => {
    const even = Math.min(Math.max((score - floors[axis]) / spans[axis], 0), 1);
    return between(even, stretch[axis].from, stretch[axis].to);
  };
  const score = (/** @type {number} */ axis, /** @type {number} */ there) =>
    floors[axis] + spans[axis] * between(there, stretch[axis].to, stretch[axis].from);
  const shares = points.map((value, i) => share(i % 2, value));
  return {
    ...{ plot, shares }, // of both axes for each point
    x: (/** @type {number} */ score) => plot.left + plot.width * share(0, score),
    y: (/** @type {number} */ score) => plot.top + plot.height * (1 - share(1, score)),
    scores: (/** @type {number} */ x, /** @type {number} */ y) => [
      score(0, (x - plot.left) / plot.width),
      score(1, 1 - (y - plot.top) / plot.height),
    ],
  };
}

/**
 * A threshold on the grid (0.83, not 0.8300000000000001) and within its axis.
 * @param {number} value
 * @param {number} floor
 */
export function snapped(value, floor) {
  const rounded = Math.round(value / GRID) * GRID;
  return Number(Math.min(Math.max(rounded, floor), 1).toFixed(4));
}

/**
 * Counts in BINS along an axis: of all candidates, and of those kept.
 * @param {Float32Array} shares
 * @param {Uint8Array} state
 * @param {number} axis
 */
export function histogram(shares, state, axis) {
  const [all, kept] = [new Uint32Array(BINS), new Uint32Array(BINS)];
  for (let row = 0; row < state.length; row++) {
    const bin = Math.min(Math.floor(shares[2 * row + axis] * BINS), BINS - 1);
    all[bin]++;
    if (state[row] === 1) kept[bin]++;
  }
  return { all, kept };
}

/**
 * The row whose point is nearest to (x, y) px, -1 if none is close.
 * @param {Scales} scales
 * @param {number} x
 * @param {number} y
 */
export function nearest({ plot, shares }, x, y) {
  let [best, closest] = [-1, REACH];
  for (let row = 0; row < shares.length / 2; row++) {
    const dx = plot.left + plot.width * shares[2 * row] - x;
    const dy = plot.top + plot.height * (1 - shares[2 * row + 1]) - y;
    const distance = Math.hypot(dx, dy);
    if (distance < closest) [best, closest] = [row, distance];
  }
  return best;
}

// ------------------------------------------------------------------------------------- drawing

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {{ points: Float32Array, state: Uint8Array, floors: number[] }} frame
 * @param {Scales} scales
 * @param {{ text: string, faint: string, font: string }} colours
 */
function paint(ctx, frame, scales, colours) {
  const { state, floors } = frame;
  const { plot, shares } = scales;
  const [right, bottom] = [plot.left + plot.width, plot.top + plot.height];
  ctx.strokeStyle = ctx.fillStyle = colours.faint;
  ctx.strokeRect(plot.left - 0.5, plot.top - 0.5, plot.width + 1, plot.height + 1);
  ctx.fillStyle = colours.text;
  ctx.font = `11px ${colours.font}`;
  floors.forEach((floor, axis) => {
    for (const tick of ticksOf(floor, axis ? scales.y : scales.x, axis ? 16 : 28)) {
      const text = tick.toFixed(Number.isInteger(Math.round(tick * 1000) / 100) ? 1 : 2);
      ctx.textAlign = axis ? "right" : "center";
      ctx.textBaseline = axis ? "middle" : "top";
      if (axis) ctx.fillText(text, plot.left - 5, scales.y(tick));
      else ctx.fillText(text, scales.x(tick), bottom + 4);
    }
  });
  ctx.textAlign = "center";
  ctx.textBaseline = "top";
  ctx.fillText(AXES[0].label, plot.left + plot.width / 2, bottom + 17);
  ctx.save();
  ctx.translate(4, plot.top + plot.height / 2);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText(AXES[1].label, 0, 0);
  ctx.restore();

  AXES.forEach((_, axis) => {
    const { all, kept } = histogram(shares, state, axis);
    const tallest = Math.max(...all, 1);
    const [length, room] = axis ? [plot.height, BARS.right] : [plot.width, BARS.top];
    const wide = length / BINS;
    for (const [counts, fate] of /** @type {const} */ ([[all, FATES[0]], [kept, FATES[FATES.length - 1]]])) {
      ctx.fillStyle = fate.colour;
      counts.forEach((n, i) => {
        const high = (n / tallest) * room;
        if (axis) ctx.fillRect(right + 2, bottom - (i + 1) * wide, high, wide - 0.5);
        else ctx.fillRect(plot.left + i * wide, plot.top - 2 - high, wide - 0.5, high);
      });
    }
  });

  for (const { number, colour, size } of FATES) {
    ctx.fillStyle = colour;
    // thousands overlap: show their density, and make the kept ones stand out
    ctx.globalAlpha = number === 1 ? 0.9 : 0.6;
    for (let row = 0; row < state.length; row++) {
      if (state[row] !== number) continue;
      const x = plot.left + plot.width * shares[2 * row];
      const y = plot.top + plot.height * (1 - shares[2 * row + 1]);
      ctx.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
  ctx.globalAlpha = 1;
}

// ---------------------------------------------------------------------------------- the widget

function make(tag, className, parent) {
  const element = document.createElement(tag);
  element.className = className;
  parent.append(element);
  return element;
}

function render({ model, el }) {
  const root = make("div", "sam-workbench-plane", el);
  make("style", "", root).textContent = STYLE;
  const canvas = make("canvas", "", root);
  canvas.setAttribute("role", "img");
  const ring = make("div", "ring", root);
  const legend = make("ul", "legend", root);
  const lines = AXES.map((axis, number) => makeLine(axis, number));
  let frame = { points: new Float32Array(0), state: new Uint8Array(0), floors: [0.5, 0.5] };
  let scales = scalesOf(320, frame.floors);
  let waiting = 0;
  let source = null; // the value that the points were read from
  let [stretchedBy, stretchedTo] = [new Float32Array(0), 0]; // points and width of the scales
  const unsent = new Map(); // thresholds not yet sent to the kernel, by trait

  function makeLine({ trait, label, orientation }, axis) {
    const line = make("div", `line ${orientation}`, root);
    make("span", "", line);
    line.tabIndex = 0;
    const attributes = {
      ...{ role: "slider", "aria-label": `${label} threshold`, "aria-orientation": orientation },
      // otherwise JupyterLab takes the arrow keys
      "data-lm-suppress-shortcuts": "true",
    };
    for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);

    let [start, grabbed] = [0, 0]; // the value when a drag began, and the score under the pointer
    line.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault(); // no selection of text, but no focus either
      line.focus();
      line.setPointerCapture(event.pointerId);
      [start, grabbed] = [valueOf(trait), scales.scores(...placeOf(event))[axis]];
    });
    line.addEventListener("pointermove", (event) => {
      if (!line.hasPointerCapture(event.pointerId)) return;
      change(axis, start + scales.scores(...placeOf(event))[axis] - grabbed);
    });
    line.addEventListener("click", (event) => {
      if (valueOf(trait) === start) pick(event); // not dragged: the click was for a candidate below
    });
    line.addEventListener("keydown", (event) => {
      const { key, shiftKey } = event;
      const floor = frame.floors[axis];
      if (key in MOVES) change(axis, valueOf(trait) + MOVES[key] * STEP * (shiftKey ? 5 : 1));
      else if (key === "Home") change(axis, floor);
      else if (key === "End") change(axis, 1);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return line;
  }

  /**
   * Where the pointer is, px from the corner.
   * @param {MouseEvent} event
   * @returns {[number, number]}
   */
  function placeOf({ clientX, clientY }) {
    const box = root.getBoundingClientRect();
    return [clientX - box.left, clientY - box.top];
  }

  function pick(event) {
    const row = nearest(scales, ...placeOf(event));
    if (row >= 0) model.send({ kind: "click", row });
  }

  const valueOf = (trait) => unsent.get(trait) ?? model.get(trait);

  /** Move a line at once, and tell the kernel in the next frame: the last value wins. */
  function change(axis, value) {
    const { trait } = AXES[axis];
    const threshold = snapped(value, frame.floors[axis]);
    if (threshold === valueOf(trait)) return;
    if (unsent.size === 0) requestAnimationFrame(send);
    unsent.set(trait, threshold);
    placeLines();
  }

  function send() {
    for (const [trait, threshold] of unsent) model.set(trait, threshold);
    unsent.clear();
    model.save_changes();
  }

  function placeLines() {
    const { plot } = scales;
    AXES.forEach(({ trait }, axis) => {
      const line = lines[axis];
      const value = valueOf(trait);
      // from the plot to the label beside the histogram
      const [left, top] = axis ? [plot.left, scales.y(value)] : [scales.x(value), 2];
      Object.assign(line.style, { left: `${left}px`, top: `${top}px` });
      if (axis) line.style.width = `${plot.width + MARGIN.right - 2}px`;
      else line.style.height = `${plot.top - 2 + plot.height}px`;
      line.firstChild.textContent = value.toFixed(3);
      line.setAttribute("aria-valuemin", frame.floors[axis]);
      line.setAttribute("aria-valuemax", 1);
      line.setAttribute("aria-valuenow", value);
    });
  }

  function placeRing() {
    const row = model.get("selected");
    const there = row >= 0 && row < frame.state.length;
    ring.style.display = there ? "block" : "none";
    if (!there) return;
    ring.style.left = `${scales.x(frame.points[2 * row])}px`;
    ring.style.top = `${scales.y(frame.points[2 * row + 1])}px`;
  }

  function tellCounts() {
    const counts = new Array(FATES.length).fill(0);
    for (const fate of frame.state) counts[fate]++;
    const texts = FATES.map((fate) => `${fate.label} ${counts[fate.number].toLocaleString("en")}`);
    const title = "Candidates by predicted IoU and stability";
    canvas.setAttribute("aria-label", `${title}: ${texts.join(", ")}`);
    legend.replaceChildren();
    for (const [i, text] of [...texts.entries()].reverse()) {
      const item = make("li", "", legend);
      make("span", "", item).style.background = FATES[i].colour;
      item.append(text);
    }
  }

  function draw() {
    waiting = 0;
    const bytes = model.get("points");
    const points = bytes === source ? frame.points : typed(Float32Array, bytes);
    const state = typed(Uint8Array, model.get("state"));
    // otherwise only one has arrived: keep the last picture until the other one arrives
    if (points.length === 2 * state.length) {
      frame = { ...frame, points, state };
      source = bytes;
    }
    frame.floors = model.get("floors");
    const width = root.clientWidth || 320;
    if (stretchedBy !== frame.points || stretchedTo !== width)
      scales = scalesOf(width, frame.floors, frame.points);
    [stretchedBy, stretchedTo] = [frame.points, width];
    const density = Math.min(window.devicePixelRatio || 1, 2);
    Object.assign(canvas, { width: width * density, height: HEIGHT * density });
    Object.assign(canvas.style, { width: `${width}px`, height: `${HEIGHT}px` });
    const css = getComputedStyle(root);
    const colours = {
      text: css.color,
      faint: css.getPropertyValue("--jp-border-color1").trim() || "#bdbdbd",
      font: css.fontFamily,
    };
    const ctx = canvas.getContext("2d");
    ctx.scale(density, density);
    paint(ctx, frame, scales, colours);
    canvas.dataset.painted = performance.now();
    tellCounts();
    placeLines();
    placeRing();
  }

  function redraw() {
    if (waiting) return;
    // a frame later than the map, which people watch: thousands of points take time
    waiting = requestAnimationFrame(() => { waiting = requestAnimationFrame(draw); });
  }

  canvas.addEventListener("click", pick);
  for (const name of ["points", "state", "floors"]) model.on(`change:${name}`, redraw);
  for (const { trait } of AXES) model.on(`change:${trait}`, placeLines);
  model.on("change:selected", placeRing);
  const resized = new ResizeObserver(redraw);
  resized.observe(root);
  // the attributes change before the colours of the theme are loaded
  const themed = new MutationObserver(() => [0, 300, 1500].forEach((ms) => setTimeout(redraw, ms)));
  themed.observe(document.body, { attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  draw();
  return () => {
    cancelAnimationFrame(waiting);
    resized.disconnect();
    themed.disconnect();
  };
}

export default { render };
