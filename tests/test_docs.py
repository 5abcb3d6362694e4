"""What the docs say is generated from the code, or checked against it."""

import ast
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

from workbench import errors

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TROUBLE = ROOT / "docs" / "troubleshooting.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "workbench" / "segmenters" / "sam" / "tiny.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_table_of_models_is_current():
    for package in ("timm", "transformers"):
        if not find_spec(package):
            pytest.skip(f"{package} is not installed (extra `models`)")
    for page, text in runpy.run_path(str(ROOT / "docs" / "models.py"))["pages"]().items():
        assert page.read_text(encoding="utf-8") == text, "run python docs/models.py"
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert "| `mobile_sam` | points, boxes | 10 | 41 MB | Apache-2.0 | timm |" in text
    assert "| `sam3` | words, exemplars | 840 | 3450 MB, by hand | SAM License |" in text


def test_the_tables_of_parameters_are_current():
    for page, text in runpy.run_path(str(ROOT / "docs" / "parameters.py"))["pages"]().items():
        assert page.read_text(encoding="utf-8") == text, "run python docs/parameters.py"
    # by hand, should the table's maker and the table be wrong together
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    for row in (
        "| `source` | null | text or list of text or map |",
        "| `model` | tiny | tiny, classic, mobile_sam, vit_b, vit_l, vit_h, sam2.1_tiny, "
        "sam2.1_small, sam2.1_base_plus, sam2.1_large, edgetam, sam_hq_vit_b, "
        "sam_hq_vit_l, sam_hq_vit_h, sam3 |",
        "| `overlap` | 0.1875 | number 0 to 0.5 |",
        "| `resolution_m` | null | number above 0 |",
        "| `crop_n_layers` | 0 | integer 0 to 4 |",
        "| `planar` | false | true, false |",
        "| `classes` | {1: object} | map |",
        "| `interactive` | auto | true, false |",
        "| `run_dir` | – | text |",
        "| `chip_size` | null | integer 32 to 8192 |",
    ):
        assert f"\n{row} " in text


def sentences():
    """The texts in the source that are no docstrings; what is filled in is an ellipsis."""
    found = set()
    for path in (ROOT / "workbench").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {p for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
        docs = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.JoinedStr():
                    filled = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                    found.add("".join(filled))
                case ast.Constant(value=str(text)) if node not in parts | docs:
                    found.add(text)
    return found


def test_the_messages_of_troubleshooting_are_in_the_source():
    headings = re.findall(r"^### (.+)$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == len(set(headings)) > 40
    source = sentences()
    beginnings = {
        heading: re.compile(".*".join(map(re.escape, heading.split("…"))), re.DOTALL)
        for heading in headings
    }
    assert [h for h, begin in beginnings.items() if not any(map(begin.match, source))] == []


def raised():
    """What our own errors say where they are raised; what is filled in is an ellipsis."""

    def text(node):
        match node:
            case ast.Constant():
                return str(node.value)
            case ast.JoinedStr():
                return "".join(text(value) for value in node.values)
            case ast.BinOp():
                return text(node.left) + text(node.right)
        return "…"

    ours = {name for name in vars(errors) if name.endswith("Error")}
    for path in (ROOT / "workbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(name), args=[message])) if name in ours:
                    yield text(message)


def test_troubleshooting_has_every_error_of_ours():
    headings = re.findall(r"^### (.+)$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)
    known = re.compile(
        "|".join(".*".join(map(re.escape, heading.split("…"))) for heading in headings), re.DOTALL
    )
    messages = set(raised()) - {"…"}  # written elsewhere
    assert len(messages) > 60
    assert [message for message in messages if not known.match(message)] == []


def test_what_docs_and_scripts_import_is_there():
    # also inside of strings, and in files that no test runs
    pattern = re.compile(r"from (workbench[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")
    texts = [README, *(ROOT / "binder").iterdir(), *(ROOT / "notebooks").glob("*.ipynb")]
    for folder in ("docs", "benchmarks", "training"):
        texts += [*(ROOT / folder).glob("*.md"), *(ROOT / folder).glob("*.py")]
    for path in texts:
        for module, block, line in pattern.findall(path.read_text(encoding="utf-8")):
            for name in re.findall(r"\w+", re.sub(r" as \w+|\\n", "", block or line)):
                exec(f"from {module} import {name}", {})


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_to_headings_that_are_there(page):
    targets = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        (name, anchor)
        for name, anchor in targets
        if anchor not in anchors(page.parent / name if name else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_address_on_binder_opens_a_notebook_that_is_there():
    paths = re.findall(r"urlpath=lab/tree/([\w/.-]+)", README.read_text(encoding="utf-8"))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
