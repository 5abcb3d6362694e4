// Draws a ClassPalette: a chip for each class with its key, colour, name and count. The kernel owns
// the classes: this file shows them and reports what a person does.

const STYLE = `
.sam-workbench-palette { display: flex; flex-wrap: wrap; gap: 6px; align-items: center;
  font: 13px/1.3 var(--jp-ui-font-family, sans-serif); color: var(--jp-ui-font-color1, #212121); }
.sam-workbench-palette .chip { display: flex; align-items: center; gap: 5px; height: 28px;
  padding: 0 6px 0 3px; border-radius: 4px; box-sizing: border-box;
  border: 2px solid var(--jp-border-color2, #bdbdbd); background: var(--jp-layout-color1, #fff); }
.sam-workbench-palette .chip.chosen { border-color: var(--jp-brand-color1, #1976d2);
  background: var(--jp-layout-color2, #eeeeee); }
.sam-workbench-palette button { height: 28px; padding: 0 8px; border-radius: 4px; cursor: pointer;
  border: 1px solid var(--jp-border-color1, #9e9e9e); color: inherit; font: inherit;
  background: var(--jp-layout-color2, #eeeeee); }
.sam-workbench-palette .chip button { height: 22px; min-width: 22px; padding: 0 5px;
  font-weight: bold; }
.sam-workbench-palette .chip.chosen button { color: #ffffff;
  background: var(--jp-brand-color1, #1976d2); border-color: var(--jp-brand-color1, #1976d2); }
.sam-workbench-palette input[type=color] { width: 22px; height: 22px; padding: 0; border: 0;
  background: none; cursor: pointer; }
.sam-workbench-palette input[type=text] { width: 84px; height: 22px; box-sizing: border-box;
  padding: 0 3px; border: 1px solid transparent; border-radius: 2px; color: inherit; font: inherit;
  background: transparent; }
.sam-workbench-palette input[type=text]:hover, .sam-workbench-palette input[type=text]:focus {
  border-color: var(--jp-border-color1, #9e9e9e); background: var(--jp-layout-color0, #fff); }
.sam-workbench-palette .swatch { width: 14px; height: 14px; border-radius: 2px; }
.sam-workbench-palette .count { min-width: 12px; text-align: right; opacity: 0.75;
  font-variant-numeric: tabular-nums; }
`;

function newElement(tag, attributes, parent) {
  const element = document.createElement(tag);
  Object.assign(element, attributes);
  parent?.append(element);
  return element;
}

function render({ model, el }) {
  newElement("style", { textContent: STYLE }, el);
  const root = newElement("div", { className: "sam-workbench-palette" }, el);
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "classes to teach");
  // otherwise JupyterLab would take letters typed here as commands
  root.setAttribute("data-lm-suppress-shortcuts", "true");

  function choose(number) {
    model.set("tool", model.get("tool") === number ? -1 : number); // a second click lets go
    model.save_changes();
  }

  function edit(number, change) {
    const classes = model.get("classes");
    model.send({
      kind: "edit",
      classes: classes.map((one) => (one.number === number ? { ...one, ...change } : one)),
    });
  }

  /** A button with the key of a class, in its chip. */
  function newChip(number, name, count) {
    const chosen = model.get("tool") === number;
    const chip = newElement("div", { className: chosen ? "chip chosen" : "chip" }, root);
    const how = model.get("editable") ? "click here, then on polygons" : "click here";
    const said = `${number <= 9 ? `key ${number}, or ` : ""}${how}`;
    const button = newElement("button", { textContent: number, title: `${name}: ${said}` }, chip);
    button.setAttribute("aria-pressed", String(chosen));
    button.setAttribute("aria-label", `${name}, said ${count} times`);
    button.addEventListener("click", () =>
      model.get("editable") ? choose(number) : model.send({ kind: "answer", number })
    );
    return chip;
  }

  function addCount(chip, count) {
    newElement("span", { className: "count", textContent: count, title: "said so far" }, chip);
  }

  function draw() {
    const typing = root.querySelector("input[type=text]:focus");
    if (typing) {
      // do not remove the field while somebody types; redraw when it loses the focus
      typing.addEventListener("blur", () => requestAnimationFrame(draw), { once: true });
      return;
    }
    const focused = root.contains(document.activeElement)
      ? [...root.querySelectorAll("button, input")].indexOf(document.activeElement)
      : -1;
    root.textContent = "";
    for (const { number, name, color, count } of model.get("classes")) {
      const chip = newChip(number, name, count);
      if (!model.get("editable")) {
        newElement("span", { className: "swatch", style: `background: ${color}` }, chip);
        newElement("span", { textContent: name }, chip);
        addCount(chip, count);
        continue;
      }
      const colour = newElement("input", { type: "color", value: color }, chip);
      colour.title = `colour of ${name}`;
      colour.addEventListener("change", () => edit(number, { color: colour.value }));
      const field = newElement("input", { type: "text", value: name, maxLength: 60 }, chip);
      field.title = "name of the class; Enter keeps it";
      field.setAttribute("aria-label", `name of class ${number}`);
      field.addEventListener("change", () => edit(number, { name: field.value }));
      // a name that the kernel refuses is not kept
      field.addEventListener("blur", () => setTimeout(draw, 500));
      field.addEventListener("keydown", (event) => {
        if (event.key === "Escape") field.value = name;
        if (event.key === "Enter" || event.key === "Escape") field.blur();
        event.stopPropagation();
      });
      addCount(chip, count);
    }
    const none = newChip(0, "none of these", model.get("n_none"));
    newElement("span", { textContent: "none of these" }, none);
    addCount(none, model.get("n_none"));
    if (!model.get("editable")) return;
    const add = newElement("button", { textContent: "+ class" }, root);
    add.title = "add a class";
    add.addEventListener("click", () => model.send({ kind: "add" }));
    const next = newElement("button", { textContent: "Next (n)" }, root);
    next.title = "go to the object whose answer would teach most; key n on the map";
    next.addEventListener("click", () => model.send({ kind: "next" }));
    if (focused >= 0) [...root.querySelectorAll("button, input")][focused]?.focus();
  }

  for (const name of ["classes", "tool", "n_none"]) model.on(`change:${name}`, draw);
  draw();
  return () => {
    for (const name of ["classes", "tool", "n_none"]) model.off(`change:${name}`, draw);
  };
}

export default { render };
