"""Eqs. 1-4 as naive loops, written from the paper; the slow side of comparisons.

`published_maps` and `published_vectors` are the step between: arrays over cells, one
multiply-and-sum for each class and map or channel, in the order and the precision
(features in double) in which the published code computes.
"""

import math

import numpy as np


def class_activation_map(cam_maps, weights):
    """Eq. 1 for one class: cam_maps (h, w, M), weights (M,) -> (h, w)."""
    height, width, maps = cam_maps.shape
    cam = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for m in range(maps):
                cam[i, j] += cam_maps[i, j, m] * weights[m]
    return cam


def channel_weights(features):
    """Eqs. 2 and 3: features (H, W, K) -> (K,)."""
    height, width, channels = features.shape
    share = [0.0] * channels
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                share[k] += float(features[i, j, k] > 0) / (height * width)
    return np.array([math.log(sum(share) / q) if q > 0 else 0.0 for q in share])


def class_vectors(features, cams):
    """Eq. 4: features (H, W, K), cams (H, W, C) -> (C, K)."""
    height, width, channels = features.shape
    weights = channel_weights(features)
    vectors = np.zeros((cams.shape[2], channels))
    for c in range(cams.shape[2]):
        for k in range(channels):
            for i in range(height):
                for j in range(width):
                    vectors[c, k] += features[i, j, k] * cams[i, j, c]
            vectors[c, k] *= weights[k]
    return vectors


def bilinear(image, grid):
    """Resize (h, w) to `grid` with half-pixel centres and clamped borders."""
    result = np.zeros(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            y = (i + 0.5) * image.shape[0] / grid[0] - 0.5
            x = (j + 0.5) * image.shape[1] / grid[1] - 0.5
            y = min(max(y, 0), image.shape[0] - 1)
            x = min(max(x, 0), image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1 = min(y0 + 1, image.shape[0] - 1)
            x1 = min(x0 + 1, image.shape[1] - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            result[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return result


def published_maps(cam_maps, weights):
    """Eq. 1 and its scaling: cam_maps (M, h, w), weights (M, C) -> (C, h, w)."""
    cams = np.zeros((weights.shape[1], *cam_maps.shape[1:]), np.float32)
    for c in range(weights.shape[1]):
        for m in range(len(cam_maps)):
            cams[c] += cam_maps[m] * weights[m, c]
        peak = cams[c].max()
        cams[c] = np.maximum(cams[c] / peak, 0) if peak > 0 else 0
    return cams


def published_vectors(features, cams):
    """Eq. 4: features (K, H, W), cams (C, H, W) -> (C, K)."""
    share = (features > 0).mean(axis=(1, 2))
    weights = np.zeros(len(features), np.float32)
    weights[share > 0] = np.log(share.sum() / share[share > 0])
    features = features.astype(np.float64)
    vectors = np.zeros((len(cams), len(features)), np.float32)
    for k in range(len(features)):
        for c in range(len(cams)):
            vectors[c, k] = np.sum(features[k] * cams[c]) * weights[k]
    return vectors
