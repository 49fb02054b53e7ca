"""Ranking, re-ranking and query expansion as loops, one image and box at a time.

Written from the description of the method and of what the authors' code does instead.
"""

import numpy as np
import reference


def l2(vector):
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector


def descriptor(vectors, whitening, repeat):
    """Sum of whitened class vectors (C, K); an empty class adds nothing, or the last.

    Args:
        vectors: most probable class first.
        whitening: of one vector.
        repeat: whether the authors' substitution is made.
    """
    total, previous = np.zeros(whitening.dimensions), np.zeros(whitening.dimensions)
    for vector in vectors:
        whitened = whitening(vector) if vector.any() else np.zeros_like(previous)
        if repeat and not vector.any():
            whitened = previous
        total = total + whitened
        previous = whitened
    return l2(total)


def elements(binary):
    """8-connected elements of a boolean (H, W) as sets of cells, upper ones first."""
    left = {(int(y), int(x)) for y, x in np.argwhere(binary)}
    found = []
    while left:
        edge = [min(left)]
        left -= {*edge}
        element = set(edge)
        while edge:
            y, x = edge.pop()
            for cell in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if cell in left:
                    left.remove(cell)
                    element.add(cell)
                    edge.append(cell)
        found.append(element)
    return found


def contour_area(element, shape):
    """Area inside the outer contour, which runs through the centres of cells.

    Holes are filled from outside; then each square between four centres counts whole
    if all four are in, half if three are.
    """
    height, width = shape
    inside = np.ones((height + 2, width + 2), bool)
    edge = [(0, 0)]
    inside[0, 0] = False
    while edge:  # background that is 4-connected to the outside
        y, x = edge.pop()
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            in_range = 0 <= v < height + 2 and 0 <= u < width + 2
            if in_range and inside[v, u] and (v - 1, u - 1) not in element:
                inside[v, u] = False
                edge.append((v, u))
    area = 0.0
    for y in range(height + 1):
        for x in range(width + 1):
            corners = int(inside[y : y + 2, x : x + 2].sum())
            area += {4: 1.0, 3: 0.5}.get(corners, 0.0)
    return area


def boxes(heat, protocol):
    """Boxes (x1, y1, x2, y2) of a heat map, thresholds in order; then None or not.

    Of elements of one size the first is taken; OpenCV lists contours from below.
    """
    found = []
    for threshold in protocol.rerank_thresholds if heat.max() > 0 else ():
        found_here = elements(heat >= threshold * heat.max())
        sizes = [(len(e), e) for e in found_here]
        if protocol.rerank_largest == "contour":
            sizes = [(contour_area(e, heat.shape), e) for e in reversed(found_here)]
        _, element = max(sizes, key=lambda pair: pair[0])
        ys, xs = zip(*element, strict=True)
        box = min(xs), min(ys), max(xs) + 1, max(ys) + 1
        if min(box[2] - box[0], box[3] - box[1]) >= 5:
            found.append(box)
    return found + [None] * protocol.rerank_fallback


def class_maps(features, cam_maps, class_weights, flip):
    """Normalised CAMs (H, W, C) on the grid of the features."""
    maps = []
    for weights in class_weights.T:
        cam = reference.class_activation_map(cam_maps, weights)
        peak = cam.max()
        if peak > 0 or (flip and peak < 0):
            cam = np.maximum(cam / peak, 0)
        else:
            cam = np.zeros_like(cam)
        maps.append(reference.bilinear(cam, features.shape[:2]))
    return np.stack(maps, axis=-1)


def best_region(query, features, cam_maps, class_weights, count, whitening, protocol):
    """(score, box, descriptor) of one photo; two classes draw, `count` describe."""
    flip = protocol.flip_negative_cams
    cams = class_maps(features, cam_maps, class_weights, flip)
    best = -np.inf, None, np.zeros(len(query))
    for box in boxes(cams[..., :2].mean(axis=-1), protocol):
        x1, y1, x2, y2 = box or (0, 0, features.shape[1], features.shape[0])
        vectors = reference.class_vectors(
            features[y1:y2, x1:x2], cams[y1:y2, x1:x2, :count]
        )
        found = descriptor(vectors, whitening, protocol.repeat_previous_class)
        if found @ query > best[0]:
            best = found @ query, box, found
    return best


def search(queries, index, own, matches, rerank, expansion, protocol):
    """Rankings and scores of all queries, one after another.

    Args:
        queries: (Q, D) descriptors.
        index: for each query its (N, D); the same object where they share it.
        own: for each query the row of its own photo.
        matches: `best_region` of query and row.
        rerank: R.
        expansion: images averaged.
        protocol: flags.

    Returns:
        For each query the rows, best first, and their scores.
    """
    leaked, results = {}, []
    for number, query in enumerate(queries):
        kept = protocol.rerank_moves_index == "run"
        rows = leaked.get(id(index[number])) if kept else None
        rows = [row.copy() for row in index[number]] if rows is None else rows
        shown = list(rows)
        if protocol.query_replaces_own_row:
            shown[own[number]] = query
        scores = [float(row @ query) for row in shown]
        order = sorted(range(len(rows)), key=lambda row: -scores[row])
        if rerank:
            for row in order[:rerank]:
                scores[row], _, found = matches(number, row)
                if protocol.rerank_moves_index != "no":
                    rows[row] = found
            first = sorted(order[:rerank], key=lambda row: -scores[row])
            order = first + order[rerank:]
        if expansion:
            total = sum(rows[row] for row in order[:expansion])
            expanded = l2(total + query if protocol.expand_with_query else total)
            scores = [float(row @ expanded) for row in rows]
            order = sorted(range(len(rows)), key=lambda row: -scores[row])
        leaked[id(index[number])] = rows
        results.append((order, np.array(scores)[order]))
    return results


def similarity_map(query, features, cams, whitening, power, repeat=False):
    """What each cell adds to the similarity, one cell, class and channel at a time.

    features (H, W, K) and cams (H, W, C) of the region -> (H, W).
    """
    height, width, channels = features.shape
    channel = reference.channel_weights(features)
    vectors, parts = [], []  # (K,) and cell -> (K,), of each class
    for c in range(cams.shape[2]):
        vector, part = np.zeros(channels), np.zeros((height, width, channels))
        for k in range(channels):
            total = sum(
                features[i, j, k] ** power * cams[i, j, c]
                for i in range(height)
                for j in range(width)
            )
            vector[k] = channel[k] * total ** (1 / power)
            for i in range(height):
                for j in range(width):
                    mass = features[i, j, k] ** power * cams[i, j, c]
                    part[i, j, k] = vector[k] * mass / total if total else 0
        vectors.append(vector)
        parts.append(part)
        if repeat and c and not vector.any():
            vectors[c], parts[c] = vectors[c - 1], parts[c - 1]
    whole, cells = np.zeros(len(query)), np.zeros((height, width))
    for vector, part in zip(vectors, parts, strict=True):
        if not vector.any():
            continue
        unit = l2(vector)
        whitened = (unit - whitening.mean) @ whitening.projection
        whole += l2(whitened)
        for i in range(height):
            for j in range(width):
                own = part[i, j] / np.linalg.norm(vector)
                centred = own - (own @ unit) * whitening.mean
                cells[i, j] += (
                    query @ (centred @ whitening.projection) / np.linalg.norm(whitened)
                )
    return cells / np.linalg.norm(whole)
