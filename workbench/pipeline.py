"""From a job to its run folder: the one place that knows the order of the steps."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
import yaml
from shapely.affinity import translate
from tqdm import tqdm

from workbench import layer as layers
from workbench import qgis, report
from workbench.atomic import atomic_path, remove_stale
from workbench.candidates import (
    Candidates,
    CandidateStore,
    Rules,
    Segmenter,
    Status,
    TileRecord,
    concat,
    encode_masks,
    select,
    valid_masks,
)
from workbench.classic import ClassicSegmenter
from workbench.crs import is_earth
from workbench.errors import AOIError, RunFailedError, RunFolderError
from workbench.job import Job
from workbench.opening import open_scene
from workbench.polygons import clean, to_polygons
from workbench.raster import Scene
from workbench.sample import sample_scene
from workbench.seams import merge_seams
from workbench.sources import find_sources
from workbench.tiles import Tile, TileGrid, tile_windows, tiles_over

FLUSH_SECONDS = 20.0  # a kill costs at most this much finished work
FLUSH_TILES = 64
PICTURE_PX = 2048
# what a run writes beside its candidates, job.yaml and run.yaml
OUTPUTS = (
    "prelabels.gpkg",
    "prelabels.geojson",
    "prelabels.parquet",
    "prelabels.qml",
    "tiles.parquet",
    "review.qgz",
    "report.html",
)
# what the stored candidates depend on, besides their scene
IDENTITY = ("crs", "tiling", "segmenter")
REMEDY = "Choose another out_dir, or set resume=false to replace that run."
# what can differ in a scene while its candidates still fit
INCIDENTAL = ("source", "pixel_m")


@dataclass(frozen=True)
class ScenePlan:
    """One scene of a run: its grid, and the tiles that are wanted."""

    scene: Scene
    grid: TileGrid
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Plan:
    """A job that has been checked: everything that can be wrong before long work starts."""

    job: Job
    folder: Path
    scenes: tuple[ScenePlan, ...]
    segmenter: Segmenter
    aoi: shapely.Geometry | None = None  # as far as it lies in the scenes, in the working CRS

    @property
    def store(self) -> CandidateStore:
        """The candidates of the run folder."""
        return CandidateStore(self.folder / "candidates")

    @property
    def crs(self) -> pyproj.CRS:
        """The working CRS, which all scenes share."""
        return self.scenes[0].scene.crs


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the layer and the ledger as a layer."""

    job: Job
    folder: Path
    scenes: tuple[Scene, ...]
    layer: gpd.GeoDataFrame
    tiles: gpd.GeoDataFrame
    aoi: shapely.Geometry | None = None  # in the CRS of the layer

    @property
    def summary(self) -> pd.DataFrame:
        """What a person wants to know of the run, a row for each quantity."""
        return report.summary_table(self.layer, self.tiles)

    def picture(self) -> bytes:
        """Draw the layer over its imagery (of many scenes: the first), as PNG."""
        scene = self.scenes[0]
        rgb, valid, transform = scene.overview(PICTURE_PX)
        here = self.layer[self.layer["source"] == scene.name]
        aoi = None if self.aoi is None else gpd.GeoDataFrame(geometry=[self.aoi], crs=scene.crs)
        figure = report.draw_map(
            rgb,
            valid,
            transform,
            here,
            tiles=self.tiles,
            aoi=aoi,
            title=scene.name,
        )
        return report.figure_png(figure)


def run(job: Job) -> Run:
    """Do all that a job asks for and return what is in its run folder.

    Raises a `WorkbenchError` before any long work if the job cannot be done, and `RunFailedError`
    after all files are written if some tiles failed.
    """
    plan = prepare(job)
    segment(plan)
    return finish(plan)


# --------------------------------------------------------------------------------- 1. check


