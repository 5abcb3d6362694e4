// Lists the polygons that an overlay shows in view. The overlay shares what it draws by the id of its
// map, and says when it has drawn or when the mouse is on a polygon.

const MOST = 200; // rows: nobody reads more, and zooming in lists the others
const SETTLE_MS = 250; // after the last frame: no lists while a slider moves

const STYLE = `
.sam-workbench-list { font: 12px/1.4 var(--jp-ui-font-family, sans-serif);
  color: var(--jp-ui-font-color1, #212121); }
.sam-workbench-list summary { cursor: pointer; padding: 2px 0; }
.sam-workbench-list .scroll { max-height: 300px; overflow: auto; }
.sam-workbench-list table { border-collapse: collapse; width: 100%; }
.sam-workbench-list th { position: sticky; top: 0; text-align: right; padding: 0;
  background: var(--jp-layout-color1, #ffffff); }
.sam-workbench-list th button { font: inherit; font-weight: 600; color: inherit; border: 0;
  padding: 2px 6px; cursor: pointer; background: none; width: 100%; text-align: inherit; }
.sam-workbench-list td { text-align: right; padding: 1px 6px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.sam-workbench-list td:first-child, .sam-workbench-list th:first-child { text-align: left; }
.sam-workbench-list tbody tr { cursor: pointer; }
.sam-workbench-list tbody tr.pointed, .sam-workbench-list tbody tr:focus {
  background: var(--jp-layout-color3, #bdbdbd); outline: none; }
.sam-workbench-list .swatch { display: inline-block; width: 9px; height: 9px; margin-right: 5px; }
`;

/** Rows in the order of a column; those without a value come last, either way. */
export function sorted(rows, valueOf, descending) {
  const missing = (value) => value === undefined || Number.isNaN(value);
  return [...rows].sort((a, b) => {
    const [one, other] = [valueOf(a), valueOf(b)];
    if (missing(one) || missing(other)) return Number(missing(one)) - Number(missing(other));
    const order = typeof one === "string" ? one.localeCompare(other) : one - other;
    return (descending ? -order : order) || a - b;
  });
}

const COLUMNS = [
  { name: "class", value: (shared, row) => shared.nameOf(row).name },
  { name: "confidence", value: (shared, row) => shared.outlines.confidence[row] },
  { name: "stability", value: (shared, row) => shared.outlines.stability[row] },
  { name: "area", value: (shared, row) => shared.outlines.area_m2[row] },
];

function newElement(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

function render({ model, el }) {
  const ended = new AbortController();
  newElement("style", "", el, STYLE);
  const root = newElement("details", "sam-workbench-list", el);
  const title = newElement("summary", "", root, "List of what is in view");
  const scroll = newElement("div", "scroll", root);
  const table = newElement("table", "", scroll);
  const head = newElement("tr", "", newElement("thead", "", table));
  const body = newElement("tbody", "", table);
  let [column, descending, timer] = [1, false, 0]; // least certain first
  const detailOf = (event) => (event.detail.map === model.get("map_id") ? event.detail : null);
  const shared = () =>
    /** @type {any} */ (window).samWorkbenchOverlays?.get(model.get("map_id"));

  const headers = COLUMNS.map(({ name }, number) => {
    const cell = newElement("th", "", head);
    cell.scope = "col";
    const button = newElement("button", "", cell, name);
    button.addEventListener("click", () => {
      descending = column === number && !descending;
      column = number;
      draw();
    });
    return cell;
  });

  function newRow(overlay, row) {
    const line = newElement("tr", "", body);
    line.tabIndex = 0;
    line.dataset.row = String(row);
    const first = newElement("td", "", line);
    const { name, colour } = overlay.nameOf(row);
    newElement("span", "swatch", first).style.background = colour;
    first.append(name);
    const { confidence, stability, area_m2, sequence } = overlay.outlines;
    const score = (value) => (Number.isNaN(value) ? "–" : value.toFixed(2));
    newElement("td", "", line, score(confidence[row]));
    newElement("td", "", line, score(stability[row]));
    newElement("td", "", line, overlay.areaText(area_m2[row]));
    line.title = "click: go there; keys then mean this object";
    const go = () => model.send({ kind: "go", row, sequence });
    line.addEventListener("click", go);
    line.addEventListener("keydown", (event) => {
      if (event.key === "Enter") go();
      const next = { ArrowDown: line.nextSibling, ArrowUp: line.previousSibling }[event.key];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
    for (const kind of ["pointerenter", "focus"])
      line.addEventListener(kind, () => overlay.point(row));
    for (const kind of ["pointerleave", "blur"])
      line.addEventListener(kind, () => overlay.point(-1));
  }

  function draw() {
    const overlay = shared();
    if (!root.open || !overlay) return;
    const focused = body.querySelector("tr:focus")?.dataset.row;
    const { value } = COLUMNS[column];
    const rows = sorted(overlay.inView(), (row) => value(overlay, row), descending);
    title.textContent = `List of what is in view: ${rows.length.toLocaleString("en")}`;
    if (rows.length > MOST) title.textContent += `, the first ${MOST} are listed: zoom in for others`;
    body.replaceChildren();
    for (const row of rows.slice(0, MOST)) newRow(overlay, row);
    headers.forEach((cell, number) => {
      const order = descending ? "descending" : "ascending";
      cell.setAttribute("aria-sort", number === column ? order : "none");
      const mark = number !== column ? "" : descending ? " ▼" : " ▲";
      cell.firstChild.textContent = COLUMNS[number].name + mark;
    });
    if (focused !== undefined) body.querySelector(`tr[data-row="${focused}"]`)?.focus();
  }

  function soon() {
    if (!root.open) return;
    clearTimeout(timer);
    timer = setTimeout(draw, SETTLE_MS);
  }

  function pointed(row) {
    body.querySelector(".pointed")?.classList.remove("pointed");
    const line = body.querySelector(`tr[data-row="${row}"]`);
    if (!line) return;
    line.classList.add("pointed");
    // only the list: if the page scrolled, the map would move away under the mouse
    const [inner, outer] = [line.getBoundingClientRect(), scroll.getBoundingClientRect()];
    const under = head.getBoundingClientRect().bottom; // it stays in place
    if (inner.top < under) scroll.scrollTop -= under - inner.top;
    else if (inner.bottom > outer.bottom) scroll.scrollTop += inner.bottom - outer.bottom;
  }

  const { signal } = ended;
  root.addEventListener("toggle", draw, { signal });
  window.addEventListener("sam-workbench-drawn", (event) => detailOf(event) && soon(), { signal });
  window.addEventListener("sam-workbench-hover", (event) => {
    const detail = detailOf(event);
    if (detail) pointed(detail.row);
  }, { signal });
  return () => {
    clearTimeout(timer);
    ended.abort();
  };
}

export default { render };
