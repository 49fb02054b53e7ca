"""The paper's numbers against each other, and ours beside them."""

import pandas as pd
import pytest

from cwr_utils import paper
from cwr_utils.networks.imagenet import class_names

# What a right implementation climbs on Oxford5k, in the order of the paper.
LADDER = [
    ("1a", "Raw features", 0.396),
    ("1a", "Raw + CroW (channel weights)", 0.420),
    ("1a", "Raw + PCA", 0.589),
    ("1a", "Raw + CroW + PCA", 0.607),
    ("1b", "1 CAM", 0.667),
    ("1b", "8 CAMs", 0.709),
    ("1b", "64 CAMs", 0.712),
    ("2a", "Ours OnA", 0.736),
    ("2b", "Ours OnA + QE10", 0.760),
    ("2b", "Ours OnA + R100 + QE10", 0.780),
    ("2b", "Ours OnA + R1000 + QE5", 0.811),
]

FULL = {
    "method": "OfA, 64 classes",
    "mAP": 0.715,
    "aggregation": "offline",
    "num_classes": 64,
    "num_whitening_classes": 1,
    "dimensions": 512,
    "query_expansion": 0,
    "rerank": 0,
    "network": "vgg16-cam",
    "weights_sha256": "9f2c",
    "layer": "conv5_1",
    "resize": "1024x720",
    "power": 1.0,
    "protocol": "authors_code",
    "dataset": "oxford5k",
    "images": 5063,
    "queries": 55,
    "whitening": "paris6k",
    "whitening_vectors": 6392,
}


def value(table, method, column="oxford5k"):
    """The one value of a row that is printed once in a table."""
    rows = paper.published()
    (found,) = rows.loc[(rows["table"] == table) & (rows["method"] == method), column]
    return found


def compared(*changes, table="1a", method="VGG-16 (64 CAMs)"):
    """The comparison of one row of the paper with rows that differ from `FULL`."""
    ours = pd.DataFrame([FULL | change for change in changes])
    rows = paper.compare(ours)
    (found,) = rows[(rows["table"] == table) & (rows["method"] == method)].to_dict(
        "records"
    )
    return found


# What the paper says


@pytest.mark.parametrize(("table", "method", "expected"), LADDER)
def test_the_ladder_is_the_papers(table, method, expected):
    assert value(table, method) == expected


def test_the_ladder_climbs():
    values = [value(table, method) for table, method, _ in LADDER]
    assert values == sorted(values)


def test_tables_have_as_many_rows_as_printed():
    rows = paper.published()
    counts = rows["table"].value_counts()
    assert counts[["1a", "1b", "2a", "2b"]].to_list() == [10, 5, 8, 9]
    assert set(rows["table"]) == set(paper.TABLES)


def test_what_is_printed_twice_is_the_same_number():
    for column in ("oxford5k", "paris6k"):
        cams = value("1a", "VGG-16 (64 CAMs)", column)
        assert cams == value("2a", "Ours OfA", column)
        assert value("1a", "Raw features", column) == value(
            "1a", "VGG-16 (Raw)", column
        )
    assert value("1b", "64 CAMs") == value("1a", "VGG-16 (64 CAMs)")


def test_points_read_off_agree_with_the_tables():
    rows = paper.published()
    plotted = rows[(rows["table"] == "fig4") & (rows["num_whitening_classes"] == 1)]
    printed = rows[rows["table"].isin(["1b", "2a"])]
    settings = ["aggregation", "num_classes"]
    checked = 0
    for column in ("oxford5k", "paris6k"):
        both = plotted.merge(printed, on=settings)[[f"{column}_x", f"{column}_y"]]
        both = both.dropna()
        checked += len(both)
        gap = (both.iloc[:, 0] - both.iloc[:, 1]).abs()
        assert (gap <= paper.READ_OFF + 1e-9).all(), both
    assert checked >= 3


def test_a_fixed_list_reaches_online_aggregation():
    theme = paper.points("fig5b", "oxford5k")
    assert abs(theme["mAP"].max() - value("2a", "Ours OnA")) <= paper.READ_OFF + 1e-9


