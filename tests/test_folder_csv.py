"""CSV files in a folder of photos are found without being named."""

import cv2
import numpy as np
import pytest

from cwr_utils import datasets, runs


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "holiday"
    folder.mkdir()
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


def test_groups_make_queries(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,x\nc,y\n")
    data = datasets.load(str(photos))
    assert [query.image for query in data.queries] == ["a.png", "b.png"]
    assert data.queries[0].positives == {"b.png"}


def test_queries_may_have_boxes(photos):
    (photos / "groups.csv").write_text("image,group\na,x\nb,x\nc,y\n")
    (photos / "queries.csv").write_text("image,x1,y1,x2,y2\nb,1,2,30,20\n")
    (query,) = datasets.load(str(photos)).queries
    assert query.box == (1, 2, 30, 20)
    assert query.positives == {"a.png"}


def test_a_folder_without_queries_says_how_to_make_some(photos):
    assert datasets.load(str(photos)).queries == ()
    with pytest.raises(datasets.DatasetError, match=r"no queries.*groups\.csv"):
        runs.load_data(str(photos), "", str(photos), "")
