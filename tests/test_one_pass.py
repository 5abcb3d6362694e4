"""A layer is made, written and counted in one pass: it may be large."""

import zipfile
from collections import Counter

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from geopandas.testing import assert_geodataframe_equal
from known_objects import objects, write_labels
from known_runs import job_for, use_known_objects
from test_layer import STYLES, sample, tiles

from workbench import run
from workbench._support.palette import (
    CONFIDENCE_CLASSES,
    confidence_classes,
    confidence_labels,
)
from workbench.errors import RunFolderError
from workbench.layer import schema
from workbench.layer.files import read_batches, read_layer, write_layer
from workbench.layer.report.tally import Tally, count_by_confidence


@pytest.fixture
def raster(tmp_path):
    return write_labels(tmp_path / "scene.tif", objects((230, 330), 1))


@pytest.mark.parametrize("has_reference", [False, True])
def test_after_it_is_written_only_the_map_reads_the_layer(
    raster, tmp_path, monkeypatch, has_reference
):
    use_known_objects(monkeypatch)
    reference = str(tmp_path / "truth.gpkg") if has_reference else None
    sample().to_file(tmp_path / "truth.gpkg")
    read, typed = [], Counter()

    class Counted(pq.ParquetFile):
        def __init__(self, source, *args, **named):
            read.append(str(source))
            super().__init__(source, *args, **named)

    def counted(function):
        def called(source, *args, **named):
            read.append(str(source))
            return function(source, *args, **named)

        return called

    column = schema.as_column
    monkeypatch.setattr(pq, "ParquetFile", Counted)
    for module in (gpd, pd):
        monkeypatch.setattr(module, "read_parquet", counted(module.read_parquet))
    monkeypatch.setattr(
        schema,
        "as_column",
        lambda values, dtype: typed.update([values.name]) or column(values, dtype),
    )
    result = run(job_for(raster, tmp_path / "run", reference=reference))
    assert sum("prelabels" in name for name in read) == 1
    # as the layer is made: once a batch, and no column but those of the map at any time later
    assert typed["stability"] == typed["id"]
    assert typed["confidence"] > typed["stability"]
    # a person who looks at what has just been made waits for no more than the map
    assert int(result.summary["value"]["polygons"]) == len(result.tally.numbers) > 0
    assert sum("prelabels" in name for name in read) == 1


def test_what_is_counted_in_passing_is_what_the_file_holds(raster, tmp_path, monkeypatch):
    use_known_objects(monkeypatch)
    result = run(job_for(raster, tmp_path / "run"))
    again = Tally(result.tiles)
    for batch in read_batches(tmp_path / "run" / "prelabels.parquet"):
        again.add(batch)
    assert again.summary().equals(result.summary)
    assert np.array_equal(again.by_confidence("scene"), result.tally.by_confidence("scene"))


def test_colours_follow_the_whole_layer_in_every_file(tmp_path, monkeypatch):
    use_known_objects(monkeypatch)
    fields = np.kron(np.arange(1, 49).reshape(6, 8), np.pad(np.ones((30, 30), int), 5))
    raster = write_labels(tmp_path / "scene.tif", fields)
    result = run(job_for(raster, tmp_path / "run"))
    confidence = result.layer["confidence"]
    classes = result.tally.classes
    assert classes == confidence_classes(confidence) != CONFIDENCE_CLASSES
    counts = result.tally.by_confidence("scene")
    assert counts.sum() == len(confidence)
    assert counts.max() < len(confidence) / 2
    labels = confidence_labels(classes)
    style = (tmp_path / "run" / "prelabels.qml").read_text(encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "run" / "review.qgz") as project:
        (name,) = [each for each in project.namelist() if each.endswith(".qgs")]
        drawn = project.read(name).decode()
    for text in (style, drawn):
        assert all(f'label="{label}"' in text for label in labels)
    assert np.array_equal(count_by_confidence(confidence.to_numpy(), classes), counts)


@pytest.mark.parametrize("error", [RunFolderError("damaged"), KeyboardInterrupt()])
def test_an_error_in_the_layer_comes_out_as_it_is_and_leaves_no_file(tmp_path, error):
    def layer():
        yield sample()
        raise error

    with pytest.raises(type(error)) as caught:
        write_layer(layer(), lambda _: tiles(), tmp_path, styles=lambda: STYLES)
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_layer_does_not_depend_on_its_batches(tmp_path):
    layer = sample()
    one, two = (
        write_layer(batches, lambda _: tiles(), tmp_path / name, styles=lambda: STYLES)
        for name, batches in (("one", [layer]), ("two", [layer[:1], layer[:0], layer[1:]]))
    )
    assert one.geojson.read_bytes() == two.geojson.read_bytes()
    assert_geodataframe_equal(read_layer(one.gpkg), read_layer(two.gpkg))
    assert_geodataframe_equal(read_layer(one.parquet), read_layer(two.parquet))
