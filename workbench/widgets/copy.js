// A button that copies text: ipywidgets has none.

function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.style.width = "auto";
  button.textContent = "Copy command";
  button.addEventListener("click", async () => {
    let copied = false;
    try {
      await navigator.clipboard.writeText(model.get("text"));
      copied = true;
    } catch {
      // no permission or no https, as on some hubs: use the older way
      const area = document.createElement("textarea");
      area.value = model.get("text");
      el.append(area);
      area.select();
      copied = document.execCommand("copy");
      area.remove();
    }
    button.textContent = copied ? "Copied" : "Select the text above and copy it";
    setTimeout(() => (button.textContent = "Copy command"), 1500);
  });
  el.append(button);
}

export default { render };
