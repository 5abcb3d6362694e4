"""The checker of the widgets' JavaScript, where it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parent.parent
WIDGETS = Path(workbench.__file__).parent / "widgets"
TYPESCRIPT = re.search(r"typescript@[\d.]+", (ROOT / "Makefile").read_text()).group()


@pytest.fixture(scope="module")
def tsc():
    """The command of the pinned checker; the tests never download it."""
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed: `make lint-js` cannot run")
    command = ["npx", "--no", "-p", TYPESCRIPT, "tsc"]
    if subprocess.run([*command, "--version"], capture_output=True).returncode:
        pytest.skip(f"{TYPESCRIPT} is not installed: run `make lint-js` once")
    return command


def test_the_javascript_has_no_faults_that_the_checker_knows(tsc):
    done = subprocess.run([*tsc, "-p", ROOT / "jsconfig.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("classOf(look.bounds, scores[row])", "classOf(scores[row], look.bounds)", "TS2345"),
        ("ctx.lineWidth = width;", "ctx.linewidth = width;", "TS2551"),
        ("const REACH = 3;", "const REACHES = 3;", "REACH"),
    ],
)
def test_the_checker_finds_faults(tsc, tmp_path, right, wrong, told):
    text = (WIDGETS / "overlay.js").read_text(encoding="utf-8")
    assert right in text
    changed = tmp_path / "workbench" / "widgets" / "overlay.js"
    changed.parent.mkdir(parents=True)
    changed.write_text(text.replace(right, wrong), encoding="utf-8")
    shutil.copy(ROOT / "jsconfig.json", tmp_path)
    done = subprocess.run([*tsc, "-p", tmp_path / "jsconfig.json"], capture_output=True, text=True)
    assert done.returncode != 0
    assert told in done.stdout
