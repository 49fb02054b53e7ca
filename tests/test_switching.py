"""Another protocol, layer or box: all that is opened is of it, nothing of the last."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from cwr_utils import contributions, explain, flag_costs, widgets
from cwr_utils.images import read_image
from cwr_utils.protocol import FLAGS, PRESETS, variants
from cwr_utils.retrieval import Collection, Experiment, Method, rank
from cwr_utils.store import StoreError
from cwr_utils.whitening import WhiteningError
from cwr_utils.widgets import search as search_module
from cwr_utils.widgets.controls import open_source
from cwr_utils.widgets.search import ask

# All classes: one of them has no positive cell on any photo.
ALL = Method("online", tiny.CLASSES, num_whitening_classes=3, dimensions=12)
ONLINE = replace(ALL, num_classes=2)
RERANK = replace(ONLINE, rerank=12, rerank_classes=4)
KINDS = ("offline", "online", "theme")
METHODS = [
    replace(method, aggregation=kind)
    for kind in KINDS
    for method in (ALL, ONLINE, RERANK, replace(RERANK, query_expansion=2))
]
pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("switching")


@pytest.fixture(scope="module")
def data(folder):
    """Pale photos, and a corner of each as query: no flag is without effect on them."""
    data = tiny.dataset(folder / "photos")
    for path in data.paths.values():
        tiny.write(path, 60 + read_image(path) // 2)
    corners = [replace(q, box=(26.0, 24.0, 70.0, 70.0)) for q in data.queries]
    return replace(data, queries=tuple(corners))


def setup(folder, **changes):
    return tiny.setup(folder, **{"resize": tiny.FINE, **changes})


def same(first, second):
    """Whether two results have the same rankings and the same scores, to the bit."""
    return first.rankings == second.rankings and all(
        np.array_equal(first.scores[name], second.scores[name]) for name in first.scores
    )


# Flags

SWITCHED = dict(variants(setup(".").protocol))
SWITCHED["resize"] = replace(SWITCHED["resize"], resize="shorter:72")


@pytest.fixture(scope="module")
def shared(data, others, folder):
    """An experiment, and its results by flag and method, from one collection."""
    collection = tiny.opened(Experiment(data, others, setup(folder)))
    results = {"": {method: rank(collection, method) for method in METHODS}}
    for flag, protocol in SWITCHED.items():
        under = flag_costs.under(collection, protocol)
        results[flag] = {method: rank(under, method) for method in METHODS}
    results["again"] = {method: rank(collection, method) for method in METHODS}
    return collection.experiment, results


@pytest.mark.parametrize("flag", FLAGS)
def test_switching_a_flag_gives_what_opening_anew_under_it_gives(shared, flag):
    """After all the flags before it, and with nothing shared between methods."""
    experiment, results = shared
    for method in METHODS:
        anew = rank(Collection.open(experiment.under(SWITCHED[flag])), method)
        assert same(results[flag][method], anew), method.slug


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_changes_a_number_here(shared, flag):
    """Or the comparisons would prove nothing."""
    _, results = shared
    before, after = results[""], results[flag]
    changed = [m for m in METHODS if not same(before[m], after[m])]
    kinds = {method.aggregation for method in changed}
    assert kinds == (set() if flag == "mean_order" else set(KINDS))  # of VGG-16 alone
    if flag.startswith("rerank"):
        assert all(method.rerank for method in changed)


def test_a_collection_is_left_as_it_was(shared):
    _, results = shared
    for method in METHODS:
        assert same(results["again"][method], results[""][method])


def test_what_is_not_switched_is_kept(planted, others, folder):
    """The theme, the photos to fit on, and the type of the stored vectors."""
    chosen = others.images[3:]
    kept = setup(folder, dtype="float32")
    experiment = Experiment(planted, others, kept, chosen, (4, 2, 0, 1, 3, 5))
    collection = tiny.opened(experiment)
    for protocol in (PRESETS["paper"], SWITCHED["flip_negative_cams"]):
        protocol = replace(protocol, resize=tiny.FINE)
        under = flag_costs.under(collection, protocol)
        assert under.first.setup == replace(kept, protocol=protocol)
        assert under.experiment == replace(experiment, setup=under.first.setup)
        assert under.first.theme == [4, 2, 0, 1, 3, 5]
        assert under.first.spaces.fitted(ONLINE).vectors == 9 * 3
        assert under.source == "other (9 of 12 photos)"
        for store in (
            under.first.database,
            under.first.asked.store,
            under.first.spaces.training.store,
        ):
            assert store.dtype("class_vectors") == np.float32


def test_without_training_photos_all_is_there_or_says_why(make):
    plain = make(training=None)
    for name in dir(plain):
        if name.startswith("_"):
            continue
        try:
            getattr(plain, name)
        except WhiteningError as error:
            assert name == "theme" and "no training photos were given" in str(error)
    assert (plain.first.spaces.training, plain.source) == (None, "")
    assert plain.other_layers() == []
    again = plain.under(
        replace(plain.first.setup.protocol, query_replaces_own_row=True)
    )
    assert len(rank(again, Method("gem", dimensions=0)).rankings) == 4


# Boxes


@pytest.mark.parametrize("preset", PRESETS)
def test_a_box_that_is_drawn_anew_is_described_as_the_stored_one(make, preset):
    collection, method = make(protocol=preset), replace(RERANK, query_expansion=2)
    for number, query in enumerate(collection.data.queries):
        stored = ask(
            collection, open_source(collection.data, "query", number), query.box
        )
        photo = open_source(collection.data, "image", query.image)
        drawn = ask(collection, photo, query.box)
        assert (
            drawn.collection.first.asked.store.config.items()
            >= collection.first.setup.query_facts().items()
        )
        for name in (
            "top_classes",
            "probabilities",
            "empty_cams",
            "globals",
            "class_vectors",
        ):
            there = collection.first.asked.store.read(name, [number])
            here = drawn.collection.first.asked.store.read(name)
            np.testing.assert_array_equal(here, there, name)
        # The store has room for the query with the most regions.
        there = collection.first.asked.store.read("regions", [number])
        here = drawn.collection.first.asked.store.read("regions")
        np.testing.assert_array_equal(here, there[:, :, : here.shape[2]])
        assert not there[:, :, here.shape[2] :].any()
        first, second = (search.results(method) for search in (stored, drawn))
        assert list(first.rankings.values()) == list(second.rankings.values())
        for scores in zip(first.scores.values(), second.scores.values(), strict=True):
            np.testing.assert_array_equal(*scores)


def test_presets_describe_the_same_box_differently(make):
    """Or the comparison above would not tell one preset from another."""
    stores = [make(protocol=preset).first.asked.store for preset in PRESETS]
    described = [store.read("probabilities") for store in stores]
    for number, first in enumerate(described):
        for second in described[number + 1 :]:
            assert np.abs(first - second).max() > 1e-3


# Layers


def test_another_layer_is_that_of_the_same_experiment(planted, others, tmp_path):
    """The corrected protocol's queries lie beside it, and are not taken for its own."""
    tiny.opened(Experiment(planted, others, setup(tmp_path, layer="maps")))
    chosen, theme = planted.distractors, (1, 3, 0)
    paper = setup(tmp_path, protocol="paper")
    experiment = Experiment(planted, planted, paper, chosen, theme, True)
    collection = tiny.opened(experiment)
    assert collection.other_layers() == []
    with pytest.raises(StoreError, match="run the extraction"):
        collection.at_layer("maps")

    expected = tiny.opened(experiment.at_layer("maps"))
    assert collection.other_layers() == ["maps"]
    other = collection.at_layer("maps")
    assert other.experiment == replace(experiment, setup=replace(paper, layer="maps"))
    assert other.first.setup.protocol.name == "paper"
    assert other.first.asked.store.config["query_classes"] == "same pass"
    assert (other.source, other.first.theme) == ("tiny (6 of 18 photos)", [1, 3, 0])
    method = replace(ONLINE, dimensions=6)
    assert same(rank(other, method), rank(expected, method))
    with pytest.raises(StoreError, match="run the extraction"):
        collection.at_layer("linear")