def prepare(job: Job) -> Plan:
    """Open and check everything that a job names; leaves no trace if it cannot be done."""
    scenes = _open_scenes(job)
    aoi = load_aoi(job.aoi) if job.aoi is not None else None
    folder = Path(job.out_dir if job.out_dir is not None else f"runs/{scenes[0].name}").absolute()
    _refuse_unwritable(folder)
    recorded = _recorded(folder)
    before = recorded if job.resume else {}
    scenes = _name_scenes(scenes, before.get("scenes", []))
    planned, area = _plan_tiles(job, scenes, aoi)
    segmenter = _segmenter(job, before.get("segmenter", {}))
    resolved = _resolve(job, scenes, segmenter)
    if before:
        _refuse_another_run(folder, before, resolved)
        resolved = _continued(before, resolved)
    if not recorded:
        _refuse_foreign(folder)
    _refuse_to_lose_review(folder)
    plan = Plan(job, folder, planned, segmenter, area)
    if not before or _pending(plan):
        segmenter.load()
    _claim(plan, resolved, before)
    return plan


def _plan_tiles(
    job: Job, scenes: list[Scene], aoi: gpd.GeoSeries | None
) -> tuple[tuple[ScenePlan, ...], shapely.Geometry | None]:
    """Choose the scenes and tiles that are wanted; also returns the AOI in them."""
    grids = [TileGrid(scene.width, scene.height, job.tile_size, job.overlap) for scene in scenes]
    if aoi is None:
        plans = (ScenePlan(s, grid, tuple(grid)) for s, grid in zip(scenes, grids, strict=True))
        return tuple(plans), None
    areas = [_part_in(scene, aoi) for scene in scenes]
    planned = tuple(
        ScenePlan(scene, grid, tuple(tiles_over(scene, grid, area)))
        for scene, grid, area in zip(scenes, grids, areas, strict=True)
        if shapely.area(area) > 0
    )
    if not planned:
        raise AOIError(_outside(aoi, scenes))
    return planned, shapely.union_all(areas)


def _open_scenes(job: Job) -> list[Scene]:
    sources = [str(sample_scene())] if job.source is None else find_sources(job.source)
    first = _open(sources[0], job, job.crs)
    # many rasters share one CRS: that of the first
    return [first, *(_open(source, job, first.crs.to_wkt()) for source in sources[1:])]


def _name_scenes(scenes: list[Scene], recorded: list[dict[str, Any]]) -> list[Scene]:
    """Give every scene a name of its own: the recorded one, else its stem, if need be numbered."""
    names = {_content(scene): scene["name"] for scene in reversed(recorded)}
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


def _content(scene: Mapping[str, Any]) -> str:
    """All of a described scene that its candidates depend on, but for its name."""
    identity = {k: v for k, v in scene.items() if k not in {*INCIDENTAL, "name"}}
    return json.dumps(identity, sort_keys=True)


def _open(source: str, job: Job, crs: str | None) -> Scene:
    return open_scene(
        source, bands=job.bands, stretch=job.stretch, crs=crs, resolution_m=job.resolution_m
    )


def load_aoi(aoi: str | Mapping[str, Any]) -> gpd.GeoSeries:
    """Read an AOI from a vector file, or take a GeoJSON geometry in EPSG:4326.

    Raises `AOIError` if there are no polygons, or no CRS that fits the coordinates.
    """
    if isinstance(aoi, Mapping):
        return _geojson_aoi(aoi)
    if not Path(aoi).exists():
        raise AOIError(f"AOI {aoi}: no such file. Give a vector file or a GeoJSON geometry.")
    try:
        frame = gpd.read_file(aoi)
    except (pyogrio.errors.DataSourceError, ValueError) as error:
        raise AOIError(f"AOI {aoi} cannot be read as a vector file: {error}") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise AOIError(f"AOI {aoi} has no geometry. Give a file with polygons.")
    if frame.crs is None:
        raise AOIError(
            f"AOI {aoi} has no CRS, so its place is unknown. Save it with one, for instance by "
            "`ogr2ogr -a_srs EPSG:32633 out.gpkg in.shp`."
        )
    return _polygons_of(frame.geometry, f"AOI {aoi}")


def _geojson_aoi(aoi: Mapping[str, Any]) -> gpd.GeoSeries:
    features = aoi.get("features", [aoi])
    try:
        shapes = [shapely.geometry.shape(f.get("geometry", f)) for f in features]
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise AOIError(f"AOI is not a GeoJSON geometry: {error!r}") from error
    return _polygons_of(gpd.GeoSeries(shapes, crs=4326), "AOI (GeoJSON)")


