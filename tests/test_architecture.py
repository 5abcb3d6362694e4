"""Imports point upward, and importing the package stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import workbench

# every module may import only those above it; a package stands for its __init__
LAYERS = [
    "errors", "atomic", "plain_yaml", "crs", "sources", "bands", "raster", "opening", "tiles",
    "candidates", "store", "segmenting", "outlines", "polygons", "spill", "neighbours", "seams",
    "sam.mend", "sam.device", "sam.tiny", "sam.models", "sam.encoder", "sam.decoder", "sam.fused",
    "sam.measure", "sam.segmenter", "sam", "classic", "scenery", "countryside", "sample", "layer",
    "aoi", "qgis.xml", "qgis.style", "qgis.project", "qgis", "quality", "report", "charts", "job",
    "runfolder", "finished", "review", "advice", "judged", "review_charts", "topology", "split",
    "annotations", "chips", "dataset", "reviewing", "cluster", "pipeline", "lesson",
    "lesson_charts", "webmap", "preview", "background", "widgets.session", "widgets.cells",
    "widgets.controls", "widgets.settings", "widgets.scenemap", "widgets.aoi", "widgets.overlay",
    "widgets.plane", "widgets.sampling", "widgets.tuner", "widgets.run", "widgets",
]  # fmt: skip
PACKAGE = Path(workbench.__file__).parent


def modules():
    """Each module's dotted name inside the package, and its file."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    assert sorted(name for name, _ in modules()) == sorted(LAYERS)


def test_imports_point_upward():
    for module, path in modules():
        allowed = set(LAYERS[: LAYERS.index(module)])
        ours = {name.removeprefix("workbench.") for name in imported(path)}
        assert ours & set(LAYERS) <= allowed, module


def test_only_sam_imports_torch():
    for module, path in modules():
        top = {name.split(".")[0] for name in imported(path)}
        in_sam = module.split(".")[0] == "sam"
        assert in_sam or not top & {"torch", "torchvision", "segment_anything"}, module


def test_only_the_widgets_import_a_map():
    for module, path in modules():
        top = {name.split(".")[0] for name in imported(path)}
        in_widgets = module.split(".")[0] == "widgets"
        assert in_widgets or not top & {"ipyleaflet", "ipywidgets", "anywidget"}, module


def test_importing_the_package_loads_neither_torch_nor_a_map():
    code = "import sys, workbench; print(*sorted({'torch', 'ipyleaflet'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_the_page_on_architecture_lists_the_modules_in_this_order():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page.split("## Modules")[1], re.MULTILINE)
    listed = [name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert listed == list(dict.fromkeys(module.split(".")[0] for module in LAYERS))
