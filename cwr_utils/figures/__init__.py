"""One function a figure: arrays, tables and photos in, a matplotlib Figure out.

No mathematics of the method is done here. Relevance is shown by colour and by a symbol,
so that it survives grey printing and colour blindness.
"""

from cwr_utils.figures.beyond import (
    class_weights,
    classes_alone,
    of_methods,
    store_sizes,
    walk,
)
from cwr_utils.figures.photos import (
    boxes_on_photo,
    cam_overlays,
    embedding_map,
    grid_overlay,
    photo_grid,
)
from cwr_utils.figures.pipeline import pipeline
from cwr_utils.figures.plots import (
    ablation_curves,
    ap_bars,
    channel_weights,
    class_frequencies,
    method_bars,
    precision_recall,
    similarity_matrix,
    whitening_spectrum,
)
from cwr_utils.figures.rankings import result_strip, result_strips
from cwr_utils.figures.style import (
    COLOURS,
    COLUMN,
    HEAT,
    PAGE,
    RELEVANCE,
    save_figure,
    use_style,
)

__all__ = [
    "COLOURS",
    "COLUMN",
    "HEAT",
    "PAGE",
    "RELEVANCE",
    "ablation_curves",
    "ap_bars",
    "boxes_on_photo",
    "cam_overlays",
    "channel_weights",
    "class_frequencies",
    "class_weights",
    "classes_alone",
    "embedding_map",
    "grid_overlay",
    "method_bars",
    "of_methods",
    "photo_grid",
    "pipeline",
    "precision_recall",
    "result_strip",
    "result_strips",
    "save_figure",
    "similarity_matrix",
    "store_sizes",
    "use_style",
    "walk",
    "whitening_spectrum",
]
