"""Write the QGIS plugin as a zip that QGIS installs: `make plugin`.

The plugin follows the same rules as the buttons of the project: the zip includes their module.
"""

import re
import sys
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
NAME = "sam_workbench_review"


ADDRESSES = ("homepage", "repository", "tracker")
# a name that nobody can register (RFC 2606), until the project has addresses and an email
PLACEHOLDER = "example.org"


def project() -> dict:
    """Return the project table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def described(metadata: str, project: dict) -> str:
    """Give the plugin's metadata the version and the addresses of the project.

    The addresses come from `[project.urls]`, the email from the first author who has one. What is
    missing there stays as it is in metadata.txt.
    """
    urls = {name.casefold(): url for name, url in project.get("urls", {}).items()}
    urls.setdefault("tracker", urls.get("issues", ""))
    values = {name: urls.get(name) for name in ADDRESSES} | {"version": project["version"]}
    values["email"] = next((a["email"] for a in project.get("authors", []) if "email" in a), None)
    for name, value in values.items():
        if value:
            metadata = re.sub(rf"(?m)^{name}=.*$", f"{name}={value}", metadata)
    return metadata


def contents() -> dict[str, bytes]:
    """Return the files of the plugin by their name in the zip."""
    files = {path.name: path for path in (HERE / NAME).iterdir() if path.is_file()}
    for name in ("actions.py", "order.py", "marks.py"):
        files[name] = ROOT / "workbench" / "layer" / "qgis" / name
    files["LICENSE"] = ROOT / "LICENSE"
    content = {name: path.read_bytes() for name, path in sorted(files.items())}
    metadata = content["metadata.txt"].decode("utf-8")
    content["metadata.txt"] = described(metadata, project()).encode()
    return content


def write_plugin(path: Path) -> None:
    """Write the zip; equal sources give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents().items():
            entry = zipfile.ZipInfo(f"{NAME}/{name}")  # dated 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_plugin(target)
    print(f"The plugin: {target.resolve()}")
    print("In QGIS: Plugins > Manage and Install Plugins > Install from ZIP")
    if PLACEHOLDER.encode() in contents()["metadata.txt"]:
        print("For plugins.qgis.org, name the project's addresses in pyproject.toml first:")
        print("homepage, repository and issues in [project.urls], and the email of an author.")
