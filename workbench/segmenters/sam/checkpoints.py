"""The SAM models: how to build each, and where its weights are."""

from __future__ import annotations

import os
import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from workbench.errors import CheckpointError
from workbench.segmenters.sam.tiny import build_tiny


@dataclass(frozen=True)
class Embedded:
    """Weights that are shipped inside the package."""

    path: Path

    @property
    def sha256(self) -> str:
        """Computed from the file, because each training replaces it."""
        return pooch.file_hash(str(self.fetch()))

    def fetch(self) -> Path:
        """Return the file; raises `CheckpointError` if it was not installed."""
        if not self.path.is_file():
            raise CheckpointError(
                f"{self.path} should have come with sam-workbench and is missing. Install "
                "sam-workbench again, or name a local file as checkpoint."
            )
        return self.path


@dataclass(frozen=True)
class Download:
    """Weights that are downloaded when they are first needed."""

    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where they are, or will be, in the cache folder."""
        return cache_folder() / self.url.rsplit("/", 1)[-1]

    def fetch(self) -> Path:
        """Return the file, downloaded once and checked against its sha256 every time."""
        path = self.path
        try:
            pooch.retrieve(
                self.url,
                known_hash=f"sha256:{self.sha256}",
                fname=path.name,
                path=path.parent,
                progressbar=sys.stderr.isatty(),
            )
        except (OSError, ValueError) as error:  # no network, unwritable folder | another file came
            cause = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            damaged = (
                f" The file at {path} is damaged: its sha256 is {pooch.file_hash(str(path))}."
                if path.is_file()
                else ""
            )
            raise CheckpointError(
                f"The weights {path.name} could not be downloaded from {self.url} ({cause})."
                f"{damaged} Download them elsewhere and put the file at {path} "
                f"(sha256 {self.sha256}), or name a local file as checkpoint."
            ) from error
        return path


def cache_folder() -> Path:
    """The folder of downloaded checkpoints; `SAM_WORKBENCH_CACHE` sets another one."""
    return Path(os.environ.get("SAM_WORKBENCH_CACHE") or pooch.os_cache("sam-workbench"))


@dataclass(frozen=True)
class Model:
    """A SAM model: how it is built, and where its weights are."""

    build: Callable[[], Sam]
    weights: Embedded | Download


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
MODELS: dict[str, Model] = {
    "tiny": Model(build_tiny, Embedded(Path(__file__).with_name("tiny.pth"))),
    "vit_b": Model(
        sam_model_registry["vit_b"],
        Download(
            _OFFICIAL + "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    "vit_l": Model(
        sam_model_registry["vit_l"],
        Download(
            _OFFICIAL + "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
    ),
    "vit_h": Model(
        sam_model_registry["vit_h"],
        Download(
            _OFFICIAL + "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
}


def fetch_checkpoint(model: str) -> Path:
    """Return the file of a model's own weights, and download it if necessary."""
    return MODELS[model].weights.fetch()


def load_model(model: str, path: Path) -> Sam:
    """Build a model and fill it with the weights of a local file, on the CPU and in fp32.

    Raises `CheckpointError` for anything that is not a checkpoint of exactly this model.
    """
    weights = _read_weights(path)
    with torch.device("meta"):  # spends no time and memory on initial values
        sam = MODELS[model].build()
    misfit = _misfit(sam, weights)
    if misfit:
        raise CheckpointError(
            f"{path} is not a checkpoint of {model}: {misfit}. {_advice(weights)}"
        )
    sam.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return sam.eval().requires_grad_(False)


def refuse_missing(path: Path) -> None:
    """Raise `CheckpointError` if a person's own checkpoint is not a file."""
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} is not a file. Name a local SAM checkpoint (.pth), or leave "
            "checkpoint empty to take the model's own weights."
        )


_RENEW = "Copy, download or install it again."


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    refuse_missing(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes). {_RENEW}")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"checkpoint {path} is a Git LFS pointer, not the weights. Run `git lfs pull` in the "
            "checkout that it comes from, and copy or install it again."
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # other bytes can fail anywhere in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise CheckpointError(
                f"checkpoint {path} holds Python code or objects ({code[1]}), not only weights; "
                "the code was not run. Save only the model's state_dict, with torch.save."
            ) from error
        raise CheckpointError(
            f"checkpoint {path} cannot be read as weights: it is damaged, cut short or not a "
            f"PyTorch file ({type(error).__name__}). {_RENEW}"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise CheckpointError(
            f"checkpoint {path} does not hold the plain state_dict of a SAM model. Save only "
            "model.state_dict(), with torch.save."
        )
    return weights


def _misfit(sam: Sam, weights: Mapping[str, torch.Tensor]) -> str:
    """Say how weights differ from those that a model needs; empty if they fit."""
    needed = sam.state_dict()
    missing = [name for name in needed if name not in weights]
    unknown = [name for name in weights if name not in needed]
    if missing or unknown:
        example = f"no {missing[0]}" if missing else f"unknown {unknown[0]}"
        return f"{len(missing)} weights are missing and {len(unknown)} unknown ({example})"
    for name, value in needed.items():
        if value.shape != weights[name].shape:
            return f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
    return ""


def _advice(weights: Mapping[str, torch.Tensor]) -> str:
    for name, model in MODELS.items():
        with torch.device("meta"):
            sam = model.build()
        if not _misfit(sam, weights):
            return f"It fits {name}: set model to {name}."
    return f"It does not fit {', '.join(MODELS)} either: name a checkpoint of one of them."
