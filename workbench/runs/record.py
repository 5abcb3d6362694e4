"""`run.yaml`: what a run has resolved, and whether another job may continue it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
import pyproj
import yaml
from affine import Affine
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

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
from workbench.runs.parameters import brief
from workbench.segmenters.protocol import Segmenter

# what the stored candidates depend on, besides their scene
IDENTITY = ("crs", "tiling", "segmenter")
REMEDY = "Choose another out_dir, or set resume=false to replace that run."
# what can differ in a scene while its candidates still fit
INCIDENTAL = {"source", "pixel_m", "beside"}


# ------------------------------------------------------------------------------- its record


def _known_crs(text: str) -> str:
    if not _is_crs(text):
        raise ValueError("is not a CRS that PROJ knows")
    return text


@lru_cache(maxsize=64)
def _is_crs(text: str) -> bool:
    try:
        pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError:
        return False
    return True


def _file_name(name: str) -> str:
    if Path(name).name != name or not name or "\0" in name:
        raise ValueError("is not a plain file name: files are named after it")
    return name


def _invertible(transform: list[float]) -> list[float]:
    if Affine(*transform).is_degenerate:
        raise ValueError("is not a transform: its pixels have no area")
    return transform


Crs = Annotated[str, AfterValidator(_known_crs)]
Three = Field(min_length=3, max_length=3)


class _Record(BaseModel):
    # strict: `width: "5"` was not written by a run
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StretchRecord(_Record):
    """As `raster.scene.Stretch`."""

    low: Annotated[list[float], Three]
    high: Annotated[list[float], Three]


class SceneRecord(_Record):
    """A scene as `Scene.describe` gives it."""

    source: str
    name: Annotated[str, AfterValidator(_file_name)]
    crs: Crs
    transform: Annotated[
        list[float], Field(min_length=6, max_length=6), AfterValidator(_invertible)
    ]
    width: PositiveInt
    height: PositiveInt
    pixel_m: float
    bands: Annotated[list[PositiveInt], Three]
    stretch: StretchRecord | None
    alpha: PositiveInt | None
    warped: bool
    fingerprint: str
    beside: list[str] = []
    nodata: float | None = None  # as in runs of earlier versions, which did not look for one

    @classmethod
    def of(cls, scene: Scene) -> Self:
        """Record a scene."""
        return cls.model_validate(scene.describe())

    def scene(self) -> Scene:
        """Return the scene, without opening its file."""
        return Scene.from_description(self.model_dump())

    @property
    def content(self) -> str:
        """All that the candidates of the scene depend on, except its name."""
        return json.dumps(self.model_dump(exclude={*INCIDENTAL, "name"}), sort_keys=True)


class Tiling(_Record):
    """How scenes are cut into tiles."""

    tile_size: PositiveInt
    overlap: float
    windows: str = "a step apart"  # as the first edition laid them, which did not say so


class RunRecord(_Record):
    """All that was decided for a run, as `run.yaml` holds it.

    `segmenter` is the key of its Segmenter; `notes` says what had to change while it ran.
    """

    store_key: str
    crs: Crs
    tiling: Tiling
    segmenter: dict[str, Any]
    thresholds: dict[str, float] = {}
    scenes: Annotated[list[SceneRecord], Field(min_length=1)]
    versions: dict[str, str] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        names = [scene.name for scene in self.scenes]
        if len(set(names)) < len(names):
            raise ValueError("two scenes have the same name")
        for name in ("points_per_batch", "threads"):  # a resume takes them from here
            value = self.segmenter.get(name, 1)
            if type(value) is not int or value < 1:
                raise ValueError(f"segmenter: {name} is not a number above 0, but {value!r}")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What all stored candidates depend on."""
        return self.model_dump(include=set(IDENTITY))

    def to_yaml(self) -> str:
        """Return the text of `run.yaml`."""
        values = self.model_dump(exclude=set() if self.notes else {"notes"})
        return yaml.safe_dump(values, sort_keys=False)


