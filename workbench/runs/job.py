"""The parameters of a run, validated."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import field_validator, model_validator

from workbench._support.secrets import without_secrets
from workbench._support.yaml import read_yaml
from workbench.candidates.offer import Offer, Overlaps
from workbench.candidates.select import Thresholds
from workbench.candidates.table import Rules
from workbench.errors import JobError
from workbench.polygons.clean import Cleaning
from workbench.raster.sources import absolute
from workbench.runs.given import holds_number, texts_in_yaml
from workbench.runs.parameters import (
    AUTO,
    PATHS,
    Parameters,
    Percent,
    Positive,
    Share,
    Text,
    as_meant,
    parameter,
)
from workbench.runs.together import (
    NOTHING_TO_FIND,
    OF_CONCEPTS,
    check_concepts,
    check_prompts,
    check_squared,
)
from workbench.runs.trust import refuse_strange_scheduler
from workbench.runs.values import (
    Bands,
    ClassNames,
    Concepts,
    CrsName,
    Formats,
    KnownModel,
    Scales,
    Source,
    SwitchOrClasses,
)
from workbench.segmenters.defaults import defaults_of

USUAL_CLASSES = {1: "object"}


class Job(Parameters):
    """Every parameter of a run; the notebook's parameters cell has exactly these fields.

    `Job.create` raises a `JobError` that names a bad parameter; `docs/parameters.md` lists all.

    Example:
        >>> job = Job.create(source="ortho.tif", tile_size=512)
        >>> job.changed(pred_iou_thresh=0.9).thresholds
        Thresholds(pred_iou_thresh=0.9, stability_score_thresh=0.92)
    """

    source: Source = parameter(
        None,
        "path, list, glob, directory, VRT or URL (`https://`, `s3://`) of one or many rasters; web "
        "tiles (`https://…/{z}/{x}/{y}.png`); a STAC item, or a search (`{stac: URL, …}`); null: "
        "the sample scene",
    )
    aoi: Text | dict[str, Any] | None = parameter(
        None,
        "vector file in any CRS (`file.gpkg|layername=aoi`: one layer of it), or GeoJSON geometry "
        "in EPSG:4326; polygons whose representative "
        "point is inside are kept, unclipped; null: the whole raster",
    )
    out_dir: Text | None = parameter(None, "the run folder; null: `runs/<scene>`")
    model: KnownModel = parameter(
        "tiny",
        "`tiny`: a small SAM that comes with the package; `classic`: a baseline without weights; "
        "`vit_b`, `vit_l`, `vit_h`: Meta's SAM, downloaded on first use; with the extra `models` "
        "`mobile_sam`: a small SAM for computers without a GPU, `sam2.1_…`: SAM 2.1, `edgetam`: a "
        "small SAM 2, `sam_hq_…`: HQ-SAM and `sam3`: SAM 3, whose weights you name as `checkpoint`",
    )
    checkpoint: Text | None = parameter(
        None, "local weights file instead of the model's own; for `sam3` the folder of its weights"
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = parameter("auto", "where the network runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = parameter(
        "auto", "auto: bf16 on CUDA if it is native there, else fp16; fp32 on CPU"
    )
    bands: Bands | None = parameter(
        None, "three 1-based band numbers; auto: by colour interpretation"
    )
    stretch: tuple[Percent, Percent] | None = parameter(
        None, "two percentiles; auto: none for 8-bit rasters, else 2 and 98"
    )
    nodata: float | None = parameter(
        None,
        "a value that means no data, besides what the file says; null: found if it stands far "
        "apart from all others, for example -9999 in reflectance from 0 to 1",
    )
    crs: CrsName | None = parameter(
        None, "metric working CRS; auto: the raster's own if it is in metres, else UTM"
    )
    resolution_m: Positive | None = parameter(None, "resample to this ground resolution, metres")
    tile_size: int = parameter(1024, "side of a tile, pixels; SAM sees it at 1024", ge=64, le=8192)
    overlap: float = parameter(
        0.1875, "overlap of neighbouring tiles, fraction of the tile", ge=0, le=0.5
    )
    scales: Scales = parameter(
        [1],
        "1, then how many times as large the pixels are with which the scene is segmented again; "
        "with `[1, 4]`, objects larger than a tile are found whole",
    )
    points_per_side: int = parameter(32, "point prompts per tile side (n × n grid)", ge=1, le=256)
    crop_n_layers: int = parameter(
        0, "layers of enlarged crops of each tile in which SAM looks again", ge=0, le=4
    )
    pred_iou_thresh: Share | None = parameter(
        None, "keep masks with a predicted IoU above this; null: the model's own"
    )
    stability_score_thresh: Share | None = parameter(
        None, "keep masks that are at least this stable; null: the model's own"
    )
    pred_iou_floor: Share | None = parameter(
        None,
        "store masks with a predicted IoU above this; the lower end of the slider; null: the "
        "model's own",
    )
    stability_floor: Share | None = parameter(
        None,
        "store masks that are at least this stable; the lower end of the slider; null: the "
        "model's own",
    )
    box_nms_thresh: Share | None = parameter(
        None, "drop the worse of two masks whose box IoU is higher; null: the model's own"
    )
    crop_nms_thresh: Share = parameter(0.7, "the same for masks of different crops")
    max_area_share: Share | None = parameter(
        0.8,
        "drop masks that cover more than this share of their tile's valid pixels, and masks that "
        "touch three or four edges of the scene, or of their tile without going on in the next; "
        "null: keep them",
    )
    duplicate_iou: Share | None = parameter(
        0.7, "drop the worse of two masks whose mask IoU is higher; null: keep both"
    )
    overlaps: Overlaps = parameter(
        "nested",
        "`all`: labels may overlap freely; `nested`: only parts on top of their wholes; `one`: "
        "one label at each place",
    )
    min_area_px: int | None = parameter(500, "remove mask parts smaller than this, pixels", ge=0)
    min_area_m2: float | None = parameter(None, "remove masks smaller than this, ground m²", ge=0)
    max_area_m2: Positive | None = parameter(None, "remove masks larger than this, ground m²")
    fill_holes_m2: Positive | None = parameter(None, "fill holes smaller than this, ground m²")
    min_solidity: Share | None = parameter(
        None, "remove masks with a lower ratio of area to convex hull area"
    )
    simplify_m: float | None = parameter(
        None,
        "tolerance of simplification, ground metres; 0: off; null: one pixel, at most 1 m",
        ge=0,
    )
    planar: bool = parameter(False, "no overlaps: smaller polygons on top, edges shared")
    regularize: SwitchOrClasses = parameter(
        None,
        "right angles: true for all polygons, a list of class ids for these; needs the extra "
        "`regularize`; null: none",
    )
    examples: Text | list[Text] | None = parameter(
        None,
        "one or many vector files with `class_id` (0: none of these) that teach classes: reviewed "
        "layers, polygons, `examples.parquet` of other runs; thresholds that are set are then "
        "lower limits, and each place gets one label; null: no classes are learned",
    )
    labelled_area: Text | None = parameter(
        None,
        "vector file of where the labels of `examples` are complete: all other objects there are "
        "none of the classes",
    )
    class_thresh: Share | None = parameter(
        None,
        "keep objects whose class scores at least this; null: what costs least review, estimated "
        "on labelled tiles held out",
    )
    prompts: Text | None = parameter(
        None,
        "vector file of points, or of boxes and polygons, in any CRS (footprints, a cadastre, last "
        "year's labels): each feature gets one label, and what the model cannot find keeps its "
        "shape; null: none",
    )
    grid: bool | None = parameter(
        None,
        "whether the model also segments everything, as it does without `prompts`; where both are "
        "at one place, the label of the prompt is kept; auto: not beside `prompts`, unless "
        "`examples` or `concepts` give classes",
    )
    concepts: Concepts = parameter(
        None,
        "for `sam3`: what the objects of each class are called, for example `{1: building}`, in "
        "English; all of them are found, with class and score; null: none",
    )
    exemplars: Text | None = parameter(
        None,
        "for `sam3`: vector file of boxes or polygons on the scene with `class_id`, each around "
        "an object of this class, or around one that is not (`class_id` 0, or a column `unlike`); "
        "with or without `concepts`; null: none",
    )
    classes: ClassNames = parameter(
        USUAL_CLASSES,
        "numbers and names of the classes for the review; with `concepts` by default their words",
    )
    default_class: int | None = parameter(None, "class of all pre-labels; null: set in the review")
    reference: Text | None = parameter(
        None,
        "vector file with all true objects; the report then says how good the labels are; null: "
        "no such section",
    )
    formats: Formats = parameter(
        None, "further files of the layer for maps on the web: `flatgeobuf`, `pmtiles`; null: none"
    )
    scheduler: Text | None = parameter(None, "address of a Dask scheduler; null: this process")
    resume: bool = parameter(True, "reuse stored candidates; failed tiles are tried again")
    refresh: bool = parameter(
        False, "keep all labels that a person has touched, and make the others anew; false: refuse"
    )
    interactive: bool | None = parameter(None, "show widgets; auto: only in JupyterLab and VS Code")

    _as_meant = field_validator("*", mode="before")(as_meant)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.concepts is not None and self.classes == USUAL_CLASSES:
            # while it is being made, as pydantic does it
            object.__setattr__(self, "classes", dict(self.concepts))
        self.thresholds.refuse_below(self.rules)
        if self.stretch is not None and self.stretch[0] >= self.stretch[1]:
            raise ValueError("stretch needs a lower and then a higher percentile")
        if self.default_class is not None and self.default_class not in self.classes:
            raise ValueError(
                f"default_class {self.default_class} is not one of classes {self.classes}. Add it "
                "there, or choose one of them"
            )
        if isinstance(self.regularize, list):
            check_squared(self.regularize, self.classes, self.knows_classes, self.default_class)
        for name in ("labelled_area", "class_thresh"):
            if self.examples is None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} says something of classes that are learned: name the labels that "
                    f"teach them in `examples`, or leave {name} null"
                )
        check_prompts(
            self.prompts, self.grid, self.examples, self.planar, self.scheduler, self.refresh
        )
        if self.lacks_concepts and not self.is_interactive:  # in the tuner, boxes are drawn
            raise ValueError(NOTHING_TO_FIND)
        check_concepts(
            self.model, self.concepts, self.exemplars, self.classes, self.grid, self.scheduler
        )
        if self.model == "classic" and self.checkpoint is not None:
            raise ValueError(
                f"checkpoint {self.checkpoint}: `classic` has no weights. Set model to the SAM "
                "that these are for (tiny, vit_b, sam2.1_tiny …), or leave checkpoint null"
            )
        return self

    def changed(self, **parameters: Any) -> Job:
        """Return this job with other values; a bad one raises `JobError` that names it."""
        return Job.create(**dict(self) | parameters)

    @classmethod
    def from_yaml(cls, path: Path) -> Job:
        """Read a `job.yaml`.

        A scheduler in it must be trusted: see `refuse_strange_scheduler`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            parameters = read_yaml(text)
        except (OSError, ValueError) as error:
            raise JobError(
                f"{path} cannot be read as a job: {str(error).rstrip('.')}. Mend the file; the "
                "job.yaml of a run folder shows how it should look."
            ) from error
        if not isinstance(parameters, dict) or not all(isinstance(k, str) for k in parameters):
            raise JobError(
                f"{path} is not a job: `name: value` lines expected. The job.yaml of a run folder "
                "shows how it should look."
            )
        for name in PATHS:
            value = parameters.get(name)
            if not isinstance(value, dict) and holds_number(value):  # a folder called 2024_05
                parameters[name] = texts_in_yaml(text)[name]
        job = cls.create(**parameters)
        refuse_strange_scheduler(path, job.scheduler)
        return job

    def to_yaml(self) -> str:
        """Return the parameters as `papermill -f` takes them; local paths are made absolute.

        `scheduler` is left null: a file may come from anybody, and a scheduler is trusted code.
        """
        values = self.parameters() | {"scheduler": None}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def parameters(self) -> dict[str, Any]:
        """Return all parameters as plain values, local paths absolute, `auto` written out.

        Signatures and passwords in addresses are left out: these values are written to files.
        """
        values = self.model_dump(mode="json")
        for name in AUTO:
            values[name] = "auto" if values[name] is None else values[name]
        values["classes"] = dict(self.classes)
        for name in PATHS:
            value = values.get(name)
            if isinstance(value, list):
                values[name] = [without_secrets(absolute(item)) for item in value]
            elif isinstance(value, str):
                values[name] = without_secrets(absolute(value))
            elif name == "source" and isinstance(value, dict) and "stac" in value:
                values[name] = value | {"stac": without_secrets(absolute(str(value["stac"])))}
        return values

    def command(self, notebook: str, output: str, given: Job | None = None) -> str:
        """Return the papermill command, quoted for a shell, that runs exactly this job.

        `given` is the job of the notebook's own cell, if its parameters are not the usual ones.
        """
        parts = ["papermill", notebook, output]
        usual = Job().parameters()
        there = usual if given is None else given.parameters()
        for name, value in self.parameters().items():
            if value == usual[name] == there[name]:
                continue
            if isinstance(value, str | int | float):
                parts += ["-p", name, str(value)]
            else:  # `-p` would make text of it
                parts += ["-y", yaml.safe_dump({name: value}, default_flow_style=True, width=1e9)]
        return shlex.join(part.strip() for part in parts)

    @property
    def thresholds(self) -> Thresholds:
        """The two sliders; where the job leaves them open, the model's own."""
        own = defaults_of(self.model)
        iou, stability = self.pred_iou_thresh, self.stability_score_thresh
        return Thresholds(
            own.pred_iou_thresh if iou is None else iou,
            own.stability_score_thresh if stability is None else stability,
        )

    @property
    def offer(self) -> Offer:
        """Which of the selected masks become labels."""
        by_class = self.finds_concepts and self.examples is None
        return Offer(self.max_area_share, self.duplicate_iou, self.overlaps, by_class=by_class)

    @property
    def uses_grid(self) -> bool:
        """Whether everything is segmented, not only what is at the prompts."""
        if self.grid is None:
            return self.prompts is None or self.knows_classes
        return self.grid

    @property
    def finds_concepts(self) -> bool:
        """Whether the model finds objects of given classes, instead of everything."""
        return self.model == OF_CONCEPTS

    @property
    def lacks_concepts(self) -> bool:
        """Whether the model was not told yet what to find, by words or by exemplars."""
        return self.finds_concepts and self.concepts is None and self.exemplars is None

    @property
    def knows_classes(self) -> bool:
        """Whether the labels of a run have classes: of concepts, or taught."""
        return self.finds_concepts or self.examples is not None

    @property
    def limits(self) -> Thresholds:
        """The least scores where classes decide: the thresholds that are given, else the floors.

        Thresholds that suit a model's usual objects would leave nothing of small trees to classify.
        """
        rules, iou, stability = self.rules, self.pred_iou_thresh, self.stability_score_thresh
        return Thresholds(
            rules.pred_iou_floor if iou is None else iou,
            rules.stability_floor if stability is None else stability,
        )

    @property
    def rules(self) -> Rules:
        """What the candidates of a tile of `tile_size` are made under."""
        own, given = defaults_of(self.model), {}
        for name in ("pred_iou_floor", "stability_floor", "box_nms_thresh"):
            value = getattr(self, name)
            given[name] = getattr(own, name) if value is None else value
        crops = {name: getattr(self, name) for name in ("crop_nms_thresh", "crop_n_layers")}
        return Rules(self.tile_size, self.tile_size, **given, **crops)

    @property
    def cleaning(self) -> Cleaning:
        """The cleaning parameters."""
        values = {name: getattr(self, name) for name in Cleaning.__dataclass_fields__}
        return Cleaning(**values | {"min_area_px": self.min_area_px or 0})
