"""The ways to install: pip's, conda's and Binder's agree, and what is built is what is meant."""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = ROOT / "constraints.txt"
CONDA, BINDER = ROOT / "environment.yml", ROOT / "binder" / "environment.yml"
ENVIRONMENTS = pytest.mark.parametrize("path", [CONDA, BINDER], ids=["conda", "binder"])
UV = Path(sys.executable).with_name("uv")
# the oldest, one that more packages take, and the rest; Debian 12 has 3.11.2
PYTHONS = ["3.11.0", "3.11.9", "3.12.0", "3.13.0", "3.14.0"]
PLACES = [
    *((python, "x86_64", "linux") for python in PYTHONS),
    *((python, "aarch64", "linux") for python in (PYTHONS[0], PYTHONS[-1])),
    *((python, "arm64", "darwin") for python in (PYTHONS[0], PYTHONS[-1])),
]
EACH_PYTHON = pytest.mark.parametrize("python", PYTHONS)
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


def pinned_versions(python="3.11.0", machine="x86_64", system="linux"):
    """The versions that constraints.txt names for one Python on one kind of machine, by name."""
    place = {
        **{"python_full_version": python, "python_version": ".".join(python.split(".")[:2])},
        **{"platform_machine": machine, "sys_platform": system, "os_name": "posix"},
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
    }
    pins = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        pin = Requirement(line) if line and not line.startswith("#") else None
        if pin and (pin.marker is None or pin.marker.evaluate(place)):
            (exact,) = pin.specifier
            assert pin.name not in pins, f"two versions of {pin.name} for {place}"
            pins[canonicalize_name(pin.name)] = exact.version
    return pins


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


