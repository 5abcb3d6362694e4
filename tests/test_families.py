"""Each family of models runs the whole notebook, small and with random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import nbformat
import pytest
import torch
from known_objects import objects, write_labels
from small_sams import (
    small_edgetam,
    small_mobile_sam,
    small_sam,
    small_sam2,
    small_sam3,
    small_sam_hq,
    small_tokenizer,
)

from workbench.layer.files import read_layer
from workbench.segmenters.sam import MODELS
from workbench.segmenters.sam.extras import is_installed

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "prelabel.ipynb"
pytestmark = pytest.mark.usefixtures("one_thread")


SMALL: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {  # and the package that it needs
    "vit_b": (small_sam, "torch"),
    "sam2.1_tiny": (small_sam2, "transformers"),
    "mobile_sam": (small_mobile_sam, "timm"),
    "edgetam": (small_edgetam, "timm"),
    "sam_hq_vit_b": (small_sam_hq, "transformers"),
}


def test_no_family_is_left_out() -> None:
    """A new one needs a small model here; the embedded one is what the other tests run."""
    told = {MODELS[name].network_of for name in SMALL} | {MODELS["tiny"].network_of}
    assert {model.network_of for model in MODELS.values()} == told


def run_the_notebook(folder: Path, **parameters: object) -> Path:
    """Run all cells of the notebook in a folder, as a batch job does; returns the run folder."""
    given = {
        "source": str(write_labels(folder / "scene.tif", objects((200, 240), 1))),
        "out_dir": str(folder / "run"), "interactive": False, "tile_size": 160,
        "pred_iou_floor": 0.0, "stability_floor": 0.0, "pred_iou_thresh": 0.01,
        "stability_score_thresh": 0.0, "min_area_px": 4, "max_area_share": None, **parameters,
    }  # fmt: skip
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= given
    return folder / "run"


def look_at(run: Path, model: str) -> None:
    layer = read_layer(run / "prelabels.gpkg")
    assert len(layer)
    assert layer.is_valid.all()
    assert set(gpd.read_parquet(run / "tiles.parquet")["status"]) == {"ok"}
    assert model in (run / "report.html").read_text(encoding="utf-8")
    assert model in (run / "run.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", SMALL)
def test_a_family_runs_the_whole_notebook(model, tmp_path, monkeypatch) -> None:
    small, package = SMALL[model]
    if not is_installed(package):
        pytest.skip(f"{package} is not installed (extra `models`)")
    monkeypatch.setitem(MODELS, model, replace(MODELS[model], build=small, names=dict))
    torch.save(small().state_dict(), tmp_path / "random.pth")
    run = run_the_notebook(
        tmp_path, model=model, checkpoint=str(tmp_path / "random.pth"), points_per_side=6
    )  # fmt: skip
    look_at(run, model)


@pytest.mark.skipif(
    not is_installed("transformers"), reason="transformers is not installed (extra `models`)"
)
def test_sam3_runs_the_whole_notebook(tmp_path) -> None:
    small_sam3().save_pretrained(tmp_path / "sam3")
    small_tokenizer(tmp_path / "sam3")
    run = run_the_notebook(
        tmp_path, model="sam3", checkpoint=str(tmp_path / "sam3"), concepts={1: "building"}
    )  # fmt: skip
    look_at(run, "sam3")
    assert set(read_layer(run / "prelabels.gpkg")["class_id"]) == {1}


def test_the_embedded_model_runs_the_whole_notebook(tmp_path) -> None:
    look_at(run_the_notebook(tmp_path, model="tiny", points_per_side=6, tile_size=256), "tiny")
