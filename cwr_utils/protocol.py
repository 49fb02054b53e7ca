"""Where the authors' code, the paper and plain correctness differ: one flag each.

The points where the code, read line by line beside the paper, disagrees with it or with
itself. Those with a flag, or two, are switched by it; the rest are settled as said::

  E1.  The network: its weights come from a convolution in two groups, and the
       code has one without; the importer of the .caffemodel spreads them out.
  E2.  CAMs are resized to the features' grid in the paper. In VGG-16-CAM both
       grids are the same, here any two will do.
  E3.  Fixed 1024x720 in the code, "at least 720, aspect kept" in the paper; the
       code turns squares one way when it extracts, the other way when it re-ranks.
  E4.  The photos of queries are indexed with stretched contrast, others are not.
  E5.  Blue loses the mean of red, and red that of blue.
  E6.  The code for PyTorch depends on a version's scaling of pixels; not followed.
  E7.  A CAM without positive value is turned upside down.
  E8.  Classes of a query: from a pass over the crop; one pass in the text.
  E9.  The query box is in pixels of the photo, not of what the network saw, and
       cells that it covers in part are lost at the end.
  E10. "Raw + CroW" has CroW's channel weights only, and an unused channel weighs 0.
  E11. A class without positive cell in a region divides zero by zero: zeros here.
  E12. Such a class then becomes the one before it. Whitening has no shrinkage.
  E13. Whiten, normalise, sum, normalise: code and paper agree.
  E14. The query's descriptor takes the place of its own photo in the search.
  E15. Expansion sums photos of the database, without the query.
  E16. The fifth box is drawn and never scored; elements are measured by their
       contour; a photo without a box of five cells is thrown to the end.
  E17. Descriptors of re-ranked regions stay in the index for later queries.
  E18. mAP by the official program, called for each query; here in NumPy.
  E19. Parameters: those of the sweeps in notebooks/sweeps.
  E20. Parts of the published code that do not run; nothing of it is used.

`table` gives those with a flag as rows::

    point  flag                      corrected        paper            authors_code
    E5     mean_order                bgr              bgr              swapped
    E3     resize                    shorter:720      shorter:720      1024x720
    E4     stretch_query_images      False            False            True
    E7     flip_negative_cams        False            False            True
    E8     query_classes             scaled crop      same pass        native crop
    E9     scale_query_box           True             True             False
    E9     keep_partial_cells        True             True             False
    E12    repeat_previous_class     False            False            True
    E14    query_replaces_own_row    False            False            True
    E15    expand_with_query         True             False            False
    E16    rerank_thresholds         1 10 20 30 40 %  1 10 20 30 40 %  1 10 20 30 %
    E16    rerank_largest            cells            cells            contour
    E16    rerank_fallback           True             False            False
    E3     rerank_squares_upright    False            False            True
    E17    rerank_moves_index        no               query            run

Where the paper is silent, its preset does what is correct. Not flags: the pooled layer
(a parameter of its own); what the authors' code does with values that are not finite
(they are zeros here, or E12); the order of equal scores, of which nothing is known
(here that of the database); the interpolation of the resize (areas here, bilinear
there).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

# What has to be computed anew under another value of a flag.
STAGES = ("network", "database", "queries", "search")


def _flag(default: Any, point: str, stage: str, *values: Any, regions=False) -> Any:
    """A field with its point of disagreement, stage and, for a text, all values.

    `regions` are the flags that the best region of a photo for a query depends on.
    """
    facts = {"point": point, "stage": stage, "values": values, "regions": regions}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Protocol:
    """Choices on which the authors' code and the paper (BMVC 2017) do not agree.

    Attributes:
        name: the preset's name.
        mean_order: "bgr": each channel loses its own mean; "swapped": blue loses red's
            and red blue's. Of VGG-16-CAM alone.
        resize: size of the network's input, where a run names none: see
            `images.ResizePolicy`.
        stretch_query_images: min-max stretch the contrast of a query's photo when it
            is indexed (a side effect of reading it as float32).
        flip_negative_cams: divide an all-negative CAM by its (negative) maximum, which
            turns it upside down, instead of setting it to zero.
        query_classes: where a query's classes come from. "scaled crop": a pass over
            its box, scaled like the photo; "native crop": the box at the size it has
            in the photo, cut to multiples of 16; "same pass": the CAM maps of the full
            photo, averaged inside the box.
        scale_query_box: map the query box from the photo to the resized image before
            it is laid on the feature grid; False takes its pixels as they are.
        keep_partial_cells: a box has all cells that it touches; False drops the last
            row and column where they are covered in part.
        repeat_previous_class: a class without any positive cell is described by the
            class before it instead of by nothing.
        query_replaces_own_row: before the search the query's descriptor replaces that
            of its own photo, which then always comes first.
        expand_with_query: the query's own descriptor is one of those averaged in query
            expansion; False averages database images only.
        rerank_thresholds: shares of the mean CAM's maximum at which boxes are drawn.
        rerank_largest: the largest element has the most "cells", or the largest area
            inside its "contour", which counts holes and is zero for thin shapes.
        rerank_fallback: the whole photo is one of its regions, so that a photo without
            a box that is large enough is not thrown to the end.
        rerank_squares_upright: when re-ranked, a square photo becomes a portrait under
            a fixed size, where it was a landscape before.
        rerank_moves_index: "no": query expansion sums and searches the images' own
            descriptors; "query": those of the best regions take their place for the
            images that were re-ranked; "run": and stay there for all later queries
            (offline and theme aggregation only, where all queries share one index).
    """

    name: str
    mean_order: str = _flag("bgr", "E5", "network", "bgr", "swapped")
    resize: str = _flag("shorter:720", "E3", "database")
    stretch_query_images: bool = _flag(False, "E4", "database")
    flip_negative_cams: bool = _flag(False, "E7", "database", regions=True)
    query_classes: str = _flag(
        "scaled crop", "E8", "queries", "scaled crop", "same pass", "native crop"
    )
    scale_query_box: bool = _flag(True, "E9", "queries")
    keep_partial_cells: bool = _flag(True, "E9", "queries")
    repeat_previous_class: bool = _flag(False, "E12", "search")
    query_replaces_own_row: bool = _flag(False, "E14", "search")
    expand_with_query: bool = _flag(True, "E15", "search")
    rerank_thresholds: tuple[float, ...] = _flag(
        (0.01, 0.1, 0.2, 0.3, 0.4), "E16", "search", regions=True
    )
    rerank_largest: str = _flag(
        "cells", "E16", "search", "cells", "contour", regions=True
    )
    rerank_fallback: bool = _flag(True, "E16", "search", regions=True)
    rerank_squares_upright: bool = _flag(False, "E3", "search", regions=True)
    rerank_moves_index: str = _flag("no", "E17", "search", "no", "query", "run")

    def __post_init__(self) -> None:
        """Check the flags that are one of several texts.

        Raises:
            ValueError: if one has an unknown value.
        """
        for flag in fields(self):
            allowed, value = flag.metadata.get("values"), getattr(self, flag.name)
            if allowed and value not in allowed:
                raise ValueError(
                    f"`{flag.name}` must be one of {', '.join(allowed)}; got {value!r}."
                )

    @property
    def flags(self) -> dict[str, Any]:
        """Flag -> value, without the name."""
        return {flag: getattr(self, flag) for flag in FLAGS}

    @property
    def of_regions(self) -> tuple:
        """Values of the flags on which the best region of a photo depends."""
        return tuple(getattr(self, f) for f in FLAGS if FLAGS[f]["regions"])


PRESETS = {
    "corrected": Protocol("corrected"),
    "paper": Protocol(
        "paper",
        query_classes="same pass",
        rerank_fallback=False,
        expand_with_query=False,
        rerank_moves_index="query",
    ),
    "authors_code": Protocol(
        "authors_code",
        mean_order="swapped",
        resize="1024x720",
        stretch_query_images=True,
        flip_negative_cams=True,
        query_classes="native crop",
        scale_query_box=False,
        keep_partial_cells=False,
        repeat_previous_class=True,
        query_replaces_own_row=True,
        expand_with_query=False,
        rerank_thresholds=(0.01, 0.1, 0.2, 0.3),
        rerank_largest="contour",
        rerank_fallback=False,
        rerank_squares_upright=True,
        rerank_moves_index="run",
    ),
}
# Flag -> its point of disagreement, its stage and its values.
FLAGS = {flag.name: flag.metadata for flag in fields(Protocol) if flag.metadata}


def get(name: str) -> Protocol:
    """Look a preset up by name.

    Raises:
        ValueError: if there is no such preset; names those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"`protocol` must be one of {sorted(PRESETS)}; got {name!r}.")
    return PRESETS[name]


def table() -> list[dict[str, str]]:
    """One row a flag: its point, its name and its value in each preset, as texts."""
    return [
        {"point": facts["point"], "flag": flag}
        | {name: text(getattr(preset, flag)) for name, preset in PRESETS.items()}
        for flag, facts in FLAGS.items()
    ]


def text(value: Any) -> str:
    """A flag's value as tables show it."""
    if isinstance(value, tuple):
        return " ".join(f"{100 * share:g}" for share in value) + " %"
    return str(value)


def variants(base: Protocol = PRESETS["corrected"]) -> Iterator[tuple[str, Protocol]]:
    """Switch one flag at a time, the others as they are.

    Args:
        base: where from.

    Yields:
        Each flag, and `base` with the authors' value of it; with the corrected one
        where `base` has the authors' already.
    """
    code, corrected = PRESETS["authors_code"], PRESETS["corrected"]
    for flag in FLAGS:
        value = getattr(code, flag)
        if getattr(base, flag) == value:
            value = getattr(corrected, flag)
        yield flag, replace(base, name=f"{base.name}, {flag}", **{flag: value})
