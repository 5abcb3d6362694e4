// Adapts a map to a page that scrolls, and to the keyboard.

const HINT_MS = 1500;

function newDiv(map, text, style, signal) {
  const div = document.createElement("div");
  div.textContent = text;
  div.style.cssText = `position: absolute; display: none; pointer-events: none; ${style}`;
  map.append(div);
  signal.addEventListener("abort", () => div.remove());
  return div;
}

/** Let the wheel scroll the page; it zooms after a click on the map, or with Ctrl. */
function keepWheel(root, map, signal) {
  const hint = newDiv(
    map,
    "Click the map, or hold Ctrl, to zoom with the wheel",
    "z-index: 760; transform: translate(-50%, -150%); white-space: nowrap;" +
      "padding: 4px 12px; border-radius: 3px; color: #ffffff; background: rgba(0, 0, 0, 0.7);" +
      "font: 13px/1.5 var(--jp-ui-font-family, sans-serif)",
    signal
  );
  let [clicked, timer] = [false, 0];
  const hide = () => (hint.style.display = "none");
  const wheel = (event) => {
    if (clicked || event.ctrlKey || event.metaKey || !map.contains(event.target)) return;
    event.stopPropagation(); // in the capture phase: the page gets it, not the map
    const { left, top } = map.getBoundingClientRect();
    hint.style.left = `${event.clientX - left}px`;
    hint.style.top = `${event.clientY - top}px`;
    hint.style.display = "block";
    clearTimeout(timer);
    timer = setTimeout(hide, HINT_MS);
  };
  root.addEventListener("wheel", wheel, { capture: true, passive: true, signal });
  map.addEventListener("pointerdown", () => { clicked = true; hide(); }, { signal });
  map.addEventListener("pointerleave", () => { clicked = false; }, { signal });
}

/** Arrow keys move the map; Enter clicks at the cross in its middle. */
function clickByKey(map, signal) {
  const cross = newDiv(
    map,
    "+",
    "z-index: 740; left: 50%; top: 50%; transform: translate(-50%, -50%);" +
      "font: 32px/1 sans-serif; color: #ffffff; text-shadow: 0 0 3px #000000, 0 0 3px #000000",
    signal
  );
  const aim = () => (cross.style.display = map.matches(":focus-visible") ? "block" : "none");
  for (const kind of ["focus", "blur", "pointerdown"]) map.addEventListener(kind, aim, { signal });
  // whoever moves the mouse does not aim with the cross
  map.addEventListener("pointermove", () => (cross.style.display = "none"), { signal });
  const pressed = (event) => {
    if (event.target !== map || event.key !== "Enter") return;
    event.preventDefault();
    const { left, top, width, height } = map.getBoundingClientRect();
    const at = { clientX: left + width / 2, clientY: top + height / 2 };
    const there = document.elementFromPoint(at.clientX, at.clientY);
    const target = map.contains(there) ? there : map;
    // the drawing tools need the place of the mouse before the click
    for (const kind of ["mousemove", "click"])
      target.dispatchEvent(new MouseEvent(kind, { ...at, bubbles: true, cancelable: true }));
  };
  map.addEventListener("keydown", pressed, { signal });
}

/** Name the drawing tools, which have only a title, and keep their marker out of the tab order. */
function nameTools(map, signal) {
  const look = () => {
    for (const tool of map.querySelectorAll("[title] > .leaflet-buttons-control-button"))
      tool.setAttribute("aria-label", tool.parentElement.title);
    for (const mark of map.querySelectorAll(".leaflet-marker-pane [tabindex='0']"))
      mark.tabIndex = -1;
  };
  const observer = new MutationObserver(look);
  observer.observe(map, { childList: true, subtree: true });
  signal.addEventListener("abort", () => observer.disconnect());
  look();
}

/** Leaflet looks at its size when the window changes, not when its column does. */
function followSize(map, signal) {
  let [size, timer] = [map.clientWidth + map.clientHeight, 0];
  const observer = new ResizeObserver(() => {
    if (map.clientWidth + map.clientHeight === size) return;
    size = map.clientWidth + map.clientHeight;
    clearTimeout(timer);
    timer = setTimeout(() => window.dispatchEvent(new Event("resize")), 60);
  });
  observer.observe(map);
  signal.addEventListener("abort", () => observer.disconnect());
}

function render({ model, el }) {
  const ended = new AbortController();
  let frame = 0;
  const look = () => {
    const root = el.closest(".sam-workbench-map");
    const map = root?.querySelector(".leaflet-container");
    if (!map) {
      frame = requestAnimationFrame(look);
      return;
    }
    // otherwise the arrow keys, which pan the map, would move JupyterLab to another cell
    map.setAttribute("data-lm-suppress-shortcuts", "true");
    keepWheel(root, map, ended.signal);
    clickByKey(map, ended.signal);
    nameTools(map, ended.signal);
    followSize(map, ended.signal);
    model.set("pixel_ratio", window.devicePixelRatio || 1);
    model.save_changes();
  };
  look();
  return () => {
    cancelAnimationFrame(frame);
    ended.abort();
  };
}

export default { render };
