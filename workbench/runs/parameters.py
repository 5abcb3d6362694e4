"""Parameters as people and papermill write them: handled correctly, or refused with a reason."""

from __future__ import annotations

import difflib
import logging
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from workbench._support.notebook import is_at_notebook, show_errors_in_short
from workbench._support.secrets import has_secrets, without_secrets
from workbench._support.yaml import read_yaml
from workbench.errors import JobError
from workbench.runs.given import text_of_parameter

_log = logging.getLogger(__name__)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which a file name cannot")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]


# parameters whose None is written `auto`
AUTO = ("bands", "stretch", "crs", "grid", "interactive")
PATHS = (
    "source", "aoi", "out_dir", "checkpoint",
    "examples", "prompts", "exemplars", "run_dir", "reviewed", "reference", "labelled_area",
    "next_source",
)  # fmt: skip


def parameter(
    default: Any, description: str, *, ge: float | None = None, le: float | None = None
) -> Any:
    """A field with its default, what the docs say of it, and its limits."""
    return Field(default, description=description, ge=ge, le=le)


def as_meant(value: Any, field: ValidationInfo) -> Any:
    """Read text as it is meant on a command line, and expand `~` in paths."""
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

        Anything that looks like a parameter (a plain value with a public name) must be one. A
        person at the notebook may have other variables: then only near misses are refused.
        """
        if is_at_notebook():
            show_errors_in_short()
        values = {k: v for k, v in namespace.items() if k in cls.model_fields}
        values |= {
            k: text_of_parameter(k, v) for k, v in values.items() if k in PATHS and _is_name(v)
        }
        job = cls.create(**values)
        signed = [k for k in PATHS if has_secrets(str(values.get(k)))]
        if signed and not job.is_interactive:
            _log.warning(
                "papermill writes `%s` with its signature or password to the output notebook. To "
                "keep it out, give the address without it, and the full one in the environment "
                "variable WORKBENCH_SIGNED_URLS.",
                signed[0],
            )
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
        """Whether a person has the notebook open and can use widgets."""
        asked = getattr(self, "interactive", None)
        if asked is not None:
            return bool(asked)
        return is_at_notebook()


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 200
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 10


def brief(value: Any) -> str:
    """Show a value that somebody has given, cut short."""
    return _repr.repr(value)


def _explain(error: ValidationError, model: type[Parameters]) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(name, model))
        elif name:
            lines.append(f"Parameter `{name}`: {message} (given: {brief(problem['input'])})")
        else:
            lines.append(message)
    return without_secrets("\n".join(dict.fromkeys(lines)))


def _unknown(name: str, model: type[Parameters]) -> str:
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(model.model_fields)}."
    return f"Unknown parameter `{name}`. {hint}"


def _parse(text: str, name: str) -> Any:
    """Read a value as papermill's `-p` passes it on: everything except numbers is text."""
    match text.strip():
        case "":
            raise ValueError("is empty (an unset shell variable?); use `null` for no value")
        case none if none.lower() in {"null", "none"}:
            return None
        case auto if auto.lower() == "auto" and name in AUTO:
            return None
        case several if name in {"bands", "stretch", "scales"}:
            return several.strip("[()]").split(",")
        case nested if nested[0] in "[{":
            try:
                return read_yaml(nested)
            except ValueError:
                return text  # it may be the name of a file
    return text


def _is_name(value: Any) -> bool:
    return not isinstance(value, Mapping)  # a geometry


def _from_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_from_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str | Path) else value