def _polygons_of(geometry: gpd.GeoSeries, what: str) -> gpd.GeoSeries:
    geometry = geometry[~geometry.isna() & ~geometry.is_empty]
    if geometry.crs.is_engineering or not is_earth(geometry.crs):
        raise AOIError(
            f"{what} is in a local CRS ({geometry.crs.name}) with no known place on Earth. Save it "
            "with the CRS that its coordinates are in."
        )
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise AOIError(f"{what} has coordinates that are not finite numbers. Draw it again.")
    polygons = geometry[geometry.geom_type.isin(["Polygon", "MultiPolygon"])].make_valid()
    if polygons.empty:
        found = ", ".join(sorted(set(geometry.geom_type))) or "nothing"
        raise AOIError(f"{what} has no polygons ({found}). Draw the area as a polygon.")
    x0, y0, x1, y1 = polygons.total_bounds
    if polygons.crs.is_geographic and (x0 < -181 or x1 > 361 or y0 < -91 or y1 > 91):
        raise AOIError(
            f"{what}: bounds {_bounds((x0, y0, x1, y1))} are not degrees, but its CRS is "
            f"{layers.crs_name(polygons.crs)}. GeoJSON without a CRS means EPSG:4326: save it with "
            "the CRS that its coordinates are in."
        )
    return polygons


def _part_in(scene: Scene, aoi: gpd.GeoSeries) -> shapely.Geometry:
    """Return the part of the AOI that lies in the scene, in its CRS; empty if there is none.

    Far from the scene its CRS may map nothing, so the AOI is cut in its own CRS first.
    """
    to_aoi = pyproj.Transformer.from_crs(scene.crs, aoi.crs, always_xy=True)
    west, south, east, north = to_aoi.transform_bounds(*scene.bounds)
    if not np.isfinite([west, south, east, north]).all():
        return shapely.Polygon()
    if aoi.crs.is_geographic and east < west:  # across the antimeridian
        east += 360
    # edges bend between CRSs: some margin, and many vertices
    margin = max(east - west, north - south) / 50
    box = shapely.box(west - margin, south - margin, east + margin, north + margin)
    # in degrees an AOI may run from -180 or from 0
    turns = (-360, 0, 360) if aoi.crs.is_geographic else (0,)
    near = aoi.union_all().intersection(shapely.union_all([translate(box, dx) for dx in turns]))
    bent = gpd.GeoSeries([shapely.segmentize(near, margin)], crs=aoi.crs).to_crs(scene.crs)
    return bent.make_valid().iloc[0].intersection(scene.window_polygon(scene.window))


def _outside(aoi: gpd.GeoSeries, scenes: list[Scene]) -> str:
    scene, others = scenes[0], len(scenes) - 1
    name = Path(scene.source).name + (f" (nor {others} other rasters)" if others else "")
    return (
        f"AOI does not intersect {name}: AOI bounds {_bounds(aoi.to_crs(scene.crs).total_bounds)}, "
        f"raster bounds {_bounds(scene.bounds)} ({layers.crs_name(scene.crs)}). "
        "Draw it inside the raster."
    )


def _bounds(bounds: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.7g}" for value in bounds) + ")"


def _segmenter(job: Job, before: Mapping[str, Any]) -> Segmenter:
    """Choose the job's Segmenter; where the job leaves it open, as an earlier run (its key) did."""
    rules: dict[str, Any] = {
        "pred_iou_floor": job.pred_iou_floor,
        "stability_floor": job.stability_floor,
        "box_nms_thresh": job.box_nms_thresh,
        "crop_nms_thresh": job.crop_nms_thresh,
    }
    if job.model == "classic":
        return ClassicSegmenter(**rules)
    from workbench.sam import sam_segmenter  # torch takes seconds to import

    return sam_segmenter(
        job.model,
        checkpoint=job.checkpoint,
        device=before.get("device", "auto") if job.device == "auto" else job.device,
        precision=before.get("precision", "auto") if job.precision == "auto" else job.precision,
        points_per_side=job.points_per_side,
        crop_n_layers=job.crop_n_layers,
        points_per_batch=before.get("points_per_batch"),
        threads=before.get("threads"),
        **rules,
    )


