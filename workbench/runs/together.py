"""Parameters that must fit together; each check raises `ValueError` with the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OF_CONCEPTS = "sam3"  # the model that concepts are for
NOTHING_TO_FIND = (
    f"model {OF_CONCEPTS} finds only what it is told to: set concepts (words, for example "
    "{1: building}) or exemplars (a vector file of boxes), or take another model"
)


def check_squared(
    regularize: Sequence[int],
    classes: Mapping[int, str],
    knows_classes: bool,
    default_class: int | None,
) -> None:
    """Refuse right angles for classes that do not exist, or that no polygon will have."""
    if unknown := sorted(set(regularize) - set(classes)):
        raise ValueError(
            f"regularize names class {unknown[0]}, which is not one of classes {classes}. "
            "Add it there, or choose among them"
        )
    if not knows_classes and default_class not in regularize:
        raise ValueError(
            f"regularize names classes {regularize}, but no polygon will have one of them: set "
            "default_class or examples, or set regularize to true"
        )


def check_prompts(
    prompts: str | None,
    grid: bool | None,
    examples: object,
    planar: bool,
    scheduler: str | None,
    refresh: bool,
) -> None:
    """Refuse what cannot be done with prompts, and a run that would segment nothing."""
    if prompts is not None and planar:
        raise ValueError(
            "planar cuts overlapping labels, and those of prompts are kept whole: set planar to "
            "false, or leave prompts null"
        )
    if prompts is not None and scheduler is not None:
        raise ValueError(
            "prompts are answered by one process: set scheduler to null, or leave prompts null"
        )
    if prompts is not None and refresh:
        raise ValueError(
            "refresh does not keep what came of prompts: set refresh to false and choose another "
            "out_dir, or leave prompts null"
        )
    if grid is False and prompts is None:
        raise ValueError(
            "grid is false and there are no prompts, so nothing would be segmented: set prompts, "
            "or set grid to auto"
        )
    if grid is False and examples is not None:
        raise ValueError(
            "examples teach the classes of what the grid finds, and grid is false: set grid to "
            "auto, or leave examples null"
        )


def check_concepts(
    model: str,
    concepts: Mapping[int, str] | None,
    exemplars: str | None,
    classes: Mapping[int, str],
    grid: bool | None,
    scheduler: str | None,
) -> None:
    """Refuse concepts and exemplars that do not fit the model or other parameters."""
    for name, value in (("concepts", concepts), ("exemplars", exemplars)):
        if value is not None and model != OF_CONCEPTS:
            raise ValueError(
                f"{name} are for model {OF_CONCEPTS}, and `{model}` finds objects of every kind: "
                f"set model to {OF_CONCEPTS}, or leave {name} null and teach classes with examples"
            )
    if unknown := sorted(set(concepts or ()) - set(classes)):
        raise ValueError(
            f"concepts names class {unknown[0]}, which is not one of classes {dict(classes)}. Add "
            "it there, or leave classes as they are by default: they then have the words as names"
        )
    if exemplars is not None and scheduler is not None:
        raise ValueError(
            "exemplars are shown by one process: set scheduler to null, or leave exemplars null"
        )
    if grid is False and model == OF_CONCEPTS:
        raise ValueError(
            "concepts are looked for in every tile, and grid is false: set grid to auto, or take "
            "another model for prompts alone"
        )
