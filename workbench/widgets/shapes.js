// Draws a polygon on the map of a PolygonOverlay, or moves the corners of one, with leaflet-geoman.
// ipyleaflet 0.20.0 brings that and Leaflet along (`map.pm`, `window.L`).

const BUSY = "sam-workbench-shaping"; // of a map: its mouse and keys are taken
const STYLE = { color: "#d500f9", weight: 3, fillColor: "#d500f9", fillOpacity: 0.08 }; // of areas, too
const MANY = 300; // corners: of more, only those near the mouse can be taken, or the page gets slow
const HINTS = {
  draw: "Click the corners; Backspace undoes one.",
  edit: "Drag corners; a right click removes one.",
};

const leaflet = () => /** @type {any} */ (window).L;

/** How many corners a GeoJSON polygon has, in all its rings. */
export function cornersOf({ coordinates }) {
  const count = (part) => (typeof part[0] === "number" ? 1 : part.reduce((n, p) => n + count(p), 0));
  return count(coordinates);
}

/** Say on the map what to do, with a button for each way to end. */
function showHint(map, mode, finish, drop) {
  const div = document.createElement("div");
  div.className = "sam-workbench-hint leaflet-control"; // a click on it is none on the map
  div.setAttribute("role", "status");
  div.append(HINTS[mode]);
  for (const [name, act] of [["Keep (Enter)", finish], ["Drop (Esc)", drop]]) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.textContent = name;
    button.addEventListener("click", act);
    div.append(button);
  }
  leaflet().DomEvent.disableClickPropagation(div);
  map.getContainer().append(div);
  return div;
}

/** Begin to draw a polygon; `tell` hears of its end. Returns how to end it, and to tidy up. */
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
    back: () => tool._removeLastVertex(),
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
  layer.pm.enable({ snappable: false, limitMarkersToCount, removeLayerBelowMinVertexCount: false });
  return {
    finish: () => tell({ kind: "shape", geometry: layer.toGeoJSON(false).geometry }),
    back() {},
    tidy() {
      layer.pm.disable();
      layer.remove();
    },
  };
}

/** Take the mouse and the keys of a map for one shape; returns how to give them back. */
function take(map, mode, geometry, tell) {
  const container = map.getContainer();
  const ended = new AbortController();
  const { finish, back, tidy } = (mode === "draw" ? draw : edit)(map, geometry, tell);
  const drop = () => tell({ kind: "drop" });
  const hint = showHint(map, mode, finish, drop);
  const acts = { Enter: finish, Escape: drop, Backspace: back };
  const press = (event) => {
    const { target, key } = event;
    const act = acts[key];
    if (!act || (target !== document.body && !container.contains(target))) return;
    if (key === "Enter" && target.closest("button")) return; // that is pressed
    event.preventDefault();
    event.stopImmediatePropagation(); // Enter would click in the middle of the map
    act();
  };
  document.addEventListener("keydown", press, { capture: true, signal: ended.signal });
  container.classList.add(BUSY);
  container.focus({ preventScroll: true });
  return () => {
    ended.abort();
    tidy();
    hint.remove();
    container.classList.remove(BUSY);
  };
}

function initialize({ model }) {
  let taken = []; // how to give back each view of the map
  function follow() {
    taken.forEach((giveBack) => giveBack());
    taken = [];
    const mode = model.get("mode");
    if (!mode) return;
    const overlay = /** @type {any} */ (window).samWorkbenchOverlays?.get(model.get("map_id"));
    const tell = (message) => model.send({ ...message, number: model.get("number") });
    for (const map of overlay?.maps ?? [])
      taken.push(take(map, mode, model.get("geometry"), tell));
  }
  model.on("change:number", follow);
  return () => {
    model.off("change:number", follow);
    taken.forEach((giveBack) => giveBack());
  };
}

export default { initialize };
