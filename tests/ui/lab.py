"""A real JupyterLab and a real browser, with nothing to reach outside of this machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
VIEWPORT = {"width": 1280, "height": 900}  # a small laptop


@dataclass
class Lab:
    """A JupyterLab server: where it is, and the folder that it shows."""

    url: str
    token: str
    folder: Path
    log: Path


@contextlib.contextmanager
def jupyterlab(folder: Path, base_url: str = "/"):
    """Serve `folder` on loopback, with settings that nobody has changed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder.parent / f"home-{port}"
    home.mkdir()
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    if base_url != "/":
        environment["JUPYTERHUB_SERVICE_PREFIX"] = base_url
    log = home / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
                "--IdentityProvider.token=key", f"--ServerApp.root_dir={folder}",
                f"--ServerApp.base_url={base_url}", "--LabApp.expose_app_in_browser=True",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.news_url=",
            ],
            env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    lab = Lab(f"http://127.0.0.1:{port}{base_url}", "key", folder, log)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{lab.url}api/status?token=key", timeout=2)
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        yield lab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@dataclass
class Notebook:
    """An open notebook: its page, what it asked of the network and what it complained about."""

    page: object
    lab: Lab
    path: Path
    requests: list = field(default_factory=list)
    complaints: list = field(default_factory=list)

    def run_all(self, seconds: float = 120) -> None:
        """Run all cells and wait for the last."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        # the kernel's status may say idle while a cell runs: look at the prompts
        self.page.wait_for_function(
            "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
            ".every(prompt => /\\[\\d+\\]/.test(prompt.textContent))",
            timeout=seconds * 1000,
        )

    def run_cell(self, start: str) -> None:
        """Run the cell whose code contains a text, and wait for its end."""
        self.page.evaluate(
            """async start => {
              const notebook = window.jupyterapp.shell.currentWidget.content;
              notebook.activeCellIndex = notebook.widgets.findIndex(
                cell => cell.model.sharedModel.getSource().includes(start));
              await window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            start,
        )

    def restart(self) -> None:
        """Restart the kernel, and clear what the cells have shown."""
        self.page.evaluate(
            "async () => { const notebook = window.jupyterapp.shell.currentWidget;"
            " await window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs');"
            " await notebook.sessionContext.session.kernel.restart(); }"
        )
        self.page.wait_for_function(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        )
        assert self.ask("print('tuner' in globals())") == "False"

    def ask(self, code: str) -> str:
        """Run code in the notebook's kernel and return what it prints."""
        return self.page.evaluate(
            """async code => {
              const notebook = window.jupyterapp.shell.currentWidget;
              const future = notebook.sessionContext.session.kernel.requestExecute(
                {code, silent: false, store_history: false});
              let text = '';
              future.onIOPub = message => {
                if (message.header.msg_type === 'stream') text += message.content.text;
                if (message.header.msg_type === 'error')
                  text += message.content.ename + ': ' + message.content.evalue;
              };
              await future.done;
              return text.trim();
            }""",
            code,
        )

    def until(self, code: str, expected: str = "True", seconds: float = 60) -> None:
        """Wait until the kernel prints what is expected."""
        # messages of widgets and of cells are not ordered: ask more than once
        deadline = time.monotonic() + seconds
        while (answer := self.ask(f"print({code})")) != expected:
            assert time.monotonic() < deadline, f"{code} is {answer}, not {expected}"
            self.page.wait_for_timeout(150)

    def barriers(self, selector: str) -> list[str]:
        """What axe-core calls a serious fault for people with disabilities, with its elements."""
        found = Axe().run(self.page, selector).response["violations"]
        return [
            f"{one['id']} ({one['help']}): {[node['html'][:200] for node in one['nodes']][:4]}"
            for one in found if one["impact"] in ("serious", "critical")
        ]  # fmt: skip

    def picture(self, name: str) -> None:
        """Keep a picture of the page for people to look at."""
        folder = ROOT / "runs" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")


@contextlib.contextmanager
def open_notebook(browser, lab: Lab, path: Path, viewport: dict | None = None):
    """Open a notebook of the lab in a page of its own, and close it."""
    context = browser.new_context(viewport=viewport or VIEWPORT)
    page = context.new_page()
    notebook = Notebook(page, lab, path)
    page.on("request", lambda request: notebook.requests.append(request.url))
    page.on(
        "console",
        lambda m: notebook.complaints.append(m.text) if m.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: notebook.complaints.append(error.stack or str(error)))
    where = path.relative_to(lab.folder)
    page.goto(f"{lab.url}lab/tree/{where}?reset&token={lab.token}")
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=90_000)
    page.wait_for_function(
        "() => { const c = window.jupyterapp?.shell?.currentWidget?.sessionContext;"
        " return c?.isReady && c.session?.kernel?.status === 'idle'; }",
        timeout=90_000,
    )
    try:
        yield notebook
    finally:
        context.close()


def prelabel_notebook(folder: Path, **parameters) -> Path:
    """Copy `prelabel.ipynb` and set parameters in it, as a person would."""
    return copied_notebook("prelabel", folder, **parameters)


def copied_notebook(name: str, folder: Path, **parameters) -> Path:
    """Copy a notebook and set parameters in it, as a person would."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path
