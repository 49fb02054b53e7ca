"""Explorers without a browser: every state is a picture and a table."""

import base64
import io
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import tiny
from cv2 import imencode
from PIL import Image

from cwr_utils import evaluation, images, widgets
from cwr_utils.contributions import cell_contributions
from cwr_utils.figures import RELEVANCE, panels
from cwr_utils.images import ImageError
from cwr_utils.inspection import look
from cwr_utils.retrieval import Experiment, Method, rank
from cwr_utils.runs.notebook import slim
from cwr_utils.store import MemoryStore
from cwr_utils.widgets import CamView, SearchView, controls
from cwr_utils.widgets.search import ask

SETUP = tiny.setup(resize=tiny.FINE)
ONLINE = Method("online", num_classes=3, num_whitening_classes=3, dimensions=12)
NAMES = [f"class {c}" for c in range(tiny.CLASSES)]


@pytest.fixture(scope="module", autouse=True)
def small():
    with tiny.compile_once(), pytest.MonkeyPatch.context() as patch:
        # Photos of 64 pixels are large enough here.
        patch.setattr(images, "MIN_SIDE", 16)
        yield


@pytest.fixture(scope="module")
def collection(make):
    return make()


@pytest.fixture(scope="module")
def cams():
    return look(SETUP, tiny.view(1, 0))


@pytest.fixture
def explorer(collection):
    return widgets.SearchExplorer(collection, ONLINE, query=1)


@pytest.fixture
def viewer(collection):
    return widgets.CamExplorer(collection.data, SETUP, query=1)


def same(first, second):
    """Whether two boards are painted alike."""
    pixels = [board.picture().pixels for board in (first, second)]
    return pixels[0].shape == pixels[1].shape and (pixels[0] == pixels[1]).all()


def png(photo):
    return imencode(".png", photo[..., ::-1])[1].tobytes()


def upload(explorer, name, content):
    explorer.panel.upload(name, content)


def ranking(explorer):
    """What the first results say to a screen reader."""
    return [card["text"] for card in explorer.results.cards]


def photos(gallery):
    """What is seen."""
    return [card["jpeg"] for card in gallery.cards]


# The picture of a photo's maps


def test_every_choice_changes_the_picture(cams):
    top = cams.top(3)
    base = CamView((top[0], top[1]))
    views = [
        base,
        replace(base, classes=(top[0],)),
        replace(base, classes=(top[0], top[2])),
        replace(base, opacity=0.2),
        replace(base, colours="cividis"),
        replace(base, raw=True),
        replace(base, boxes=False),
        replace(base, box=(10.0, 10.0, 40.0, 40.0)),
    ]
    pictures = [widgets.show_cams(cams, view, NAMES)[0] for view in views]
    for i, first in enumerate(pictures):
        assert same(first, widgets.show_cams(cams, views[i], NAMES)[0])
        assert not any(same(first, other) for other in pictures[i + 1 :])


def test_two_classes_come_with_their_mean(cams):
    top = cams.top(2)
    board, table = widgets.show_cams(cams, CamView(tuple(top)), NAMES)
    assert f"class {top[0]}" in board.text
    assert "mean of both" in board.text
    assert "mean" not in widgets.show_cams(cams, CamView((top[0],)), NAMES)[0].text
    boxes = cams.boxes(top)
    assert table.index.tolist() == list(boxes)
    np.testing.assert_allclose(table.to_numpy(), list(boxes.values()), atol=0.5)


def test_full_opacity_shows_the_colours_of_the_map():
    """The left half of the map is 0 and the right half 1: both ends of the scale."""
    photo = np.full((60, 80, 3), 77, np.uint8)
    values = np.zeros((4, 8), np.float32)
    values[:, 4:] = 1
    for name in panels.COLOUR_MAPS:
        board = panels.cam_board(photo, {"map": values}, opacity=1, colours=name)
        _, shown = board.cards
        table = panels._table(name)
        assert (shown.pixels[30, 5] == table[0]).all()
        assert (shown.pixels[30, 75] == table[255]).all()
        assert board.scale == (0, 1, name)
        ends = panels.colour_stops(name)
        assert [int(ends[-1][i : i + 2], 16) for i in (1, 3, 5)] == table[255].tolist()


def test_opacity_that_grows_shows_the_photo_where_the_map_is_low():
    photo = np.full((10, 20, 3), 100, np.uint8)
    values = np.zeros((1, 2))
    values[0, 1] = 1
    shown = panels.overlay(photo, values, "gray", None)
    assert (shown[5, 0] == 100).all()
    assert (shown[5, 19] == 232).all()  # 0.85 of 255, 0.15 of 100


