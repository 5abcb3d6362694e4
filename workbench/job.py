"""The parameters of a run: validated, and taken as a person or a command line means them."""

from __future__ import annotations

import difflib
import os
import reprlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyproj
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from workbench.candidates import Rules, Thresholds
from workbench.errors import JobError
from workbench.plain_yaml import read_yaml
from workbench.polygons import Cleaning
from workbench.sources import absolute

Model = Literal["tiny", "classic", "vit_b", "vit_l", "vit_h"]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which no name of a file can")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]


# where None is written `auto`
AUTO = ("bands", "stretch", "crs", "interactive")
PATHS = (
    "source", "aoi", "out_dir", "checkpoint",
    "run_dir", "reviewed", "reference", "labelled_area", "next_source",
)  # fmt: skip


def _field(
    default: Any, description: str, *, ge: float | None = None, le: float | None = None
) -> Any:
    return Field(default, description=description, ge=ge, le=le)


def as_meant(value: Any, field: ValidationInfo) -> Any:
    """Take text as a command line means it, and paths from home."""
    if isinstance(value, str):
        value = _parse(value, str(field.field_name))
    return _from_home(value) if field.field_name in PATHS else value


class Parameters(BaseModel):
    """The parameters of a notebook: its parameters cell has exactly these fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `-p source 2019` is a name
    )

    @classmethod
    def create(cls, **parameters: Any) -> Self:
        """Validate parameters; a bad one raises `JobError` that names it."""
        try:
            return cls(**parameters)
        except ValidationError as error:
            raise JobError(_explain(error, cls)) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
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
                raise JobError(_unknown(name, cls))
        return job

    @property
    def is_interactive(self) -> bool:
        """Whether a person is at the notebook, who can use widgets."""
        asked = getattr(self, "interactive", None)
        if asked is not None:
            return bool(asked)
        started_by_ui = {"JPY_SESSION_NAME", "__vsc_ipynb_file__"} & set(os.environ)
        return bool(started_by_ui) and _kernel_allows_input()


class Job(Parameters):
    """Every parameter of a run; the notebook's parameters cell has exactly these fields."""

    source: Text | list[Text] | None = _field(
        None,
        "path, list, glob, directory, VRT or URL (`https://`, `s3://`) of one or many rasters; "
        "null: the sample scene",
    )
    aoi: Text | dict[str, Any] | None = _field(
        None,
        "vector file in any CRS, or GeoJSON geometry in EPSG:4326; polygons whose middle lies in "
        "it are kept whole; null: the whole raster",
    )
    out_dir: Text | None = _field(None, "the run folder; null: `runs/<scene>`")
    model: Model = _field(
        "classic",
        "`tiny`: a small SAM that comes with the package; `classic`: a baseline without weights; "
        "`vit_b`, `vit_l`, `vit_h`: Meta's SAM, downloaded on first use",
    )
    checkpoint: Text | None = _field(None, "local weights file in place of the model's own")
    device: Literal["auto", "cuda", "mps", "cpu"] = _field("auto", "where the network runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", "bf16 on CUDA where it is native, else fp16; fp32 on CPU"
    )
    bands: tuple[int, int, int] | None = _field(
        None, "three 1-based band numbers; auto: by colour interpretation"
    )
    stretch: tuple[Percent, Percent] | None = _field(
        None, "two percentiles; auto: none for 8-bit rasters, else 2 and 98"
    )
    crs: Text | None = _field(
        None, "metric working CRS; auto: the raster's own, or UTM if that is not in metres"
    )
    resolution_m: Positive | None = _field(None, "resample to this ground resolution, metres")
    tile_size: int = _field(1024, "side of a tile, pixels; SAM sees it at 1024", ge=64, le=8192)
    overlap: float = _field(0.1875, "of neighbouring tiles, fraction of the tile", ge=0, le=0.5)
    points_per_side: int = _field(
        32, "SAM is asked at a grid of so many points a side in each tile", ge=1, le=256
    )
    crop_n_layers: int = _field(
        0, "SAM looks again at enlarged crops of a tile, so many layers of them", ge=0, le=4
    )
    pred_iou_thresh: Share = _field(0.85, "keep masks with a predicted IoU above this")
    stability_score_thresh: Share = _field(0.92, "keep masks that are at least this stable")
    pred_iou_floor: Share = _field(0.5, "masks above this are stored; the lower end of the slider")
    stability_floor: Share = _field(
        0.5, "masks from this on are stored; the lower end of the slider"
    )
    box_nms_thresh: Share = _field(0.7, "of two masks with a higher box IoU the worse one goes")
    crop_nms_thresh: Share = _field(0.7, "the same among crops")
    min_area_px: int | None = _field(500, "mask parts smaller than this go, pixels", ge=0)
    min_area_m2: float | None = _field(None, "masks smaller than this go, ground m²", ge=0)
    max_area_m2: Positive | None = _field(None, "masks larger than this go, ground m²")
    fill_holes_m2: Positive | None = _field(None, "holes smaller than this are filled, ground m²")
    min_solidity: Share | None = _field(None, "least area / area of the convex hull")
    simplify_m: float | None = _field(0.5, "tolerance of simplification, ground metres", ge=0)
    planar: bool = _field(False, "no overlaps: smaller polygons on top, edges shared")
    classes: dict[int, str] = _field(
        {1: "object"}, "numbers and names of the classes that a review may give"
    )
    default_class: int | None = _field(None, "class of all pre-labels; null: the review says")
    scheduler: Text | None = _field(None, "address of a Dask scheduler; null: this process")
    resume: bool = _field(True, "reuse stored candidates; failed tiles are tried again")
    interactive: bool | None = _field(
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


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 200
_brief.maxdict = _brief.maxlist = _brief.maxtuple = 10


def _explain(error: ValidationError, model: type[Parameters]) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(name, model))
        elif name:
            lines.append(f"Parameter `{name}`: {message} (given: {_brief.repr(problem['input'])})")
        else:
            lines.append(message)
    return "\n".join(dict.fromkeys(lines))


def _unknown(name: str, model: type[Parameters]) -> str:
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(model.model_fields)}."
    return f"Unknown parameter `{name}`. {hint}"


def _parse(text: str, name: str) -> Any:
    """Read a value as `-p` of papermill passes it on: everything but a number is text."""
    match text.strip():
        case "":
            raise ValueError("is empty, as from a variable that is not set; for none say null")
        case none if none.lower() in {"null", "none"}:
            return None
        case auto if auto.lower() == "auto" and name in AUTO:
            return None
        case several if name in {"bands", "stretch"}:
            return several.strip("[()]").split(",")
        case nested if nested[0] in "[{":
            try:
                return read_yaml(nested)
            except ValueError:
                return text  # a file may be called so
    return text


def _from_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_from_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str | Path) else value


def _kernel_allows_input() -> bool:
    """False under papermill and nbclient, which ask the kernel not to take standard input."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
