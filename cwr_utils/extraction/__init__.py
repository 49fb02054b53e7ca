"""Data sets and a network to stores of vectors, and to maps of single photos.

`conf.Setup` says how, and owns where they lie; `photos` and `queries` write stores,
`describer` computes what is in them, `maps` serves what is not.
"""

from cwr_utils.extraction.conf import (
    MOST_TOP_CLASSES,
    VECTOR_FACTS,
    Setup,
    together,
)
from cwr_utils.extraction.describer import Describer, describer_of
from cwr_utils.extraction.maps import ImageMaps
from cwr_utils.extraction.photos import (
    Shard,
    extract,
    extract_shard,
    open_photos,
)
from cwr_utils.extraction.queries import (
    describe_query,
    extract_queries,
    open_queries,
    query_content,
)

__all__ = [
    "MOST_TOP_CLASSES",
    "VECTOR_FACTS",
    "Describer",
    "describer_of",
    "ImageMaps",
    "Setup",
    "Shard",
    "describe_query",
    "extract",
    "extract_queries",
    "extract_shard",
    "open_photos",
    "open_queries",
    "query_content",
    "together",
]