def test_colour_maps_get_lighter_from_end_to_end():
    """So they can be read in grey, and with every colour blindness."""
    for name in panels.COLOUR_MAPS:
        light = panels._table(name) @ [0.299, 0.587, 0.114]
        assert (np.diff(light) > -1).all()
        assert light[-1] - light[0] > 150
    with pytest.raises(ValueError, match="viridis"):
        panels._table("jet")


def test_the_grid_is_dark_outside_the_region():
    photo = np.full((90, 120, 3), 200, np.uint8)
    mask = np.zeros((3, 4))
    mask[1, 2] = 1
    shown = panels._with_grid(photo, mask)
    assert (shown[45, 75] == 200).all()
    assert (shown[15, 15] == 80).all()
    assert (shown[30, 5] != shown[15, 15]).all()


# Searches


def search(collection, number=1, box=...):
    source = controls.open_source(collection.data, "query", number)
    box = source.query.box if box is ... else box
    return ask(collection, source, box)


@pytest.mark.parametrize(
    "method",
    [
        ONLINE,
        replace(ONLINE, aggregation="offline"),
        replace(ONLINE, aggregation="theme", query_expansion=2),
        replace(ONLINE, rerank=4, rerank_classes=3),
    ],
    ids=lambda method: method.slug,
)
def test_an_unchanged_query_gives_what_the_tables_have(collection, method):
    result = rank(collection, method)
    board, table = widgets.show_search(search(collection), SearchView(method))
    assert table["name"].tolist() == result.rankings["query1"]
    np.testing.assert_array_equal(table["score"], result.scores["query1"])
    ap = evaluation.evaluate(result.rankings, collection.data.queries).set_index(
        "query"
    )["ap"]["query1"]
    assert f"{method.label}, AP {ap:.2f}" in board.title
    kinds = table.set_index("name")["relevance"]
    assert kinds["place1_0"] == "query"
    assert kinds["place1_1"] == "positive"
    assert kinds["place1_2"] == "junk"
    assert (kinds.drop(["place1_0", "place1_1", "place1_2"]) == "negative").all()


def test_the_query_itself_and_junk_have_no_rank(collection):
    board, table = widgets.show_search(search(collection), SearchView(ONLINE))
    uncounted = table["relevance"].isin(["query", "junk"])
    assert uncounted.sum() == 2 and uncounted[1]
    assert table["rank"][uncounted].isna().all()
    counted = table["rank"][~uncounted]
    assert counted.tolist() == list(range(1, len(table) - 1))
    assert board.cards[0].text.startswith("the query itself, place1_0, score ")
    second = board.cards[1]
    assert second.title == "1" and second.text.startswith("rank 1, ")


def test_a_photo_of_the_collection_that_is_uploaded_is_the_query_itself(collection):
    path = collection.data.path("other0_2")
    source = controls.read_upload("mine.png", path.read_bytes())
    _, table = widgets.show_search(ask(collection, source, None), SearchView(ONLINE))
    own = table[table["name"] == "other0_2"]
    assert own["relevance"].tolist() == ["query"] and own["rank"].isna().all()
    assert (table["relevance"].drop(own.index) == "unknown").all()


def test_cards_have_the_colour_of_their_relevance(collection):
    board, table = widgets.show_search(search(collection), SearchView(ONLINE))
    pixels = board.picture().pixels
    assert len(board.cards) == 10
    for card, kind in zip(board.cards, table["relevance"], strict=False):
        assert card.relevance == kind
        colour = RELEVANCE[kind][0].lstrip("#")
        expected = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        assert (pixels == expected).all(axis=2).sum() > 200


def test_every_photo_is_credited():
    """In as many lines as it takes, none of which runs over the edge."""
    photo = np.full((30, 40, 3), 128, np.uint8)
    words = {"rank": 1, "score": 0.5, "relevance": "negative"}
    captions = [{**words, "name": f"p{i}"} for i in range(10)]
    credits = [f"A Photographer With A Long Name {i}" for i in range(10)]
    plain = panels.result_board("", [photo] * 10, captions, [""] * 10).picture().pixels
    board = panels.result_board("", [photo] * 10, captions, credits)
    notes = board.picture().pixels[len(plain) :]
    lines = (notes < 200).any(axis=(1, 2)).reshape(-1, 14).any(axis=1)
    assert lines.all()
    assert len(lines) >= 3
    assert (board.picture().pixels[: len(plain)] == plain).all()
    assert (notes[:, -4:] == 255).all()


