"""The parameters of a run: validated, and taken as a person or a command line means them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal, Self

import pyproj
import yaml
from pydantic import (
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from workbench._support.yaml import read_yaml
from workbench.candidates.select import Thresholds
from workbench.candidates.table import Rules
from workbench.errors import JobError
from workbench.polygons.clean import Cleaning
from workbench.raster.sources import absolute
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

Model = Literal["tiny", "classic", "vit_b", "vit_l", "vit_h"]


class Job(Parameters):
    """Every parameter of a run; the notebook's parameters cell has exactly these fields."""

    source: Text | list[Text] | None = parameter(
        None,
        "path, list, glob, directory, VRT or URL (`https://`, `s3://`) of one or many rasters; "
        "null: the sample scene",
    )
    aoi: Text | dict[str, Any] | None = parameter(
        None,
        "vector file in any CRS, or GeoJSON geometry in EPSG:4326; polygons whose middle lies in "
        "it are kept whole; null: the whole raster",
    )
    out_dir: Text | None = parameter(None, "the run folder; null: `runs/<scene>`")
    model: Model = parameter(
        "classic",
        "`tiny`: a small SAM that comes with the package; `classic`: a baseline without weights; "
        "`vit_b`, `vit_l`, `vit_h`: Meta's SAM, downloaded on first use",
    )
    checkpoint: Text | None = parameter(None, "local weights file in place of the model's own")
    device: Literal["auto", "cuda", "mps", "cpu"] = parameter("auto", "where the network runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = parameter(
        "auto", "bf16 on CUDA where it is native, else fp16; fp32 on CPU"
    )
    bands: tuple[int, int, int] | None = parameter(
        None, "three 1-based band numbers; auto: by colour interpretation"
    )
    stretch: tuple[Percent, Percent] | None = parameter(
        None, "two percentiles; auto: none for 8-bit rasters, else 2 and 98"
    )
    crs: Text | None = parameter(
        None, "metric working CRS; auto: the raster's own, or UTM if that is not in metres"
    )
    resolution_m: Positive | None = parameter(None, "resample to this ground resolution, metres")
    tile_size: int = parameter(1024, "side of a tile, pixels; SAM sees it at 1024", ge=64, le=8192)
    overlap: float = parameter(0.1875, "of neighbouring tiles, fraction of the tile", ge=0, le=0.5)
    points_per_side: int = parameter(
        32, "SAM is asked at a grid of so many points a side in each tile", ge=1, le=256
    )
    crop_n_layers: int = parameter(
        0, "SAM looks again at enlarged crops of a tile, so many layers of them", ge=0, le=4
    )
    pred_iou_thresh: Share = parameter(0.85, "keep masks with a predicted IoU above this")
    stability_score_thresh: Share = parameter(0.92, "keep masks that are at least this stable")
    pred_iou_floor: Share = parameter(
        0.5, "masks above this are stored; the lower end of the slider"
    )
    stability_floor: Share = parameter(
        0.5, "masks from this on are stored; the lower end of the slider"
    )
    box_nms_thresh: Share = parameter(0.7, "of two masks with a higher box IoU the worse one goes")
    crop_nms_thresh: Share = parameter(0.7, "the same among crops")
    min_area_px: int | None = parameter(500, "mask parts smaller than this go, pixels", ge=0)
    min_area_m2: float | None = parameter(None, "masks smaller than this go, ground m²", ge=0)
    max_area_m2: Positive | None = parameter(None, "masks larger than this go, ground m²")
    fill_holes_m2: Positive | None = parameter(
        None, "holes smaller than this are filled, ground m²"
    )
    min_solidity: Share | None = parameter(None, "least area / area of the convex hull")
    simplify_m: float | None = parameter(0.5, "tolerance of simplification, ground metres", ge=0)
    planar: bool = parameter(False, "no overlaps: smaller polygons on top, edges shared")
    examples: Text | list[Text] | None = parameter(
        None,
        "one or many vector files with `class_id` (0: none of these) that teach classes: reviewed "
        "layers, polygons, `examples.parquet` of other runs; thresholds that are not the defaults "
        "are then lower limits; null: no classes are learned",
    )
    labelled_area: Text | None = parameter(
        None,
        "vector file of where the labels of `examples` are complete: all other objects there are "
        "none of the classes",
    )
    class_thresh: Share | None = parameter(
        None,
        "keep objects whose class scores at least this; null: chosen on labelled tiles held out",
    )
    classes: dict[int, str] = parameter(
        {1: "object"}, "numbers and names of the classes that a review may give"
    )
    default_class: int | None = parameter(None, "class of all pre-labels; null: the review says")
    scheduler: Text | None = parameter(None, "address of a Dask scheduler; null: this process")
    resume: bool = parameter(True, "reuse stored candidates; failed tiles are tried again")
    interactive: bool | None = parameter(
        None, "show widgets; auto: only where a person is at the notebook"
    )

    @field_validator("crs")
    @classmethod
    def _known_crs(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                pyproj.CRS.from_user_input(int(value) if value.isdecimal() else value)
            except pyproj.exceptions.CRSError as error:
                raise ValueError(
                    "no CRS of this name is known; use a code as EPSG:32633"
                ) from error
        return value

    @field_validator("bands")
    @classmethod
    def _bands_from_1(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("band numbers start at 1")
        return value

    @field_validator("classes", mode="wrap")
    @classmethod
    def _one_name_for_each_class(
        cls, value: Any, validate: ValidatorFunctionWrapHandler
    ) -> dict[int, str]:
        for number, name in value.items() if isinstance(value, dict) else ():
            if isinstance(name, bool):
                raise ValueError(
                    f"class {number} is called {name}, which is what YAML makes of a bare yes, no, "
                    "on or off: put its name in quotes"
                )
        classes: dict[int, str] = validate(value)
        if len(classes) < len(value):
            raise ValueError("two classes have the same number")
        return classes

    # last, for what is defined last sees a value first
    _as_meant = field_validator("*", mode="before")(as_meant)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, value, floor in (
            ("pred_iou_thresh", self.pred_iou_thresh, self.pred_iou_floor),
            ("stability_score_thresh", self.stability_score_thresh, self.stability_floor),
        ):
            if value < floor:
                raise ValueError(
                    f"{name} ({value:g}) is below the floor of what is stored ({floor:g}): lower "
                    "the floor, too, which segments anew"
                )
        if self.stretch is not None and self.stretch[0] >= self.stretch[1]:
            raise ValueError("stretch needs a lower and a higher percentile")
        if self.default_class is not None and self.default_class not in self.classes:
            raise ValueError(
                f"default_class {self.default_class} is not one of classes {self.classes}"
            )
        for name in ("labelled_area", "class_thresh"):
            if self.examples is None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} says something of classes that are learned: name the labels that "
                    f"teach them in `examples`, or leave {name} null"
                )
        if self.model == "classic" and self.checkpoint is not None:
            raise ValueError(
                f"checkpoint {self.checkpoint}: `classic` has no weights. Set model to the SAM "
                "that they are for (tiny, vit_b, vit_l, vit_h), or leave checkpoint null"
            )
        return self

    def changed(self, **parameters: Any) -> Job:
        """Return this job with other values; a bad one raises `JobError` that names it."""
        return Job.create(**dict(self) | parameters)

    @classmethod
    def from_yaml(cls, path: Path) -> Job:
        """Read a `job.yaml`."""
        try:
            parameters = read_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"{path} cannot be read as a job: {error}") from error
        if not isinstance(parameters, dict) or not all(isinstance(k, str) for k in parameters):
            raise JobError(f"{path} is not a job: `name: value` lines expected")
        return cls.create(**parameters)

    def to_yaml(self) -> str:
        """Return the parameters as `papermill -f` takes them; local paths are made absolute."""
        return yaml.safe_dump(self.parameters(), sort_keys=False, allow_unicode=True)

    def parameters(self) -> dict[str, Any]:
        """Return all parameters as plain values, local paths absolute, `auto` written out."""
        values = self.model_dump(mode="json")
        for name in AUTO:
            values[name] = "auto" if values[name] is None else values[name]
        values["classes"] = dict(self.classes)
        for name in PATHS:
            value = values.get(name)
            if isinstance(value, list):
                values[name] = [absolute(item) for item in value]
            elif isinstance(value, str):
                values[name] = absolute(value)
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
        """The two sliders."""
        return Thresholds(self.pred_iou_thresh, self.stability_score_thresh)

    @property
    def limits(self) -> Thresholds:
        """The least scores where classes decide: thresholds as given, at their defaults the floors.

        Thresholds that suit a model's usual objects would leave nothing of small trees to classify.
        """
        iou, stability = self.pred_iou_thresh, self.stability_score_thresh
        defaults = [Job.model_fields[name].default for name in Thresholds.__dataclass_fields__]
        return Thresholds(
            self.pred_iou_floor if iou == defaults[0] else iou,
            self.stability_floor if stability == defaults[1] else stability,
        )

    @property
    def rules(self) -> Rules:
        """What the candidates of a tile are made under."""
        return Rules(
            self.tile_size,
            self.tile_size,
            self.pred_iou_floor,
            self.stability_floor,
            self.box_nms_thresh,
            self.crop_nms_thresh,
            self.crop_n_layers,
        )

    @property
    def cleaning(self) -> Cleaning:
        """The cleaning parameters."""
        values = {name: getattr(self, name) for name in Cleaning.__dataclass_fields__}
        return Cleaning(**values | {"min_area_px": self.min_area_px or 0})
