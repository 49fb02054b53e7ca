"""What a search found: to be looked at, drawn and saved."""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cwr_utils import figures, files
from cwr_utils.images import Box, read_image

_DPI = 200  # of saved pictures


@dataclass(frozen=True, repr=False)
class Answer:
    """What was found for a query, best first.

    Attributes:
        names: of all photos of the folder, paths inside it.
        scores: their similarities; re-ranked ones carry that of their best region.
        photo: (H, W, 3) uint8, the query.
        box: in its pixels, or None.
        own: names of the photos that have the same content as the query.
        paths: name -> file.
    """

    names: list[str]
    scores: np.ndarray
    photo: np.ndarray
    box: Box | None
    own: frozenset[str]
    paths: Mapping[str, Path]

    @property
    def table(self) -> pd.DataFrame:
        """Columns name and score, by rank from 1."""
        ranks = pd.RangeIndex(1, len(self.names) + 1, name="rank")
        return pd.DataFrame({"name": self.names, "score": self.scores}, ranks)

    def __repr__(self) -> str:
        """The first ten, and how many there are."""
        return f"{self.table.head(10).round(3)}\n{len(self.names)} photos"

    def _repr_html_(self) -> str:
        return self.table.head(10).round(3).to_html()

    def figure(self, top: int = 10) -> Figure:
        """The query and the first photos as a strip, to be drawn on or saved."""
        figure = self._strip(top)
        plt.close(figure)  # a notebook would draw it a second time
        return figure

    def show(self, top: int = 10) -> None:
        """Show the query and the first photos.

        In a notebook below the cell, elsewhere in a window; where there is no screen
        the picture is saved, and it says where.
        """
        figure = self._strip(top)
        ipython: Any = sys.modules.get("IPython")
        if ipython and hasattr(ipython.get_ipython(), "kernel"):
            ipython.display.display(figure)
        elif figure.canvas.required_interactive_framework:
            return plt.show()
        else:
            place = Path(tempfile.mkdtemp(prefix="answer-"), "answer.png")
            print("There is no screen here; see", self.save(place, top=top))
        plt.close(figure)

    def _strip(self, top: int) -> Figure:
        names = self.names[:top]
        return figures.result_strip(
            self.photo,
            [read_image(self.paths[name]) for name in names],
            ["query" if name in self.own else "unknown" for name in names],
            self.scores[:top].tolist(),
            names,
            query_box=self.box,
        )

    def save(
        self, path: str | os.PathLike, kind: str | None = None, top: int | None = None
    ) -> Path:
        """Write the answer to a file, whole or not at all.

        Args:
            path: of the file; its folder is made if need be.
            kind: "picture" (the query and the first photos), "table" (CSV with rank,
                name, score and path) or "paths" (JSON, a list of the photos' absolute
                paths, best first). None is what the ending says: .csv is a table,
                .json are paths, and any other that matplotlib writes is a picture.
            top: number of photos; None is 10 in a picture, else all.

        Returns:
            The path.

        Raises:
            ValueError: if the kind is unknown, or no picture has that ending.
        """
        path = Path(path)
        ending = path.suffix.lower().removeprefix(".")
        kind = kind or {"csv": "table", "json": "paths"}.get(ending, "picture")
        if kind not in ("picture", "table", "paths"):
            raise ValueError(f"`kind` must be picture, table or paths; got {kind!r}.")
        places = [os.path.abspath(self.paths[name]) for name in self.names[:top]]
        if kind == "table":
            table = self.table.head(len(places)).assign(path=places)
            files.write_text(path, table.to_csv(lineterminator="\n"))
        elif kind == "paths":
            files.write_json(path, places)
        else:
            figure = self.figure(10 if top is None else top)
            with files.whole_file(path) as part:
                figure.savefig(part, format=ending or "png", dpi=_DPI)
        return path