def test_an_edited_box_is_described_anew(collection):
    """As if the data set had that box."""
    box = (4.0, 10.0, 50.0, 60.0)
    edited = search(collection, box=box)
    view = SearchView(ONLINE)
    scores = widgets.show_search(edited, view)[1]["score"]
    assert not np.allclose(
        scores, widgets.show_search(search(collection), view)[1]["score"]
    )
    described = tiny.describer(SETUP).describe_query(edited.source.photo, box)
    stored = edited.collection.first.asked.store.read("class_vectors")[0]
    np.testing.assert_allclose(stored, described["class_vectors"], atol=1e-3)
    # The ground truth of the query goes with it.
    assert "AP" in widgets.show_search(edited, view)[0].title


def test_the_match_shows_what_adds_up_to_the_score(collection):
    one = search(collection)
    for method in (ONLINE, replace(ONLINE, rerank=4, rerank_classes=2)):
        for place in (1, 3, 12):
            view = SearchView(method, chosen=place)
            board, shares = widgets.show_match(one, view)
            row = widgets.show_search(one, view)[1].loc[place]
            score = pytest.approx(float(row["score"]), abs=1e-6)
            assert shares["contribution"].sum() == score
            assert sum(value for _, value in board.bars) == score
            assert row["name"] in board.title
            assert all(name in board.text for name in shares["name"])
            cells = cell_contributions(
                one.collection, one.results(method), 0, row["name"]
            )
            assert f"all together: {cells.sum():.3f}" in board.summary
            assert board.scale == pytest.approx((0, cells.max(), "viridis"))


def test_of_many_classes_the_small_ones_are_one_bar():
    photo = np.full((30, 40, 3), 128, np.uint8)
    shares = [(f"class {n}", 1 / (1 + n)) for n in range(30)] + [("pairs", -0.5)]
    bars = panels.match_board(photo, photo, shares).bars
    assert bars[:8] == tuple(shares[:8]) and bars[-1] == ("pairs", -0.5)
    assert bars[8][0] == "22 other classes" and len(bars) == 10
    assert sum(v for _, v in bars) == pytest.approx(sum(v for _, v in shares))


def test_without_classes_there_is_no_map(collection):
    view = SearchView(Method("sum", dimensions=0), chosen=2)
    board, _ = widgets.show_match(search(collection), view)
    assert len(board.cards) == 2 and board.summary == "" and board.scale is None


def test_the_box_that_won_is_drawn(collection):
    one, method = search(collection), replace(ONLINE, rerank=6, rerank_classes=3)
    result = one.results(method)
    names = enumerate(result.rankings["query1"][:6], start=1)
    won = next(place for place, name in names if result.matches["query1"][name].box)
    for boxed, place in ((True, won), (False, 12)):
        board, _ = widgets.show_match(one, SearchView(method, chosen=place))
        assert bool(board.cards[1].marks) == boxed
        left = board.picture().pixels[:, 426:]
        assert ((left == [0, 0x72, 0xB2]).all(axis=2)[:320].sum() > 100) == boxed


# The widgets


def test_explorers_show_their_view(viewer, explorer):
    board = widgets.show_cams(viewer.cams, viewer.view, NAMES, "Who took place1_0")[0]
    assert len(viewer.view.classes) == 2
    assert photos(viewer.picture) == [
        panels.Picture(c.pixels, "").jpeg() for c in board.cards
    ]
    assert {card["credit"] for card in viewer.picture.cards} == {
        "",
        "Who took place1_0",
    }
    assert viewer.panel.box == (8.0, 8.0, 66.0, 90.0)
    shown, table = widgets.show_search(explorer.search, explorer.view)
    assert ranking(explorer)[:10] == [card.text for card in shown.cards]
    assert explorer.results.total == len(table) == 18
    assert explorer.results.chosen == explorer.view.chosen == 2  # 1 is the query


def test_controls_of_the_maps(viewer):
    def changed(act):
        before = photos(viewer.picture), viewer.picture.cards[-1]["marks"]
        act()
        assert (photos(viewer.picture), viewer.picture.cards[-1]["marks"]) != before

    changed(lambda: setattr(viewer.first, "value", viewer.first.list.options[2][1]))
    changed(lambda: setattr(viewer.second, "value", -1))
    changed(lambda: setattr(viewer.opacity, "value", 0.3))
    changed(lambda: setattr(viewer.colours, "value", "magma"))
    changed(lambda: setattr(viewer.scale, "value", True))
    changed(lambda: setattr(viewer.boxes, "value", False))
    changed(lambda: setattr(viewer.panel.photo, "box", [10.0, 10.0, 60.0, 40.0]))
    changed(lambda: viewer.panel.whole.click())
    changed(lambda: setattr(viewer.panel.choice, "value", ("image", "other0_1")))
    changed(lambda: upload(viewer, "mine.png", png(tiny.view(7, 0))))
    assert "mine.png" in viewer.message.value
    assert viewer.view.raw
    assert viewer.view.colours == "magma"


