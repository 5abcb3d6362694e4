// Draws a polygon on the map of a PolygonOverlay, or moves the corners of one, with leaflet-geoman;
// or collects clicks and boxes, and shows the outline that the kernel answers. ipyleaflet 0.20.0
// brings geoman and Leaflet along (`map.pm`, `window.L`).

const BUSY = "sam-workbench-shaping"; // of a map: its mouse and keys are taken
const AIMING = "sam-workbench-aiming"; // of a map: each click is for the model
const STYLE = { color: "#d500f9", weight: 3, fillColor: "#d500f9", fillOpacity: 0.08 }; // of areas, too
const OUTLINE = { ...STYLE, className: "sam-workbench-outlined" };
const BOX = { weight: 2, fill: false, dashArray: "6 4" };
const MANY = 300; // corners: of more, only those near the mouse can be taken, or the page gets slow
const DRAG = 4; // px: a mouse that moves further drags a box
const HINTS = {
  draw: "Click the corners; Backspace undoes one.",
  edit: "Drag corners; a right click removes one.",
  prompt: "Click or drag a box. Alt: not this.",
  correct: "Click what to add. Alt: not this.",
  boxes: "Drag boxes.", // the kernel says what for
};
const KEEP = ["Keep (Enter)", "Enter", "keep this outline"];
const NEXT = ["Next (p)", "p", "keep this outline, and outline the next object"];
const DROP = ["Drop (Esc)", "Escape", "forget this outline"];
const DONE = ["Done (Enter)", "Enter", "end drawing"];
const BUTTONS = { prompt: [KEEP, NEXT, DROP], boxes: [DONE] };

const leaflet = () => /** @type {any} */ (window).L;

/** How many corners a GeoJSON polygon has, in all its rings. */
export function cornersOf({ coordinates }) {
  const count = (part) => (typeof part[0] === "number" ? 1 : part.reduce((n, p) => n + count(p), 0));
  return count(coordinates);
}

/** Say on the map what to do, with a button for each way to end. */
function showHint(map, mode, acts) {
  const div = document.createElement("div");
  div.className = "sam-workbench-hint leaflet-control"; // a click on it is none on the map
  const text = document.createElement("span");
  text.setAttribute("role", "status");
  div.append(text);
  for (const [name, key, title] of BUTTONS[mode] ?? [KEEP, DROP]) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.textContent = name;
    button.title = title;
    button.addEventListener("click", acts[key]);
    div.append(button);
  }
  leaflet().DomEvent.disableClickPropagation(div);
  map.getContainer().append(div);
  return { div, say: (said) => (text.textContent = said || HINTS[mode]) };
}

/**
 * Begin to draw a polygon; `tell` hears of its end. Returns how to end it and to tidy up, and how
 * to take a step of it `back` and to make that step again, both false if there is none.
 */
function draw(map, _, tell) {
  const tool = map.pm.Draw.Polygon;
  let over = false;
  const created = ({ layer }) => {
    over = true;
    layer.remove();
    tell({ kind: "shape", geometry: layer.toGeoJSON(false).geometry });
  };
  const ended = () => over || tell({ kind: "drop" }); // the last corner was taken back
  map.on("pm:create", created);
  map.on("pm:drawend", ended);
  const pathOptions = STYLE;
  const [templineStyle, hintlineStyle] = [STYLE, { ...STYLE, dashArray: "5, 5" }];
  const looks = { pathOptions, templineStyle, hintlineStyle, tooltips: false };
  map.pm.enableDraw("Polygon", { ...looks, snappable: false, finishOn: "dblclick" });
  return {
    finish: () => tool._finishShape(),
    back: () => tool._removeLastVertex(), // of the last one, geoman lets go of the polygon
    forth: () => false,
    tidy() {
      over = true;
      map.pm.disableDraw();
      map.off("pm:create", created);
      map.off("pm:drawend", ended);
    },
  };
}

