"""The SAM models: how to build each, and where its weights are."""

from __future__ import annotations

import os
import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import torch
from segment_anything import sam_model_registry
from torch import nn

from workbench.errors import CheckpointError
from workbench.segmenters.sam.edgetam import build_edgetam, require_edgetam
from workbench.segmenters.sam.mobile_sam import (
    build_mobile_sam,
    names_of_timm,
    require_timm,
)
from workbench.segmenters.sam.network import Network, SegmentAnything
from workbench.segmenters.sam.sam2 import (
    TRUNKS,
    Sam2,
    build_sam2,
    names_of_transformers,
    require_transformers,
)
from workbench.segmenters.sam.sam_hq import VITS, SamHq, build_sam_hq
from workbench.segmenters.sam.sam_hq import names_of_transformers as names_of_hq
from workbench.segmenters.sam.sam_hq import require_transformers as require_for_hq
from workbench.segmenters.sam.tiny import Tiny, build_tiny


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
    megabytes: int | None = None  # 10⁶ bytes, so that people know how long it takes

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
            if "ConnectionPool(" in cause:  # urllib3 tells all layers of it
                cause = f"no connection to {urlsplit(self.url).hostname}"
            damaged = (
                f" The file at {path} is damaged: its sha256 is {pooch.file_hash(str(path))}."
                if path.is_file()
                else ""
            )
            size = f" ({self.megabytes} MB)" if self.megabytes else ""
            raise CheckpointError(
                f"The weights {path.name}{size} could not be downloaded from {self.url} ({cause})."
                f"{damaged} Download them elsewhere and put the file at {path} "
                f"(sha256 {self.sha256}), or name a local file as checkpoint."
            ) from error
        return path


@dataclass(frozen=True)
class ManualDownload:
    """Weights that a person must fetch, because no sha256 of them is published."""

    file: str
    page: str
    megabytes: int

    @property
    def sha256(self) -> str:
        """Not known; raises `CheckpointError`, as `fetch` does."""
        return pooch.file_hash(str(self.fetch()))

    def fetch(self) -> Path:
        """Raise `CheckpointError`: it says where the file is, and how to name it."""
        raise CheckpointError(
            f"The weights {self.file} ({self.megabytes} MB) are not downloaded, because no sha256 "
            f"of them is published. Download them from {self.page} and name the file as checkpoint."
        )


def cache_folder() -> Path:
    """The folder of downloaded checkpoints; `SAM_WORKBENCH_CACHE` sets another one."""
    return Path(os.environ.get("SAM_WORKBENCH_CACHE") or pooch.os_cache("sam-workbench"))


@dataclass(frozen=True)
class Model:
    """A SAM model: how it is built, and where its weights are.

    `network_of` is how the engine speaks to it; `names` gives the weights of its file the names
    that they have in the model.
    """

    build: Callable[[], nn.Module]
    weights: Embedded | Download | ManualDownload
    network_of: Callable[[Any], Network] = SegmentAnything
    names: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    require: Callable[[], None] = lambda: None  # raises `CheckpointError` without its packages
    licence: str = "Apache-2.0"  # of the weights

    @property
    def is_ready(self) -> bool:
        """Whether the packages that it needs are installed."""
        try:
            self.require()
        except CheckpointError:
            return False
        return True


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
_OFFICIAL_2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


def _sam2(size: str, sha256: str, megabytes: int) -> Model:
    return Model(
        partial(build_sam2, TRUNKS[size]),
        Download(f"{_OFFICIAL_2}sam2.1_hiera_{size}.pt", sha256, megabytes),
        Sam2,
        names_of_transformers,
        require_transformers,
    )


def _sam_hq(size: str, megabytes: int) -> Model:
    page = "https://github.com/SysCV/sam-hq#model-checkpoints"
    return Model(
        partial(build_sam_hq, VITS[size]),
        ManualDownload(f"sam_hq_{size}.pth", page, megabytes),
        SamHq,
        names_of_hq,
        require_for_hq,
    )


