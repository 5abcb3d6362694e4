"""Rooms: imports in one direction, no circles, and a light `import workbench`."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import workbench

PACKAGE = Path(workbench.__file__).parent
# a room may import only the rooms above it, and itself
ROOMS = [
    "errors", "_support", "samples", "raster", "candidates", "segmenters", "polygons", "layer",
    "evaluation", "learning", "runs", "dataset", "review", "tuning", "widgets", "teaching",
]  # fmt: skip
# lines
LONGEST = 450


def modules():
    """Each module's dotted name inside the package, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, path


MODULES = dict(modules())


def imported(path, *, lazy=True):
    """Modules of this package that a file imports, without `workbench.`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            name = name.removeprefix("workbench.")
            parent = name.rpartition(".")[0]
            if name in MODULES:
                yield name
            elif parent in MODULES:
                yield parent


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(module):
    return module.split(".")[0]


def test_every_room_has_its_place():
    assert {room_of(name) for name in MODULES} == set(ROOMS)


def test_rooms_import_only_rooms_above_them():
    for module, path in MODULES.items():
        allowed = set(ROOMS[: ROOMS.index(room_of(module)) + 1])
        assert {room_of(name) for name in imported(path)} <= allowed, module


def test_no_circle_of_modules():
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}
    # a package is more than its __init__: importing a module runs that of its package first
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            graph[name] = {other for other in graph[name] if other != name}
    TopologicalSorter(graph).prepare()


def test_private_names_stay_in_their_module():
    for module, path in MODULES.items():
        private = [(where, name) for where, name in imported_names(path) if name.startswith("_")]
        assert not private, module


def test_every_room_says_what_comes_in_and_what_goes_out():
    for room in ROOMS:
        if room != "errors":
            text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
            assert len(ast.get_docstring(ast.parse(text)) or "") > 80, room


def test_every_module_is_named_where_its_room_is_described():
    for package in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        if package == PACKAGE:
            continue
        described = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8")))
        inside = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        inside += [path.parent for path in package.glob("*/__init__.py")]
        missing = [path.stem for path in inside if f"`{path.stem}`" not in described]
        assert missing == [], f"name them in {package}/__init__.py"


def test_no_module_is_long():
    for module, path in MODULES.items():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= LONGEST, f"{module}: {lines} lines"


def test_only_the_sam_room_imports_torch():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        top = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        in_sam = module.startswith("segmenters.sam")
        assert in_sam or not top & {"torch", "torchvision", "segment_anything"}, module


def test_only_the_widgets_import_a_map():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        top = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        in_widgets = room_of(module) == "widgets"
        assert in_widgets or not top & {"ipyleaflet", "ipywidgets", "anywidget"}, module


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Counter(name.split(".")[0] for name in out.stdout.split())


def test_importing_the_package_is_light():
    heavy = {"torch", "ipyleaflet", "ipywidgets", "matplotlib", "cv2", "skimage", "scipy"}
    assert not heavy & set(loaded_by("import workbench"))


def test_a_batch_run_loads_no_map():
    loaded = loaded_by("import workbench; workbench.run")
    assert not {"ipyleaflet", "ipywidgets", "torch"} & set(loaded)


def test_the_notebook_loads_only_what_its_panels_need():
    heavy = {"torch", "matplotlib", "skimage", "sklearn"}  # seconds, at every restart
    assert not heavy & set(loaded_by("import workbench.widgets"))


def test_each_public_name_is_there():
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
    assert set(workbench.__all__) <= set(dir(workbench))


def test_the_page_on_architecture_lists_the_rooms_in_this_order():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", page.split("## Rooms")[1], re.MULTILINE)
    listed = [name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert listed == ROOMS


def test_tile_names_and_short_texts_of_a_crs_have_one_owner():
    for owner, spelt in {"tiles.py": r"/r\{|[\"']/r[\"']", "crs.py": r"[\"']EPSG:\{"}.items():
        texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
        found = {name for name, text in texts.items() if re.search(spelt, text)}
        assert found - {"project.py"} == {owner}  # a project of QGIS has the code in its XML


def test_a_class_has_a_name_of_its_own():
    named = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.ClassDef(name) | ast.Assign([ast.Name(name)], ast.Subscript()) if (
                    name[0].isupper() and not name.isupper()
                ):
                    named[name] += 1
    assert [name for name, n in named.items() if n > 1] == []