def test_one_forward_pass_serves_all_classes(viewer, monkeypatch):
    monkeypatch.setattr(tiny.network(), "maps", None)
    viewer.first.value = viewer.first.list.options[3][1]
    viewer.second.value = viewer.second.list.options[-1][1]
    viewer.opacity.value = 0.9
    viewer.panel.photo.box = [10.0, 10.0, 60.0, 40.0]
    assert "alert" not in viewer.message.value


def test_controls_of_the_search(explorer):
    def changed(act):
        before = ranking(explorer)
        act()
        assert ranking(explorer) != before, act
        assert "alert" not in explorer.message.value

    changed(lambda: setattr(explorer.aggregation, "value", "offline"))
    assert explorer.view.method.aggregation == "offline"
    changed(lambda: setattr(explorer.classes, "value", 1))
    changed(lambda: setattr(explorer.exponent, "value", 1.0))
    assert explorer.view.method.whitening_exponent == 1
    changed(lambda: setattr(explorer.classes, "value", 3))
    changed(lambda: setattr(explorer.weights, "value", "probability"))
    assert explorer.view.method.class_weighting == "probability"
    for refine in dict(explorer.refine.options).values():
        explorer.refine.value = refine
        assert explorer.view.method.refine == refine
        assert "alert" not in explorer.message.value
    changed(lambda: setattr(explorer.refine, "label", "dba"))
    changed(lambda: setattr(explorer.rerank, "value", 5))
    changed(lambda: setattr(explorer.expansion, "value", 3))
    changed(lambda: setattr(explorer.panel.photo, "box", [4.0, 10.0, 60.0, 60.0]))
    changed(lambda: setattr(explorer.panel.x, "value", (20, 70)))
    assert explorer.panel.box == (20, 10, 70, 60)
    assert explorer.panel.photo.box == [20, 10, 70, 60]
    changed(lambda: explorer.panel.own.click())
    assert explorer.panel.box == explorer.panel.source.query.box
    changed(lambda: explorer.panel.whole.click())
    assert explorer.panel.box is None
    changed(lambda: setattr(explorer.panel.choice, "value", ("query", 3)))
    assert explorer.panel.box == explorer.panel.source.query.box
    changed(lambda: upload(explorer, "mine.png", png(tiny.view(2, 5))))
    assert all("unknown" in text for text in ranking(explorer))
    assert "no ground truth" in explorer.results.title


def test_a_cascade_is_left_where_there_is_no_second_step(collection):
    method = replace(ONLINE, cascade=5)
    explorer = widgets.SearchExplorer(collection, method, query=1)
    for name, depth in (("offline", 0), ("grouped", 5), ("theme", 0), ("online", 5)):
        explorer.aggregation.value = name
        assert explorer.view.method.aggregation == name
        assert explorer.view.method.cascade == depth
    assert len(explorer.ranking) == len(collection.data.images)


def test_a_result_that_is_chosen_is_explained(explorer):
    before, shown = explorer.match.title, explorer.results.version
    explorer.results.chosen = 5
    assert explorer.view.chosen == 5
    assert explorer.match.title != before
    assert explorer.ranking["name"][5] in explorer.match.title
    assert explorer.results.version == shown  # the results stay where they are


def test_a_result_can_be_searched_with(explorer):
    explorer.results.chosen = 5
    name = explorer.ranking["name"][5]
    explorer.again.click()
    assert explorer.panel.source.query.image == name
    assert ranking(explorer)[0] == f"the query itself, {name}, score 1.000"


def test_more_results_come_when_they_are_scrolled_to(explorer, monkeypatch):
    monkeypatch.setattr(widgets.search, "PAGE", 7)
    explorer.panel.choice.value = "query", 2
    everything = widgets.show_search(explorer.search, replace(explorer.view, top=99))
    cards = [card.text for card in everything[0].cards]
    assert ranking(explorer) == cards[:7]
    sent = []
    monkeypatch.setattr(explorer.results, "send", lambda *message: sent.append(message))
    for first in (7, 14, 21):
        explorer.results._handle_custom_msg({"first": first}, [])
    pages = [[card["text"] for card in content["cards"]] for content, _ in sent]
    assert pages == [cards[7:14], cards[14:], []]
    assert [len(photos) for _, photos in sent] == [7, 4, 0]
    version = explorer.results.version
    assert all(content["version"] == version for content, _ in sent)


