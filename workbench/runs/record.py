"""`run.yaml`: what a run has resolved, and whether another job may go on with it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workbench._support.files import atomic_path, remove_stale
from workbench._support.yaml import read_yaml
from workbench.errors import RunFolderError
from workbench.raster.scene import Scene
from workbench.runs.folder import (
    features_in,
    store_in,
    unwritable,
)
from workbench.runs.job import Job
from workbench.segmenters.protocol import Segmenter

# what the stored candidates depend on, besides their scene
IDENTITY = ("crs", "tiling", "segmenter")
REMEDY = "Choose another out_dir, or set resume=false to replace that run."
# what can differ in a scene while its candidates still fit
INCIDENTAL = ("source", "pixel_m")


# ------------------------------------------------------------------------------- its record


def read_record(folder: Path) -> dict[str, Any]:
    """What an earlier run in this folder has resolved; empty if there was none."""
    path = folder / "run.yaml"
    if not path.exists():
        return {}
    try:
        record = read_yaml(path.read_text(encoding="utf-8"))
        if set(IDENTITY) | {"scenes", "store_key"} <= set(record) and all(
            _is_file_name(scene["name"]) for scene in record["scenes"]
        ):
            return _plain(record)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Choose another out_dir.") from error
    except (TypeError, KeyError):
        pass
    raise RunFolderError(f"{path} was not written by a run. Choose another out_dir.")


def _is_file_name(name: str) -> bool:
    """Whether files may be called after it: with a path in it they would lie elsewhere."""
    return Path(name).name == name != "" and "\0" not in name


def name_scenes(scenes: Sequence[Scene], record: Mapping[str, Any]) -> list[Scene]:
    """Give every scene a name of its own: the recorded one, else its stem, if need be numbered."""
    names = {_content(scene): scene["name"] for scene in reversed(record.get("scenes", []))}
    known = [names.pop(_content(_plain(scene.describe())), None) for scene in scenes]
    taken = {name for name in known if name is not None}
    named = []
    for scene, name in zip(scenes, known, strict=True):
        if name is None:
            numbered = (f"{scene.name}-{n}" for n in count(2))
            name = next(n for n in chain([scene.name], numbered) if n not in taken)
            taken.add(name)
        named.append(replace(scene, name=name))
    return named


def resolve(job: Job, scenes: Sequence[Scene], segmenter: Segmenter) -> dict[str, Any]:
    """All that was decided for this run, as `run.yaml` holds it."""
    identity = {
        "crs": scenes[0].crs.to_string(),
        "tiling": {"tile_size": job.tile_size, "overlap": job.overlap},
        "segmenter": dict(segmenter.key),
    }
    packages = (
        "sam-workbench", "torch", "rasterio", "shapely", "numpy", "opencv-python-headless",
        "scikit-learn",
    )  # fmt: skip
    return _plain(
        {
            "store_key": _store_key(identity),
            **identity,
            "scenes": [scene.describe() for scene in scenes],
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        }
    )


def _store_key(record: Mapping[str, Any]) -> str:
    identity = {name: record[name] for name in IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def record_change(folder: Path, segmenter: Segmenter) -> None:
    """Keep in `run.yaml` what a Segmenter had to change while it ran, for a resume and as a note.

    Writes nothing if its key is still the recorded one.
    """
    record = read_record(folder)
    before, now = record["segmenter"], _plain(segmenter.key)
    if before == now:
        return
    names = [name for name in now if before.get(name) != now[name]]
    changes = ", ".join(f"{name} {before.get(name)} became {now[name]}" for name in names)
    note = f"{changes} for want of memory; tiles from before may differ in last bits"
    changed = {**record, "segmenter": now, "notes": [*record.get("notes", []), note]}
    _write_record(folder, {**changed, "store_key": _store_key(changed)})


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with atomic_path(folder / "run.yaml") as path:
        path.write_text(yaml.safe_dump(dict(record), sort_keys=False), encoding="utf-8")


def continue_run(
    folder: Path, before: Mapping[str, Any], resolved: dict[str, Any]
) -> dict[str, Any]:
    """What an earlier run (empty: none) has resolved, with the scenes that are new or have moved.

    Raises `RunFolderError` if the candidates of that run do not fit this one.
    """
    if not before:
        return resolved
    _refuse_another_run(folder, before, resolved)
    scenes = {scene["name"]: scene for scene in [*before["scenes"], *resolved["scenes"]]}
    return {**before, "scenes": list(scenes.values())}


def _refuse_another_run(
    folder: Path, before: Mapping[str, Any], resolved: Mapping[str, Any]
) -> None:
    changed = [k for k in IDENTITY if before[k] != resolved[k]]
    if changed:
        raise RunFolderError(
            f"{folder} holds a run with another {' and '.join(changed)}, so its candidates do not "
            f"fit this job. {REMEDY}\n{_differences(before, resolved, changed)}"
        )
    there = {scene["name"]: scene for scene in before["scenes"]}
    for scene in resolved["scenes"]:
        old = there.get(scene["name"], scene)
        if _content(old) == _content(scene):
            continue
        changed = [k for k in scene if k not in INCIDENTAL and old.get(k) != scene[k]]
        what = "with another content of the raster" if "fingerprint" in changed else "otherwise"
        raise RunFolderError(
            f"{folder} holds a run that has read {scene['source']} {what}, so its candidates do "
            f"not fit this job. {REMEDY}\n{_differences(old, scene, changed)}"
        )


def _differences(before: Any, now: Any, keys: Iterable[str]) -> str:
    flat_before, flat_now = (
        pd.json_normalize({k: _by_name(r.get(k)) for k in keys}).iloc[0].to_dict()
        for r in (before, now)
    )
    names = [k for k in flat_now | flat_before if flat_before.get(k) != flat_now.get(k)]
    return "\n".join(f"  {k}: {flat_before.get(k)} there, {flat_now.get(k)} here" for k in names)


def _by_name(value: Any) -> Any:
    return {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value


def _content(scene: Mapping[str, Any]) -> str:
    """All of a described scene that its candidates depend on, but for its name."""
    identity = {k: v for k, v in scene.items() if k not in {*INCIDENTAL, "name"}}
    return json.dumps(identity, sort_keys=True)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from a file: lists for tuples, text for keys."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def claim(folder: Path, job: Job, record: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Make the run folder this job's own: the first thing that is written."""
    store = store_in(folder)
    try:
        remove_stale(folder)
        remove_stale(store.folder)
        if not before:
            store.clear()
            features_in(folder).clear()
        if record != before:
            _write_record(folder, record)
        if not (folder / "job.yaml").exists():  # else it describes the layer that is there
            write_job(job, folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def write_job(job: Job, folder: Path) -> None:
    """Write the parameters of the layer that is in the folder, as `papermill -f` takes them."""
    with atomic_path(folder / "job.yaml") as path:
        path.write_text(job.to_yaml(), encoding="utf-8")
