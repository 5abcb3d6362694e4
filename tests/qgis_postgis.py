#!/usr/bin/python3
"""One of several reviewers of a PostGIS layer, in headless QGIS; JSON on stdout.

    qgis_postgis.py PROJECT STATUS FID[,FID…] FOLDER N

Opens the project, waits in FOLDER until N sessions have it open and changed, and then saves.
"""

import json
import os
import time
from pathlib import Path

from qgis.core import QgsGeometry, QgsProject, QgsRectangle, QgsVectorLayerUtils
from qgis_headless import context_of, in_qgis


def wait_for(folder, n, seconds=60):
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + seconds
    while len(list(folder.iterdir())) < n and time.monotonic() < deadline:
        time.sleep(0.02)


def main(path, status, fids, folder, n):
    project = QgsProject.instance()
    project.read(path)
    (layer,) = project.mapLayersByName("prelabels")
    layer.startEditing()
    field = layer.fields().indexOf("status")
    for fid in map(int, fids.split(",")):
        layer.changeAttributeValue(fid, field, status)
    box = layer.getFeature(int(fids.split(",")[0])).geometry().boundingBox()
    left, top = box.xMinimum() + os.getpid() % 97, box.yMaximum() + 40
    square = QgsGeometry.fromRect(QgsRectangle(left, top, left + 7, top + 7))
    square.convertToMultiType()
    layer.addFeature(QgsVectorLayerUtils.createFeature(layer, square, {}, context_of(layer)))
    wait_for(Path(folder), int(n))
    saved = layer.commitChanges()
    seen = {
        "provider": layer.providerType(), "valid": layer.isValid(), "saved": saved,
        "errors": layer.commitErrors(), "actions": [a.name() for a in layer.actions().actions()],
        "layers": {one.name(): one.isValid() for one in project.mapLayers().values()},
    }  # fmt: skip
    print(json.dumps(seen))
    project.clear()


if __name__ == "__main__":
    in_qgis(main)
