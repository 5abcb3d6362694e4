"""The plugin's zip, as far as it can be told without QGIS; tests/qgis_gui/ works with it."""

import ast
import configparser
import re
import runpy
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlparse

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


def metadata_of(contents: dict[str, bytes]) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(contents["metadata.txt"].decode())
    return dict(parser["general"])


def test_the_zip_keeps_the_rules_of_the_plugin_repository(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    # those of plugins.qgis.org, as its validator reads them
    path = tmp_path / "plugin.zip"
    BUILD["write_plugin"](path)
    assert path.stat().st_size < 25_000_000
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    (folder,) = {name.split("/")[0] for name in names}
    assert re.fullmatch("[A-Za-z][A-Za-z0-9_]+", folder)
    assert folder.isidentifier()
    assert {f"{folder}/{name}" for name in ("__init__.py", "metadata.txt", "LICENSE")} <= {*names}
    for name in names:
        assert ".." not in name
        assert not name.startswith("/")
        assert not {"__pycache__", ".git", "__MACOSX"} & set(name.split("/"))
        assert not name.endswith((".pyc", ".so", ".dll"))
    metadata = metadata_of(contents)
    for field in (
        "name", "description", "about", "version", "qgisMinimumVersion", "author", "email",
        "repository", "tracker", "homepage",
    ):  # fmt: skip
        assert metadata[field].strip(), field
    for field in ("experimental", "deprecated", "server"):
        assert metadata[field] in ("True", "False"), field
    for field in BUILD["ADDRESSES"]:
        address = urlparse(metadata[field])
        assert address.scheme == "https", field
        assert address.netloc, field
    assert "/" not in metadata["author"]
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[a-z]+", metadata["email"])
    assert metadata["icon"] in contents
    assert metadata["version"] == BUILD["project"]()["version"]


def test_the_plugin_is_for_qgis_3_and_4(contents: dict[str, bytes]) -> None:
    metadata = metadata_of(contents)
    assert metadata["qgisMinimumVersion"] == "3.22"
    assert metadata["qgisMaximumVersion"] == "4.99"
    # the versions say all; this one was for test builds of QGIS 3, and the repository warns of it
    assert "supportsQt6" not in metadata


def test_the_addresses_are_those_of_the_project_if_it_names_them(
    contents: dict[str, bytes],
) -> None:
    described = BUILD["described"]
    text = contents["metadata.txt"].decode()
    urls = {"Homepage": "https://a.org", "Repository": "https://b.org/c", "Issues": "https://d.org"}
    authors = [{"name": "A"}, {"name": "B", "email": "b@c.org"}]
    named = described(text, {"version": "2.0", "urls": urls, "authors": authors})
    assert "homepage=https://a.org\nrepository=https://b.org/c\ntracker=https://d.org\n" in named
    assert "version=2.0\n" in named
    assert "email=b@c.org\n" in named
    assert "qgisMinimumVersion=3.22\n" in named
    # nothing else has made-up addresses
    assert BUILD["PLACEHOLDER"] not in named


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
            for module in modules:
                root = module.split(".")[0]
                assert root == "qgis" or root in sys.stdlib_module_names, f"{name}: {module}"


def test_it_is_written_for_qt_5_and_qt_6(contents: dict[str, bytes]) -> None:
    """Qt 6 has neither `exec_` nor members of enumerations without their enumeration.

    The enumerations of QGIS 3.22 and of QGIS 4 are all there with their names, too.
    """
    for name, content in contents.items():
        if not name.endswith(".py"):
            continue
        tree = ast.parse(content)
        of_qt = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith(("qgis.PyQt", "qgis.core", "qgis.gui"))
            for alias in node.names
        }
        scoped = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            where = f"{name}, line {node.lineno}: {ast.unparse(node)}"
            assert node.attr not in ("exec_", "print_"), where
            if isinstance(node.value, ast.Name) and node.value.id in of_qt:
                assert not node.attr[0].isupper() or id(node) in scoped, where


def test_a_member_of_qt_without_its_enumeration_is_found() -> None:
    code = {"a.py": b"from qgis.PyQt.QtCore import Qt\nx = Qt.AlignLeft\n"}
    with pytest.raises(AssertionError, match=r"a\.py, line 2: Qt\.AlignLeft"):
        test_it_is_written_for_qt_5_and_qt_6(code)
    code = {"a.py": b"from qgis.core import QgsWkbTypes\nx = QgsWkbTypes.LineGeometry\n"}
    with pytest.raises(AssertionError, match=r"a\.py, line 2: QgsWkbTypes\.LineGeometry"):
        test_it_is_written_for_qt_5_and_qt_6(code)
    test_it_is_written_for_qt_5_and_qt_6(
        {"a.py": b"from qgis.PyQt.QtCore import Qt\nx = Qt.AlignmentFlag.AlignLeft\n"}
    )
