// What all panels share: JupyterLab does not take their keys, `?` lists the keys, `f` shows the panel
// in full screen, and controls have names and values for screen readers.

const SUPPRESS = "data-lm-suppress-shortcuts"; // of JupyterLab
const SHAPING = "sam-workbench-shaping"; // of a map on which somebody makes a shape, step by step
const TEXT = "textarea, select, [contenteditable], input:not([type=checkbox]):not([type=radio])";

const TITLES = {
  undo: "take the last change back: area, sliders, verdicts, tiles (Ctrl+Z)",
  redo: "make the undone change again (Ctrl+Shift+Z)",
  screen: "this panel alone on the whole screen, and back (f)",
  keys: "list of the keys (?)",
};

const panelOf = (element) => element.closest(".sam-workbench-panel");

function setAttribute(element, attribute, text) {
  if (element && text && element.getAttribute(attribute) !== text)
    element.setAttribute(attribute, text);
}

/**
 * Name controls that screen readers cannot name: boxes with only a tooltip, and noUiSlider's
 * handles, whose value is also rounded, or an index in a list of steps.
 */
function nameControls(root) {
  for (const box of root.querySelectorAll("input[title]")) {
    const named = box.hasAttribute("aria-label") || box.labels?.[0]?.textContent;
    if (!named) setAttribute(box, "aria-label", box.title);
  }
  for (const slider of root.querySelectorAll(".widget-slider")) {
    const handle = slider.querySelector("[role=slider]");
    setAttribute(handle, "aria-label", slider.querySelector(".widget-label")?.textContent);
    setAttribute(handle, "aria-valuetext", slider.querySelector(".widget-readout")?.textContent);
  }
}

function keepNamed(root, signal) {
  const observer = new MutationObserver(() => nameControls(root));
  const what = { childList: true, characterData: true, attributeFilter: ["aria-valuetext", "title"] };
  observer.observe(root, { subtree: true, ...what });
  signal.addEventListener("abort", () => observer.disconnect());
  nameControls(root);
}

/** Keep the focus where the last click was: JupyterLab and disabled buttons take it away. */
function keepFocus(root, signal) {
  let mine = false; // whether the last click or focus was in the panel
  const nobody = (element) =>
    !element || element === document.body || (element !== root && element.contains(root));
  const claim = () => {
    if (mine && root.isConnected && nobody(document.activeElement))
      root.focus({ preventScroll: true });
  };
  const options = { capture: true, signal };
  document.addEventListener("pointerdown", (event) => {
    mine = root.contains(event.target);
    if (mine) for (const ms of [0, 50, 250]) setTimeout(claim, ms);
  }, options);
  root.addEventListener("focusin", () => { mine = true; }, { signal });
  root.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget && !nobody(relatedTarget)) mine = root.contains(relatedTarget);
    else setTimeout(claim);
  }, { signal });
  // before JupyterLab, which listens on the document
  window.addEventListener("keydown", (event) => {
    // its selectors match the focused element, so that one must carry the attribute
    if (event.target instanceof Element && root.contains(event.target)) {
      event.target.setAttribute(SUPPRESS, "true");
    }
    // nothing has the focus: count it as the panel's
    if (!mine || root.contains(event.target) || !nobody(document.activeElement)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    root.focus({ preventScroll: true });
    root.dispatchEvent(copyOf(event));
  }, options);
}

function copyOf(event) {
  const { key, code, keyCode, ctrlKey, metaKey, shiftKey, altKey } = event;
  const modifiers = { ctrlKey, metaKey, shiftKey, altKey };
  const init = { key, code, keyCode, ...modifiers, bubbles: true, cancelable: true };
  return new KeyboardEvent("keydown", init);
}

