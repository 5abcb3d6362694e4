"""One layer for several reviewers: the review project of a run on a PostGIS database."""

from __future__ import annotations

import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

from workbench._support.files import atomic_path
from workbench.errors import ReviewError
from workbench.layer.qgis.xml import document
from workbench.layer.schema import GEOMETRY_COLUMN, LABELS, TILES

PROJECT = "review_postgis.qgz"


def postgis_project(run_dir: str | Path, connection: str, *, schema: str = "public") -> Path:
    """Write the review project of a run for labels that are in a PostGIS database.

    It is `review.qgz` with other sources: forms, styles, snapping and imagery are the same. The
    tables are called `prelabels` and `tiles`, with the key `fid` and the shapes in `geom`, as
    ogr2ogr makes them from `prelabels.gpkg`. Nothing connects to the database.

    Args:
        run_dir: The run folder.
        connection: How QGIS connects, as `service='review'` or `dbname='review' host=db`. It is
            written into the project, so name a service, not a password.
        schema: The schema of the tables.

    Returns:
        The project, `review_postgis.qgz` in the run folder.

    Raises:
        ReviewError: The run folder has no `review.qgz`, or the connection holds a password.

    Example:
        >>> postgis_project("runs/ortho", "service='review'")
    """
    source = Path(run_dir) / "review.qgz"
    if not source.exists():
        raise ReviewError(f"{source}: no such file. Give a run folder, and run its job first.")
    if "password" in connection.lower():
        raise ReviewError(
            "the connection holds a password, and everybody who has the project could read it. "
            "Name a service (`service='review'`) and keep the password in ~/.pgpass."
        )
    with zipfile.ZipFile(source) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".qgs")]
        root = ET.fromstring(archive.read(name))
    moved = set()
    for node in root.iter("maplayer"):
        _, _, layer = node.findtext("datasource", "").partition("|layername=")
        if node.findtext("provider") != "ogr" or layer not in (LABELS, TILES):
            continue
        srid = node.findtext("srs/spatialrefsys/srid")
        known = f"srid={srid} " if srid else ""
        kind = node.get("wkbType")
        _set(node, "provider", "postgres")
        _set(node, "datasource",
             f"{connection} key='fid' {known}type={kind} checkPrimaryKeyUnicity='1' "
             f'table="{schema}"."{layer}" ({GEOMETRY_COLUMN})')  # fmt: skip
        moved.add(node.findtext("id"))
    for node in root.iter("layer-tree-layer"):
        if node.get("id") in moved:
            node.set("providerKey", "postgres")
    path = source.with_name(PROJECT)
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(f"{path.stem}.qgs", document(root))
    return path


def _set(node: ET.Element, tag: str, value: str) -> None:
    found = node.find(tag)
    assert found is not None, "write_project has written it"
    found.text = value