MODELS: dict[str, Model] = {
    "tiny": Model(build_tiny, Embedded(Path(__file__).with_name("tiny.pth")), Tiny),
    "vit_b": Model(
        sam_model_registry["vit_b"],
        Download(
            _OFFICIAL + "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375,
        ),
    ),
    "vit_l": Model(
        sam_model_registry["vit_l"],
        Download(
            _OFFICIAL + "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1250,
        ),
    ),
    "vit_h": Model(
        sam_model_registry["vit_h"],
        Download(
            _OFFICIAL + "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2565,
        ),
    ),
    "mobile_sam": Model(
        build_mobile_sam,
        Download(
            "https://github.com/ChaoningZhang/MobileSAM/raw/"
            "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            41,
        ),
        names=names_of_timm,
        require=require_timm,
    ),
    "sam2.1_tiny": _sam2(
        "tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69", 156
    ),
    "sam2.1_small": _sam2(
        "small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38", 184
    ),
    "sam2.1_base_plus": _sam2(
        "base_plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5", 324
    ),
    "sam2.1_large": _sam2(
        "large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318", 898
    ),
    "edgetam": Model(
        build_edgetam,
        Download(
            "https://github.com/facebookresearch/EdgeTAM/raw/"
            "9cc44bfe9e16cc374242917b91283c718410ea87/checkpoints/edgetam.pt",
            "ed2d4850b8792c239689b043c47046ec239b6e808a3d9b6ae676c803fd8780df",
        ),
        Sam2,
        names_of_transformers,
        require_edgetam,
    ),
    "sam_hq_vit_b": _sam_hq("vit_b", 379),
    "sam_hq_vit_l": _sam_hq("vit_l", 1250),
    "sam_hq_vit_h": _sam_hq("vit_h", 2570),
}


def fetch_checkpoint(model: str) -> Path:
    """Return the file of a model's own weights, and download it if necessary."""
    return MODELS[model].weights.fetch()


def load_model(model: str, path: Path) -> nn.Module:
    """Build a model and fill it with the weights of a local file, on the CPU and in fp32.

    Raises `CheckpointError` for anything that is not a checkpoint of exactly this model.
    """
    with torch.device("meta"):  # spends no time and memory on initial values
        sam = MODELS[model].build()
    held = _read_weights(path)
    weights = MODELS[model].names(held)
    if not _plain(weights):
        fit = _fitting(held)
        raise CheckpointError(
            f"checkpoint {path} is not one of {model}. It fits {fit}: set model to {fit}."
            if fit
            else f"checkpoint {path} does not hold the plain state_dict of a SAM model. Save only "
            "model.state_dict(), with torch.save."
        )
    misfit = _misfit(sam, weights)
    if misfit:
        raise CheckpointError(f"{path} is not a checkpoint of {model}: {misfit}. {_advice(held)}")
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


def _read_weights(path: Path) -> dict[str, Any]:
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
    return weights if isinstance(weights, dict) else {"": weights}


def _plain(weights: Mapping[str, Any]) -> bool:
    return "" not in weights and all(isinstance(w, torch.Tensor) for w in weights.values())


def _misfit(sam: nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
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


def _advice(held: Mapping[str, Any]) -> str:
    fit = _fitting(held)
    if fit:
        return f"It fits {fit}: set model to {fit}."
    return f"It does not fit {', '.join(MODELS)} either: name a checkpoint of one of them."


def _fitting(held: Mapping[str, Any]) -> str | None:
    """The model that weights are for, of those that can be built here."""
    for name, model in MODELS.items():
        weights = model.names(held)
        if not _plain(weights):
            continue
        try:
            with torch.device("meta"):
                sam = model.build()
        except CheckpointError:  # without its optional packages
            continue
        if not _misfit(sam, weights):
            return name
    return None
