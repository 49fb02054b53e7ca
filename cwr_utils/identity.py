"""What makes two runs, stores, whitenings or files of maps the same: their contents.

A name says what something is called; an identity says what it is: a digest of every
setting and content that can change its numbers. Whether something is done, complete or
may stand beside another is decided by the digest alone, and where it differs the facts
behind it say in what.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts, whatever their order.

    Args:
        facts: name -> texts, numbers, None, or lists and mappings of these. Photos,
            ground truth and weights stand in it by their own SHA-256.

    Raises:
        TypeError: if a value is of another kind.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what two sets of facts differ, one text a fact; empty if their digests agree.

    Args:
        there: of what was made before.
        here: of what is asked for now.

    Returns:
        Texts such as "power: 1.0 there, 2.0 here", by name. A fact that one of them
        lacks is "nothing" there.
    """
    before, now = (
        {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
        for facts in (there, here)
    )
    return [
        f"{name}: {_shown(before, name)} there, {_shown(now, name)} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _shown(texts: Mapping[str, str], name: str) -> str:
    text = texts.get(name, "nothing")
    return text if len(text) <= 80 else f"{text[:77]}..."
