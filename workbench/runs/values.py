"""Values of parameters that are checked one by one; what is bad raises `ValueError` with a remedy.

What parameters must have in common is in `together`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

import pyproj
from pydantic import AfterValidator, BeforeValidator, ValidatorFunctionWrapHandler, WrapValidator

from workbench.candidates.concepts import LARGEST_CLASS
from workbench.runs.parameters import Text

MOST_SCALES, COARSEST = 4, 64


def _known_model(value: Any) -> Any:
    if value not in (names := get_args(ModelName)):
        raise ValueError(
            f"no model has this name. Take one of {', '.join(map(repr, names))}; mobile_sam, "
            "sam2.1_…, edgetam, sam_hq_… and sam3 need pip install 'sam-workbench[models]'"
        )
    return value


def _stac_search(value: Any) -> Any:
    if isinstance(value, dict) and "stac" not in value:
        raise ValueError("a map must be a STAC search: {stac: URL, …}")
    return value


def _from_1(value: tuple[int, int, int]) -> tuple[int, int, int]:
    if min(value) < 1:
        raise ValueError("band numbers start at 1")
    return value


def _known_crs(value: str) -> str:
    try:
        pyproj.CRS.from_user_input(int(value) if value.isdecimal() else value)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(
            "no CRS of this name is known; use a code, for example EPSG:32633"
        ) from error
    return value


def _one_and_coarser(value: Any) -> list[int]:
    scales = list(value) if isinstance(value, list | tuple) else []
    scales = [int(n) if isinstance(n, str) and n.strip().isdecimal() else n for n in scales]
    usable = [n for n in scales if type(n) is int and 1 <= n <= COARSEST]
    if len(set(usable)) < len(scales) or 1 not in usable or len(scales) > MOST_SCALES:
        raise ValueError(
            f"up to {MOST_SCALES} different whole numbers from 1 to {COARSEST} expected, and 1 "
            "among them, for example [1, 4]"
        )
    return sorted(scales)


def _named_once(value: Any, validate: ValidatorFunctionWrapHandler) -> dict[int, str]:
    for number, name in value.items() if isinstance(value, dict) else ():
        if isinstance(name, bool):
            raise ValueError(
                f"class {number} is called {name}, because YAML reads a bare yes, no, on or "
                "off so: put its name in quotes"
            )
    classes: dict[int, str] = validate(value)
    if len(classes) < len(value):
        raise ValueError("two classes have the same number: give each one its own")
    return classes


def _words_of_classes(value: Any) -> Any:
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise ValueError("class numbers with their words expected, for example {1: building}")
    for number, words in value.items():
        if isinstance(words, bool):
            raise ValueError(
                f"class {number} has the word {words}, because YAML reads a bare yes, no, on or "
                "off so: put it in quotes"
            )
        if words is None or not str(words).strip():
            raise ValueError(
                f"class {number} has no words. Say what its objects are called, for example "
                "{1: building}, or leave the class out and show it with exemplars"
            )
        text = str(number).strip()
        if not (text.isdecimal() and 1 <= int(text) <= LARGEST_CLASS):
            raise ValueError(f"class {number}: a whole number from 1 to {LARGEST_CLASS:,} expected")
    words_of = {int(number): str(words).strip() for number, words in value.items()}
    if len(words_of) < len(value):
        raise ValueError("two concepts have the same class: give each one its own")
    return words_of


def _switch_or_list(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        value = value.strip().lower() == "true"
    elif isinstance(value, int | str) and not isinstance(value, bool):
        # pydantic would read class 1 as true
        raise ValueError("true, null or a list of class ids expected, for example [1]")
    return value or None  # false and an empty list switch it off, too


def _one_or_many(value: Any) -> Any:
    return re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value


ModelName = Literal[
    "tiny", "classic", "mobile_sam", "vit_b", "vit_l", "vit_h",
    "sam2.1_tiny", "sam2.1_small", "sam2.1_base_plus", "sam2.1_large", "edgetam",
    "sam_hq_vit_b", "sam_hq_vit_l", "sam_hq_vit_h", "sam3",
]  # fmt: skip
KnownModel = Annotated[ModelName, BeforeValidator(_known_model)]
Source = Annotated[Text | list[Text] | dict[str, Any] | None, AfterValidator(_stac_search)]
Bands = Annotated[tuple[int, int, int], AfterValidator(_from_1)]
CrsName = Annotated[Text, AfterValidator(_known_crs)]
Scales = Annotated[list[int], BeforeValidator(_one_and_coarser)]
ClassNames = Annotated[dict[int, str], WrapValidator(_named_once)]
Concepts = Annotated[dict[int, str] | None, BeforeValidator(_words_of_classes)]
SwitchOrClasses = Annotated[bool | list[int] | None, BeforeValidator(_switch_or_list)]
Formats = Annotated[list[Literal["flatgeobuf", "pmtiles"]] | None, BeforeValidator(_one_or_many)]
