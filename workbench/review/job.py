"""The parameters of `review.ipynb`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from workbench.runs.parameters import Parameters, Share, Text, as_meant


class ReviewJob(Parameters):
    """Every parameter of a review; the notebook's parameters cell has exactly these fields."""

    run_dir: Text = Field(description="the run folder")
    reviewed: Text | None = Field(
        None, description="the reviewed GeoPackage; null: `prelabels.gpkg` in the run folder"
    )
    reference: Text | None = Field(
        None, description="vector file of labels to recommend from, instead of the review"
    )
    labelled_area: Text | None = Field(
        None,
        description="vector file of the area where labels are complete; null: the fully reviewed "
        "tiles",
    )
    out_dir: Text | None = Field(
        None, description="folder for the results; null: `review` in the run folder"
    )
    next_source: Text | None = Field(
        None, description="raster of the next scene, for job.yaml; null: the same scene"
    )
    chip_size: int | None = Field(
        None,
        ge=32,
        le=8192,
        description="side of a chip, pixels; null: the size that keeps most labels, 512 at most",
    )
    val: Share = Field(0.15, description="share of the chips for validation")
    test: Share = Field(
        0.15, description="share of the chips for testing; the rest is for training"
    )
    default_class: int | None = Field(
        None, description="class of labels that have none; null: that of the run"
    )
    seed: int = Field(0, description="random seed of the split")

    @field_validator("run_dir", mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        if value is None:
            raise ValueError("give the run folder that was reviewed, as in `-p run_dir runs/ortho`")
        return value

    @model_validator(mode="after")
    def _some_are_for_training(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val ({self.val:g}) and test ({self.test:g}) leave nothing for train: choose "
                "shares that add up to less than 1"
            )
        return self

    # last, because the validator that is defined last sees a value first
    _as_meant = field_validator("*", mode="before")(as_meant)

    @property
    def gpkg(self) -> Path:
        """The GeoPackage that was reviewed."""
        return Path(self.reviewed or Path(self.run_dir) / "prelabels.gpkg").absolute()

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.out_dir or Path(self.run_dir) / "review").absolute()
