"""The data set, as pycocotools and supervision read it, against the labels' own pixels."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
import supervision
import yaml
from affine import Affine
from pycocotools.coco import COCO
from rasterio.features import rasterize

from workbench.dataset.chips import (
    BEYOND,
    EMPTY,
    GAP,
    NODATA,
    ONLY_PIECES,
    OUTSIDE,
    UNFINISHED,
    UNREVIEWED,
    UNSEGMENTED,
    Chips,
)
from workbench.dataset.sizes import CHIP_SIZES
from workbench.dataset.write import Dataset, write_dataset
from workbench.errors import DatasetError
from workbench.layer.schema import as_layer
from workbench.raster.open import open_scene
from workbench.raster.scene import Scene

UTM = pyproj.CRS.from_epsg(32636)
LEFT, TOP, SIDE = 452_000.0, 35_000.0, 320
CLASSES = {3: "roof", 7: 'tree "oak" & <élan>'}
ALL_TRAIN = Chips(chip_size=64, val=0, test=0)
TRANSFORM = Affine(0.5, 0, LEFT, 0, -0.5, TOP)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "ortho.tif")


def make_scene(path: Path, **profile: Any) -> Scene:
    values = np.random.default_rng(1).integers(100, 3000, (3, SIDE, SIDE)).astype("uint16")
    values[:, :, :20] = 0
    options = {"crs": UTM, "transform": TRANSFORM, "nodata": 0, "dtype": "uint16"} | profile
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=3, **options
    ) as file:
        file.write(values)
    return open_scene(path)


def shape(x: float, y: float, w: float, h: float) -> shapely.Polygon:
    """A rectangle in pixels of the scene."""
    return shapely.box(LEFT + x / 2, TOP - (y + h) / 2, LEFT + (x + w) / 2, TOP - y / 2)


def shapes() -> list[shapely.Geometry]:
    rng = np.random.default_rng(4)
    blobs = [
        shapely.Point(LEFT + x, TOP - y).buffer(r, 5)
        for x, y, r in rng.uniform((5, 5, 2), (155, 155, 9), (40, 3))
    ]
    ring = shape(30, 30, 50, 45).difference(shape(45, 40, 12, 9)).difference(shape(60, 45, 9, 20))
    parts = shapely.MultiPolygon([shape(130, 130, 20, 7), shape(155, 135, 10, 30)])
    return [ring, parts, shape(0, 200, 40, 30), *blobs]


def label_layer(
    geometry: list[shapely.Geometry] | None = None, status: Any = "accepted", class_id: Any = 3
) -> gpd.GeoDataFrame:
    geometry = shapes() if geometry is None else geometry
    n = len(geometry)
    ids = class_id if isinstance(class_id, list) else [class_id] * n
    return as_layer(
        gpd.GeoDataFrame(
            {
                "id": [f"ortho/r0c0/{i}" for i in range(n)],
                "class_id": pd.array(ids, "Int64"),
                "status": status, "confidence": 0.9, "stability": 0.9, "area_m2": 1.0,
                "area_px": 1, "source_tile": "ortho/r0c0", "source": "ortho", "n_tiles": 1,
                "at_edge": False,
            },
            geometry=geometry,
            crs=UTM,
        )
    )  # fmt: skip


def ledger(status: str = "ok") -> gpd.GeoDataFrame:
    halves = [shape(0, 0, SIDE, SIDE / 2), shape(0, SIDE / 2, SIDE, SIDE / 2)]
    return gpd.GeoDataFrame(
        {"tile": ["ortho/r0c0", "ortho/r1c0"], "status": ["ok", status]}, geometry=halves, crs=UTM
    )


def export(scene: Scene, folder: Path, layer: gpd.GeoDataFrame, chips: Chips = ALL_TRAIN,
           tiles: gpd.GeoDataFrame | None = None, **options: Any) -> Dataset:  # fmt: skip
    tiles = ledger() if tiles is None else tiles
    options = {"classes": CLASSES} | options
    return write_dataset(layer, tiles, [scene], folder, chips=chips, **options)


def expected(scene: Scene, layer: gpd.GeoDataFrame, chip: Any, size: int) -> dict[str, np.ndarray]:
    """The pixels of each label in a chip, from the layer itself."""
    window = rasterio.windows.Window(chip.col_off, chip.row_off, size, size)
    _, valid = scene.read(window)
    masks = {}
    for id, geometry in zip(layer["id"], layer.geometry, strict=True):
        mask = rasterize([geometry], (size, size), transform=scene.window_transform(window))
        if (mask.astype(bool) & valid).any():
            masks[id] = mask.astype(bool) & valid
    return masks


def coco_of(folder: Path, split: str = "train") -> COCO:
    return COCO(str(folder / "annotations" / f"instances_{split}.json"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


def test_coco_gives_back_every_pixel(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer()
    made = export(scene, tmp_path / "set", layer)
    coco = coco_of(made.folder)
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == CLASSES
    by_name = {image["file_name"]: image for image in coco.loadImgs(coco.getImgIds())}
    used = made.chips[made.chips["split"] == "train"]
    assert len(used) == len(by_name) > 20
    kinds = set()
    for chip in used.itertuples():
        image = by_name[Path(chip.image).name]
        wanted = expected(scene, layer, chip, 64)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert sorted(a["label_id"] for a in annotations) == sorted(wanted)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, wanted[annotation["label_id"]])
            ys, xs = np.nonzero(mask)
            x0, y0 = int(xs.min()), int(ys.min())
            box = [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0]
            assert (annotation["bbox"], annotation["area"]) == (box, mask.sum())
            kinds.add((type(annotation["segmentation"]).__name__, annotation["iscrowd"]))
    # polygons; RLE for holes; pieces that no object is made of
    assert kinds == {("list", 0), ("dict", 0), ("dict", 1)}


def test_yolo_gives_back_every_pixel(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer(class_id=[7, 3] * 21 + [7])
    made = export(scene, tmp_path / "set", layer)
    read = supervision.DetectionDataset.from_yolo(
        str(made.folder / "images/train"), str(made.folder / "labels/train"),
        str(made.folder / "data.yaml"), force_masks=True,
    )  # fmt: skip
    assert read.classes == [CLASSES[3], CLASSES[7]]
    crowds = {
        (a["image_id"], a["label_id"])
        for a in coco_of(made.folder).dataset["annotations"]
        if a["iscrowd"]
    }
    ids = {i["file_name"]: i["id"] for i in coco_of(made.folder).dataset["images"]}
    classes = dict(zip(layer["id"], layer["class_id"], strict=True))
    found = 0
    for path, _, detections in read:
        chip = made.chips.set_index("chip").loc[Path(path).stem]
        wanted = expected(scene, layer, chip, 64)
        wanted = {k: m for k, m in wanted.items() if (ids[Path(path).name], k) not in crowds}
        masks = detections.mask if len(detections) else np.zeros((0, 64, 64), bool)
        for number, class_id in enumerate((3, 7)):
            union = np.zeros((64, 64), bool)
            for id, mask in wanted.items():
                if classes[id] == class_id:
                    union |= mask
            chosen = masks[detections.class_id == number] if len(detections) else masks
            np.testing.assert_array_equal(chosen.any(axis=0), union)
        # every label is there, by all of its parts
        assert len(masks) >= len(wanted)
        found += len(masks)
    assert found > 50


def test_chips_are_the_stretched_pixels_and_lie_on_the_map(scene: Scene, tmp_path: Path) -> None:
    made = export(scene, tmp_path / "set", label_layer())
    index = pyogrio.read_dataframe(made.folder / "chips.gpkg")
    assert index.crs == scene.crs
    image = coco_of(made.folder).dataset["images"][5]
    row = index[index["image"] == f"images/train/{image['file_name']}"].iloc[0]
    pixels = np.asarray(cv2.imread(str(made.folder / row["image"]))[:, :, ::-1])
    rgb, valid = scene.read(rasterio.windows.Window(row["col_off"], row["row_off"], 64, 64))
    np.testing.assert_array_equal(pixels, np.where(valid[..., None], rgb, 0))
    transform = Affine(*image["transform"])
    corner = transform @ (64, 64)
    assert row.geometry.bounds == (transform.c, corner[1], corner[0], transform.f)


def test_cut_off_pieces_are_no_objects(scene: Scene, tmp_path: Path) -> None:
    # 60 × 10 px, of which the last 10 columns (1/6) are in the next chip
    layer = label_layer([shape(78, 10, 60, 10)])
    made = export(scene, tmp_path / "set", layer, replace(ALL_TRAIN, min_kept=0.2))
    by_chip = made.chips.set_index("chip")
    assert by_chip.loc["ortho_r0c1", "n_labels"] == 1
    assert by_chip.loc["ortho_r0c2", "left_out"] == ONLY_PIECES
    made = export(scene, tmp_path / "set", layer, replace(ALL_TRAIN, min_kept=0.1))
    assert made.chips.set_index("chip").loc["ortho_r0c2", "n_labels"] == 1


def test_unreviewed_labels_are_no_background(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer([shape(70, 70, 20, 20), shape(140, 70, 20, 20), shape(70, 140, 9, 9)],
                        status=["accepted", "unreviewed", "rejected"])  # fmt: skip
    made = export(scene, tmp_path / "set", layer)
    left_out = made.chips.set_index("chip")["left_out"]
    assert left_out["ortho_r1c1"] == ""
    assert left_out["ortho_r1c2"] == UNREVIEWED
    # what is empty counts only where the tile's review is finished
    assert left_out["ortho_r0c2"] == UNFINISHED
    assert left_out["ortho_r4c2"] == UNFINISHED  # no label: nobody may have looked there
    assert made.summary.loc[f"left out: {UNFINISHED}", "chips"] > 1
    below = shape(100, 270, 9, 9)
    layer = pd.concat([layer, label_layer([below], status="rejected")])
    left_out = export(scene, tmp_path / "set", layer).chips.set_index("chip")["left_out"]
    assert left_out["ortho_r4c2"] == ""
    assert left_out["ortho_r2c2"] == UNFINISHED  # in part
    both = replace(ALL_TRAIN, statuses=("accepted", "unreviewed"))
    assert export(scene, tmp_path / "set", layer, both).chips["n_labels"].sum() == 2


def test_empty_chips_stay_or_go(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer([shape(70, 70, 20, 20)])
    kept = export(scene, tmp_path / "set", layer)
    assert (kept.folder / "labels/train/ortho_r3c3.txt").read_text() == ""
    dropped = export(scene, tmp_path / "set", layer, replace(ALL_TRAIN, keep_empty=False))
    assert list(dropped.chips.loc[dropped.chips["split"] != "", "chip"]) == ["ortho_r1c1"]
    assert (dropped.chips["left_out"] == EMPTY).sum() > 10
    assert len(list(dropped.folder.rglob("*.png"))) == 1


def test_what_was_not_segmented_is_not_exported(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer()
    made = export(scene, tmp_path / "a", layer, tiles=ledger("failed"))
    assert (made.chips.loc[made.chips["split"] != "", "row_off"] < SIDE / 2).all()
    aoi = shape(100, 0, 60, SIDE)
    made = export(scene, tmp_path / "b", layer, replace(ALL_TRAIN, min_valid=0.3), aoi=aoi)
    used = made.chips[made.chips["split"] != ""]
    assert set(used["col_off"]) == {64, 128}
    pixels = cv2.imread(str(made.folder / used.iloc[0]["image"]))
    assert not pixels[:, : 100 - 64].any()


def test_splits_do_not_touch(scene: Scene, tmp_path: Path) -> None:
    chips = Chips(chip_size=32, val=0.2, test=0.1, seed=1)
    made = export(scene, tmp_path / "set", label_layer(), chips)
    used = made.chips[made.chips["split"] != ""]
    assert set(used["split"]) == {"train", "val", "test"}
    i, j = used.sindex.query(used.geometry, predicate="intersects")
    assert (used["split"].to_numpy()[i] == used["split"].to_numpy()[j]).all()
    parts = [coco_of(made.folder, split).dataset["annotations"] for split in set(used["split"])]
    ids = [{a["label_id"] for a in part if not a["iscrowd"]} for part in parts]
    assert len(set.union(*ids)) == sum(map(len, ids))
    content = yaml.safe_load((made.folder / "data.yaml").read_text(encoding="utf-8"))
    assert content["val"] == "images/val"
    assert content["names"] == {0: CLASSES[3], 1: CLASSES[7]}
    assert content["class_ids"] == {0: 3, 1: 7}


def test_chips_between_two_splits_leave_no_image_and_can_be_exported_again(
    scene: Scene, tmp_path: Path
) -> None:
    chips = replace(ALL_TRAIN, val=0.2, test=0.2)
    made = export(scene, tmp_path / "set", label_layer(), chips)
    assert (made.chips["left_out"] == GAP).any()
    images = {str(p.relative_to(made.folder)) for p in made.folder.rglob("*.png")}
    assert images == set(made.chips["image"].dropna())
    before = files_of(made.folder)
    assert files_of(export(scene, tmp_path / "set", label_layer(), chips).folder) == before


def test_equal_input_gives_equal_files(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer()
    first = files_of(export(scene, tmp_path / "a", layer, Chips(chip_size=64)).folder)
    assert files_of(export(scene, tmp_path / "b", layer, Chips(chip_size=64)).folder) == first


def test_two_scenes_of_one_name_keep_their_chips_apart(tmp_path: Path) -> None:
    scenes = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        moved = TRANSFORM @ Affine.translation(n * SIDE, 0)
        scenes.append(make_scene(tmp_path / str(n) / "a b.tif", transform=moved))
    tiles = pd.concat([ledger(), ledger().set_geometry(ledger().translate(SIDE / 2))])
    across = label_layer([shape(SIDE - 30, 100, 80, 20)])  # seen by both
    made = write_dataset(across, tiles, scenes, tmp_path / "set", classes={3: "x"}, chips=ALL_TRAIN)
    assert made.chips["chip"].is_unique
    assert made.chips["n_labels"].sum() == 2  # chip of one, and the valid pixels of the other


def test_chips_of_names_that_look_alike_do_not_collide(tmp_path: Path) -> None:
    scenes = [
        make_scene(tmp_path / f"{name}.tif", transform=TRANSFORM @ Affine.translation(n * SIDE, 0))
        for n, name in enumerate(("a b", "a_b", "a_b-2"))
    ]
    tiles = pd.concat([ledger().set_geometry(ledger().translate(n * SIDE / 2)) for n in range(3)])
    made = write_dataset(label_layer(), tiles, scenes, tmp_path / "set", classes=CLASSES,
                         chips=ALL_TRAIN)  # fmt: skip
    assert made.chips["chip"].str.casefold().is_unique


def test_the_aoi_is_in_the_crs_of_the_layer(scene: Scene, tmp_path: Path) -> None:
    aoi, chips = shape(100, 0, 60, SIDE), replace(ALL_TRAIN, min_valid=0.3)
    here = export(scene, tmp_path / "a", label_layer(), chips, aoi=aoi)
    degrees = gpd.GeoSeries([aoi.segmentize(5)], crs=UTM).to_crs(4326)[0]
    layer = label_layer()
    there = export(scene, tmp_path / "b", layer.to_crs(4326), chips, aoi=degrees)
    assert there.chips["left_out"].tolist() == here.chips["left_out"].tolist()


@pytest.mark.parametrize(
    ("class_id", "remedy"),
    [
        (pd.NA, "have no class.*give one class for all of them, for example `-p default_class "),
        (4, r"not one of .*Correct their class in QGIS, or add it to `classes` .*does not change"),
    ],
)
def test_labels_without_a_class_are_named_with_the_right_remedy(
    scene: Scene, tmp_path: Path, class_id: Any, remedy: str
) -> None:
    layer = label_layer(class_id=class_id)
    with pytest.raises(DatasetError, match=r"43 of 43 labels .*ortho/r0c0/0") as caught:
        export(scene, tmp_path / "set", layer)
    assert re.search(remedy, str(caught.value))
    assert not list(tmp_path.glob("*set*"))


def test_labels_without_a_class_take_the_only_or_the_given_one(
    scene: Scene, tmp_path: Path
) -> None:
    layer = label_layer(class_id=pd.NA)
    made = export(scene, tmp_path / "set", layer, classes={5: "roof"})
    assert {a["category_id"] for a in coco_of(made.folder).dataset["annotations"]} == {5}
    made = export(scene, tmp_path / "set", layer, replace(ALL_TRAIN, default_class=7))
    assert {a["category_id"] for a in coco_of(made.folder).dataset["annotations"]} == {7}


def test_only_an_earlier_export_is_replaced(scene: Scene, tmp_path: Path) -> None:
    layer, folder = label_layer(), tmp_path / "set"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"thesis\.txt"):
        export(scene, folder, layer)
    (folder / "thesis.txt").unlink()
    export(scene, folder, layer)
    (folder / "labels/train.cache").write_text("of a training")
    export(scene, folder, layer, replace(ALL_TRAIN, chip_size=128))
    (folder / "images/best.pt").write_text("weights")
    before = files_of(folder)
    with pytest.raises(DatasetError, match=r"images/best\.pt"):
        export(scene, folder, layer)
    assert files_of(folder) == before


def test_what_a_killed_export_has_left_is_removed(scene: Scene, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_dataset as t
from workbench.dataset import write
write._write_yaml = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # all but the last files
t.export(t.open_scene({str(tmp_path / "ortho.tif")!r}), Path({str(tmp_path / "set")!r}),
         t.label_layer())
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (left,) = tmp_path.glob(".tmp-*-set")
    assert any(left.rglob("*.png"))
    assert not (tmp_path / "set").exists()
    of_another = left.with_name(left.name + "-of-another")
    of_another.mkdir()
    export(scene, tmp_path / "set", label_layer())
    assert not left.exists()
    assert of_another.exists()
    assert (tmp_path / "set/data.yaml").exists()


def test_invalid_labels_are_exported_as_mended(scene: Scene, tmp_path: Path) -> None:
    square = shape(64, 64, 60, 40)
    x0, y0, x1, y1 = square.bounds
    bow_tie = shapely.Polygon([(x0, y0), (x1, y1), (x1, y0), (x0, y1)])
    flat = shapely.Polygon([(x0, y0), (x1, y1), (x0, y0)])
    layer = label_layer([bow_tie, flat, shapely.MultiPolygon()])
    export(scene, tmp_path / "set", layer)
    lobes = shapely.make_valid(bow_tie)
    assert lobes.area == pytest.approx(square.area / 2)
    mended = label_layer([lobes])
    export(scene, tmp_path / "mended", mended)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "mended")
    coco = coco_of(tmp_path / "set")
    assert [a["label_id"] for a in coco.anns.values()] == ["ortho/r0c0/0"]
    (chip,) = (
        pyogrio.read_dataframe(tmp_path / "set/chips.gpkg")
        .loc[lambda chips: chips["n_labels"] > 0]
        .itertuples()
    )
    pixels = expected(scene, mended, chip, 64)
    assert (coco.annToMask(coco.anns[1]) == pixels["ortho/r0c0/0"]).all()


@pytest.mark.parametrize(
    ("chips", "message"),
    [
        (Chips(chip_size=3), "chip_size"),
        (Chips(min_kept=2), "min_kept"),
        (Chips(val=0.6, test=0.4), "nothing for train"),
        (Chips(statuses=()), "statuses"),
        (Chips(default_class=5), r"default_class is 5: choose one of 3 \(roof\), 7"),
    ],
)
def test_impossible_values_are_named(
    scene: Scene, tmp_path: Path, chips: Chips, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        export(scene, tmp_path / "set", label_layer(), chips)


def test_nothing_to_export_says_why_and_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"15 unreviewed labels, 10 mostly in tiles that failed"):
        export(scene, tmp_path / "set", label_layer(status="unreviewed"), tiles=ledger("failed"))
    assert not [p for p in tmp_path.iterdir() if "set" in p.name]


def test_an_object_across_everything_does_not_tie_the_splits(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer([*shapes(), shape(20, 150, 300, 12)])
    made = export(scene, tmp_path / "set", layer, Chips(chip_size=32, seed=1))
    assert {"train", "val", "test"} <= set(made.chips["split"])


def test_too_few_chips_for_a_split_say_so(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^3 chips of 200 .* for train.*chip_size 64"):
        export(scene, tmp_path / "set", label_layer(), Chips(chip_size=200))
    assert not (tmp_path / "set").exists()


def test_the_size_that_keeps_most_labels_is_taken(scene: Scene, tmp_path: Path) -> None:
    made = export(scene, tmp_path / "set", label_layer(), Chips())
    assert {"train", "val", "test"} <= set(made.chips["split"])
    assert len(coco_of(made.folder, "val").imgs) > 0
    kept, refused = {}, []
    for size in CHIP_SIZES:
        try:
            other = export(scene, tmp_path / "other", label_layer(), Chips(chip_size=size))
            kept[size] = other.n_labels
        except DatasetError as error:
            refused.append(str(error))
    assert all(f"-p chip_size {made.chip_size}` gives a data set" in why for why in refused)
    assert len(kept) > 2, "larger ones give a data set, too"
    assert made.n_labels == kept[made.chip_size] == max(kept.values()) > min(kept.values())
    given = export(scene, tmp_path / "given", label_layer(), Chips(chip_size=made.chip_size))
    assert files_of(given.folder) == files_of(made.folder)
    assert f"chips of {made.chip_size} × {made.chip_size} pixels" in str(made)


def test_of_sizes_that_keep_nearly_the_same_the_largest_is_taken(
    scene: Scene, tmp_path: Path
) -> None:
    # large objects: in small chips none is whole
    layer = label_layer([shape(x, y, 90, 90) for x in (30, 200) for y in (10, 120, 220)])
    made = export(scene, tmp_path / "set", layer, Chips(val=0, test=0))
    # a chip of 512 pixels would lie mostly beyond the raster
    assert (made.chip_size, made.n_labels) == (384, 6)


def test_the_summary_tells_where_each_label_is_and_why_not(scene: Scene, tmp_path: Path) -> None:
    whole, across = shape(70, 70, 20, 20), shape(110, 80, 30, 30)  # in two chips
    waits, beside = shape(200, 70, 20, 20), shape(230, 70, 10, 10)  # in one chip
    long = shape(20, 214, 280, 3)  # each chip has a quarter or less
    status = ["accepted", "edited", "unreviewed", "accepted", "accepted", "rejected"]
    layer = label_layer([whole, across, waits, beside, long, shape(5, 300, 9, 9)], status)
    made = export(scene, tmp_path / "set", layer)
    summary = made.summary
    assert summary["labels"].sum() == 4, "each label is counted once"
    assert summary.loc["train", ["labels", "objects"]].tolist() == [2, 3]
    assert summary.loc[f"left out: {UNREVIEWED}", "labels"] == 1
    assert summary.loc[f"left out: {ONLY_PIECES}", "labels"] == 1
    assert summary["chips"].sum() == len(made.chips)
    assert "2 of 4 labels" in str(made)
    # pieces are counted where COCO has crowds
    crowds = [a for a in coco_of(made.folder).dataset["annotations"] if a["iscrowd"]]
    assert summary.loc["train", "pieces"] == len(crowds) == made.chips["n_pieces"].sum()


def test_pieces_that_yolo_does_not_know_are_counted(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer([shape(78, 10, 54, 10), shape(150, 10, 20, 20)])
    made = export(scene, tmp_path / "set", layer)
    (crowd,) = [a for a in coco_of(made.folder).dataset["annotations"] if a["iscrowd"]]
    assert crowd["label_id"] == "ortho/r0c0/0"
    assert made.summary.loc["train", "pieces"] == 1
    assert "1 cut-off piece is a crowd in COCO and not labelled in YOLO" in str(made)
    rows = (made.folder / "labels/train/ortho_r0c2.txt").read_text().splitlines()
    assert len(rows) == 1


def test_labels_in_the_gap_between_splits_are_counted(scene: Scene, tmp_path: Path) -> None:
    made = export(scene, tmp_path / "set", label_layer(), replace(ALL_TRAIN, val=0.2, test=0.2))
    assert made.summary.loc[f"left out: {GAP}", "labels"] > 0
    assert made.summary["labels"].sum() == 43


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("rejected", "no label is accepted or edited"),
        (["accepted"] + ["rejected"] * 42, r"all 1 labels are left out \(1 only cut-off pieces\)"),
    ],
)
def test_a_data_set_without_any_label_says_so(
    scene: Scene, tmp_path: Path, status: Any, reason: str
) -> None:
    first = shape(22, 214, 290, 3)
    layer = label_layer([first, *shapes()[1:]], status)
    with pytest.warns(UserWarning, match=f"has no label, only background: {reason}"):
        made = export(scene, tmp_path / "set", layer)
    assert made.n_labels == 0
    assert re.search("with 0 of [01] labels", str(made))


def test_what_no_size_can_split_may_do_for_training(scene: Scene, tmp_path: Path) -> None:
    layer, chips = label_layer([shape(70, 70, 20, 20)]), Chips(keep_empty=False)
    with pytest.raises(DatasetError, match=r"^1 chip of 512 .* leave") as caught:
        export(scene, tmp_path / "set", layer, replace(chips, min_valid=0))
    assert "No chip_size, from 512 down to 64, gives one" in str(caught.value)
    assert "`-p chip_size 512 -p val 0 -p test 0` gives 1 chip." in str(caught.value)
    assert "Review more" not in str(caught.value)  # all of it is


@pytest.mark.parametrize(
    ("aoi", "status", "size", "reasons"),
    [
        (shape(0, 0, 128, 128), "ok", 128, {OUTSIDE: 7, BEYOND: 1}),
        (None, "failed", 128, {UNSEGMENTED: 5, BEYOND: 1}),
        (None, "ok", 36, {NODATA: 9, BEYOND: 0}),
    ],
)
def test_what_lies_beside_all_imagery_has_its_reason(
    scene: Scene, tmp_path: Path, aoi: Any, status: str, size: int, reasons: dict[str, int]
) -> None:
    chips = replace(ALL_TRAIN, chip_size=size)
    made = export(scene, tmp_path / "set", label_layer(), chips, ledger(status), aoi=aoi)
    there = made.chips["left_out"].value_counts()
    assert {why: there.get(why, 0) for why in reasons} == reasons


def test_an_area_that_is_too_small_for_any_size_is_named(scene: Scene, tmp_path: Path) -> None:
    aoi = shape(40, 40, 60, 60)
    with pytest.raises(DatasetError, match=rf"^No chip of 64 .*: 25 {re.escape(OUTSIDE)}\."):
        export(scene, tmp_path / "set", label_layer(), Chips(), aoi=aoi)
    aoi = shape(64, 64, 64, 64)
    with pytest.raises(DatasetError, match=rf"^1 chip of .*; left out: \d+ {re.escape(OUTSIDE)}"):
        export(scene, tmp_path / "set", label_layer(), Chips(), aoi=aoi)


def test_a_piece_of_an_unreviewed_label_is_neither_background_nor_object(
    scene: Scene, tmp_path: Path
) -> None:
    # all of the scene but for 10 px, of which each chip has 4 %
    layer = label_layer(
        [shape(10, 10, 300, 300), shape(70, 70, 20, 20), shape(150, 80, 9, 9)],
        ["unreviewed", "accepted", "rejected"],
        [pd.NA, 7, pd.NA],
    )
    made = export(scene, tmp_path / "set", layer)
    by_chip = made.chips.set_index("chip")
    assert list(by_chip.index[by_chip["split"] != ""]) == ["ortho_r1c1"]
    # what the chip shows else is not known, so it is not empty
    assert by_chip.loc["ortho_r1c2", "left_out"] == UNREVIEWED
    annotations = coco_of(made.folder).dataset["annotations"]
    pieces = [a for a in annotations if a["label_id"] == "ortho/r0c0/0"]
    assert [(a["iscrowd"], a["category_id"]) for a in pieces] == [(1, 3), (1, 7)]
    (row,) = (made.folder / "labels/train/ortho_r1c1.txt").read_text().splitlines()
    assert row.startswith("1 ")
    assert "Chips wait most for ortho/r0c0/0 (" in str(made)
    # as it is when the label is accepted, but for its class
    accepted = layer.assign(status="accepted", class_id=7)[:2]
    same = export(scene, tmp_path / "accepted", accepted).folder / "labels/train/ortho_r1c1.txt"
    assert same.read_text().splitlines() == [row]
    whole = replace(ALL_TRAIN, chip_size=256)
    with pytest.raises(DatasetError, match=r"1 unreviewed .* accept or reject this one first"):
        export(scene, tmp_path / "set", layer, whole)


def test_chips_that_wait_for_many_labels_name_none(scene: Scene, tmp_path: Path) -> None:
    layer = label_layer([shape(70 + 9 * i, 70, 5, 5) for i in range(5)], status="unreviewed")
    with pytest.raises(DatasetError, match="Review more tiles fully") as caught:
        export(scene, tmp_path / "set", layer)
    assert "ortho/r0c0/" not in str(caught.value)


def test_a_data_set_of_an_earlier_review_is_set_aside(scene: Scene, tmp_path: Path) -> None:
    folder, stale = tmp_path / "set", tmp_path / "set-stale"
    before = files_of(export(scene, folder, label_layer()).folder)
    nothing = label_layer(status="unreviewed")
    with pytest.raises(DatasetError, match=f"earlier review is now in {stale}"):
        export(scene, folder, nothing)
    assert not folder.exists()
    assert files_of(stale) == before
    export(scene, folder, label_layer(), replace(ALL_TRAIN, chip_size=128))
    (stale / "images/best.pt").write_text("weights")
    with pytest.raises(
        DatasetError, match=f"{folder} still holds the data set of an earlier review"
    ):
        export(scene, folder, nothing)
    assert (folder / "data.yaml").exists()
    assert (stale / "images/best.pt").exists()


def test_pixels_of_what_waits_for_review_are_not_read(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = Scene.read
    monkeypatch.setattr(Scene, "read", lambda self, w: read.append(w) or whole(self, w))
    with pytest.raises(DatasetError):
        export(scene, tmp_path / "set", label_layer([shape(70, 70, 20, 20)], "unreviewed"))
    assert not read


def test_json_is_utf8(scene: Scene, tmp_path: Path) -> None:
    made = export(scene, tmp_path / "set", label_layer())
    text = (made.folder / "annotations/instances_train.json").read_text(encoding="utf-8")
    assert "élan" in text
    assert json.loads(text)["images"][0]["crs"] == "EPSG:32636"
