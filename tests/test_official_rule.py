"""Thousands of random searches, scored here and by the rules written a second time."""

import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import reference_ap

from cwr_utils import datasets, evaluation, ranking

SEARCHES = 2000
IMAGES = [f"all_souls_{number:06d}" for number in range(40)]


def ranked(scores):
    """Best first; of equals the earlier image."""
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert ranking.order(scores).tolist() == expected
    return [IMAGES[i] for i in expected]


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """Data set, rankings and, for each query, its own ground truth.

    Official files; half of the ground truth is as Windows writes it.
    """
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("oxford5k")
    photo = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    for folder in ("images", "gt", "linux"):
        (root / folder).mkdir()
    (root / "images" / f"{IMAGES[0]}.png").write_bytes(photo)
    for name in IMAGES[1:]:
        link = root / "images" / f"{name}.png"
        os.link(root / "images" / f"{IMAGES[0]}.png", link)
    rankings = {}
    for number in range(SEARCHES):
        query = f"all_souls_{number}"
        mixed = rng.permutation(IMAGES).tolist()
        good, ok, junk, _ = np.split(mixed, np.sort(rng.integers(0, 20, 3)))
        own = rng.choice(IMAGES)
        texts = {"query": [f"oxc1_{own} 1 1 8 8"], "good": good, "ok": ok, "junk": junk}
        if not len(good) + len(ok):
            texts |= {"good": mixed[-1:]}
        for kind, lines in texts.items():
            name, text = f"{query}_{kind}.txt", "".join(f"{line}\n" for line in lines)
            (root / "linux" / name).write_bytes(text.encode())
            text = text.replace("\n", rng.choice(["\n", "\r\n"]))
            (root / "gt" / name).write_bytes(text.encode())
        ties = rng.integers(0, rng.integers(1, 40), len(IMAGES))
        # A short list misses positives.
        rankings[query] = ranked(ties)[: rng.integers(1, len(IMAGES) + 1)]
    return datasets.load("oxford5k", root), rankings, root / "linux"


def test_the_official_program_agrees_on_the_files(searches, tmp_path):
    data, rankings, truth = searches
    evaluation.write_rankings(rankings, tmp_path)
    for name, names in rankings.items():
        assert (tmp_path / f"{name}.txt").read_text().split() == names
    table = evaluation.evaluate(rankings, data.queries)
    expected = [
        reference_ap.compute_ap(truth / query.name, tmp_path / f"{query.name}.txt")
        for query in data.queries
    ]
    assert len(expected) == SEARCHES and 0 < min(table["positives"])
    np.testing.assert_allclose(table["ap"], expected, rtol=0, atol=1e-12)
    found = evaluation.mean_average_precision(table)
    assert found == pytest.approx(sum(expected) / SEARCHES, abs=1e-12)


def test_a_ranking_file_byte_by_byte(searches, tmp_path):
    """Names as in the ground truth: no `oxc1_`, no suffix; LF, also at the end."""
    data, *_ = searches
    evaluation.write_rankings({data.queries[0].name: data.images[:2]}, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == "all_souls_0.txt"
    assert file.read_bytes() == b"all_souls_000000\nall_souls_000001\n"


def test_the_official_program_finds_nothing_in_a_file_with_windows_ends(tmp_path):
    """Why ours end in LF."""
    for kind, text in {"good": "a\n", "ok": "", "junk": ""}.items():
        (tmp_path / f"q_{kind}.txt").write_text(text, newline="\n")
    for text, ap in {"a\nb\n": 1, "a\r\nb\r\n": 0}.items():
        (tmp_path / "ranks.txt").write_bytes(text.encode())
        assert reference_ap.compute_ap(tmp_path / "q", tmp_path / "ranks.txt") == ap


@pytest.mark.parametrize("difficulty", evaluation.DIFFICULTIES)
def test_the_revisited_program_agrees(difficulty):
    """Thousands of searches: AP, P@k, their means, and who is left out of them."""
    rng = np.random.default_rng(1)
    orders, truths, queries, rankings = [], [], [], {}
    for number in range(SEARCHES):
        sizes = np.sort(rng.integers(0, rng.integers(1, 30), 3))
        mixed = rng.permutation(len(IMAGES)).tolist()
        lists = [part.tolist() for part in np.split(mixed, sizes)[:3]]
        truths.append(dict(zip(("easy", "hard", "junk"), lists, strict=True)))
        easy, hard, junk = (frozenset(IMAGES[i] for i in part) for part in lists)
        query = datasets.Query(f"q{number}", "outside", None, easy | hard, junk)
        queries.append(replace(query, hard=hard).at_difficulty(difficulty))
        ties = rng.integers(0, rng.integers(1, 40), len(IMAGES))
        rankings[query.name] = ranked(ties)
        orders.append([IMAGES.index(name) for name in rankings[query.name]])
    depths = evaluation.DEPTHS
    mean_ap, aps, means, precisions = reference_ap.compute_map(
        orders, truths, difficulty, depths
    )
    table = evaluation.evaluate(rankings, queries)
    assert 0 < np.isnan(aps).sum() < SEARCHES / 2  # queries that are left out
    np.testing.assert_allclose(table["ap"], aps, rtol=0, atol=5e-16)
    found = evaluation.mean_average_precision(table)
    assert found == pytest.approx(mean_ap, rel=0, abs=5e-16)
    np.testing.assert_array_equal(table[[f"p@{k}" for k in depths]], precisions)
    for k, mean in zip(depths, means, strict=True):
        found = evaluation.mean_precision_at(table, k)
        assert found == pytest.approx(mean, rel=0, abs=5e-15)
