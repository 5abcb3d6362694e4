"""What the README says is generated from the code, or checked against it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workbench import Job
from workbench.layer import COLUMNS
from workbench.reviewing import ReviewJob
from workbench.runfolder import OUTPUTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
START, END = (
    "<!-- parameters: made from `Job`, checked by tests/test_docs.py -->",
    ("<!-- end of parameters -->"),
)


def parameters_table():
    """The README's table: run this file to write it there."""
    lines = ["| name | default | meaning |", "|---|---|---|"]
    defaults = Job().parameters()
    for name, field in Job.model_fields.items():
        text = yaml.safe_dump(defaults[name], default_flow_style=True).split("\n")[0]
        lines.append(f"| `{name}` | {text} | {field.description} |")
    return "\n".join(lines)


def test_the_parameters_table_is_current():
    text = README.read_text(encoding="utf-8")
    assert text[text.index(START) + len(START) : text.index(END)].strip() == parameters_table()
    # by hand, should the table's maker and the table be wrong together
    for row in (
        "| `source` | null |",
        "| `model` | classic |",
        "| `overlap` | 0.1875 |",
        "| `crop_n_layers` | 0 |",
        "| `planar` | false |",
        "| `classes` | {1: object} |",
        "| `interactive` | auto |",
    ):
        assert f"\n{row} " in text


def test_the_readme_names_every_column_and_every_file():
    text = README.read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in text] == []
    files = [*OUTPUTS, "job.yaml", "run.yaml", "candidates/*.parquet"]
    assert [name for name in files if f"`{name}`" not in text] == []


PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


def test_papermill_commands_hold_a_valid_job():
    commands = [
        shlex.split(line)
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    papermill ")
    ]
    assert len(commands) > 5
    for words in commands:
        assert (ROOT / words[1]).exists(), words
        options = words[3:]
        given = {options[i + 1]: options[i + 2] for i, word in enumerate(options) if word == "-p"}
        for i, word in enumerate(options):
            if word == "-y":
                given |= yaml.safe_load(options[i + 1])
        model = ReviewJob if Path(words[1]).name == "review.ipynb" else Job
        model.create(**given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_badge_opens_a_notebook_that_is_there():
    (path,) = re.findall(r"urlpath=lab/tree/([^)]+)", README.read_text(encoding="utf-8"))
    assert (ROOT / path).exists()


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    head, tail = text.split(START)[0], text.split(END)[1]
    README.write_text(f"{head}{START}\n{parameters_table()}\n{END}{tail}", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pytest", __file__], check=True)
