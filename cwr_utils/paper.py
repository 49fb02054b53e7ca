"""The paper's numbers, as published, and ours beside them.

`paper_values.csv` has every value of Tables 1 and 2 and the points read off Figs. 4 and
5b (Jimenez et al., BMVC 2017, arXiv 1707.02581), with the settings behind each row;
`anchors.csv` what others report on the same photos without retrieval training, also by
the revisited protocol (Radenovic et al., CVPR 2018). Nothing in them was measured here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

# What a table calls itself, in the order of the paper.
TABLES = {
    "1a": "Table 1a: baselines and networks",
    "1b": "Table 1b: cost",
    "2a": "Table 2a: state of the art",
    "2b": "Table 2b: re-ranking (R) and query expansion (QE)",
    "fig4": "Fig. 4: number of classes, read off the plot",
    "fig5b": "Fig. 5b: fixed list of classes, read off the plot",
}
READ_OFF = 0.003  # how far a point read off a figure may be from what was plotted
TOLERANCE = 0.010  # a value is reproduced within one point of mAP

# Fig. 5a: the most frequent of the top 64 classes of the 55 Paris queries; the other 48
# are not published. Shares of the first and of the 64th are read off the plot.
FIG5A_CLASSES = (
    "vault",
    "bell cote",
    "bannister",
    "analog clock",
    "cinema",  # printed as "movie theater", another name of this class
    "coil",
    "pier",
    "dome",
    "pedestal",
    "flagpole",
    "church",
    "chime",
    "suspension bridge",
    "birdhouse",
    "sundial",
    "triumphal arch",
)
FIG5A_SHARES = {1: 0.83, 64: 0.31}

ANCHORS_NOTE = (
    "Published values are of all photos of a set; those of a part of them are not "
    "comparable. Most revisited ones crop the query before the network sees it."
)

# Data set -> its images (the distractors were counted in two ways), queries, and where
# the paper fitted its whitening.
DATASETS = {
    "oxford5k": ((5063,), 55, "paris6k"),
    "paris6k": ((6392,), 55, "oxford5k"),
    "oxford105k": ((105_133, 105_134), 55, "paris6k"),
    "paris106k": ((106_462, 106_463), 55, "oxford5k"),
}
# Network of the paper -> the layer that it pooled. Sections 4.1 and 4.2.
LAYERS = {
    "vgg16-cam": "conv5_1",
    "keras:ResNet50": "conv5_block3_out",
    "densenet161": "relu5",
}
_SIZES = ("1024x720", "shorter:720")  # of the authors' code, of the paper's text
_PROTOCOLS = ("authors_code", "paper")
_NEEDED = (
    "method",
    "mAP",
    "aggregation",
    "num_classes",
    "num_whitening_classes",
    "dimensions",
    "query_expansion",
    "rerank",
    "network",
    "weights_sha256",
    "layer",
    "resize",
    "power",
    "protocol",
    "dataset",
    "images",
    "queries",
    "whitening",
    "whitening_vectors",
)


@dataclass(frozen=True)
class Inconsistency:
    """A place where the paper contradicts itself or what others report.

    Attributes:
        mark: of the footnote.
        text: what is wrong.
        rows: (table, method) of the values concerned; an empty method is all of them.
    """

    mark: str
    text: str
    rows: tuple[tuple[str, str], ...]


INCONSISTENCIES = (
    Inconsistency(
        "a",
        "Table 1b gives Raw + PCA as 0.420. In Table 1a that is Raw + CroW, which has "
        "no PCA; Raw + PCA is 0.589 there.",
        (("1b", "Raw + PCA"),),
    ),
    Inconsistency(
        "b",
        "The caption of Fig. 4 says online left, offline right. The titles of the two "
        "panels say the opposite, and Table 2a agrees with the titles.",
        (("fig4", ""),),
    ),
    Inconsistency(
        "c",
        "Section 4.2 says that conv5_1 is the best layer of VGG-16 and gives no number "
        "for conv5_2 and conv5_3: nothing to reproduce.",
        (("1a", "VGG-16 (Raw)"), ("1a", "VGG-16 (64 CAMs)")),
    ),
    Inconsistency(
        "d",
        "The CroW rows are those of an early version. Others list CroW with VGG-16 and "
        "512 dimensions at 0.708 (Oxford5k) and 0.797 (Paris6k), so that OfA is ahead "
        "of it by 0.4 points, not by 3.0.",
        (("2a", "CroW"), ("2b", "CroW + QE10")),
    ),
    Inconsistency(
        "e",
        "CroW's public code cuts queries out too large, which scores higher than the "
        "right box: its rows are optimistic.",
        (("2a", "uCroW"), ("2a", "CroW"), ("2b", "CroW + QE10")),
    ),
)


@cache
def _published() -> pd.DataFrame:
    table = pd.read_csv(Path(__file__).with_name("paper_values.csv"))
    for column in ("aggregation", "caveat"):
        table[column] = table[column].fillna("")
    return table


def published() -> pd.DataFrame:
    """The paper's values, a row as printed; NaN where it has none.

    Returns:
        Columns table (a key of `TABLES`), method, the settings of `retrieval.Method`
        (no aggregation: this workbook has no such method), network, seconds, a column
        for each data set (mAP in 0..1) and caveat.
    """
    return _published().copy()


def anchors() -> pd.DataFrame:
    """What ImageNet-only systems reach by other sources: mAP in %, and the source.

    Of the revisited sets Medium and Hard, alone and with a million distractors (`_1m`),
    and mP@10 in % (`_mp10`). See `ANCHORS_NOTE`.
    """
    return pd.read_csv(Path(__file__).with_name("anchors.csv"))


def anchors_by_difficulty(dataset: str) -> pd.DataFrame:
    """The `anchors` of a revisited set, laid out as `retrieval.by_difficulty` does.

    Args:
        dataset: "roxford5k" or "rparis6k"; another one has none.

    Returns:
        One row a system and difficulty, "medium" and "hard": columns method,
        dimensions, difficulty, mAP and mP@10 (0..1, NaN where not published), source.
    """
    shared = {"system": "method", "dimensions": "dimensions", "source": "source"}
    table, parts = anchors().rename(columns=shared), []
    for difficulty in ("medium", "hard"):
        column = f"{dataset}_{difficulty}"
        measures = {column: "mAP", f"{column}_mp10": "mP@10"}
        part = table.reindex(columns=[*shared.values(), *measures])
        part = part.dropna(subset=column).rename(columns=measures)
        part[["mAP", "mP@10"]] /= 100
        parts.append(part.assign(difficulty=difficulty))
    return pd.concat(parts, ignore_index=True)


def points(table: str, dataset: str) -> pd.DataFrame:
    """The curve of a figure: what was read off, and for Fig. 4 what is printed too.

    Args:
        table: "fig4" or "fig5b".
        dataset: other ones than the paper's get its Oxford5k points.

    Returns:
        Columns aggregation, num_classes, num_whitening_classes and mAP, as
        `figures.ablation_curves` takes them.
    """
    column = dataset if dataset in DATASETS else "oxford5k"
    rows = published()
    printed = ("1b", "2a") if table == "fig4" else ()
    mine = rows["table"].isin([*printed, table]) & rows["num_classes"].notna()
    settings = ["aggregation", "num_classes", "num_whitening_classes"]
    chosen = rows.loc[mine, [*settings, column]].rename(columns={column: "mAP"})
    # Where both are there, the printed value is the exact one, and comes first.
    return (
        chosen.dropna()
        .drop_duplicates(settings)
        .astype(dict.fromkeys(settings[1:], int))
    )


def marks(table: str, method: str) -> str:
    """Footnote marks of a row, "" if nothing is known against it."""
    rows = {(table, method), (table, "")}
    return ",".join(n.mark for n in INCONSISTENCIES if rows & set(n.rows))


def compare(ours: pd.DataFrame) -> pd.DataFrame:
    """Set each value of the paper beside the row of ours that is nearest to it.

    Ours must have the same aggregation, N_C, expansion and re-ranking; of several, the
    one with the fewest other differences is taken. Results on photos that the paper
    does not have stand beside its Oxford5k values.

    Args:
        ours: rows of `Retrieval.row` of one network and data set.

    Returns:
        Columns table, method, marks, paper, ours, difference (in points of mAP), D (of
        ours), verdict ("reproduced", "not reproduced", "not comparable" or "not run"),
        why, seconds (the paper's, an image) and seconds_ours (a query).

    Raises:
        ValueError: if there is no row, a column is missing, or there are several
            networks or data sets.
    """
    missing = [name for name in _NEEDED if name not in ours]
    if missing or ours.empty:
        raise ValueError(
            f"`ours` must have rows with the columns {', '.join(_NEEDED)}; it has "
            f"{len(ours)} rows and lacks {', '.join(missing) or 'no column'}."
        )
    for name in ("network", "dataset", "weights_sha256"):
        if ours[name].nunique() > 1:
            raise ValueError(
                f"`ours` must be of one {name}; got {', '.join(ours[name].unique())}."
            )
    dataset = ours["dataset"].iloc[0]
    column = dataset if dataset in DATASETS else "oxford5k"
    own: list[dict[str, Any]] = ours.to_dict("records")  # pyright: ignore
    rows = [
        _beside(row, row[column], _nearest(row, own))
        for row in published().to_dict("records")
        if pd.notna(row[column])
    ]
    return pd.DataFrame(rows)


def _beside(row: Mapping, paper: float, mine: Mapping | None) -> dict[str, Any]:
    verdict, why, value = "not run", row["caveat"], float("nan")
    if mine is None:
        why = why or _why_not_run(row)
    else:
        value = mine["mAP"]
        reasons = differences(row, mine)
        why = "; ".join(reasons)
        close = abs(value - paper) <= TOLERANCE + 1e-9
        verdict = "reproduced" if close else "not reproduced"
        verdict = "not comparable" if reasons else verdict
    mine = mine or {}
    return {
        "table": row["table"],
        "method": row["method"],
        "marks": marks(row["table"], row["method"]),
        "paper": paper,
        "ours": value,
        "difference": 100 * (value - paper),
        "D": mine.get("dimensions", 0),
        "verdict": verdict,
        "why": why,
        "seconds": row["seconds"],
        "seconds_ours": mine.get("seconds_query", float("nan")),
    }


def _why_not_run(row: Mapping) -> str:
    needed = row["network"]
    return "no run with these settings" + (
        f" and {needed}" if needed != "vgg16-cam" else ""
    )


def _nearest(row: Mapping, ours: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of ours for a row of the paper, None if there is none."""

    def rank(mine):
        gap = _n_pca_gap(row, mine)
        return len(differences(row, mine)), gap, -mine["dimensions"]

    return min(
        (mine for mine in ours if _is_same_method(row, mine)), key=rank, default=None
    )


def _n_pca_gap(row: Mapping, mine: Mapping) -> float:
    gap = abs(mine["num_whitening_classes"] - row["num_whitening_classes"])
    return 0 if pd.isna(gap) else gap


def _is_same_method(row: Mapping, mine: Mapping) -> bool:
    by_class = pd.notna(row["num_classes"])
    # A point of a curve is that N_pca's; a row of a table may be another one's.
    a_point = row["table"].startswith("fig")
    # The rows of a network stand for that network; the others are the method's.
    other_network = row["network"] in LAYERS and row["network"] != "vgg16-cam"
    return (
        row["aggregation"] == mine["aggregation"]
        and (not by_class or row["num_classes"] == mine["num_classes"])
        and (not a_point or _n_pca_gap(row, mine) == 0)
        and (row["dimensions"] > 0) == (mine["dimensions"] > 0)
        and row["rerank"] == mine["rerank"]
        and row["query_expansion"] == mine["query_expansion"]
        and (not other_network or row["network"] == _family(mine["network"]))
    )


def differences(row: Mapping, mine: Mapping) -> list[str]:
    """Why two rows may not be compared; empty if they may.

    Args:
        row: of `published`.
        mine: of `Retrieval.row`.

    Returns:
        One text a difference: network, weights, layer, photos, queries, whitening, D,
        N_pca, exponent, size, protocol.
    """
    by_class = pd.notna(row["num_classes"])
    dataset = mine["dataset"]
    images, queries, whitening = DATASETS.get(dataset, ((), 0, ""))
    network = _family(mine["network"])
    layer = LAYERS.get(network)
    pairs = [
        (row["network"] != network, f"network {mine['network']}"),
        (is_random(mine["weights_sha256"]), "random weights"),
        (layer and mine["layer"] != layer, f"layer {mine['layer']}, not {layer}"),
    ]
    if whitening:
        full = max(images)
        pairs += [
            (mine["images"] not in images, f"{mine['images']:,} of {full:,} images"),
            (mine["queries"] != queries, f"{mine['queries']} of {queries} queries"),
        ]
        if row["dimensions"]:
            pairs += _whitening_pairs(mine, whitening, by_class)
    else:
        pairs.append((True, f"photos of {dataset}"))
    pairs += [
        (
            row["dimensions"] != mine["dimensions"],
            f"D = {mine['dimensions']}, not {row['dimensions']}",
        ),
        (
            by_class and row["num_whitening_classes"] != mine["num_whitening_classes"],
            f"N_pca = {mine['num_whitening_classes']}, "
            f"not {row['num_whitening_classes']:g}",
        ),
        (
            row["aggregation"] == "theme",
            "the list is of the whitening photos, not of the other set's queries",
        ),
        (by_class and mine["power"] != 1, f"exponent {mine['power']:g}, not 1"),
        (mine["resize"] not in _SIZES, f"resized to {mine['resize']}"),
        (mine["protocol"] not in _PROTOCOLS, f"protocol {mine['protocol']}"),
    ]
    found = [text for differs, text in pairs if differs]
    return [*filter(None, [row["caveat"]]), *found]


def _whitening_pairs(mine: Mapping, source: str, by_class: bool) -> list:
    vectors, per_image = mine["whitening_vectors"], 1
    if by_class:
        per_image = mine["num_whitening_classes"]
    full = min(DATASETS[source][0]) * per_image
    other = mine["whitening"] != source
    few = f"whitening on {vectors:,} of {full:,} vectors"
    return [
        (other, f"whitening on {mine['whitening']}, not {source}"),
        # An empty class vector is left out of the fit, so some may be missing.
        (not other and vectors < 0.95 * full, few),
    ]


def _family(network: str) -> str:
    """A network without what a protocol adds to its name (`networks.under`)."""
    return network.split(":swapped-mean")[0]


def is_random(weights_sha256: str) -> bool:
    """Whether a network's weights were never trained."""
    return str(weights_sha256).startswith("random")


def network_label(network: str, weights_sha256: str) -> str:
    """What tables call a network; never silent about random weights."""
    return network + (" (random weights)" if is_random(weights_sha256) else "")


def shared_reasons(compared: pd.DataFrame, table: str) -> list[str]:
    """The reasons that every row of ours in a table has; `shown` leaves them out."""
    mine = compared[(compared["table"] == table) & compared["ours"].notna()]
    reasons = [why.split("; ") if why else [] for why in mine["why"]]
    first = reasons[0] if reasons else []
    return [text for text in first if all(text in other for other in reasons)]


def shown(compared: pd.DataFrame, table: str) -> pd.DataFrame:
    """One table of `compare` as a person reads it, rounded, with footnote marks.

    What every row of ours has against it is not repeated: see `notes`.
    """
    mine = compared[compared["table"] == table]
    shared = shared_reasons(compared, table)
    columns = {
        "method": [
            f"{row.method} [{row.marks}]" if row.marks else row.method
            for row in mine.itertuples()
        ]
    }
    if table == "1b":
        columns["paper, s/image"] = _places(mine["seconds"], 1)
        columns["ours, s/query"] = _places(mine["seconds_ours"], 3)
    columns |= {
        "paper": _places(mine["paper"], 3),
        "ours": _places(mine["ours"], 3),
        "points": _places(mine["difference"], 1, "+"),
        "verdict": list(mine["verdict"]),
        "why": [
            "; ".join(text for text in why.split("; ") if text not in shared)
            for why in mine["why"]
        ],
    }
    return pd.DataFrame(columns)


def notes(compared: pd.DataFrame, table: str) -> list[str]:
    """What stands below a table: the reasons of all rows, the texts behind marks."""
    shared = shared_reasons(compared, table)
    lines = [f"All rows of ours: {'; '.join(shared)}."] if shared else []
    used = ",".join(compared.loc[compared["table"] == table, "marks"]).split(",")
    return lines + [
        f"[{note.mark}] {note.text}" for note in INCONSISTENCIES if note.mark in used
    ]


def summary(compared: pd.DataFrame) -> pd.DataFrame:
    """How many values of each table were reproduced, and how many could be."""
    verdicts = ["reproduced", "not reproduced", "not comparable", "not run"]
    counts = pd.crosstab(compared["table"], compared["verdict"])
    counts = counts.reindex(index=list(TABLES), columns=verdicts, fill_value=0)
    counts.columns.name = None
    return counts.rename(index=TABLES).rename_axis("").reset_index()


def _places(values: pd.Series, places: int, sign: str = "") -> list[str]:
    return ["-" if pd.isna(value) else f"{value:{sign}.{places}f}" for value in values]
