"""The maps of one photo."""

import numpy as np
import pytest
import tiny

from cwr_utils import reranking
from cwr_utils.images import box_to_cells, resize_image
from cwr_utils.inspection import look
from cwr_utils.protocol import PRESETS

SETUP = tiny.setup(resize=tiny.FINE)


def test_one_pass_gives_the_maps_of_all_classes():
    network, photo = tiny.network(), tiny.view(1, 0)
    cams = look(SETUP, photo)
    maps = network.maps(resize_image(photo, SETUP.policy)[None])
    exponentials = np.exp(maps["logits"][0])
    np.testing.assert_allclose(
        cams.probabilities, exponentials / exponentials.sum(), rtol=1e-5
    )
    assert cams.top(3) == np.argsort(-cams.probabilities)[:3].tolist()
    assert len(cams.top(99)) == tiny.CLASSES
    naive = sum(
        maps["cam_maps"][0, ..., m, None] * network.class_weights[m]
        for m in range(network.class_weights.shape[0])
    )
    np.testing.assert_allclose(
        cams.maps([2, 0], raw=True), naive[..., [2, 0]], rtol=1e-4, atol=1e-5
    )
    scaled = cams.maps(cams.top(1))
    assert scaled.min() >= 0
    assert scaled.max() == pytest.approx(1)


def test_boxes_are_those_of_re_ranking_in_pixels():
    photo = tiny.view(2, 1)
    cams = look(SETUP, photo)
    classes = cams.top(2)
    heat = reranking.heat_map(cams.maps(classes), cams.grid[::-1])
    thresholds = PRESETS["corrected"].rerank_thresholds
    found = cams.boxes(classes)
    assert found
    assert set(found) <= {"1%", "10%", "20%", "30%", "40%"}
    for threshold in thresholds:
        cells = reranking.cam_boxes(heat, [threshold])
        assert bool(cells) == (f"{threshold:.0%}" in found)
        if cells:
            box = found[f"{threshold:.0%}"]
            assert box_to_cells(box, cams.size, cams.grid) == cells[0]


def test_cells_are_those_that_the_box_touches():
    cams = look(SETUP, tiny.view(0, 0))  # 96 x 72
    columns, rows = cams.grid
    mask = cams.cells((0.0, 0.0, 96 / columns, 72 / rows))
    assert mask.shape == (rows, columns)
    assert mask.sum() == mask[0, 0] == 1
    assert cams.cells(None).all()


def test_a_photo_has_three_axes():
    with pytest.raises(ValueError, match="photo"):
        look(SETUP, np.zeros((8, 8), np.uint8))
