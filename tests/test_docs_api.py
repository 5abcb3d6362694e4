"""The page on the Python API: all public names, and a script that runs."""

import re
from pathlib import Path

import geopandas as gpd
import pytest

import workbench as wb

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_lists_every_public_name_once():
    listed = re.findall(r"^\| `(\w+)", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(set(wb.__all__) - {"__version__"})


def test_what_the_scripts_take_from_the_package_is_public():
    used = {name for script in SCRIPTS for name in re.findall(r"\bwb\.(\w+)", script)}
    assert used <= set(wb.__all__)
    assert not [script for script in SCRIPTS if "from workbench" in script]


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """The layer that the script about single steps writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("script"))
        exec(compile(SCRIPTS[-1], str(PAGE), "exec"), {})
        yield gpd.read_file("layer.gpkg")


def test_the_script_makes_nearly_what_a_run_makes(layer, tmp_path):
    job = wb.Job(
        source=str(wb.sample_scene()),
        out_dir=str(tmp_path / "run"),
        model="classic",
        tile_size=512,
    )
    made = wb.run(job.changed(min_area_px=200)).layer
    # a run also continues what the edges of tiles have cut
    assert wb.compare(layer, made).f1(0.5) > 0.95
    assert len(made) > 50


def test_public_functions_say_what_goes_in_and_out():
    for name in set(wb.__all__) - {"__version__"}:
        value = getattr(wb, name)
        text = value.__doc__ or ""
        assert len(text) > 30, name
        if not isinstance(value, type):
            assert "Returns:" in text or "Yields:" in text, name
            assert "Args:" in text, name
            assert ">>> " in text, name
