"""The parameters of a run: validated, and taken as a person or a command line means them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyproj
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.candidates import Thresholds
from workbench.errors import JobError
from workbench.polygons import Cleaning

Model = Literal["classic", "vit_b", "vit_l", "vit_h"]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]


def _as_meant(value: Any) -> Any:
    """Undo what the command line does to values: `-p aoi null` and lists arrive as text."""
    if isinstance(value, str):
        if value.strip().lower() in {"null", "none", ""}:
            return None
        if value.strip()[0] in "[{":
            try:
                return yaml.safe_load(value)
            except yaml.YAMLError:
                return value
    return value


def _text(value: Any) -> Any:
    """Take `-p source 2019` as the name that it is."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_text(item) for item in value]
    return str(value) if isinstance(value, int | float | Path) else value


def _auto(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def _yes_or_no(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[str | list[str], BeforeValidator(_text)]
YesNo = Annotated[bool, BeforeValidator(_yes_or_no)]
Auto = BeforeValidator(_auto)


def _field(
    default: Any, description: str, *, ge: float | None = None, le: float | None = None
) -> Any:
    return Field(default, description=description, ge=ge, le=le)


class Job(BaseModel):
    """Every parameter of a run; the notebook's parameters cell has exactly these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Texts | None = _field(
        None,
        "path, list, glob, directory, VRT or URL (`https://`, `s3://`) of one or many rasters; "
        "null: the sample scene",
    )
    aoi: Text | dict[str, Any] | None = _field(
        None, "vector file in any CRS, or GeoJSON geometry in EPSG:4326; null: the whole raster"
    )
    out_dir: Text | None = _field(None, "the run folder; null: `runs/<scene>`")
    model: Model = _field("classic", "`classic` needs no weights; the others are Meta's SAM")
    checkpoint: Text | None = _field(None, "local weights file; overrides the download")
    device: Literal["auto", "cuda", "mps", "cpu"] = _field("auto", "where the network runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", "bf16 on CUDA where it is native, else fp16; fp32 on CPU"
    )
    bands: Annotated[tuple[int, int, int] | None, Auto] = _field(
        None, "three 1-based band numbers; auto: by colour interpretation"
    )
    stretch: Annotated[tuple[Percent, Percent] | None, Auto] = _field(
        None, "two percentiles; auto: none for 8-bit rasters, else 2 and 98"
    )
    crs: Annotated[Text | None, Auto] = _field(
        None, "metric working CRS; auto: the raster's own, or UTM if that is not in metres"
    )
    resolution_m: Positive | None = _field(None, "resample to this ground resolution, metres")
    tile_size: int = _field(1024, "pixels", ge=64, le=8192)
    overlap: float = _field(0.1875, "fraction of the tile", ge=0, le=0.5)
    points_per_side: int = _field(32, "SAM's prompt grid", ge=1, le=256)
    crop_n_layers: int = _field(0, "SAM's crops", ge=0, le=4)
    pred_iou_thresh: Share = _field(0.85, "keep masks with a predicted IoU above this")
    stability_score_thresh: Share = _field(0.92, "keep masks that are at least this stable")
    pred_iou_floor: Share = _field(0.5, "what is stored; the lower end of the slider")
    stability_floor: Share = _field(0.5, "what is stored; the lower end of the slider")
    box_nms_thresh: Share = _field(0.7, "of two masks with a higher box IoU the worse one goes")
    crop_nms_thresh: Share = _field(0.7, "the same among crops")
    min_area_px: int = _field(500, "mask parts smaller than this go, pixels", ge=0)
    min_area_m2: float | None = _field(None, "masks smaller than this go, ground m²", ge=0)
    max_area_m2: Positive | None = _field(None, "masks larger than this go, ground m²")
    fill_holes_m2: Positive | None = _field(None, "holes smaller than this are filled, ground m²")
    min_solidity: Share | None = _field(None, "least area / area of the convex hull")
    simplify_m: float | None = _field(0.5, "tolerance of simplification, ground metres", ge=0)
    planar: YesNo = _field(False, "no overlaps: smaller polygons on top, edges shared")
    classes: dict[int, str] = _field({1: "object"}, "value map of the review form")
    default_class: int | None = _field(None, "class of new labels")
    scheduler: Text | None = _field(None, "address of a Dask scheduler; null: this process")
    resume: YesNo = _field(True, "reuse stored candidates; failed tiles are tried again")
    interactive: Annotated[YesNo | None, Auto] = _field(
        None, "show widgets; auto: only where a person is at the notebook"
    )

    @model_validator(mode="before")
    @classmethod
    def _undo_command_line(cls, values: Any) -> Any:
        return {k: _as_meant(v) for k, v in values.items()} if isinstance(values, dict) else values

    @field_validator("crs")
    @classmethod
    def _known_crs(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                pyproj.CRS.from_user_input(int(value) if value.isdigit() else value)
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, value, floor in (
            ("pred_iou_thresh", self.pred_iou_thresh, self.pred_iou_floor),
            ("stability_score_thresh", self.stability_score_thresh, self.stability_floor),
        ):
            if value < floor:
                raise ValueError(
                    f"{name} ({value:g}) is below the floor of what is stored ({floor:g})"
                )
        if self.stretch is not None and self.stretch[0] >= self.stretch[1]:
            raise ValueError("stretch needs a lower and a higher percentile")
        if self.default_class is not None and self.default_class not in self.classes:
            raise ValueError(
                f"default_class {self.default_class} is not one of classes {self.classes}"
            )
        if self.scheduler is not None:
            raise ValueError("scheduler: running on a Dask cluster is not built yet; leave it null")
        return self

    @classmethod
    def create(cls, **parameters: Any) -> Job:
        """Validate parameters; a bad one raises `JobError` that names it."""
        try:
            return cls(**parameters)
        except ValidationError as error:
            raise JobError(_explain(error)) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Job:
        """Take the parameters from a notebook's `globals()`; unknown ones raise `JobError`.

        Anything that looks like a parameter (a plain value with a public name) must be one. Where
        a person is at work, who may have variables of their own, only near misses are refused.
        """
        values = {k: v for k, v in namespace.items() if k in cls.model_fields}
        job = cls.create(**values)
        others = {
            k: v
            for k, v in namespace.items()
            if k not in cls.model_fields and not k.startswith("_") and k not in {"In", "Out"}
        }
        plain = [
            k for k, v in others.items() if isinstance(v, str | int | float | list | dict | None)
        ]
        for name in plain:
            close = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.8)
            if close or not job.is_interactive:
                raise JobError(_unknown(name))
        return job

    @classmethod
    def from_yaml(cls, path: Path) -> Job:
        """Read a `job.yaml`."""
        try:
            parameters = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
        for name in ("bands", "stretch", "crs", "interactive"):
            values[name] = "auto" if values[name] is None else values[name]
        values["classes"] = dict(self.classes)
        for name in ("source", "aoi", "out_dir", "checkpoint"):
            value = values[name]
            if isinstance(value, list):
                values[name] = [_absolute(item) for item in value]
            elif isinstance(value, str):
                values[name] = _absolute(value)
        return values

    @property
    def is_interactive(self) -> bool:
        """Whether a person is at the notebook, who can use widgets."""
        if self.interactive is not None:
            return self.interactive
        started_by_ui = {"JPY_SESSION_NAME", "__vsc_ipynb_file__"} & set(os.environ)
        return bool(started_by_ui) and _kernel_allows_input()

    @property
    def thresholds(self) -> Thresholds:
        """The two sliders."""
        return Thresholds(self.pred_iou_thresh, self.stability_score_thresh)

    @property
    def cleaning(self) -> Cleaning:
        """The cleaning parameters."""
        return Cleaning(**{name: getattr(self, name) for name in Cleaning.__dataclass_fields__})


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(name))
        elif name:
            lines.append(f"Parameter `{name}`: {message} (given: {problem['input']!r})")
        else:
            lines.append(message)
    return "\n".join(dict.fromkeys(lines))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, Job.model_fields, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(Job.model_fields)}."
    return f"Unknown parameter `{name}`. {hint}"


def _absolute(path: str) -> str:
    return path if "://" in path or path.startswith("/vsi") else str(Path(path).absolute())


def _kernel_allows_input() -> bool:
    """False under papermill and nbclient, which ask the kernel not to take standard input."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
