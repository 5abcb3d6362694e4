"""A virtual mosaic: one small raster, repeated to any size without taking more space."""

from pathlib import Path
from xml.etree import ElementTree

import rasterio
from rasterio.dtypes import dtype_rev, typename_fwd


def write_mosaic(raster: Path, path: Path, width: int, height: int) -> Path:
    """Write a VRT of `width` × `height` pixels that repeats a raster, cut at its right and foot."""
    with rasterio.open(raster) as file:
        root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
        ElementTree.SubElement(root, "SRS").text = file.crs.to_wkt()
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(
            repr(value) for value in file.transform.to_gdal()
        )
        for index, (dtype, colour) in enumerate(zip(file.dtypes, file.colorinterp, strict=True), 1):
            kind = typename_fwd[dtype_rev[dtype]]
            band = ElementTree.SubElement(root, "VRTRasterBand", dataType=kind, band=str(index))
            ElementTree.SubElement(band, "ColorInterp").text = colour.name.capitalize()
            for top in range(0, height, file.height):
                for left in range(0, width, file.width):
                    place = {
                        "xSize": str(min(file.width, width - left)),
                        "ySize": str(min(file.height, height - top)),
                    }
                    source = ElementTree.SubElement(band, "SimpleSource")
                    ElementTree.SubElement(source, "SourceFilename").text = str(raster.absolute())
                    ElementTree.SubElement(source, "SourceBand").text = str(index)
                    # known in advance, so that GDAL opens the raster only where it is read
                    ElementTree.SubElement(
                        source, "SourceProperties", DataType=kind,
                        RasterXSize=str(file.width), RasterYSize=str(file.height),
                        BlockXSize=str(file.block_shapes[0][1]),
                        BlockYSize=str(file.block_shapes[0][0]),
                    )  # fmt: skip
                    ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", **place)
                    ElementTree.SubElement(
                        source, "DstRect", xOff=str(left), yOff=str(top), **place
                    )
    ElementTree.ElementTree(root).write(path)
    return path
