"""Write the QGIS plugin as a zip that QGIS installs: `make plugin`.

The rules of a review are those of the project's own buttons: their module goes into the zip, too.
"""

import re
import sys
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
NAME = "sam_workbench_review"


def version() -> str:
    """Return the version of the project, which is that of the plugin."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def contents() -> dict[str, bytes]:
    """Return the files of the plugin by their name in the zip."""
    files = {path.name: path for path in (HERE / NAME).iterdir() if path.is_file()}
    files["actions.py"] = ROOT / "workbench" / "layer" / "qgis" / "actions.py"
    files["LICENSE"] = ROOT / "LICENSE"
    content = {name: path.read_bytes() for name, path in sorted(files.items())}
    metadata = content["metadata.txt"].decode("utf-8")
    content["metadata.txt"] = re.sub(r"(?m)^version=.*$", f"version={version()}", metadata).encode()
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