@EACH_PYTHON
def test_every_dependency_has_a_tested_version(python):
    versions = pinned_versions(python)
    extras = chain.from_iterable(PROJECT["optional-dependencies"].values())
    for requirement in [*requirements(), *map(Requirement, extras)]:
        if requirement.name != PROJECT["name"]:
            version = versions[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, requirement


def test_the_pythons_of_the_classifiers_are_those_of_the_lock():
    of = "Programming Language :: Python :: 3."
    said = {c.removeprefix(of) for c in PROJECT["classifiers"] if c.startswith(of)}
    assert said == {python.split(".")[1] for python in PYTHONS}


def index_answers():
    """Whether uv reaches a package index."""
    command = [UV, "pip", "compile", "-", "-q", "--no-deps", "--no-cache"]
    try:
        done = subprocess.run(command, input=b"iniconfig", capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def resolve(python, machine, system):
    """What uv would install for one Python on one kind of machine: from wheels, with the lock."""
    platform = {
        ("x86_64", "linux"): "x86_64-manylinux_2_28",
        ("aarch64", "linux"): "aarch64-manylinux_2_28",
        ("arm64", "darwin"): "aarch64-apple-darwin",
    }[machine, system]
    command = [
        UV, "pip", "compile", ROOT / "pyproject.toml", "--all-extras", "--constraints", LOCK,
        "--python-version", python, "--python-platform", platform, "--only-binary", ":all:",
        "--no-annotate", "--no-header", "--quiet",
    ]  # fmt: skip
    # wheels of pyproj for Macs need macOS 14
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def resolved():
    """A run of uv for each place. They wait for the network, so they run side by side."""
    if not UV.exists():
        pytest.skip("uv is not beside this Python: make test installs it")
    if not index_answers():
        pytest.skip("no package index can be reached")
    with ThreadPoolExecutor(len(PLACES)) as pool:
        return dict(zip(PLACES, pool.map(resolve, *zip(*PLACES, strict=True)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_the_lock_can_be_installed_from_wheels(place, resolved):
    done = resolved[place]
    assert done.returncode == 0, done.stderr
    chosen = [Requirement(line) for line in done.stdout.splitlines()]
    assert len(chosen) > len(requirements())
    pins = pinned_versions(*place)
    unlocked = [str(r) for r in chosen if pins.get(canonicalize_name(r.name)) not in r.specifier]
    assert unlocked == [], "run make lock"


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


def test_binders_python_knows_the_package():
    """What postBuild imports is there: a rename is seen here, and not by a class in the morning."""
    script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
    (module, name) = re.search(r'python -c "from (\S+) import (\w+);', script).groups()
    assert callable(getattr(importlib.import_module(module), name))


def test_binder_starts_what_it_is_given_with_few_threads():
    command = [ROOT / "binder" / "start", "bash", "-c", "echo $OMP_NUM_THREADS $0 $1", "a b", "c"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "2 a b c"


INHERITED = {
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "MAKEOVERRIDES",
    "VENV",
    "PYTHON",
    "ARGS",
    "NEED_GB",
}


def make(folder, *words):
    """`make` with these words in a copy of what it reads; the name of the copy has a space."""
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    copy = folder / "a copy"
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        copy.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    for kept in ("runs/demo", ".venv/bin", "build"):
        (copy / kept).mkdir(parents=True, exist_ok=True)
    # `make test VENV=…` hands its own settings down
    alone = {name: value for name, value in os.environ.items() if name not in INHERITED}
    return copy, subprocess.run(
        ["make", *words], cwd=copy, env=alone, capture_output=True, text=True
    )


def stand_in(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("script", "words", "expected"), [
    ('[ "$1" = --version ] && echo Python 3.10.1; exit 1', [], "needed, and {} is: Python 3.10.1"),
    ('case "$2" in *ensurepip*) exit 1; esac', [], "{} cannot make virtual environments"),
    ('exec "{python}" "$@"', ["NEED_GB=99999999"], "99999999 GB of disk space are needed"),
], ids=["old", "without venv", "full"])  # fmt: skip
def test_make_names_what_is_missing(script, words, expected, tmp_path):
    python = stand_in(tmp_path / "python x", script.replace("{python}", sys.executable))
    _, done = make(tmp_path, "demo", f"PYTHON={python}", *words)
    assert done.returncode != 0
    assert expected.format(python) in done.stdout


def test_make_clean_leaves_the_runs(tmp_path):
    copy, done = make(tmp_path, "clean")
    assert done.stderr.count("rm: ") == 0
    assert (copy / "runs" / "demo").is_dir()
    assert not (copy / ".venv").exists()
    assert not (copy / "build").exists()


@pytest.mark.parametrize(("words", "model"), [([], "tiny"), (["MODEL=classic"], "classic")])
def test_the_demo_takes_any_model(words, model, tmp_path):
    _, done = make(tmp_path, "-n", "demo", *words)
    assert f"-p model {model} " in done.stdout


def test_make_lists_its_targets(tmp_path):
    _, done = make(tmp_path)
    assert re.findall(r"make (\w+)", done.stdout)[:3] == ["help", "demo", "test"]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The wheel and the source archive of this tree, as pip gets them from setuptools."""
    folder = tmp_path_factory.mktemp("built")
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    rules = [line.split() for line in lines if line.startswith(("include ", "graft "))]
    named = chain.from_iterable(names for _, *names in rules)
    (folder / "tree").mkdir()
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ["MANIFEST.in", "pyproject.toml", "README.md", "LICENSE", "workbench", *named]:
        copy = partial(shutil.copytree, ignore=left_out) if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / "tree" / name)
    build = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    command = [sys.executable, "-W", "ignore", "-c", build]
    subprocess.run(command, cwd=folder / "tree", check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(built):
    """Its files and their sizes."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "workbench").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    others = {name for name in wheel if not name.startswith(f"sam_workbench-{PROJECT['version']}")}
    assert others == package, "package-data in pyproject.toml names what the wheel takes"
    assert "workbench/py.typed" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


@pytest.mark.slow
def test_nothing_in_the_wheel_is_large_but_the_weights(wheel):
    large = {name for name, size in wheel.items() if size > 100_000}
    assert large == {"workbench/segmenters/sam/tiny.pth"}
    assert sum(wheel.values()) < 12_000_000


@pytest.mark.slow
def test_the_source_archive_holds_what_make_needs(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        str(path.relative_to(built / "tree"))
        for path in (built / "tree").rglob("*")
        if path.is_file() and not re.search(r"\.egg-info/|/build/|notebooks/runs/", str(path))
    }
    assert expected - names == set()
    assert {"Makefile", "constraints.txt", "notebooks/prelabel.ipynb", "tests/conftest.py"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"], ids=["wheel", "source"])
def test_what_is_built_can_be_installed_and_imported(kind, built, tmp_path):
    (path,) = built.glob(kind)
    command = [
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--target", tmp_path, path,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    load = (
        "import pkgutil, workbench as w; "
        "list(pkgutil.walk_packages(w.__path__, 'workbench.')); print(w.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "workbench" / "__init__.py")


def test_every_licence_is_listed():
    licences = runpy.run_path(str(ROOT / "docs" / "licences.py"))
    rows = re.findall(r"^\| (\S+) \| (.+) \|$", licences["PAGE"].read_text("utf-8"), re.MULTILINE)
    listed = {canonicalize_name(name): licence for name, licence in rows}
    # what comes with a GPU is spoken of above the table
    needed = {name for name in licences["needed"]() if not re.match("nvidia|cuda|triton", name)}
    assert needed - set(listed) == set(), "run python docs/licences.py, and look at what is new"
    assert {r.name for r in requirements()} <= needed
    assert not [name for name in needed if re.search("unknown|not stated", listed[name], re.I)]