# ------------------------------------------------------------------- the run folder's identity


def _resolve(job: Job, scenes: list[Scene], segmenter: Segmenter) -> dict[str, Any]:
    """All that was decided for this run, as `run.yaml` holds it."""
    identity = {
        "crs": scenes[0].crs.to_string(),
        "tiling": {"tile_size": job.tile_size, "overlap": job.overlap},
        "segmenter": dict(segmenter.key),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    packages = ("sam-workbench", "torch", "rasterio", "shapely", "numpy", "opencv-python-headless")
    return _plain(
        {
            "store_key": digest,
            **identity,
            "scenes": [scene.describe() for scene in scenes],
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        }
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from a file: lists for tuples, text for keys."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _continued(before: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has resolved, with the scenes that are new or have moved."""
    scenes = {scene["name"]: scene for scene in [*before["scenes"], *resolved["scenes"]]}
    return before | {"scenes": list(scenes.values())}


def _recorded(folder: Path) -> dict[str, Any]:
    """What an earlier run in this folder has resolved; empty if there was none."""
    path = folder / "run.yaml"
    if not path.exists():
        return {}
    try:
        resolved = yaml.safe_load(path.read_text(encoding="utf-8"))
        if set(IDENTITY) | {"scenes", "store_key"} <= set(resolved) and all(
            scene["name"] for scene in resolved["scenes"]
        ):
            return dict(resolved)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Choose another out_dir.") from error
    except (TypeError, KeyError):
        pass
    raise RunFolderError(f"{path} was not written by a run. Choose another out_dir.")


def _refuse_another_run(folder: Path, before: dict[str, Any], resolved: dict[str, Any]) -> None:
    changed = [k for k in IDENTITY if before[k] != resolved[k]]
    if changed:
        raise RunFolderError(
            f"{folder} holds a run with another {' and '.join(changed)}, so its candidates do not "
            f"fit this job:\n{_differences(before, resolved, changed)}\n{REMEDY}"
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
            f"not fit this job:\n{_differences(old, scene, changed)}\n{REMEDY}"
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace files that no run has written."""
    names = [name for name in (*OUTPUTS, "candidates") if (folder / name).exists()]
    if names:
        raise RunFolderError(
            f"{folder} holds {', '.join(names)}, which this run would replace, but no run.yaml, so "
            "no run has written them. Move them away, or choose another out_dir."
        )


def _refuse_unwritable(folder: Path) -> None:
    """Try to write in the folder, and leave nothing behind."""
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from error
    finally:
        for path in made:
            with suppress(OSError, ValueError):
                path.rmdir()


def _unwritable(folder: Path, error: Exception) -> RunFolderError:
    reason = getattr(error, "strerror", None) or error
    return RunFolderError(f"out_dir {folder} cannot be written: {reason}. Choose another.")


def _refuse_to_lose_review(folder: Path) -> None:
    gpkg = folder / "prelabels.gpkg"
    layers.refuse_open(gpkg)
    reviewed = layers.count_reviewed(gpkg) if gpkg.exists() else 0
    if reviewed:
        raise RunFolderError(
            f"{gpkg} holds {reviewed} reviewed labels, which this run would replace. Move it out "
            "of the run folder, or choose another out_dir."
        )


def _claim(plan: Plan, resolved: dict[str, Any], before: dict[str, Any]) -> None:
    """Make the run folder this job's own: the first thing that is written."""
    folder = plan.folder
    try:
        remove_stale(folder)
        remove_stale(plan.store.folder)
        if not before:
            plan.store.clear()
        if resolved != before:
            with atomic_path(folder / "run.yaml") as path:
                path.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
        if not (folder / "job.yaml").exists():  # else it describes the layer that is there
            _write_job(plan.job, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_job(job: Job, folder: Path) -> None:
    with atomic_path(folder / "job.yaml") as path:
        path.write_text(job.to_yaml(), encoding="utf-8")


def _differences(before: Any, now: Any, keys: Iterable[str]) -> str:
    flat_before, flat_now = (
        pd.json_normalize({k: _by_name(r.get(k)) for k in keys}).iloc[0].to_dict()
        for r in (before, now)
    )
    names = [k for k in flat_now | flat_before if flat_before.get(k) != flat_now.get(k)]
    return "\n".join(f"  {k}: {flat_before.get(k)} there, {flat_now.get(k)} here" for k in names)


def _by_name(value: Any) -> Any:
    return {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value


# ------------------------------------------------------------------------------- 2. segment


def segment(plan: Plan) -> None:
    """Compute and store the candidates of all wanted tiles that are not stored yet."""
    pending = _pending(plan)
    if not pending:
        return
    with tqdm(total=len(pending), desc="tiles", unit="tile") as bar:
        for part in plan.scenes:
            _segment_scene(part, [tile for owner, tile in pending if owner is part], plan, bar)


def _pending(plan: Plan) -> list[tuple[ScenePlan, Tile]]:
    """The wanted tiles that are not stored, or failed."""
    known = plan.store.ledger()
    done = {index for index, (record, _) in known.items() if record.status != "failed"}
    return [
        (part, tile)
        for part in plan.scenes
        for tile in part.tiles
        if (part.scene.name, tile.row, tile.col) not in done
    ]


def _segment_scene(part: ScenePlan, tiles: list[Tile], plan: Plan, bar: tqdm[Any]) -> None:
    """Store finished tiles every few seconds, and what is there when something stops the run."""
    done: list[tuple[Candidates | None, TileRecord]] = []
    flushed = time.monotonic()
    try:
        for tile in tiles:
            done.append(_segment_tile(part.scene, tile, plan.segmenter))
            bar.update()
            if time.monotonic() - flushed > FLUSH_SECONDS or len(done) >= FLUSH_TILES:
                _store(done, plan)
                done, flushed = [], time.monotonic()
    finally:
        _store(done, plan)
        part.scene.close()


def _store(done: list[tuple[Candidates | None, TileRecord]], plan: Plan) -> None:
    if done:
        tables = [candidates for candidates, _ in done if candidates is not None]
        table = concat(tables) if tables else Candidates.empty(_tile_rules(plan.job))
        plan.store.write(table, [record for _, record in done])


def _tile_rules(job: Job) -> Rules:
    return Rules(
        job.tile_size,
        job.tile_size,
        job.pred_iou_floor,
        job.stability_floor,
        job.box_nms_thresh,
        job.crop_nms_thresh,
        job.crop_n_layers,
    )


def _segment_tile(
    scene: Scene, tile: Tile, segmenter: Segmenter
) -> tuple[Candidates | None, TileRecord]:
    """One tile's candidates and its line in the ledger; an error becomes a line, too."""
    start = time.perf_counter()
    candidates, valid_rle, error = None, None, ""
    status: Status = "nodata"
    try:
        image, valid = scene.read(tile.window)
        if valid.any():
            valid_rle = None if valid.all() else encode_masks(valid[None])[0].decode()
            candidates = segmenter.propose(image).at_tile(tile.row, tile.col)
            status = "ok" if len(candidates) else "empty"
    except Exception as problem:
        # one bad tile must not cost the others; it is in the ledger, and the run fails at its end
        status, error = "failed", f"{type(problem).__name__}: {problem}"
    n = 0 if candidates is None else len(candidates)
    seconds = round(time.perf_counter() - start, 3)
    record = TileRecord(scene.name, tile.row, tile.col, status, error, n, seconds, valid_rle)
    return candidates, record


# -------------------------------------------------------------------------------- 3. finish


def finish(plan: Plan) -> Run:
    """Make the layer from the stored candidates, and write everything that the folder holds."""
    polygons, windows = gather(plan)
    merged = merge_seams(polygons, windows)
    layer = _as_layer(_in_aoi(clean(merged, plan.job.cleaning), plan), plan)
    tiles = _ledger_layer(plan, layer)
    scenes = tuple(part.scene for part in plan.scenes)
    result = Run(plan.job, plan.folder, scenes, layer, tiles, plan.aoi)
    _write(result)
    failed = tiles[tiles["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise RunFailedError(
            f"{len(failed)} of {len(tiles)} tiles failed, the first is {first['tile']}: "
            f"{first['error']}\nThe other tiles are in {plan.folder}, with all errors in "
            "tiles.parquet. Run again to try the failed tiles again."
        )
    return result


def gather(plan: Plan) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Return the selected polygons of all wanted tiles as the tiles saw them, and the windows."""
    polygons, windows = [], []
    known = plan.store.ledger()
    for part in plan.scenes:
        # a tile that failed has decided nothing about what its neighbours saw
        seen = [tile for tile in part.tiles if _record(known, part, tile).status != "failed"]
        windows.append(tile_windows(part.scene, part.grid, seen))
        wanted = [(part.scene.name, tile.row, tile.col) for tile in part.tiles]
        for candidates, records in plan.store.read(wanted):
            chosen = select(candidates, plan.job.thresholds)
            valid = valid_masks(records, candidates.rules)
            polygons.append(to_polygons(chosen, part.scene, part.grid, valid))
    if not polygons:
        part = plan.scenes[0]
        nothing = Candidates.empty(_tile_rules(plan.job))
        polygons.append(to_polygons(nothing, part.scene, part.grid, {}))
    return pd.concat(polygons, ignore_index=True), pd.concat(windows, ignore_index=True)


def _record(
    ledger: Mapping[tuple[str, int, int], tuple[TileRecord, Path]], part: ScenePlan, tile: Tile
) -> TileRecord:
    return ledger[part.scene.name, tile.row, tile.col][0]


def _in_aoi(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    """Keep whole what has its representative point in the AOI."""
    if plan.aoi is None or not len(polygons):
        return polygons
    shapely.prepare(plan.aoi)
    inside = shapely.intersects(plan.aoi, polygons.representative_point().to_numpy())
    return polygons[inside].reset_index(drop=True)


def _as_layer(polygons: gpd.GeoDataFrame, plan: Plan) -> gpd.GeoDataFrame:
    tile = _tile_names(polygons)
    return layers.as_layer(
        polygons.assign(
            id=tile + "/" + polygons["ordinal"].astype(str),
            source_tile=tile,
            class_id=pd.array([plan.job.default_class] * len(polygons), dtype="Int64"),
        )
    )


def _tile_names(frame: pd.DataFrame) -> pd.Series:
    row, col = frame["tile_row"].astype(str), frame["tile_col"].astype(str)
    return frame["source"].astype(str) + "/r" + row + "c" + col


def _ledger_layer(plan: Plan, layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """One row for each wanted tile: its core and what the ledger says."""
    known = plan.store.ledger()
    rows = [asdict(_record(known, part, tile)) for part in plan.scenes for tile in part.tiles]
    cores = [part.scene.window_polygon(tile.core) for part in plan.scenes for tile in part.tiles]
    ledger = gpd.GeoDataFrame(rows, geometry=cores, crs=plan.crs)
    ledger["tile"] = _tile_names(ledger)
    counts = layer["source_tile"].value_counts()
    ledger["n_polygons"] = ledger["tile"].map(counts).fillna(0).astype(int)
    return layers.as_tiles(ledger)


def _write(result: Run) -> None:
    folder, classes, scene = result.folder, result.job.classes, result.scenes[0]
    _refuse_to_lose_review(folder)  # again: it may have begun during a long run
    # without it the GeoPackage stands for itself, should this be the last that we get to write
    (folder / "prelabels.parquet").unlink(missing_ok=True)
    files = layers.write_layer(result.layer, result.tiles, folder, styles=qgis.styles(classes))
    _write_job(result.job, folder)
    with atomic_path(folder / "tiles.parquet") as path:
        result.tiles.to_parquet(path, index=False)
    qgis.write_project(
        folder / "review.qgz",
        gpkg=files.gpkg,
        rasters=[qgis.scene_raster(scene) for scene in result.scenes],
        crs=scene.crs,
        bounds=tuple(result.tiles.total_bounds),
        classes=classes,
        title=folder.name,
    )
    report.write_report(
        folder / "report.html",
        title=folder.name,
        picture_png=result.picture(),
        summary=result.summary,
        parameters=result.job.parameters(),
        tiles=result.tiles,
    )
