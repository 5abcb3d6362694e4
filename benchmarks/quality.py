"""Print how well a layer agrees with reference polygons.

python benchmarks/quality.py runs/scene labels.geojson
python benchmarks/quality.py layer.gpkg labels.geojson --within labelled_area.geojson
"""

import argparse
from pathlib import Path

import geopandas as gpd

from workbench.quality import compare


def read(path: Path) -> gpd.GeoDataFrame:
    """Read a vector file, or the prelabels of a run folder."""
    if path.is_dir():
        path = path / "prelabels.parquet"
    return gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("layer", type=Path, help="a run folder or any vector file")
parser.add_argument("reference", type=Path, help="a vector file of reference polygons")
parser.add_argument("--within", type=Path, help="a vector file of the labelled area")
arguments = parser.parse_args()

quality = compare(
    read(arguments.layer),
    read(arguments.reference),
    within=read(arguments.within) if arguments.within else None,
)
print(f"polygons        {quality.n_predicted}")
print(f"references      {quality.n_reference}")
print(f"mean best IoU   {quality.mean_best_iou:.3f}")
print(quality.table().to_string(index=False, float_format="{:.2f}".format))
