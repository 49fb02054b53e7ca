"""Photos of a run: those under test, and those that its whitening is fitted on."""

from dataclasses import replace

from cwr_utils import datasets
from cwr_utils.datasets import Dataset, DatasetError
from cwr_utils.runs import source


def load_data(
    dataset: str,
    data_root: str,
    whitening_dataset: str,
    whitening_root: str,
    limit: int = 0,
) -> tuple[Dataset, Dataset]:
    """The data set under test and the one to fit the whitening on.

    Args:
        dataset: name or folder, as `datasets.load` takes it; relative folders start
            from the working folder, as all below.
        data_root: where its photos are.
        whitening_dataset: another name or folder. The name of `dataset` itself holds
            its distractors out of the database and fits on those.
        whitening_root: where those photos are.
        limit: photos of a slice for a quick run; 0 is all.

    Returns:
        Both data sets. Where they are two folders of one name, the second one is called
        after its use: tables know them by their names.

    Raises:
        DatasetError: if there is nothing to search for or to fit the whitening on, or
            both have a photo in common; names these.
    """
    loaded = _load(dataset, data_root)
    if not any(query.positives for query in loaded.queries):
        raise DatasetError(
            f"{loaded.name} has no queries with a right answer: {loaded.note}. They "
            "come from a groups.csv in the folder (columns image, group: photos of one "
            "group show the same thing); a queries.csv (image, and x1, y1, x2, y2 for "
            "a box) chooses among them."
        )
    training = _load(whitening_dataset, whitening_root)
    if training.name == loaded.name:
        first, second = (part.path(part.images[0]) for part in (loaded, training))
        if first.samefile(second):
            loaded, training = loaded.hold_out_distractors()
        else:
            training = replace(training, name=f"{training.name}-whitening")
        if not training.images:
            raise DatasetError(
                f"Every photo of {dataset!r} is in the ground truth of a query, "
                "which leaves none to fit the whitening on: name another "
                "`whitening_dataset`."
            )
    if limit:
        loaded, training = loaded.take(limit), training.take(limit)
    _refuse_shared(loaded, training)
    return loaded, training


def _refuse_shared(data: Dataset, training: Dataset) -> None:
    """Refuse photos that are under test and in the whitening set; names them."""
    under_test = {content: name for name, content in data.hashes().items()}
    shared = [
        f"{name}, which is {under_test[content]} in {data.name}"
        for name, content in training.hashes().items()
        if content in under_test
    ]
    if shared:
        raise DatasetError(
            f"{len(shared)} of the {len(training.images)} whitening photos of "
            f"{training.name} are in the data set under test:",
            shared,
            "Numbers from such a whitening flatter the method: take them out of one of "
            "the two, or name another `whitening_dataset`.",
        )


def _load(dataset: str, root: str) -> Dataset:
    if dataset not in datasets.available():
        dataset = str(source.place(dataset))
    return datasets.load(dataset, source.place(root))
