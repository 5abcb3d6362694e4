"""Files of the AOI picker: load or save an area, open another raster or job."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench._support.files import atomic_path
from workbench.errors import WorkbenchError
from workbench.raster.aoi import load_aoi
from workbench.widgets.area_text import is_missed, missed_text
from workbench.widgets.cells import job_of, open_job
from workbench.widgets.controls import button, row
from workbench.widgets.drawn_area import geojson_of, parts_of
from workbench.widgets.file_browser import FileBrowser
from workbench.widgets.map import SceneMap
from workbench.widgets.safe_html import SafeHTML, paragraph, sentence
from workbench.widgets.session import Session


class AreaFiles:
    """A path with buttons that load, save and open it; `notice` shows what happened.

    Calls `show_again` when the file of the area may have changed.
    """

    def __init__(
        self, session: Session, scene_map: SceneMap, show_again: Callable[[], None]
    ) -> None:
        self._session, self._scene_map, self._show_again = session, scene_map, show_again
        self._replaced: Path | None = None  # the file that Save has asked about
        self.notice = SafeHTML()
        self.browser = FileBrowser(Path.cwd(), "area.geojson, ortho.tif, runs/ortho …")
        self.path = self.browser.path
        back = button("Back to the notebook's own", self.go_back, "to what the cell above names")
        back.layout.display = "none" if session.given is session.cell else "flex"
        self.widget = widgets.VBox(
            [
                SafeHTML("File of an area, raster, job.yaml or run folder:"),
                self.browser.widget,
                row(
                    button("Load area", self.load, "from any vector file"),
                    button("Save area", self.save, "as GeoJSON"),
                    button(
                        "Open", self.open,
                        "a raster, a job.yaml or a run folder in place of this one",
                    ),
                    back,
                ),
                self.notice,
            ]
        )  # fmt: skip

    def tell(self, text: str) -> None:
        """Show an error below the buttons."""
        self.notice.value = sentence(text)

    def load(self) -> None:
        """Take the area of a vector file."""
        path = self._path()
        if path is None:
            return
        session = self._session
        try:
            aoi = load_aoi(str(path))
            if is_missed(aoi, session.scenes):
                self.tell(missed_text(path.name, aoi, session.scenes))
                return
            if session.job.aoi == str(path):  # the file may have changed
                session.read_area_again()
                self._show_again()
            session.change(aoi=str(path))
        except WorkbenchError as error:
            self.tell(str(error))
            return
        self._scene_map.fit_area(session.area)
        self._say(f"Loaded {path.name}.")

    def open(self) -> None:
        """Open a raster, a job file or a run folder in place of what is open."""
        path = self._path()
        if path is None:
            return
        try:
            open_job(self._session, job_of(path, self._session.cell))
        except WorkbenchError as error:
            self.tell(str(error))

    def go_back(self) -> None:
        """Open what the notebook's cell names."""
        try:
            open_job(self._session, None)
        except WorkbenchError as error:
            self.tell(str(error))

    def save(self) -> None:
        """Write the AOI as it was drawn, including parts outside the scenes."""
        path = self._path()
        if path is None:
            return
        aoi = self._session.job.aoi
        if aoi is None:
            self._say("There is nothing to save: the area is the whole raster.")
        elif path.suffix.lower() not in (".geojson", ".json"):
            text = f"{path.name}: areas are saved as GeoJSON. Give a name that ends in .geojson."
            self.tell(text)
        elif path.exists() and path != self._replaced:
            self._replaced = path
            self._say(f"{path.name} exists already. Press Save area again to replace it.")
        else:
            self._write(path, aoi)

    def _write(self, path: Path, aoi: str | Mapping[str, Any]) -> None:
        try:
            features = [
                {"type": "Feature", "properties": {}, "geometry": geojson_of(shape)}
                for shape in parts_of(load_aoi(aoi).to_crs(4326))
            ]
            with atomic_path(path) as temporary:
                content = json.dumps({"type": "FeatureCollection", "features": features})
                temporary.write_text(content, encoding="utf-8")
        except WorkbenchError as error:
            self.tell(str(error))
            return
        self._replaced = path
        self._say(f"Saved {path}.")

    def _say(self, text: str) -> None:
        self.notice.value = paragraph(text)

    def _path(self) -> Path | None:
        if self.browser.chosen is None:
            self._say("Give the path of a file first, or choose one with Browse.")
        return self.browser.chosen
