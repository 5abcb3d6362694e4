"""Write the tables of docs/parameters.md from the models of the parameters.

    python docs/parameters.py

Groups and their order come from the parameters cell of each notebook.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from workbench import Job
from workbench.review.job import ReviewJob
from workbench.runs.parameters import AUTO, Parameters

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "parameters.md"
START, END = "<!-- made by docs/parameters.py: {} -->\n", "<!-- end -->"


def table(model: type[Parameters], names: Sequence[str]) -> str:
    """A row for each parameter: its name, its default, which values it takes, what it means."""
    schema = model.model_json_schema()["properties"]
    lines = ["| name | default | values | meaning |", "|---|---|---|---|"]
    for name in names:
        default, values = default_of(model, name), values_of(schema[name])
        meaning = model.model_fields[name].description
        lines.append(f"| `{name}` | {default} | {values} | {meaning} |")
    return "\n".join(lines)


def default_of(model: type[Parameters], name: str) -> str:
    """The default as YAML, or a dash if there is none."""
    field = model.model_fields[name]
    if field.is_required():
        return "–"
    value = "auto" if field.default is None and name in AUTO else field.default
    return yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def values_of(schema: Mapping[str, Any]) -> str:
    """The type and range of a parameter in words, from its JSON schema."""
    if "anyOf" in schema:
        kinds = [values_of(kind) for kind in schema["anyOf"] if kind["type"] != "null"]
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(schema["enum"])
    match schema["type"]:
        case "integer" | "number" as kind:
            return f"{kind}{_range(schema)}"
        case "array" if "prefixItems" in schema:
            return f"{schema['minItems']} × {values_of(schema['prefixItems'][0])}"
        case "array":
            kind = values_of(schema["items"])
            return f"list of {kind}s" if kind == "integer" else f"list of {kind}"
        case "boolean":
            return "true, false"
        case "object":
            return "map"
        case _:
            return "text"


def _range(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"minimum": low, "maximum": high}:
            return f" {low:g} to {high:g}"
        case {"minimum": low}:
            return f" from {low:g}"
        case {"exclusiveMinimum": low}:
            return f" above {low:g}"
    return ""


def groups(notebook: str) -> Iterator[tuple[str, list[str]]]:
    """The blocks of a notebook's parameters cell: the comment at their head, and their names."""
    read = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    (cell,) = [c for c in read.cells if "parameters" in c.metadata.get("tags", [])]
    for block in cell.source.split("\n\n"):
        title = re.match(r"# (.*)", block)
        yield title[1] if title else "", re.findall(r"^(\w+) = ", block, re.MULTILINE)


def all_tables(model: type[Parameters], notebook: str) -> str:
    """The parameters of a notebook, a table for each group."""
    parts = []
    for title, names in groups(notebook):
        heading = f"### {title[:1].upper()}{title[1:]}\n\n" if title else ""
        parts.append(heading + table(model, names))
    return "\n\n".join(parts)


def filled(text: str, part: str, content: str) -> str:
    """The page with the part of this name replaced."""
    head, rest = text.split(START.format(part))
    return f"{head}{START.format(part)}{content}\n{END}{rest.split(END, 1)[1]}"


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    page = filled(PAGE.read_text(encoding="utf-8"), "prelabel", all_tables(Job, "prelabel"))
    return {PAGE: filled(page, "review", all_tables(ReviewJob, "review"))}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