def read_record(folder: Path) -> RunRecord | None:
    """Read what an earlier run in this folder has resolved; None if there was none.

    Raises `RunFolderError` if `run.yaml` is not as a run writes it.
    """
    path = folder / "run.yaml"
    try:
        if not path.exists():
            return None
        return RunRecord.model_validate(read_yaml(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(step) for step in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        given = "" if problem["type"] == "missing" else f" (given: {brief(problem['input'])})"
        reason = f"{where}: {what}{given}" if where else what
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {str(error).rstrip('.')}. Restore it from a copy, or use "
            "another run folder."
        ) from error
    raise RunFolderError(
        f"{path} was not written by a run, or has been changed since: {reason}. Restore it from a "
        "copy, or use another run folder."
    )


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `run.yaml`."""
    with atomic_path(folder / "run.yaml") as path:
        path.write_text(record.to_yaml(), encoding="utf-8")


def name_scenes(scenes: Sequence[Scene], record: RunRecord | None) -> list[Scene]:
    """Give every scene a name of its own: the recorded one, or else its stem.

    Scenes with the same stem are numbered.
    """
    recorded = record.scenes if record is not None else []
    names = {scene.content: scene.name for scene in reversed(recorded)}
    known = [names.pop(SceneRecord.of(scene).content, None) for scene in scenes]
    taken = {name for name in known if name is not None}
    numbers: dict[str, Iterable[int]] = {}
    named = []
    for scene, name in zip(scenes, known, strict=True):
        if name is None:
            name = scene.name
            if name in taken:
                more = numbers.setdefault(scene.name, count(2))
                name = next(n for n in (f"{scene.name}-{i}" for i in more) if n not in taken)
            taken.add(name)
        named.append(replace(scene, name=name))
    return named


def resolve(job: Job, scenes: Sequence[Scene], key: Mapping[str, Any]) -> RunRecord:
    """Record all that was decided for this run; `key` is that of its Segmenter."""
    described = [SceneRecord.of(scene) for scene in scenes]
    identity: dict[str, Any] = {
        "crs": described[0].crs,
        "tiling": {"tile_size": job.tile_size, "overlap": job.overlap, "windows": "spread evenly"},
        "segmenter": plain(key),
    }
    packages = (
        "sam-workbench", "torch", "rasterio", "shapely", "numpy", "opencv-python-headless",
        "scikit-learn",
    )  # fmt: skip
    return RunRecord(
        store_key=_store_key(identity),
        **identity,
        thresholds=asdict(job.thresholds if job.examples is None else job.limits),
        scenes=described,
        versions={"python": platform.python_version()} | {p: version(p) for p in packages},
    )


def _store_key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def record_change(folder: Path, segmenter: Segmenter) -> None:
    """Keep in `run.yaml` what a Segmenter had to change while it ran, for a resume and as a note.

    Writes nothing if its key is still the recorded one.
    """
    record, now = read_record(folder), plain(segmenter.key)
    if record is None or record.segmenter == now:
        return
    before = record.segmenter
    names = [name for name in now if before.get(name) != now[name]]
    changes = ", ".join(f"{name} {before.get(name)} became {now[name]}" for name in names)
    note = f"out of memory: {changes}; the last bits of earlier tiles may differ"
    changed = record.model_copy(update={"segmenter": now, "notes": [*record.notes, note]})
    key = _store_key(changed.identity)
    write_record(folder, changed.model_copy(update={"store_key": key}))


def continue_run(folder: Path, before: RunRecord | None, resolved: RunRecord) -> RunRecord:
    """Return what an earlier run has resolved, with the scenes that are new or have moved.

    Raises `RunFolderError` if the candidates of that run do not fit this one.
    """
    if before is None:
        return resolved
    _refuse_another_run(folder, before, resolved)
    scenes = {scene.name: scene for scene in [*before.scenes, *resolved.scenes]}
    return before.model_copy(
        update={"scenes": list(scenes.values()), "thresholds": resolved.thresholds}
    )


def unless_other_exemplars(before: RunRecord, resolved: RunRecord) -> RunRecord | None:
    """The record of an earlier run; None if all that differs are the exemplars of its model.

    The candidates that were found by those then give way, as without `resume`.
    """
    old, new = before.segmenter, resolved.segmenter
    others = old.get("exemplars") != new.get("exemplars")
    same = {**old, "exemplars": None} == {**new, "exemplars": None}
    return None if others and same else before


def _refuse_another_run(folder: Path, before: RunRecord, resolved: RunRecord) -> None:
    old, new = before.identity, resolved.identity
    changed = [name for name in IDENTITY if old[name] != new[name]]
    if changed:
        raise RunFolderError(
            f"{folder} holds a run with another {' and '.join(changed)}, so its candidates do not "
            f"fit this job. {REMEDY}\n{_differences(old, new, changed)}"
        )
    there = {scene.name: scene for scene in before.scenes}
    for scene in resolved.scenes:
        earlier = there.get(scene.name, scene)
        if earlier.content == scene.content:
            continue
        old, new = earlier.model_dump(), scene.model_dump()
        changed = [name for name in new if name not in INCIDENTAL and old[name] != new[name]]
        what = (
            "beside other sheets"
            if len(old["beside"]) != len(new["beside"])
            else "when the raster had another content"
            if "fingerprint" in changed
            else "with other settings"
        )
        raise RunFolderError(
            f"{folder} holds a run that read {scene.source} {what}, so its candidates do not fit "
            f"this job. {REMEDY}\n{_differences(old, new, changed)}"
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


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from a file: lists for tuples, text for keys."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def claim(folder: Path, job: Job, record: RunRecord, before: RunRecord | None) -> None:
    """Make the run folder this job's own: the first thing that is written."""
    store = store_in(folder)
    try:
        remove_stale(folder)
        remove_stale(store.folder)
        if before is None:
            store.clear()
            features_in(folder).clear()
        if record != before:
            write_record(folder, record)
        if not (folder / "job.yaml").exists():  # else it describes the layer that is there
            write_job(job, folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def write_job(job: Job, folder: Path) -> None:
    """Write the parameters of the layer that is in the folder, as `papermill -f` takes them."""
    with atomic_path(folder / "job.yaml") as path:
        path.write_text(job.to_yaml(), encoding="utf-8")