/** Begin to move the corners of a polygon; as `draw`. */
function edit(map, geometry, tell) {
  const [layer] = leaflet().geoJSON(geometry, { style: STYLE }).getLayers();
  layer.addTo(map);
  const limitMarkersToCount = cornersOf(geometry) > MANY ? MANY : -1;
  const looks = { snappable: false, limitMarkersToCount, removeLayerBelowMinVertexCount: false };
  layer.pm.enable(looks);
  const shape = () => layer.toGeoJSON(false).geometry;
  const ended = new AbortController();
  const options = { capture: true, signal: ended.signal };
  /** @type {[any[], any[]]} shapes before and after this one */
  const [past, future] = [[], []];
  let before = /** @type {any} */ (null); // the shape when the mouse was pressed on the map
  // a corner that is new is added, and then moved: what one press of the mouse does is one step
  map.getContainer().addEventListener("pointerdown", () => { before = shape(); }, options);
  document.addEventListener("pointerup", () => setTimeout(() => {
    const was = before;
    before = null;
    if (!was || ended.signal.aborted || JSON.stringify(shape()) === JSON.stringify(was)) return;
    past.push(was);
    future.length = 0;
  }), options);
  function go(from, to) {
    if (!from.length) return false;
    to.push(shape());
    const { type, coordinates } = from.pop();
    const { coordsToLatLngs } = leaflet().GeoJSON;
    layer.setLatLngs(coordsToLatLngs(coordinates, type === "Polygon" ? 1 : 2));
    layer.pm.disable();
    layer.pm.enable(looks);
    return true;
  }
  return {
    finish: () => tell({ kind: "shape", geometry: shape() }),
    back: () => go(past, future),
    forth: () => go(future, past),
    tidy() {
      ended.abort();
      layer.pm.disable();
      layer.remove();
    },
  };
}

/**
 * A click that the model is asked about, as a mark that needs no colour.
 * @param {number[]} point
 */
function markOf([lng, lat, on]) {
  const className = `sam-workbench-click ${on ? "on" : "beside"}`;
  const icon = leaflet().divIcon({ className, html: on ? "+" : "−", iconSize: [18, 18] });
  return leaflet().marker([lat, lng], { icon, interactive: false, keyboard: false });
}

/**
 * What the model is asked after some clicks and boxes: all points, and the last box.
 * @param {{ point?: number[], box?: number[] }[]} done
 */
export function questionOf(done) {
  const box = done.map((one) => one.box).filter(Boolean).pop() ?? null;
  return { points: done.flatMap(({ point }) => (point ? [point] : [])), box };
}

/** @param {number[]} box west, south, east, north */
const rectangle = ([west, south, east, north]) =>
  leaflet().rectangle([[south, west], [north, east]], { ...STYLE, ...BOX, interactive: false });

/**
 * Take clicks on a map (`clicked(point, beside)`) and boxes that are dragged (`boxed(box, beside)`);
 * beside: with Alt or the right button, which drags only if `bothDrag`. Returns how to end it.
 */
function aim(map, { clicked, boxed, bothDrag }) {
  const container = map.getContainer();
  const ended = new AbortController();
  const options = { capture: true, signal: ended.signal };
  const paused = [map.dragging, map.boxZoom, map.doubleClickZoom].filter((one) => one?.enabled());
  paused.forEach((one) => one.disable());
  let start = /** @type {PointerEvent | null} */ (null);
  let dragged = /** @type {any} */ (null);
  const boxOf = (one, other) => {
    const bounds = leaflet().latLngBounds([one, other]);
    return [bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()];
  };
  const near = (one, other) =>
    Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) <= DRAG;

  container.addEventListener("pointerdown", (event) => {
    if (![0, 2].includes(event.button) || event.target.closest(".leaflet-control")) return;
    start = event;
  }, options);
  document.addEventListener("pointermove", (event) => {
    dragged?.remove();
    dragged = null;
    if (!start || (start.button !== 0 && !bothDrag) || near(event, start)) return;
    const box = boxOf(map.mouseEventToLatLng(start), map.mouseEventToLatLng(event));
    dragged = rectangle(box).addTo(map);
  }, options);
  document.addEventListener("pointerup", (event) => {
    if (!start || event.button !== start.button) return;
    const { lng, lat } = map.mouseEventToLatLng(start);
    const beside = start.altKey || start.button === 2;
    const [at, box] = [near(event, start), dragged];
    dragged?.remove();
    [start, dragged] = [null, null];
    if (at) clicked([lng, lat], beside);
    else if (box) boxed(boxOf({ lng, lat }, map.mouseEventToLatLng(event)), beside);
  }, options);
  container.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    event.stopPropagation(); // JupyterLab has a menu of its own
  }, options);
  return () => {
    ended.abort();
    paused.forEach((one) => one.enable());
    dragged?.remove();
  };
}

/** Begin to collect boxes and clicks, each told at once; as `draw`. */
function boxes(map, _, tell) {
  const clicked = (point) => tell({ kind: "point", point });
  const boxed = (box, beside) => tell({ kind: "box", box, beside });
  return {
    finish: () => tell({ kind: "drop" }),
    back: () => tell({ kind: "undo" }),
    forth: () => tell({ kind: "redo" }),
    show() {},
    tidy: aim(map, { clicked, boxed, bothDrag: true }),
  };
}