def test_anchors_repeat_the_papers_rows_in_percent():
    anchors = paper.anchors().set_index("system")
    for system, method in [
        ("OfA, VGG-16-CAM", "Ours OfA"),
        ("OnA, VGG-16-CAM", "Ours OnA"),
    ]:
        for column in ("oxford5k", "paris6k"):
            percent = 100 * value("2a", method, column)
            assert anchors.loc[system, column] == pytest.approx(percent)
    assert anchors["source"].notna().all()
    medium, hard = anchors["roxford5k_medium"], anchors["roxford5k_hard"]
    assert (medium.dropna() > hard.dropna()).all()
    for column in (name for name in anchors if name.endswith("_1m")):
        alone = anchors[column.removesuffix("_1m")]
        assert (anchors[column].dropna() < alone[anchors[column].notna()]).all()
    numbers = anchors.drop(columns=["dimensions", "source"])
    assert ((numbers > 0) & (numbers < 100) | numbers.isna()).all(axis=None)


@pytest.mark.parametrize(
    ("system", "expected"),  # ROxford Medium and Hard, RParis: mAP and mP@10
    [
        ("R-MAC, ResNet-101", [(49.8, 68.9), (18.5, 32.2), (74.0, 97.7), (52.1, 87.1)]),
        ("CroW, VGG-16", [(41.4, 58.8), (13.9, 25.7), (62.9, 94.4), (36.9, 77.9)]),
        ("SPoC, ResNet-101", [(39.8, 61.0), (12.4, 23.8), (69.2, 96.7), (44.7, 78.0)]),
    ],
)
def test_anchors_of_the_revisited_sets_lie_as_our_rows(system, expected):
    found = []
    for dataset in ("roxford5k", "rparis6k"):
        rows = paper.anchors_by_difficulty(dataset)
        assert rows["difficulty"].tolist() == ["medium"] * 11 + ["hard"] * 11
        assert rows["mAP"].between(0, 1).all() and rows["source"].notna().all()
        mine = rows[rows["method"] == system]
        assert set(mine["dimensions"]) == {512 if "VGG" in system else 2048}
        found += (100 * mine[["mAP", "mP@10"]]).to_numpy().tolist()
    for pair, printed in zip(found, expected, strict=True):
        assert pair == pytest.approx(printed)


def test_other_sets_have_no_anchors_by_difficulty():
    for dataset in ("oxford5k", "monuments", "roxford5k-100"):
        assert paper.anchors_by_difficulty(dataset).empty


# Its inconsistencies


def test_there_are_five_and_each_points_to_rows():
    assert [note.mark for note in paper.INCONSISTENCIES] == list("abcde")
    rows = paper.published()
    printed = set(zip(rows["table"], rows["method"], strict=True))
    printed |= {(table, "") for table in paper.TABLES}
    for note in paper.INCONSISTENCIES:
        assert note.rows and set(note.rows) <= printed


def test_table_1b_calls_by_pca_what_table_1a_has_without():
    assert value("1b", "Raw + PCA") == value("1a", "Raw + CroW (channel weights)")
    assert value("1b", "Raw + PCA") != value("1a", "Raw + PCA")
    assert paper.marks("1b", "Raw + PCA") == "a"
    assert paper.marks("1a", "Raw + PCA") == ""


def test_the_panels_of_fig_4_are_those_of_their_titles():
    # Online is higher in Table 2a, and so it is in what we call online here.
    points = paper.points("fig4", "oxford5k")
    points = points[points["num_classes"] == 64]
    by_kind = points.groupby("aggregation")["mAP"].max()
    assert by_kind["online"] == value("2a", "Ours OnA")
    assert by_kind["offline"] == value("2a", "Ours OfA")
    assert paper.marks("fig4", "OnA, 4 classes, N_pca = 1") == "b"


def test_no_other_layer_has_a_number():
    assert not paper.published()["method"].str.contains("conv5").any()
    assert paper.marks("1a", "VGG-16 (64 CAMs)") == "c"


def test_others_list_crow_higher():
    anchors = paper.anchors().set_index("system")
    crow = anchors.loc["CroW, VGG-16"]
    assert crow["oxford5k"] > 100 * value("2a", "CroW")
    ahead = 100 * value("2a", "Ours OfA") - crow["oxford5k"]
    assert ahead == pytest.approx(0.4)
    assert 100 * (value("2a", "Ours OfA") - value("2a", "CroW")) == pytest.approx(3.0)
    assert paper.marks("2a", "CroW") == "d,e"
    assert paper.marks("2a", "uCroW") == "e"


