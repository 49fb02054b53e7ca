"""Re-rankers as loops and dense matrices, written from the papers' equations.

Arrays are (D,) queries and (N, D) databases; each function scores one query.
"""

import functools
import math

import numpy as np


def l2(vector):
    norm = math.sqrt(sum(x * x for x in vector))
    return vector / norm if norm else vector


def nearest(vector, database, k, without=None):
    """The k rows most similar to a vector, ties by row."""
    rows = [row for row in range(len(database)) if row != without]
    return sorted(rows, key=lambda row: -float(vector @ database[row]))[:k]


def expanded(vector, database, k, alpha, without=None):
    """A descriptor and its k nearest, weighted by similarity to the power alpha."""
    total = np.array(vector)
    for row in nearest(vector, database, k, without):
        total = total + max(float(vector @ database[row]), 0.0) ** alpha * database[row]
    return l2(total)


def alpha_qe(query, database, k, alpha):
    return database @ expanded(query, database, k, alpha)


def augmented(database, k, alpha):
    rows = range(len(database))
    return np.array([expanded(database[r], database, k, alpha, r) for r in rows])


def k_reciprocal(query, database, k1, k2, weight):
    """Zhong et al., Eqs. 2 to 12; sets hold the photo itself."""
    count = len(database)

    @functools.cache
    def near(p, k):
        """N(p, k): of a photo with itself."""
        return {p, *nearest(database[p], database, k, p)}

    @functools.cache
    def reciprocal(p, k):
        """R(p, k)."""
        return {g for g in near(p, k) if p in near(g, k)}

    @functools.cache
    def is_reached(g):
        """Whether the query is as near to a photo as the last of its k1."""
        others = nearest(database[g], database, k1, g)
        if len(others) < k1:
            return True
        last = float(database[others[-1]] @ database[g])
        return float(query @ database[g]) >= last - 1e-6

    def encode(vector, members):
        """V: weights of R*, in sum 1."""
        grown = set(members)
        for g in members:
            half = reciprocal(g, k1 // 2)
            if 3 * len(members & half) >= 2 * len(half):
                grown |= half
        weights = np.zeros(count)
        for g in grown:
            weights[g] = math.exp(-(1 - float(vector @ database[g])))
        return weights / weights.sum() if grown else weights

    own = [encode(database[p], reciprocal(p, k1)) for p in range(count)]
    photos = []
    for p in range(count):
        around = [p, *nearest(database[p], database, k2 - 1, p)]
        photos.append(sum(own[g] for g in around) / len(around))
    members = {g for g in nearest(query, database, k1) if is_reached(g)}
    mine, first = encode(query, members), nearest(query, database, k2 - 1)
    mine = (mine + sum(own[g] for g in first)) / (1 + len(first))
    distances = []
    for g in range(count):
        smaller = sum(min(a, b) for a, b in zip(mine, photos[g], strict=True))
        larger = sum(max(a, b) for a, b in zip(mine, photos[g], strict=True))
        cosine = float(query @ database[g])
        distances.append((1 - weight) * (1 - smaller / larger) + weight * (1 - cosine))
    return 1 - np.array(distances)


def diffusion(query, database, k, query_k, alpha, exponent, degree, truncation):
    """Iscen et al., dense and solved exactly; `degree` 0.5 by the mean of neighbours.

    Rows that nothing reaches are scored by their cosine, less 10.
    """
    cosines = [float(query @ row) for row in database]
    kept = sorted(nearest(query, database, truncation))
    near = {i: nearest(database[i], database, k, i) for i in range(len(database))}
    weights = np.zeros((len(kept), len(kept)))
    for a, i in enumerate(kept):
        for b, j in enumerate(kept):
            if j in near[i] and i in near[j]:
                cosine = float(database[i] @ database[j])
                weights[a, b] = max(cosine, 0.0) ** exponent
    passed = np.zeros_like(weights)
    degrees = weights.sum(axis=1)
    for a, b in np.argwhere(weights):
        scale = {0: math.sqrt(degrees[a] * degrees[b]), 0.5: degrees[a]}[degree]
        passed[a, b] = weights[a, b] / scale
    start = np.zeros(len(kept))
    for i in nearest(query, database, min(query_k, truncation)):
        start[kept.index(i)] = max(cosines[i], 0.0) ** exponent
    found = np.linalg.solve(np.eye(len(kept)) - alpha * passed, start)
    scores = np.array(cosines) - 10
    for a, i in enumerate(kept):
        if found[a] > 1e-12:
            scores[i] = found[a]
    return scores


def super_global(query, database, top, k, beta):
    """Shao et al., as their published code has it; the rest by cosine, less 10."""
    head = nearest(query, database, top)
    refined = {}
    for i in head:
        total, weight = np.array(database[i], float), 1.0
        others = [j for j in head if j != i]
        for j in sorted(others, key=lambda j: -float(database[i] @ database[j]))[:k]:
            share = beta * max(float(database[i] @ database[j]), 0.0)
            total, weight = total + share * database[j], weight + share
        refined[i] = total / weight
    best = sorted(head, key=lambda i: -float(query @ refined[i]))[: k + 1]
    expanded = np.max([refined[i] for i in best], axis=0)
    scores = database @ query - 10
    for i in head:
        scores[i] = (query @ refined[i] + expanded @ refined[i]) / 2
    return scores
