"""Identities: equal contents, whatever the order; and what differs, by name."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwr_utils.identity import differences, digest

VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
FACTS = st.dictionaries(st.text(min_size=1), VALUES, max_size=6)


def test_a_digest_is_that_of_the_sorted_facts():
    expected = hashlib.sha256(b'{"a": [1, 2], "b": null}').hexdigest()
    assert digest({"b": None, "a": (1, 2)}) == expected


@given(FACTS, FACTS)
def test_digests_agree_exactly_where_nothing_differs(first, second):
    assert (digest(first) == digest(second)) == (not differences(first, second))
    assert not differences(first, dict(reversed(first.items())))


def test_what_differs_is_named_with_both_values():
    there = {"power": 1.0, "layer": "a", "classes": None}
    here = {"power": 2.0, "layer": "a", "size": "64x48"}
    assert differences(there, here) == [
        "classes: null there, nothing here",
        "power: 1.0 there, 2.0 here",
        'size: nothing there, "64x48" here',
    ]
    (long,) = differences({"x": "a" * 200}, {"x": "b"})
    assert len(long) < 120 and long.endswith('... there, "b" here')


def test_numbers_that_python_calls_equal_differ_in_both_or_in_none():
    for first, second in ((1, True), (1, 1.0), (0, False)):
        assert differences({"x": first}, {"x": second})
        assert digest({"x": first}) != digest({"x": second})


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"x"])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        digest({"x": value})
