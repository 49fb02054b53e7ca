"""Re-rankers that need nothing but stored descriptors, behind one call.

    scores = rerank("dba:photos=5+alpha_qe", queries, database)
    order = ranking.order(scores)

| text | paper | changes |
|---|---|---|
| `alpha_qe` | Radenovic et al., TPAMI 2018 | queries |
| `dba` | Turcot, Lowe 2009; Arandjelovic, Zisserman 2012; Gordo et al. 2017 | photos |
| `k_reciprocal` | Zhong et al., CVPR 2017 | scores |
| `diffusion` | Iscen et al., CVPR 2017 | scores |
| `super_global` | Shao et al., ICCV 2023 | scores |

What does not depend on a query is computed once: `prepare(database)`, then `scores` of
any queries. No query changes what another one gets, and equal scores keep the order of
the database under `ranking.order`.
"""

import numpy as np

from cwr_utils.rerankers.base import ExactIndex, Index, Prepared, Reranker
from cwr_utils.rerankers.chain import RERANKERS, Chain
from cwr_utils.rerankers.diffusion import Diffusion
from cwr_utils.rerankers.expansion import AlphaQE, DatabaseAugmentation
from cwr_utils.rerankers.reciprocal import KReciprocal
from cwr_utils.rerankers.super_global import SuperGlobal

__all__ = [
    "RERANKERS",
    "AlphaQE",
    "Chain",
    "DatabaseAugmentation",
    "Diffusion",
    "ExactIndex",
    "Index",
    "KReciprocal",
    "Prepared",
    "Reranker",
    "SuperGlobal",
    "rerank",
]


def rerank(
    how: str | Chain | Reranker, queries, database, index: Index = ExactIndex
) -> np.ndarray:
    """Score every photo for every query.

    Args:
        how: a re-ranker, several, or their text; see `Chain.parse`.
        queries: (Q, D), l2-normalised.
        database: (N, D), l2-normalised.
        index: what finds the neighbours of photos; of many, an approximate one such as
            ``functools.partial(ranking.faiss_index, factory="HNSW32")``.

    Returns:
        (Q, N) float32, larger is better; comparable within a row only.

    Raises:
        ValueError: if the text is not understood, the dimensions differ, or there is no
            photo.
    """
    how = Chain.parse(how) if isinstance(how, str) else how
    return how.prepare(database, index).scores(queries)
