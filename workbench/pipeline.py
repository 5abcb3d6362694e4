"""From a job to its run folder: the one place that knows the order of the steps."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyogrio
import pyproj
import shapely
import yaml
from tqdm import tqdm

from workbench import layer as layers
from workbench import qgis, report
from workbench.atomic import atomic_path
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
IDENTITY = ("crs", "scenes", "tiling", "segmenter")  # what the stored candidates depend on


@dataclass(frozen=True)
class ScenePlan:
    """One scene of a run: its grid, and the tiles and AOI (in its CRS) that are wanted."""

    scene: Scene
    grid: TileGrid
    tiles: tuple[Tile, ...]
    aoi: shapely.Geometry | None


@dataclass(frozen=True)
class Plan:
    """A job that has been checked: everything that can be wrong before long work starts."""

    job: Job
    folder: Path
    scenes: tuple[ScenePlan, ...]
    segmenter: Segmenter

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

    @property
    def summary(self) -> pd.DataFrame:
        """What a person wants to know of the run, a row for each quantity."""
        return report.summary_table(self.layer, self.tiles)

    def picture(self) -> bytes:
        """Draw the layer over its imagery (of many scenes: the first), as PNG."""
        scene = self.scenes[0]
        rgb, valid, transform = scene.overview(PICTURE_PX)
        here = self.layer[self.layer["source"] == scene.name]
        figure = report.draw_map(
            rgb,
            valid,
            transform,
            here,
            tiles=self.tiles,
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
    """Open and check everything that a job names; touches the run folder last."""
    scenes = _open_scenes(job)
    aoi = load_aoi(job.aoi) if job.aoi is not None else None
    planned = tuple(
        ScenePlan(scene, grid, tuple(tiles_over(scene, grid, area)), area)
        for scene in scenes
        for grid in [TileGrid(scene.width, scene.height, job.tile_size, job.overlap)]
        for area in [None if aoi is None else _clip(aoi, scene)]
        if aoi is None or area is not None
    )
    if not planned:
        raise AOIError(_outside(aoi, scenes))
    folder = Path(job.out_dir if job.out_dir is not None else f"runs/{scenes[0].name}").absolute()
    before = _resolved_before(folder, job)
    segmenter = _segmenter(job, before.get("segmenter", {}))
    resolved = _resolve(job, scenes, segmenter)
    _refuse_another_run(folder, before, resolved)
    _refuse_to_lose_review(folder)
    plan = Plan(job, folder, planned, segmenter)
    if not before or _pending(plan):
        segmenter.load()
    _claim(plan, resolved, before)
    return plan


def _open_scenes(job: Job) -> list[Scene]:
    sources = [str(sample_scene())] if job.source is None else find_sources(job.source)
    first = _open(sources[0], job, job.crs)
    # many rasters share one CRS: that of the first
    scenes = [first, *(_open(source, job, first.crs.to_wkt()) for source in sources[1:])]
    names = [scene.name for scene in scenes]
    return [
        replace(scene, name=f"{scene.name}-{names[:i].count(scene.name) + 1}")
        if scene.name in names[:i]
        else scene
        for i, scene in enumerate(scenes)
    ]


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


def _clip(aoi: gpd.GeoSeries, scene: Scene) -> shapely.Geometry | None:
    """The AOI in the scene's CRS, or None if they do not meet."""
    area = aoi.to_crs(scene.crs).union_all()
    return area if area.intersection(scene.window_polygon(scene.window)).area > 0 else None


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
        "scenes": [scene.describe() for scene in scenes],
        "tiling": {"tile_size": job.tile_size, "overlap": job.overlap},
        "segmenter": dict(segmenter.key),
    }
    plain = json.loads(json.dumps(identity))
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    packages = ("sam-workbench", "torch", "rasterio", "shapely", "numpy", "opencv-python-headless")
    return {
        "store_key": digest,
        **plain,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def _resolved_before(folder: Path, job: Job) -> dict[str, Any]:
    """What an earlier run in this folder has decided; empty if there was none."""
    path = folder / "run.yaml"
    if not path.exists():
        return {}
    try:
        resolved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. Choose another out_dir.") from error
    return resolved if job.resume and isinstance(resolved, dict) else {}


def _refuse_another_run(folder: Path, before: dict[str, Any], resolved: dict[str, Any]) -> None:
    if not before or before.get("store_key") == resolved["store_key"]:
        return
    changed = [k for k in IDENTITY if before.get(k) != resolved[k]]
    raise RunFolderError(
        f"{folder} holds a run with another {' and '.join(changed)}, so its candidates do not "
        f"fit this job:\n{_differences(before, resolved, changed)}\n"
        "Choose another out_dir, or set resume=false to replace that run."
    )


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
    try:
        with atomic_path(plan.folder / "job.yaml") as path:
            path.write_text(plan.job.to_yaml(), encoding="utf-8")
        if before:
            return
        for stale in plan.store.folder.glob("*.parquet"):
            stale.unlink()
        with atomic_path(plan.folder / "run.yaml") as path:
            path.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"out_dir {plan.folder} cannot be written: {error.strerror or error}. Choose another."
        ) from error


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
    return Rules(job.tile_size, job.tile_size, job.pred_iou_floor, job.stability_floor)


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
    result = Run(plan.job, plan.folder, scenes, layer, tiles)
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
    areas = {part.scene.name: part.aoi for part in plan.scenes}
    if not len(polygons) or all(area is None for area in areas.values()):
        return polygons
    area = shapely.union_all(list(areas.values()))
    shapely.prepare(area)
    inside = shapely.intersects(area, polygons.representative_point().to_numpy())
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
    files = layers.write_layer(result.layer, result.tiles, folder, styles=qgis.styles(classes))
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
