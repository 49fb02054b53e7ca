"""Explorers without a browser: every state is a picture and a table."""

import base64
import io
from dataclasses import replace
from datetime import UTC, datetime

import nbformat
import numpy as np
import pytest
import tiny
from cv2 import imencode
from PIL import Image

from cwr_utils import widgets
from cwr_utils.figures import RELEVANCE, panels
from cwr_utils.images import ImageError
from cwr_utils.inspection import look
from cwr_utils.retrieval import Collection, Experiment, Method
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
        patch.setattr(controls, "MIN_SIDE", 16)
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
    return (
        first.pixels.shape == second.pixels.shape
        and (first.pixels == second.pixels).all()
    )


def png(photo):
    return imencode(".png", photo[..., ::-1])[1].tobytes()


def upload(explorer, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": content}
    explorer.panel.upload.value = ({**file, "last_modified": datetime.now(UTC)},)


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
    picture, table = widgets.show_cams(cams, CamView(tuple(top)), NAMES)
    assert f"class {top[0]}" in picture.text
    assert "mean of both" in picture.text
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
        picture = panels.cam_panels(photo, {"map": values}, opacity=1, colours=name)
        panel = picture.pixels[20:, 426:]
        table = panels._table(name)
        assert (panel[100, 10] == table[0]).all()
        assert (panel[100, 400] == table[255]).all()


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
    result = collection.run(method)
    picture, table = widgets.show_search(search(collection), SearchView(method))
    assert table["name"].tolist() == result.rankings["query1"]
    np.testing.assert_array_equal(table["score"], result.scores["query1"])
    ap = collection.evaluate(result).set_index("query")["ap"]["query1"]
    assert f"{method.label}, AP {ap:.2f}" in picture.text
    kinds = table.set_index("name")["relevance"]
    assert kinds["place1_0"] == "query"
    assert kinds["place1_1"] == "positive"
    assert kinds["place1_2"] == "junk"
    assert (kinds.drop(["place1_0", "place1_1", "place1_2"]) == "negative").all()


def test_frames_have_the_colour_of_their_relevance(collection):
    picture, table = widgets.show_search(search(collection), SearchView(ONLINE))
    assert len(picture.areas) == len(picture.labels) == 10
    for (x1, y1, x2, y2), kind in zip(picture.areas, table["relevance"], strict=False):
        colour = RELEVANCE[kind][0].lstrip("#")
        expected = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        part = picture.pixels[y1:y2, x1:x2].reshape(-1, 3)
        assert (part == expected).all(axis=1).sum() > 200


def test_every_photo_is_credited():
    """In as many lines as it takes, none of which runs over the edge."""
    photo = np.full((30, 40, 3), 128, np.uint8)
    captions = [{"name": f"p{i}", "score": 0.5, "relevance": "junk"} for i in range(10)]
    credits = [(f"p{i}", f"A Photographer With A Long Name {i}") for i in range(10)]
    plain = panels.result_panels(photo, [photo] * 10, captions).pixels
    picture = panels.result_panels(photo, [photo] * 10, captions, credits=credits)
    notes = picture.pixels[len(plain) :]
    lines = (notes < 200).any(axis=(1, 2)).reshape(-1, 14).any(axis=1)
    assert lines.all()
    assert len(lines) >= 3
    assert (picture.pixels[: len(plain)] == plain).all()
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
    stored = edited.collection.queries.read("class_vectors")[0]
    np.testing.assert_allclose(stored, described["class_vectors"], atol=1e-3)
    # The ground truth of the query goes with it.
    assert "AP" in widgets.show_search(edited, view)[0].text


def test_the_match_shows_what_adds_up_to_the_score(collection):
    one = search(collection)
    for method in (ONLINE, replace(ONLINE, rerank=4, rerank_classes=2)):
        for rank in (1, 3, 12):
            view = SearchView(method, chosen=rank)
            picture, shares = widgets.show_match(one, view)
            score = widgets.show_search(one, view)[1]["score"][rank]
            assert shares["contribution"].sum() == pytest.approx(float(score), abs=1e-6)
            assert f"rank {rank}" in picture.text
            assert all(name in picture.text for name in shares["name"])


def test_the_box_that_won_is_drawn(collection):
    one, method = search(collection), replace(ONLINE, rerank=6, rerank_classes=3)
    result = one.results[method]
    names = enumerate(result.rankings["query1"][:6], start=1)
    won = next(rank for rank, name in names if result.matches["query1"][name].box)
    for boxed, rank in ((True, won), (False, 12)):
        picture, _ = widgets.show_match(one, SearchView(method, chosen=rank))
        blue = (picture.pixels[:, 272:532] == [0, 0x72, 0xB2]).all(axis=2).sum()
        assert (blue > 100) == boxed


# The widgets


def test_explorers_show_their_view(viewer, explorer):
    classes = viewer.view.classes
    picture = widgets.show_cams(viewer.cams, viewer.view, NAMES, "Who took place1_0")[0]
    assert len(classes) == 2
    assert viewer.picture.jpeg == picture.jpeg()
    assert viewer.panel.box == (8.0, 8.0, 66.0, 90.0)
    shown = widgets.show_search(explorer.search, explorer.view)[0]
    assert explorer.results.jpeg == shown.jpeg()
    assert explorer.results.labels == list(shown.labels)
    assert explorer.results.chosen == explorer.view.chosen == 2  # 1 is the query


def test_controls_of_the_maps(viewer):
    def changed(act):
        before = viewer.picture.jpeg
        act()
        assert viewer.picture.jpeg != before

    changed(lambda: setattr(viewer.first, "value", viewer.first.options[2][1]))
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
    viewer.first.value = viewer.first.options[3][1]
    viewer.second.value = viewer.second.options[-1][1]
    viewer.opacity.value = 0.9
    viewer.panel.photo.box = [10.0, 10.0, 60.0, 40.0]
    assert "alert" not in viewer.message.value


def test_controls_of_the_search(explorer):
    def changed(act):
        before = explorer.results.labels
        act()
        assert explorer.results.labels != before, act
        assert "alert" not in explorer.message.value

    changed(lambda: setattr(explorer.aggregation, "value", "offline"))
    assert explorer.view.method.aggregation == "offline"
    changed(lambda: setattr(explorer.classes, "value", 1))
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
    assert all("unknown" in label for label in explorer.results.labels)
    assert "no ground truth" in explorer.results.text


def test_a_result_that_is_chosen_is_explained(explorer):
    before = explorer.match.text
    explorer.results.chosen = 5
    assert explorer.view.chosen == 5
    assert explorer.match.text != before
    assert "rank 5" in explorer.match.text


def test_one_s_own_photo_finds_its_like(explorer):
    """Another view of place 2 that the collection does not have."""
    upload(explorer, "mine.png", png(tiny.view(2, 9)))
    assert "place2" in explorer.results.labels[0]


def test_a_collection_without_queries_is_a_search_tool(collection):
    data = replace(collection.data, queries=())
    queries = MemoryStore(SETUP.query_facts(), {}, {})

    def open_bare(training, store):
        experiment = Experiment(data, training, collection.setup)
        return Collection(experiment, collection.database, queries, store)

    training = collection.experiment.training, collection.training.store
    explorer = widgets.SearchExplorer(open_bare(*training), ONLINE)
    assert "place0_0, query, score 1.0" in explorer.results.labels[0]
    assert all("unknown" in label for label in explorer.results.labels[1:])
    plain = open_bare(None, None)
    explorer = widgets.SearchExplorer(plain, Method("rmac_max", dimensions=0))
    assert explorer.aggregation.options == ("rmac_max",)
    assert "R-MAC" in explorer.results.text


@pytest.mark.parametrize("content", [b"", b"no picture", png(tiny.view(0, 0))[:-30]])
def test_an_upload_that_cannot_be_read_is_one_clear_line(explorer, viewer, content):
    for one, picture in ((explorer, explorer.results), (viewer, viewer.picture)):
        before = picture.jpeg
        upload(one, "holiday.png", content)
        assert 'role="alert"' in one.message.value
        assert "holiday.png" in one.message.value
        assert "Traceback" not in one.message.value
        assert "/tmp" not in one.message.value
        assert picture.jpeg == before


def test_an_upload_is_named_in_its_error():
    with pytest.raises(ImageError, match=r"^holiday\.png: "):
        controls.read_upload("holiday.png", b"nothing")


def test_a_box_that_is_too_small_is_refused(explorer):
    before = explorer.panel.box, explorer.results.jpeg
    explorer.panel.photo.box = [10.0, 10.0, 20.0, 60.0]
    assert "10 x 50 pixels" in explorer.message.value
    assert (explorer.panel.box, explorer.results.jpeg) == before
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
