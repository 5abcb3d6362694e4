"""Several reviewers of one layer in PostGIS: the commands of docs/teams.md, as they stand there."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from known_objects import objects_apart, write_labels
from known_runs import run_known_objects
from test_qgis import NO_QGIS, SYSTEM_PYTHON, has_qgis

from workbench import postgis_project, read_run
from workbench.errors import ReviewError
from workbench.review.changes import changes
from workbench.review.read import read_review

PAGE = Path(__file__).parent.parent / "docs" / "teams.md"
VERSIONS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
EXTENSION = list(Path("/usr/share/postgresql").glob("*/extension/postgis.control"))


def missing():
    """Say what is not here to try it, or None."""
    tools = [name for name in ("psql", "createdb", "ogr2ogr") if shutil.which(name) is None]
    if not VERSIONS or not EXTENSION or tools:
        return "no PostGIS: apt-get install --no-install-recommends postgresql-postgis gdal-bin"
    return None if has_qgis() else NO_QGIS


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The environment of a PostgreSQL that runs for these tests alone, without any network."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("pg", numbered=False)
    (folder / "services").write_text("[review]\ndbname=review\n")
    as_postgres = []
    if os.geteuid() == 0:  # the server refuses to run as root
        for each in (folder, *folder.parents):
            if each.stat().st_uid == 0 and each != Path("/"):
                each.chmod(each.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
        as_postgres = ["runuser", "-u", "postgres", "--"]
    programs, data = VERSIONS[-1].parent, folder / "data"

    def server(program, *options):
        subprocess.run(
            [*as_postgres, programs / program, "-D", data, *options], check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip

    server("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    settings = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    server("pg_ctl", "-w", "-l", folder / "log", "-o", settings, "start")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PROJ"))}
    yield environment | {
        "PGHOST": str(folder), "PGUSER": "postgres", "PGSERVICEFILE": str(folder / "services"),
        "QT_QPA_PLATFORM": "offscreen", "GDAL_PAM_ENABLED": "NO",
    }  # fmt: skip
    # nothing of it is needed any more; a checkpoint takes a busy disk over a minute
    server("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run in runs/ortho, as the page has it."""
    folder = tmp_path_factory.mktemp("home")
    raster = write_labels(folder / "ortho.tif", objects_apart((230, 330), 1, 60, largest=0.5))
    run_known_objects(raster, folder / "runs" / "ortho", default_class=1)
    return folder


def commands(program):
    """The lines of the page that begin with a program."""
    section = PAGE.read_text(encoding="utf-8").split("## One layer in a database")[1]
    return re.findall(rf"^    ({program} .*)$", section, re.MULTILINE)


def session(database, project, *words):
    command = [SYSTEM_PYTHON, str(Path(__file__).with_name("qgis_postgis.py")), project, *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=database
    )


def test_two_sessions_of_qgis_review_one_layer(database, home, tmp_path, monkeypatch):
    lines = [*commands("createdb"), *commands("psql"), *commands("ogr2ogr")]
    assert len(lines) == 4
    for line in lines[:-1]:
        subprocess.run(line, shell=True, check=True, cwd=home, env=database)
    monkeypatch.chdir(home)
    (python,) = re.findall(r"```python\n([^`]*postgis_project[^`]*)```", PAGE.read_text("utf-8"))
    exec(python, {})
    project = home / "runs" / "ortho" / "review_postgis.qgz"
    running = [
        session(database, project, status, fids, tmp_path, "2")
        for status, fids in (("accepted", "1,2,3"), ("rejected", "4,5"))
    ]
    for one in running:
        out, errors = one.communicate(timeout=120)
        seen = json.loads(out)
        assert (seen["provider"], seen["valid"], seen["saved"]) == ("postgres", True, True), errors
        assert {"prelabels": True, "tiles": True, "ortho": True}.items() <= seen["layers"].items()
        assert {"Accept", "Reject"} <= set(seen["actions"])
    subprocess.run(lines[-1], shell=True, check=True, cwd=home, env=database)
    finished = read_run(home / "runs" / "ortho")
    came = read_review(home / "reviewed.gpkg", finished)
    told = changes(came.labels, finished.layer).set_index("id")
    by_fid = finished.layer["id"]  # QGIS counts from 1
    assert told["change"][by_fid[:3]].tolist() == ["accepted"] * 3
    assert told["change"][by_fid[3:5]].tolist() == ["rejected"] * 2
    assert told["change"].value_counts()["added"] == 2
    assert told["change"].value_counts()["unreviewed"] == len(by_fid) - 5
    assert came.labels["id"].is_unique


def test_a_project_holds_no_password(home):
    with pytest.raises(ReviewError, match="holds a password"):
        postgis_project(home / "runs" / "ortho", "host=db password=secret")
    with pytest.raises(ReviewError, match=r"review\.qgz: no such file"):
        postgis_project(home, "service='review'")
