"""Several sizes, layers and networks together: the mean of their scores."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from cwr_utils import networks, ranking, retrieval, whitening
from cwr_utils.arrays import l2_normalize
from cwr_utils.contributions import (
    AS_A_WHOLE,
    cell_contributions,
    class_contributions,
)
from cwr_utils.extraction import together
from cwr_utils.images import read_image
from cwr_utils.retrieval import Collection, Method, rank
from cwr_utils.runs import source, workbench
from cwr_utils.store import StoreError

ONLINE = Method("online", num_classes=3, num_whitening_classes=3, dimensions=10)
METHODS = [
    Method("gem", dimensions=8),
    Method("rmac_max", dimensions=0),
    replace(ONLINE, aggregation="offline"),
    replace(ONLINE, aggregation="theme"),
    ONLINE,
    replace(ONLINE, query_expansion=2),
]
RERANKED = replace(ONLINE, rerank=4, rerank_classes=3)
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two sizes and a second network."""
    folder = tmp_path_factory.mktemp("several")
    cache = folder / "cache"
    return tiny.described(
        folder,
        tiny.setup(cache, resize="96x72"),
        tiny.setup(cache, resize="64x48"),
        tiny.setup(cache, tiny.network(1, "second"), resize="96x72"),
        others=16,
    )


@pytest.fixture
def several(experiment):
    return Collection.open(experiment)


@pytest.fixture
def alone(experiment):
    return [Collection.open(part) for part in experiment.parts]


def by_image(result, query):
    pairs = zip(result.rankings[query], result.scores[query], strict=True)
    return dict(pairs)


@pytest.mark.parametrize("method", METHODS[:-1], ids=lambda m: m.slug)
def test_a_score_is_the_mean_of_the_scores_of_each(several, alone, method):
    together, parts = rank(several, method), [rank(c, method) for c in alone]
    for query in together.rankings:
        found = by_image(together, query)
        single = [by_image(part, query) for part in parts]
        for image, score in found.items():
            expected = np.mean([part[image] for part in single])
            assert score == pytest.approx(expected, abs=1e-5)


def test_queries_share_one_joined_database(several):
    """Joined for each query, a million photos would be copied each time."""
    offline = replace(ONLINE, aggregation="offline")
    first, second = (found[1] for found in several.descriptors(offline, [0, 1]))
    assert first is second


def test_expansion_averages_what_all_of_them_rank_first(several, alone):
    method = METHODS[-1]
    result = rank(several, method)
    for number, query in enumerate(several.data.queries):
        vectors, databases = zip(
            *(next(c.descriptors(method, [number])) for c in alone), strict=True
        )
        joined = l2_normalize(np.concatenate(databases, axis=1))
        vector = l2_normalize(np.concatenate(vectors))
        first = ranking.order(joined @ vector)[:2]
        expected = joined @ l2_normalize(vector + joined[first].sum(axis=0))
        names = [several.data.images[row] for row in ranking.order(expected)]
        assert result.averaged[query.name] == [several.data.images[r] for r in first]
        np.testing.assert_allclose(
            [by_image(result, query.name)[n] for n in names],
            np.sort(expected)[::-1],
            atol=1e-5,
        )


def test_each_draws_its_own_regions_and_the_best_scores_are_averaged(several, alone):
    result = rank(several, RERANKED)
    for number, query in enumerate(several.data.queries):
        matches = result.matches[query.name]
        assert len(matches) == RERANKED.rerank
        for image, match in matches.items():
            own = [c.match(RERANKED, number, [image])[image] for c in alone]
            assert match.score == pytest.approx(np.mean([m.score for m in own]))
            assert match.box == own[0].box
            assert np.linalg.norm(match.descriptor) == pytest.approx(1, abs=1e-5)
            vector, _ = next(
                several.descriptors(replace(RERANKED, num_classes=3), [number])
            )
            assert match.descriptor @ vector == pytest.approx(match.score, abs=1e-5)


def test_a_photo_from_elsewhere_is_described_by_all(several, experiment):
    query = experiment.data.queries[0]
    photo = read_image(experiment.data.path(query.image))
    sha256 = experiment.data.sha256(query.image)
    asked = several.ask_photos([(replace(query, name="new"), photo, sha256)])
    expected, found = rank(several, ONLINE), rank(asked, ONLINE)
    assert found.rankings["new"] == expected.rankings[query.name]
    scores = expected.scores[query.name]
    np.testing.assert_allclose(found.scores["new"], scores, atol=1e-3)
    with pytest.raises(ValueError):
        several.ask([replace(query, name="new")], asked.first.asked.store)


def test_identity_tells_what_is_used_together(several, alone, experiment):
    rows = [retrieval.row(c, rank(c, ONLINE)) for c in (several, *alone)]
    for name in ("identity", "setting"):
        assert len({row[name] for row in rows}) == len(rows)
    assert rows[0]["resize"] == "96x72 + 64x48 + 96x72"
    assert rows[0]["network"] == "tiny + tiny + second"
    assert rows[0]["layer"] == tiny.LAYER
    assert [row["resize"] for row in rows[1:]] == ["96x72", "64x48", "96x72"]
    turned = replace(experiment, also=experiment.also[::-1])
    assert turned.facts != experiment.facts


