"""A raster that is made to run JavaScript, opened in a real JupyterLab and a real browser."""

from known_objects import objects, write_labels
from lab import jupyterlab, open_notebook, prelabel_notebook
from odd_names import name_crs

NAME = "<img src=x onerror=window.ran=true>"


def test_a_crs_whose_name_is_html_runs_nothing(chromium, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    raster = name_crs(write_labels(folder / f"{NAME}.tif", objects((230, 330), 1)), NAME)
    path = prelabel_notebook(folder, source=str(raster), out_dir=str(folder / f"{NAME}run"))
    with jupyterlab(folder) as lab, open_notebook(chromium, lab, path) as notebook:
        notebook.run_all()
        page = notebook.page
        views = page.locator(".sam-workbench-map")
        assert NAME in views.first.inner_text()  # before the pointer was on the map
        for n in range(2):  # that of the area, and that of the tuner
            view = views.nth(n).locator(".leaflet-container")
            view.scroll_into_view_if_needed()
            box = view.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
            views.nth(n).get_by_text("E 5").wait_for(timeout=20_000)
            assert NAME in views.nth(n).inner_text()
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator(".sam-workbench-run", has_text="Saved").wait_for(timeout=20_000)
        notebook.picture("hostile-names")
        assert page.evaluate("window.ran") is None
        assert page.locator("img[src=x]").count() == 0
