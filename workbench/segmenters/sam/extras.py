"""Packages that only some models need: the extra `models` brings them."""

from __future__ import annotations

from importlib.util import find_spec

from workbench.errors import CheckpointError

INSTALL = "pip install 'sam-workbench[models]'"


def is_installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    return find_spec(package) is not None


def require(family: str, *packages: str) -> None:
    """Raise `CheckpointError`, with what to install, if a family of models lacks a package."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise CheckpointError(
            f"{family} needs the package {missing[0]}, which is not installed. Install the extra "
            f"`models`: {INSTALL}. Or set model to one that needs nothing more: tiny, vit_b, "
            "vit_l, vit_h."
        )
