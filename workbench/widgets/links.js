// Links to the files of a run. JupyterLab listens for clicks on elements that name one of its
// commands (`data-commandlinker-command`).

/** The path of a file on JupyterLab's server, null if the server does not show it. */
export function pathOnServer(file, root, home) {
  const top = root.replace(/^~/, home).replace(/\/+$/, "");
  return file.startsWith(`${top}/`) ? file.slice(top.length + 1) : null;
}

function serverOf(document) {
  try {
    const config = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    return { base: config.baseUrl ?? "/", root: config.serverRoot ?? null };
  } catch {
    return { base: "/", root: null }; // not JupyterLab
  }
}

function render({ model, el }) {
  const bar = document.createElement("div");
  bar.className = "sam-workbench-links";
  bar.style.cssText = "display: flex; flex-wrap: wrap; gap: 6px; align-items: center";
  el.append(bar);

  function add(icon, text, title, command, args) {
    const button = document.createElement("button");
    button.className = "jupyter-widgets jupyter-button widget-button";
    button.style.width = "auto";
    const image = document.createElement("i");
    image.className = `fa fa-${icon}`;
    button.append(image, ` ${text}`);
    button.title = title;
    button.dataset.commandlinkerCommand = command;
    button.dataset.commandlinkerArgs = JSON.stringify(args);
    bar.append(button);
  }

  function draw() {
    bar.replaceChildren();
    const folder = model.get("folder");
    if (!folder) return;
    const { base, root } = serverOf(document);
    const path = root === null ? null : pathOnServer(`${folder}/`, root, model.get("home"));
    if (path !== null) {
      const report = { path: `${path}report.html`, factory: "HTML Viewer" };
      add("file-text-o", "Report", "opens beside the notebook", "docmanager:open", report);
      add("folder-o", "Run folder", "shows it on the left", "filebrowser:go-to-path", { path });
      const project = document.createElement("a");
      const parts = `${path}review.qgz`.split("/").map(encodeURIComponent);
      project.href = `${base}files/${parts.join("/")}`;
      project.download = "review.qgz";
      project.textContent = "QGIS project";
      project.title = "download; on this machine, open it from the run folder instead";
      bar.append(project);
    }
    const where = document.createElement("code");
    where.textContent = folder;
    bar.append(where);
  }

  model.on("change:folder", draw);
  draw();
  return () => model.off("change:folder", draw);
}

export default { render };
