"""How long a person waits for the outline at a click, in the process that has the model.

    python benchmarks/clicks.py --models tiny vit_b

A tile of 1024 × 1024 px of the sample scene is encoded, then asked at some of its true buildings:
by a click, by three clicks (one of them beside), by a box, and by a click with an outline to
correct. Models other than `tiny` have random weights: their seconds are right, their outlines not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import geopandas as gpd
import numpy as np
import shapely

from workbench import Job, open_scene
from workbench.raster.scene import Scene
from workbench.samples.demo import sample_scene, sample_truth
from workbench.segmenters.sam import MODELS, SamSegmenter, sam_segmenter
from workbench.tuning.clicks import AskedByHand
from workbench.tuning.questions import Clicks, Question

ON, BESIDE = True, False


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "vit_b"])
    parser.add_argument("--objects", type=int, default=12)
    given = parser.parse_args()
    scene = open_scene(str(sample_scene()))
    print("| model | first click in a tile, s | a click | 3 clicks | box | outline and click |")
    print("|---|---|---|---|---|---|")
    for model in given.models:
        print(row(model, scene, given.objects), flush=True)


def row(model: str, scene: Scene, n: int) -> str:
    """Ask a model; medians of the seconds, and the longest ones."""
    job = Job.create(source=scene.source, model=model)
    segmenter = with_random_weights(model) if model != "tiny" else sam_segmenter(model)
    asked, tile = AskedByHand(), scene.window_polygon(scene.window)
    middle = np.array([tile.centroid.coords[0]])
    first = Question.at(Clicks(middle, np.array([ON])), 0, job, [scene])
    segmenter.load()
    encoding = timed(lambda: asked.answer(first, segmenter, lambda _: None))
    objects = there(first, n)
    cells = [f"{encoding:.2f}"]
    for clicks_on in (one_click, three_clicks, box, outline_and_click):
        questions = [
            Question(0, job, scene, first.window, clicks_on(shape)) for shape in objects.geometry
        ]
        took = [timed(lambda q=q: asked.answer(q, segmenter, lambda _: None)) for q in questions]
        cells.append(f"{np.median(took):.2f}, at most {max(took):.2f}")
    return " | ".join([f"| `{model}`", *cells]) + " |"


def there(question: Question, n: int) -> gpd.GeoDataFrame:
    """Some of the true buildings in the tile."""
    truth = sample_truth()
    window = question.scene.window_polygon(question.window)
    inside = truth[(truth["kind"] == "building") & truth.within(window)]
    return inside.iloc[:n]


def one_click(shape: shapely.Polygon) -> Clicks:
    """A click in the middle."""
    return Clicks(middle_of(shape), np.array([ON]))


def three_clicks(shape: shapely.Polygon) -> Clicks:
    """A click in the middle, one at a corner, one beside."""
    west, _, east, north = shape.bounds
    beside = np.array([[east + (east - west) / 4, north]])
    corner = np.array(shape.exterior.coords[:1])
    points = np.vstack([middle_of(shape), (middle_of(shape) + corner) / 2, beside])
    return Clicks(points, np.array([ON, ON, BESIDE]))


def box(shape: shapely.Polygon) -> Clicks:
    """The box around it."""
    return Clicks(np.empty((0, 2)), np.empty(0, bool), np.array(shape.bounds))


def outline_and_click(shape: shapely.Polygon) -> Clicks:
    """An outline that lies 2 m aside, and a click in the middle."""
    moved = shapely.transform(shape, lambda xy: xy + 2)
    return Clicks(middle_of(shape), np.array([ON]), shape=shapely.multipolygons([moved]))


def middle_of(shape: shapely.Polygon) -> np.ndarray:
    """A point inside, `(1, 2)`."""
    return np.array(shape.representative_point().coords)


def with_random_weights(model: str) -> SamSegmenter:
    """A SAM of the right size: its seconds do not depend on its weights."""
    entry = MODELS[model]
    return SamSegmenter(entry.build, model, entry.weights.sha256, network_of=entry.network_of)


def timed(step: Callable[[], object]) -> float:
    """How long a step takes, seconds."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
