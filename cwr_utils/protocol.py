"""Where the authors' code, the paper and plain correctness differ: one flag each.

Two differences are parameters of their own: the resize policy ("1024x720" in the
authors' code, "shorter:720" in the paper) and the pooled layer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Choices on which the authors' code and the paper (BMVC 2017) do not agree.

    Attributes:
        name: the preset's name.
        flip_negative_cams: divide an all-negative CAM by its (negative) maximum, which
            turns it upside down, instead of setting it to zero.
        scale_query_box: map the query box from the photo to the resized image before
            it is laid on the feature grid; False takes its pixels as they are.
        stretch_query_images: min-max stretch the contrast of a query's photo when it
            is indexed (a side effect of reading it as float32).
        rerank_thresholds: shares of the mean CAM's maximum at which boxes are drawn.
        rerank_fallback: the whole photo is one of its regions, so that a photo without
            a box that is large enough is not thrown to the end.
        expand_with_query: the query's own descriptor is one of those averaged in query
            expansion; False averages database images only.
        query_replaces_own_row: before the search the query's descriptor replaces that
            of its own photo, which then always comes first.
        rerank_moves_index: "no": query expansion sums and searches the images' own
            descriptors; "query": those of the best regions take their place for the
            images that were re-ranked; "run": and stay there for all later queries
            (offline aggregation only, where all queries share one index).
    """

    name: str
    flip_negative_cams: bool = False
    scale_query_box: bool = True
    stretch_query_images: bool = False
    rerank_thresholds: tuple[float, ...] = (0.01, 0.1, 0.2, 0.3, 0.4)
    rerank_fallback: bool = True
    expand_with_query: bool = True
    query_replaces_own_row: bool = False
    rerank_moves_index: str = "no"


PRESETS = {
    "corrected": Protocol("corrected"),
    "paper": Protocol(
        "paper",
        rerank_fallback=False,
        expand_with_query=False,
        rerank_moves_index="query",
    ),
    "authors_code": Protocol(
        "authors_code",
        flip_negative_cams=True,
        scale_query_box=False,
        stretch_query_images=True,
        rerank_thresholds=(0.01, 0.1, 0.2, 0.3),
        rerank_fallback=False,
        expand_with_query=False,
        query_replaces_own_row=True,
        rerank_moves_index="run",
    ),
}


def get(name: str) -> Protocol:
    """Look a preset up by name.

    Raises:
        ValueError: if there is no such preset; names those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"`protocol` must be one of {sorted(PRESETS)}; got {name!r}.")
    return PRESETS[name]