/** Begin to collect clicks and boxes; as `draw`. `geometry` is the outline as it is. */
function prompt(map, geometry, tell) {
  const marks = leaflet().layerGroup().addTo(map);
  /** @type {[any[], any[]]} */
  const [done, undone] = [[], []];
  let outline = /** @type {any} */ (null);

  function show(shape) {
    outline?.remove();
    outline = null;
    if (shape.type) outline = leaflet().geoJSON(shape, { style: OUTLINE, interactive: false }).addTo(map);
  }
  function ask() {
    const { points, box } = questionOf(done);
    marks.clearLayers();
    if (box) marks.addLayer(rectangle(box));
    points.forEach((point) => marks.addLayer(markOf(point)));
    tell({ kind: "ask", points, box });
  }
  function add(one) {
    done.push(one);
    undone.length = 0;
    ask();
  }
  const clicked = ([lng, lat], beside) => add({ point: [lng, lat, beside ? 0 : 1] });
  const stop = aim(map, { clicked, boxed: (box) => add({ box }), bothDrag: false });
  show(geometry);
  function go(from, to) {
    if (!from.length) return false;
    to.push(from.pop());
    ask();
    return true;
  }
  return {
    show,
    finish: () => tell({ kind: "keep", again: false }),
    next: () => tell({ kind: "keep", again: true }),
    back: () => go(done, undone),
    forth: () => go(undone, done),
    tidy() {
      stop();
      for (const layer of [marks, outline]) layer?.remove();
    },
  };
}

const MODES = { draw, edit, prompt, correct: prompt, boxes };

/** Take the mouse and the keys of a map for one shape; returns how to follow it, and to end. */
function take(map, mode, geometry, tell) {
  const container = map.getContainer();
  const ended = new AbortController();
  const { finish, back, forth, tidy, next, show } = MODES[mode](map, geometry, tell);
  const drop = () => tell({ kind: "drop" });
  const acts = { Enter: finish, Escape: drop, Backspace: back };
  // the panel's undo and redo; before the first step, undo takes back that this was begun
  const steps = { undo: () => back() === false && drop(), redo: forth };
  for (const [step, act] of Object.entries(steps))
    container.addEventListener(`sam-workbench-${step}`, act, { signal: ended.signal });
  if (mode === "prompt") acts.p = next;
  const hint = showHint(map, mode, acts);
  const press = (event) => {
    const { target, key, ctrlKey, metaKey, altKey } = event;
    if (target !== document.body && !container.contains(target)) return;
    const act = acts[key.length === 1 ? key.toLowerCase() : key];
    if (!act || ctrlKey || metaKey || altKey) return;
    if (key === "Enter" && target.closest("button")) return; // that is pressed
    act();
    event.preventDefault();
    event.stopImmediatePropagation(); // Enter would click in the middle of the map
  };
  document.addEventListener("keydown", press, { capture: true, signal: ended.signal });
  const tellPanel = () => container.dispatchEvent(new CustomEvent(BUSY, { bubbles: true }));
  container.classList.add(BUSY);
  container.classList.toggle(AIMING, Boolean(show));
  tellPanel();
  container.focus({ preventScroll: true });
  return {
    say: hint.say,
    show: show ?? (() => {}),
    giveBack() {
      ended.abort();
      tidy();
      hint.div.remove();
      container.classList.remove(BUSY, AIMING);
      tellPanel();
    },
  };
}

function initialize({ model }) {
  let taken = []; // one for each view of the map
  function follow() {
    taken.forEach(({ giveBack }) => giveBack());
    taken = [];
    const mode = model.get("mode");
    if (!mode) return;
    const overlay = /** @type {any} */ (window).samWorkbenchOverlays?.get(model.get("map_id"));
    const tell = (message) => model.send({ ...message, number: model.get("number") });
    for (const map of overlay?.maps ?? []) taken.push(take(map, mode, model.get("geometry"), tell));
    say();
  }
  const say = () => taken.forEach((one) => one.say(model.get("said")));
  const show = () => taken.forEach((one) => one.show(model.get("geometry")));
  const handlers = { number: follow, said: say, geometry: show };
  for (const [name, handler] of Object.entries(handlers)) model.on(`change:${name}`, handler);
  return () => {
    for (const [name, handler] of Object.entries(handlers)) model.off(`change:${name}`, handler);
    taken.forEach(({ giveBack }) => giveBack());
  };
}

export default { initialize };