function newElement(tag, className, parent, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

/** Show or hide the list of keys; a modal dialog is not cut off by JupyterLab's cells. */
function toggleKeys(root, keys) {
  const before = root.querySelector(".sam-workbench-keys");
  if (before) {
    before.close();
    return;
  }
  const list = newElement("dialog", "sam-workbench-keys", root);
  list.setAttribute("aria-label", "Keys");
  newElement("h2", "", list, "Keys");
  const table = newElement("table", "", list);
  for (const [key, meaning] of keys) {
    const row = newElement("tr", "", table);
    newElement("kbd", "", newElement("td", "", row), key);
    newElement("td", "", row, meaning);
  }
  const button = newElement("button", "jupyter-button", list, "Close");
  button.addEventListener("click", () => list.close());
  list.addEventListener("close", () => {
    list.remove();
    root.focus({ preventScroll: true });
  });
  list.showModal();
}

function toggleFullScreen(root) {
  if (document.fullscreenElement) document.exitFullscreen();
  else root.requestFullscreen?.();
}

function render({ model, el }) {
  const ended = new AbortController();
  const { signal } = ended;
  let frame = 0;

  function pressed(root, event) {
    const { key, shiftKey } = event;
    const command = (event.ctrlKey || event.metaKey) && !event.altKey;
    const typing = event.target.closest(TEXT);
    const letter = key.length === 1 ? key.toLowerCase() : key;
    if (command && letter === "s") {
      // saving the notebook is not a command to a cell
      document.body.dispatchEvent(copyOf(event));
    } else if (typing) {
      return;
    } else if (command && (letter === "z" || letter === "y")) {
      // otherwise the browser undoes the last typing, in some cell
      step(shiftKey || letter === "y" ? "redo" : "undo");
    } else if (command && letter === "a") {
      // nothing: the browser would select the text of the whole page
    } else if (key === "?") {
      toggleKeys(root, model.get("listed"));
    } else if (letter === "f" && !command && !event.altKey) {
      toggleFullScreen(root);
    } else {
      return;
    }
    event.preventDefault();
  }

  const bar = newElement("div", "sam-workbench-toolbar", el);
  bar.setAttribute("role", "toolbar");
  const [undo, redo] = ["undo", "redo"].map((kind) =>
    newButton(kind === "undo" ? "Undo" : "Redo", `fa-${kind}`, TITLES[kind], () => step(kind))
  );
  newButton("Full screen", "fa-arrows-alt", TITLES.screen, () => toggleFullScreen(panelOf(el)));
  newButton("Keys", "fa-keyboard-o", TITLES.keys, () => toggleKeys(panelOf(el), model.get("listed")));

  function newButton(text, icon, title, does) {
    const button = newElement("button", "jupyter-widgets jupyter-button widget-button", bar);
    newElement("i", `fa ${icon}`, button);
    button.append(` ${text}`);
    button.title = title;
    button.addEventListener("click", does);
    return button;
  }

  const shaping = () => panelOf(el)?.querySelector(`.${SHAPING}`);

  /** Undo or redo what was done last: a step of the shape that is being made, or a change. */
  function step(kind) {
    const map = shaping();
    if (map) map.dispatchEvent(new CustomEvent(`sam-workbench-${kind}`));
    else model.send({ kind });
  }

  function enable() {
    undo.disabled = !model.get("can_undo") && !shaping();
    redo.disabled = !model.get("can_redo") && !shaping();
    bar.style.display = model.get("visible") ? "flex" : "none";
  }

  function start() {
    const root = panelOf(el);
    if (!root) {
      frame = requestAnimationFrame(start);
      return;
    }
    root.setAttribute(SUPPRESS, "true");
    root.tabIndex = -1;
    root.addEventListener("keydown", (event) => pressed(root, event), { signal });
    root.addEventListener(SHAPING, enable, { signal });
    keepFocus(root, signal);
    keepNamed(root, signal);
  }

  enable();
  for (const name of ["can_undo", "can_redo"]) model.on(`change:${name}`, enable);
  start();
  return () => {
    cancelAnimationFrame(frame);
    ended.abort();
  };
}

export default { render };