def test_the_ranking_is_saved_as_a_file(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(explorer.results, "send", sent.append)
    explorer.results._handle_custom_msg({"save": True}, [])
    (content,) = sent
    assert content["name"] == f"query1-{ONLINE.slug}.csv"
    table = pd.read_csv(io.StringIO(content["csv"]))
    assert table.columns.tolist() == ["place", "rank", "name", "score", "relevance"]
    assert table["name"].tolist() == explorer.ranking["name"].tolist()
    assert table["rank"].isna().sum() == 2


def test_a_file_name_has_no_folder_in_it(explorer):
    upload(explorer, "../mine too.png", png(tiny.view(7, 0)))
    assert explorer._csv()[0] == f".._mine_too.png-{ONLINE.slug}.csv"


def test_one_s_own_photo_finds_its_like(explorer):
    """Another view of place 2 that the collection does not have."""
    upload(explorer, "mine.png", png(tiny.view(2, 9)))
    assert "place2" in ranking(explorer)[0]


def test_a_collection_without_queries_is_a_search_tool(collection):
    data = replace(collection.data, queries=())
    queries = MemoryStore(SETUP.query_facts(), {}, {})

    def open_bare(training, store):
        experiment = Experiment(data, training, collection.first.setup)
        database = collection.first.database
        return tiny.collection(experiment, database, queries, store)

    training = collection.experiment.training, collection.first.spaces.training.store
    explorer = widgets.SearchExplorer(open_bare(*training), ONLINE)
    assert ranking(explorer)[0] == "the query itself, place0_0, score 1.000"
    assert all("unknown" in text for text in ranking(explorer)[1:])
    plain = open_bare(None, None)
    explorer = widgets.SearchExplorer(plain, Method("rmac_max", dimensions=0))
    assert explorer.aggregation.options == ("rmac_max",)
    assert "R-MAC" in explorer.results.title


@pytest.mark.parametrize("content", [b"", b"no picture", png(tiny.view(0, 0))[:-30]])
def test_an_upload_that_cannot_be_read_is_one_clear_line(explorer, viewer, content):
    for one, picture in ((explorer, explorer.results), (viewer, viewer.picture)):
        before = photos(picture)
        upload(one, "holiday.png", content)
        assert 'role="alert"' in one.message.value
        assert "holiday.png" in one.message.value
        assert "Traceback" not in one.message.value
        assert "/tmp" not in one.message.value
        assert photos(picture) == before


def test_an_upload_is_named_in_its_error():
    with pytest.raises(ImageError, match=r"^holiday\.png: "):
        controls.read_upload("holiday.png", b"nothing")


def test_a_box_that_is_too_small_is_refused(explorer):
    before = explorer.panel.box, ranking(explorer)
    explorer.panel.photo.box = [10.0, 10.0, 20.0, 60.0]
    assert "10x50 pixels" in explorer.message.value
    assert (explorer.panel.box, ranking(explorer)) == before
    # The photo shows the box that counts, not the refused one.
    assert explorer.panel.photo.box == list(explorer.panel.box)
    explorer.panel.photo.box = [10.0, 10.0, 60.0, 60.0]
    assert "alert" not in explorer.message.value


def test_an_error_is_no_markup():
    message = controls.Message()
    message.say("<b>bold</b>", wrong=True)
    assert "<b>" not in message.value


def test_a_picture_stands_in_where_no_kernel_runs(explorer, viewer, tmp_path):
    for one in (explorer, viewer):
        bundle = one._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        stored = base64.b64decode(bundle["image/jpeg"])
        assert stored == one.still().jpeg()
        assert Image.open(io.BytesIO(stored)).size[0] == panels.WIDTH
        # A published notebook keeps the picture alone.
        output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
        cell = nbformat.v4.new_code_cell("explorer", outputs=[output])
        path = tmp_path / "executed.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        slim(path)
        (kept,) = nbformat.read(path, as_version=4).cells[0].outputs
        assert set(kept["data"]) == {"image/jpeg", "text/plain"}


def test_long_names_and_strange_letters_fit():
    sheet = panels._Sheet(20)
    sheet.text(0, 0, "a_very_long_name_" * 20 + "漢字", 100)
    assert (sheet.pixels[:, 104:] == 255).all()
    assert (sheet.pixels[:, :100] < 128).any()
