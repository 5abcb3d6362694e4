"""Where the weights of each model are, and the sha256 by which they are known.

Nothing here needs PyTorch, which takes seconds to import.
"""

from __future__ import annotations

import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from workbench.errors import CheckpointError


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


Weights = Embedded | Download | ManualDownload

_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
_OFFICIAL_2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


def _sam2(size: str, sha256: str, megabytes: int) -> Download:
    return Download(f"{_OFFICIAL_2}sam2.1_hiera_{size}.pt", sha256, megabytes)


def _sam_hq(size: str, megabytes: int) -> ManualDownload:
    page = "https://github.com/SysCV/sam-hq#model-checkpoints"
    return ManualDownload(f"sam_hq_{size}.pth", page, megabytes)


WEIGHTS: dict[str, Weights] = {
    "tiny": Embedded(Path(__file__).with_name("sam") / "tiny.pth"),
    "vit_b": Download(
        _OFFICIAL + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375,
    ),
    "vit_l": Download(
        _OFFICIAL + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1250,
    ),
    "vit_h": Download(
        _OFFICIAL + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2565,
    ),
    "mobile_sam": Download(
        "https://github.com/ChaoningZhang/MobileSAM/raw/"
        "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        41,
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
    "edgetam": Download(
        "https://github.com/facebookresearch/EdgeTAM/raw/"
        "9cc44bfe9e16cc374242917b91283c718410ea87/checkpoints/edgetam.pt",
        "ed2d4850b8792c239689b043c47046ec239b6e808a3d9b6ae676c803fd8780df",
    ),
    "sam_hq_vit_b": _sam_hq("vit_b", 379),
    "sam_hq_vit_l": _sam_hq("vit_l", 1250),
    "sam_hq_vit_h": _sam_hq("vit_h", 2570),
}


def refuse_missing(path: Path) -> None:
    """Raise `CheckpointError` if a person's own checkpoint is not a file."""
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} is not a file. Name a local SAM checkpoint (.pth), or leave "
            "checkpoint empty to take the model's own weights."
        )