def test_other_layers_are_those_with_stores_of_the_same_settings(make, tmp_path):
    collection = make(folder=tmp_path)
    make(folder=tmp_path, layer="maps", power=2.0)
    make(folder=tmp_path, layer="maps", training=None, flip_negative_cams=True)
    assert collection.other_layers() == []
    expected = make(folder=tmp_path, layer="maps")
    assert collection.other_layers() == ["maps"]
    method = replace(ONLINE, dimensions=6)
    assert same(rank(collection.at_layer("maps"), method), rank(expected, method))
    explorer = widgets.SearchExplorer(collection, method)
    for layer in ("maps", tiny.LAYER, "maps"):
        explorer.layer.value = layer
        assert explorer.search.collection.first.setup.layer == layer


# Squares


@pytest.fixture(scope="module")
def upright(make):
    """As in the authors' code, but a score is that of a re-ranked photo itself."""
    flags = {"rerank_moves_index": "no", "query_replaces_own_row": False}
    return make(protocol="authors_code", rerank_fallback=True, **flags)


def reranked_squares(collection):
    """Number of the query, its result alone, and name of each."""
    for number in range(len(collection.data.queries)):
        source = open_source(collection.data, "query", number)
        search = ask(collection, source, source.query.box)
        (matches,) = search.results(RERANK).matches.values()
        for name in matches:
            width, height = collection.data.size(name)
            if width == height:
                yield search, name


def test_the_parts_of_upright_squares_add_up_to_their_scores(upright):
    pairs = list(reranked_squares(upright))
    assert len(pairs) >= 10
    for search, name in pairs:
        collection, result = search.collection, search.results(RERANK)
        match = next(iter(result.matches.values()))[name]
        pair = contributions._Pair(collection.first, RERANK, 0, {name: match}, [], ())
        same, rest = contributions.contributions(*pair.parts(name))
        assert sum(same.values()) + rest == pytest.approx(match.score, abs=1e-5)


def test_the_box_of_an_upright_square_is_drawn_on_an_upright_grid(upright, monkeypatch):
    """80 x 80 pixels are described as 72 x 96, and so in 18 x 24 cells."""
    drawn = []
    draw = search_module.match_board

    def spy(*arguments, **options):
        drawn.append(options["box"])
        return draw(*arguments, **options)

    monkeypatch.setattr(search_module, "match_board", spy)
    boxes = 0
    for search, name in reranked_squares(upright):
        (ranking,) = search.results(RERANK).rankings.values()
        (matches,) = search.results(RERANK).matches.values()
        view = widgets.SearchView(RERANK, chosen=1 + ranking.index(name))
        widgets.show_match(search, view)
        if (cells := matches[name].box) is not None:
            expected = np.array(cells) * 80 / [18, 24, 18, 24]
            np.testing.assert_allclose(drawn[-1], expected)
            picture = explain.box_picture(search.collection, RERANK, 0, name)
            np.testing.assert_allclose(picture["boxes"][picture["best"]], expected)
            assert picture["heat"].shape == (24, 18)
            boxes += 1
    assert boxes
