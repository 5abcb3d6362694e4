"""The plugin's zip, as far as it can be told without QGIS; tests/qgis_gui/ works with it."""

import ast
import configparser
import runpy
import zipfile
from pathlib import Path

import pytest

from workbench.layer.qgis.buttons import PLUGIN
from workbench.layer.qgis.style import styles

ROOT = Path(__file__).parents[1]
BUILD = runpy.run_path(str(ROOT / "qgis_plugin" / "build.py"))


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return BUILD["contents"]()


def test_the_zip_is_what_qgis_installs(tmp_path: Path) -> None:
    BUILD["write_plugin"](tmp_path / "new" / "a.zip")
    BUILD["write_plugin"](tmp_path / "b.zip")
    assert (tmp_path / "new" / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "b.zip").namelist()
    assert {name.split("/")[0] for name in names} == {PLUGIN}
    inside = {name.split("/", 1)[1] for name in names}
    assert inside >= {"__init__.py", "metadata.txt", "LICENSE", "icon.svg", "actions.py"}


def test_the_metadata_is_complete(contents: dict[str, bytes]) -> None:
    metadata = configparser.ConfigParser()
    metadata.read_string(contents["metadata.txt"].decode())
    general = metadata["general"]
    for field in (
        "name", "description", "about", "version", "qgisMinimumVersion", "author", "email",
        "repository", "tracker", "homepage",
    ):  # fmt: skip
        assert general[field], field
    assert general["icon"] in contents
    assert general["version"] == BUILD["version"]()
    assert general["qgisMinimumVersion"] == "3.22"


def test_the_plugin_has_the_rules_of_the_project(contents: dict[str, bytes]) -> None:
    rules = ROOT / "workbench" / "layer" / "qgis" / "actions.py"
    assert contents["actions.py"] == rules.read_bytes()
    code = styles({1: "roof"})["prelabels"]["Confidence"]
    assert f"from {PLUGIN}.actions import review, review_selected, switch_zoom" in code


def test_it_is_python_that_old_and_new_qgis_read(contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        if not name.endswith(".py"):
            continue
        tree = ast.parse(content, feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:  # qgis.PyQt is Qt 5 or Qt 6
                assert not module.startswith(("PyQt", "PySide", "sip", "numpy", "workbench")), name