# Ours beside it


def test_a_value_within_one_point_is_reproduced():
    row = compared({"mAP": 0.715})
    assert row["verdict"] == "reproduced" and row["why"] == ""
    assert row["difference"] == pytest.approx(0.3)
    assert row["paper"] == 0.712


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (0.722, "reproduced"),
        (0.702, "reproduced"),
        (0.7221, "not reproduced"),
        (0.7019, "not reproduced"),
    ],
)
def test_one_point_is_the_border_on_both_sides(ours, verdict):
    assert compared({"mAP": ours})["verdict"] == verdict


def test_the_authors_order_of_means_is_the_papers_network():
    name = "vgg16-cam:swapped-mean"  # what authors_code makes of it
    assert compared({"network": name})["verdict"] == "reproduced"
    row = compared({"network": name, "layer": "conv5_3"})
    assert row["why"] == "layer conv5_3, not conv5_1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network": "efficientnet-lite0"}, "network efficientnet-lite0"),
        ({"weights_sha256": "random:seed=0:1a"}, "random weights"),
        ({"layer": "conv5_3"}, "layer conv5_3, not conv5_1"),
        ({"images": 164}, "164 of 5,063 images"),
        ({"queries": 30}, "30 of 55 queries"),
        ({"whitening": "timisoara"}, "whitening on timisoara, not paris6k"),
        ({"whitening_vectors": 135}, "whitening on 135 of 6,392 vectors"),
        ({"dimensions": 128}, "D = 128, not 512"),
        (
            {"num_whitening_classes": 32, "whitening_vectors": 200_000},
            "N_pca = 32, not 1",
        ),
        ({"power": 2.0}, "exponent 2, not 1"),
        ({"resize": "640x480"}, "resized to 640x480"),
        ({"protocol": "corrected"}, "protocol corrected"),
        ({"dataset": "monuments"}, "photos of monuments"),
    ],
)
def test_every_difference_makes_a_row_not_comparable_and_is_named(change, reason):
    row = compared(change)
    assert row["verdict"] == "not comparable"
    assert row["why"] == reason
    assert row["ours"] == 0.715


def test_all_reasons_are_given():
    row = compared({"images": 164, "queries": 30, "dimensions": 128})
    assert row["why"] == "164 of 5,063 images; 30 of 55 queries; D = 128, not 512"
    assert row["D"] == 128


@pytest.mark.parametrize(
    "change",
    [
        {"aggregation": "online"},
        {"num_classes": 32},
        {"query_expansion": 10},
        {"rerank": 100},
    ],
)
def test_another_method_is_no_match(change):
    row = compared(change)
    assert row["verdict"] == "not run" and pd.isna(row["ours"])
    assert row["why"] == "no run with these settings"


def test_the_nearest_of_several_rows_is_taken():
    row = compared(
        {"num_whitening_classes": 32, "mAP": 0.1},
        {"mAP": 0.2},
        {"num_whitening_classes": 16, "mAP": 0.3},
    )
    assert row["ours"] == 0.2
    row = compared(
        {"num_whitening_classes": 32, "mAP": 0.1},
        {"num_whitening_classes": 16, "mAP": 0.3},
    )
    assert row["ours"] == 0.3


def test_a_point_of_a_curve_needs_its_own_whitening():
    ours = pd.DataFrame([FULL | {"num_classes": 1, "num_whitening_classes": 16}])
    rows = paper.compare(ours).set_index(["table", "method"])["ours"]
    assert rows["fig4", "OfA, 1 class, N_pca = 16"] == 0.715
    assert pd.isna(rows["fig4", "OfA, 1 class, N_pca = 48"])
    assert rows["1b", "1 CAM"] == 0.715  # with its N_pca as a reason


def test_number_of_classes_means_nothing_without_classes():
    raw = {"aggregation": "sum", "dimensions": 0, "whitening": "", "num_classes": 8}
    row = compared(raw | {"mAP": 0.39}, method="Raw features")
    assert row["verdict"] == "reproduced"
    # Nor does the exponent of class vectors.
    row = compared(raw | {"mAP": 0.39, "power": 2.0}, method="Raw features")
    assert row["verdict"] == "reproduced"
    assert compared(raw, method="Raw + PCA")["verdict"] == "not run"