def test_dimensions_are_lowered_to_what_all_support(several):
    wanted = replace(METHODS[0], dimensions=100)
    lowered = several.supported(wanted)
    assert lowered.dimensions == 8  # half of 16 whitening photos
    assert rank(several, lowered).rankings


def test_a_fresh_one_keeps_whitenings_and_nothing_else(several, monkeypatch):
    expected = rank(several, ONLINE)
    monkeypatch.setattr(whitening, "fit", lambda *_: pytest.fail("fitted again"))
    again = several.fresh()
    pairs = zip(several.members, again.members, strict=True)
    for old, new in pairs:
        assert new.database is old.database and new.spaces is not old.spaces
        assert new.space(ONLINE) is not old.space(ONLINE)
        assert new.asked is not old.asked and new.maps is not old.maps
    result = rank(again, ONLINE)
    assert result.rankings == expected.rankings
    for name, scores in expected.scores.items():
        np.testing.assert_array_equal(result.scores[name], scores)


def test_a_protocol_holds_for_all(several, experiment):
    protocol = replace(experiment.setup.protocol, rerank_fallback=False)
    under = several.under(protocol)
    setups = [member.setup for member in under.members]
    assert [setup.protocol.rerank_fallback for setup in setups] == [False] * 3
    assert [setup.resize for setup in setups] == ["96x72", "64x48", "96x72"]
    pairs = zip(under.members, several.members, strict=True)
    assert all(new.database is old.database for new, old in pairs)


def test_a_store_that_is_missing_for_one_of_them_is_named(experiment, tmp_path):
    absent = replace(experiment.also[0], cache_dir=tmp_path / "none")
    with pytest.raises(StoreError, match="run the extraction"):
        Collection.open(replace(experiment, also=(absent,)))


# Texts that name several


def test_texts_are_paired_and_one_value_is_shared():
    assert together(network="a + b", resize="1x1", layer=None) == [
        {"network": "a", "resize": "1x1", "layer": None},
        {"network": "b", "resize": "1x1", "layer": None},
    ]
    assert together(network="a", resize="1x1+2x2") == [
        {"network": "a", "resize": "1x1+2x2"}
    ]
    three = together(network="a + b + c", resize=" 1x1 + 2x2 + 1x1")
    assert [(r["network"], r["resize"]) for r in three] == [
        ("a", "1x1"),
        ("b", "2x2"),
        ("c", "1x1"),
    ]


def test_texts_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="or 3 as others have; got 2 of `resize`"):
        together(network="a + b + c", resize="1x1 + 2x2")


def test_parameters_name_several(monkeypatch, tmp_path, planted, others):
    made = []

    def load(name, weights, seed, precision):
        made.append((name, weights, seed, precision))
        return tiny.network(seed=len(made), name=name)

    monkeypatch.setattr(networks, "load", load)
    monkeypatch.setattr(workbench, "load_data", lambda *args: (planted, others))
    given = {"network": "first + second", "resize": "64x48 + 96x72"}
    given |= {"weights": "imagenet + none", "cache_dir": str(tmp_path), "seed": 3}
    given |= {"dimensions": 8}
    parameters = source.complete("04_evaluate_and_rerank", given)
    experiment = workbench.Loader().experiment(parameters)
    setups = [part.setup for part in experiment.parts]
    assert [s.network.name for s in setups] == ["first", "second"]
    assert [s.resize for s in setups] == ["64x48", "96x72"]
    assert made == [("first", "imagenet", 3, "float32"), ("second", None, 3, "float32")]


def test_a_stored_query_is_put_alone(several, experiment):
    query = experiment.data.queries[1]
    expected, found = rank(several, ONLINE), rank(several.ask_stored(query), ONLINE)
    assert found.rankings == {query.name: expected.rankings[query.name]}


@pytest.mark.parametrize(
    "method",
    [
        replace(ONLINE, aggregation="offline", class_weighting="probability"),
        replace(ONLINE, class_weighting="rank", whitening_exponent=0.3),
        replace(ONLINE, class_weighting="probability", query_expansion=2),
        replace(RERANKED, class_weighting="rank"),
    ],
    ids=lambda m: m.slug,
)
def test_scores_of_several_setups_and_weights_come_apart(several, method):
    result = rank(several, method)
    for number, query in enumerate(several.data.queries[:2]):
        for place in (0, 3, -1):
            image = result.rankings[query.name][place]
            score = result.scores[query.name][place]
            table = class_contributions(several, result, number, image)
            assert table["contribution"].sum() == pytest.approx(score, abs=1e-6)
            cells = cell_contributions(several, result, number, image)
            assert cells.sum() == pytest.approx(score, abs=2e-3)
            # What is the same class in both is the mean over the setups.
            assert table["class"].nunique() == len(table) > 1


def test_a_refined_score_does_not_come_apart(several):
    result = rank(several, replace(ONLINE, refine="dba:photos=2"))
    query = several.data.queries[0]
    image = result.rankings[query.name][0]
    table = class_contributions(several, result, 0, image)
    assert table["class"].tolist() == [-1]
    assert table["name"].tolist() == [AS_A_WHOLE]
    assert table["contribution"].sum() == pytest.approx(result.scores[query.name][0])
    with pytest.raises(ValueError, match="got OnA, 3 classes . DBA"):
        cell_contributions(several, result, 0, image)
