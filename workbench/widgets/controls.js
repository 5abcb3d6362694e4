// Gives the sliders of a tuner names and values for screen readers: noUiSlider's handles have no
// name, and their value is rounded, or an index in a list of steps.

function set(handle, attribute, text) {
  if (handle && text && handle.getAttribute(attribute) !== text)
    handle.setAttribute(attribute, text);
}

function nameSliders(root) {
  for (const slider of root.querySelectorAll(".widget-slider")) {
    const handle = slider.querySelector("[role=slider]");
    set(handle, "aria-label", slider.querySelector(".widget-label")?.textContent);
    set(handle, "aria-valuetext", slider.querySelector(".widget-readout")?.textContent);
  }
}

function render({ el }) {
  let frame = 0;
  let observer = null;
  const look = () => {
    const root = el.closest(".sam-workbench-tuner");
    if (!root) {
      frame = requestAnimationFrame(look);
      return;
    }
    // else JupyterLab would take keys that are meant for the sliders and the map as its commands
    root.setAttribute("data-lm-suppress-shortcuts", "true");
    const what = { childList: true, characterData: true, attributeFilter: ["aria-valuetext"] };
    observer = new MutationObserver(() => nameSliders(root));
    observer.observe(root, { subtree: true, ...what });
    nameSliders(root);
  };
  look();
  return () => {
    cancelAnimationFrame(frame);
    observer?.disconnect();
  };
}

export default { render };