def test_a_networks_own_rows_need_that_network():
    assert compared({}, method="ResNet-50 (64 CAMs)")["verdict"] == "not run"
    resnet = {"network": "keras:ResNet50", "layer": "conv5_block3_out"}
    row = compared(
        resnet | {"dimensions": 2048, "mAP": 0.70}, method="ResNet-50 (64 CAMs)"
    )
    assert row["verdict"] == "reproduced"
    # And the rows of the method show what it does with this network.
    assert compared(resnet)["why"] == "network keras:ResNet50"


def test_what_this_workbook_cannot_run_says_why():
    row = compared({}, table="2a", method="BoW (25k)")
    assert row["verdict"] == "not run"
    assert row["why"] == "visual words are not in this workbook"


def test_a_value_that_is_misprinted_is_never_reproduced():
    raw = {"aggregation": "sum", "mAP": 0.420, "whitening_vectors": 6392}
    row = compared(raw, table="1b", method="Raw + PCA")
    assert row["verdict"] == "not comparable" and row["marks"] == "a"


def test_paris_stands_beside_paris():
    paris = {"dataset": "paris6k", "images": 6392, "whitening": "oxford5k"}
    row = compared(paris | {"mAP": 0.80, "whitening_vectors": 5063})
    assert row["paper"] == 0.805 and row["verdict"] == "reproduced"
    distractors = {"dataset": "oxford105k", "images": 105_133, "mAP": 0.67}
    row = compared(distractors, table="2a", method="Ours OfA")
    assert row["paper"] == 0.672 and row["verdict"] == "reproduced"


def test_rows_of_several_networks_are_refused():
    ours = pd.DataFrame([FULL, FULL | {"network": "other"}])
    with pytest.raises(ValueError, match="one network; got vgg16-cam, other"):
        paper.compare(ours)
    with pytest.raises(ValueError, match="lacks whitening"):
        paper.compare(pd.DataFrame([FULL]).drop(columns="whitening"))


# What a person reads


def test_tables_carry_footnotes_and_dashes():
    rows = paper.compare(pd.DataFrame([FULL]))
    shown = paper.shown(rows, "1b").set_index("method")
    assert shown.loc["Raw + PCA [a]", "ours"] == "-"
    assert shown.loc["64 CAMs", "points"] == "+0.3"
    assert shown.loc["64 CAMs", "paper, s/image"] == "1.5"
    assert paper.notes(rows, "1b") == [f"[a] {paper.INCONSISTENCIES[0].text}"]
    assert paper.notes(rows, "fig5b") == []


def test_reasons_of_all_rows_stand_below_the_table():
    few = FULL | {"images": 164}
    rows = paper.compare(pd.DataFrame([few, few | {"num_classes": 8, "power": 2.0}]))
    assert paper.notes(rows, "1b")[0] == "All rows of ours: 164 of 5,063 images."
    shown = paper.shown(rows, "1b").set_index("method")
    assert shown.loc["64 CAMs", "why"] == ""
    assert shown.loc["8 CAMs", "why"] == "exponent 2, not 1"
    assert shown.loc["1 CAM", "why"] == "no run with these settings"
    whole = rows.set_index(["table", "method"])["why"]
    assert whole["1b", "8 CAMs"] == "164 of 5,063 images; exponent 2, not 1"


def test_the_classes_of_fig_5a_are_spelt_as_ours():
    assert set(paper.FIG5A_CLASSES) <= set(class_names())


def test_the_summary_counts_every_value_once():
    rows = paper.compare(pd.DataFrame([FULL]))
    counts = paper.summary(rows).set_index("")
    assert counts.to_numpy().sum() == len(rows)
    assert counts.loc[paper.TABLES["1a"], "reproduced"] == 1
    assert counts.loc[paper.TABLES["1b"], "not run"] == 4


def test_a_network_with_random_weights_is_called_so():
    assert paper.network_label("x", "random:seed=0:1a") == "x (random weights)"
    assert paper.network_label("x", "1a") == "x"
