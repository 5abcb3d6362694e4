"""The ways to install: pip's, conda's and Binder's agree, and what is built is what is meant."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA, BINDER = ROOT / "environment.yml", ROOT / "binder" / "environment.yml"
ENVIRONMENTS = pytest.mark.parametrize("path", [CONDA, BINDER], ids=["conda", "binder"])
# what conda-forge calls otherwise
CONDA_NAMES = {
    "matplotlib": "matplotlib-base",
    "opencv-python-headless": "py-opencv",
}


def conda_name(requirement, path):
    if requirement.name == "torch":
        return "pytorch-gpu" if path == CONDA else "pytorch-cpu"
    return CONDA_NAMES.get(requirement.name, requirement.name)


def environment(path):
    """What it takes from conda-forge, by name, and what from pip."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge", "nodefaults"]
    *packages, pip = content["dependencies"]
    split = [re.fullmatch(r"([\w-]+)\s*(.*)", package).groups() for package in packages]
    # conda's single = takes the rest of the version for granted
    specifiers = {name: re.sub(r"^=(?!=)(.*)", r"==\1.*", text) for name, text in split}
    return {name: SpecifierSet(text) for name, text in specifiers.items()}, pip["pip"]


def pinned_versions():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements():
    return [Requirement(text) for text in PROJECT["dependencies"]]


@ENVIRONMENTS
def test_conda_takes_what_pip_takes(path):
    packages, pip = environment(path)
    wanted = {conda_name(r, path): r for r in requirements()}
    from_pip = {r.name: r for r in map(Requirement, (p for p in pip if not p.startswith("-")))}
    assert sorted(packages.keys() | from_pip.keys()) == sorted(wanted.keys() | {"python", "pip"})
    for name, requirement in wanted.items():
        given = from_pip[name].specifier if name in from_pip else packages[name]
        lower = {str(s).replace(".*", "") for s in given}
        assert lower == {str(s) for s in requirement.specifier}, name


@ENVIRONMENTS
def test_conda_allows_the_versions_that_are_tested(path):
    packages, pip = environment(path)
    versions = pinned_versions()
    for requirement in requirements():
        name = conda_name(requirement, path)
        if name in packages:
            assert versions[canonicalize_name(requirement.name)] in packages[name], name
        else:
            assert f"{name}{requirement.specifier}" in pip
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier
    (python,) = packages["python"]  # repo2docker reads `python=X.Y`, and nothing else
    assert python.version.removesuffix(".*") in SpecifierSet(PROJECT["requires-python"])


def test_every_dependency_has_a_tested_version():
    versions = pinned_versions()
    developers = [Requirement(t) for t in PROJECT["optional-dependencies"]["dev"]]
    for requirement in [*requirements(), *developers]:
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_binder_takes_nothing_from_pip_that_brings_cuda():
    packages, pip = environment(BINDER)
    assert "pytorch-cpu" in packages
    assert "torchvision" in packages
    assert not [name for name in packages if re.search("cuda|gpu|nvidia", name)]
    assert [Requirement(line).name for line in pip] == ["segment-anything"]
    # else pip would install torch over conda's
    needed = [r for r in requires("segment-anything") or [] if "extra ==" not in r]
    assert needed == []


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_binders_scripts_can_run(name):
    script = ROOT / "binder" / name
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_binder_starts_what_it_is_given_with_few_threads():
    command = [ROOT / "binder" / "start", "bash", "-c", "echo $OMP_NUM_THREADS $0 $1", "a b", "c"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "2 a b c"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of the tracked files, built as `pip wheel` does."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "pyproject.toml", "README.md", "LICENSE", "workbench"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")[:-1]  # fmt: skip
    for name in tracked:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, folder / "tree"]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def test_the_wheel_holds_the_package_and_its_weights(wheel):
    package = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.js", "*.pth", "*.md", "*.j2", "py.typed")
        for path in (ROOT / "workbench").rglob(pattern)
    }
    assert package <= set(wheel)
    others = {name for name in wheel if not name.startswith(f"sam_workbench-{PROJECT['version']}")}
    assert others == package
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_nothing_in_the_wheel_is_large_but_the_weights(wheel):
    large = {name for name, size in wheel.items() if size > 100_000}
    assert large == {"workbench/segmenters/sam/tiny.pth"}
    assert sum(wheel.values()) < 12_000_000


def test_every_licence_is_listed():
    licences = runpy.run_path(str(ROOT / "docs" / "licences.py"))
    rows = re.findall(r"^\| (\S+) \| (.+) \|$", licences["PAGE"].read_text("utf-8"), re.MULTILINE)
    listed = {canonicalize_name(name): licence for name, licence in rows}
    # what comes with a GPU is spoken of above the table
    needed = {name for name in licences["needed"]() if not re.match("nvidia|cuda|triton", name)}
    assert needed - set(listed) == set(), "run python docs/licences.py, and look at what is new"
    assert {r.name for r in requirements()} <= needed
    assert not [name for name in needed if re.search("unknown|not stated", listed[name], re.I)]
