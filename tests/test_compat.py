"""Private names of other libraries that the package relies on: all that there are, still there.

Where one is gone in a new version, this says so before a user meets it.
"""

import ast
import re
import sys
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent

# the name, the versions with which it was tried, and what for
IMPORTED = {
    # the base of those of GDAL's errors that rasterio passes on as they are
    ("rasterio._err", "CPLE_BaseError"): "rasterio 1.4",
    # the gate before torchvision's operators, opened for `nms` where none of them loads
    ("torchvision", "ops.boxes._assert_has_ops"): "torchvision 0.19 to 0.28",
}
LOOKED_UP = {
    # whether whoever runs the notebook can answer it: papermill and nbclient cannot
    ("ipykernel.kernelbase", "Kernel._allow_stdin"): "ipykernel 6 and 7",
}
IN_TESTS = {
    ("ipywidgets.widgets.widget", "_instances"): "ipywidgets 8.1",
    ("papermill.cli", "_resolve_type"): "papermill 2.6 and 2.7",
}
# Leaflet's, in ipyleaflet 0.20
IN_JAVASCRIPT = {"_animatingZoom", "_getNewPixelOrigin", "_loaded"}


@pytest.mark.parametrize(("module", "name"), [*IMPORTED, *LOOKED_UP, *IN_TESTS])
def test_it_is_there(module, name):
    if module.startswith("torchvision"):
        import_module("workbench.segmenters.sam")  # or torchvision may not import
    reduce(getattr, name.split("."), import_module(module))


def is_private(name):
    return any(re.match(r"_(?!_)", part) for part in name.split("."))


def private_names(path):
    """What a module imports by a private name, or reaches by one from another module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                if not module.startswith("workbench"):
                    yield from ((module, n.name) for n in names if is_private(f"{module}.{n.name}"))
            case ast.Import(names=names):
                modules |= {n.asname or n.name.split(".")[0] for n in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root, _, rest = ast.unparse(node).partition(".")
            if root in modules:
                yield root, rest


def test_there_are_no_others():
    ours = "ops.boxes._workbench_operators"  # put there by us
    found = {name for path in PACKAGE.rglob("*.py") for name in private_names(path)}
    assert found - {("torchvision", ours)} == set(IMPORTED)
    text = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert all(f'"{name.split(".")[-1]}"' in text for _, name in LOOKED_UP)


def test_the_map_of_the_browser_still_has_its_own():
    scripts = Path(sys.prefix, "share", "jupyter", "labextensions", "jupyter-leaflet").rglob("*.js")
    bundled = "".join(path.read_text(encoding="utf-8") for path in scripts)
    if not bundled:
        pytest.skip("ipyleaflet's scripts are not under sys.prefix")
    ours = (PACKAGE / "widgets" / "overlay.js").read_text(encoding="utf-8")
    assert set(re.findall(r"\bmap\??\.(_\w+)", ours)) == IN_JAVASCRIPT
    assert all(name in bundled for name in IN_JAVASCRIPT)
