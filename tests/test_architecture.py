"""Imports point upward, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import workbench

# every module may import only those above it
LAYERS = [
    "errors", "atomic", "crs", "sources", "raster", "opening", "tiles", "candidates", "polygons",
    "seams", "sam", "classic", "countryside", "sample", "layer", "aoi", "qgis", "quality", "report",
    "job", "runfolder", "pipeline",
]  # fmt: skip
PACKAGE = Path(workbench.__file__).parent


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(LAYERS)


def test_imports_point_upward():
    for position, module in enumerate(LAYERS):
        allowed = set(LAYERS[:position])
        names = (n.split(".") for n in imported(PACKAGE / f"{module}.py"))
        ours = {n[1] for n in names if n[0] == "workbench" and len(n) > 1}
        assert ours & set(LAYERS) <= allowed, module


def test_only_sam_imports_torch():
    for path in PACKAGE.glob("*.py"):
        top = {name.split(".")[0] for name in imported(path)}
        assert path.stem == "sam" or not top & {"torch", "torchvision", "segment_anything"}, path


def test_importing_the_package_loads_neither_torch_nor_a_map():
    code = "import sys, workbench; print(*sorted({'torch', 'ipyleaflet'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
