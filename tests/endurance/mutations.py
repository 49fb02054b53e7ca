"""Damage to files, repeatable by a seed: bytes, tokens of text, values of JSON."""

import json
import re
import struct
import zlib

import numpy as np

# Sizes, counts and offsets that decoders trip over.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
TOKENS = (
    *("", " ", "\n", "\r", "\t", "\0", "\ufeff", '"', "'", ",", ":", "-", "#", "\\"),
    *(
        "-1",
        "0",
        "1e999",
        "nan",
        "inf",
        "1e-3",
        "1_000",
        "0x10",
        "99999999999999999999",
    ),
    *("null", "none", "true", "~", "[", "]", "{", "}", "[]", "{}", "&a", "*a", "!!int"),
    *("!!python/object/apply:os.system ['touch ran']", "../../etc/passwd", "/", "%s"),
    *(
        "9" * 400,
        "\u0301",
        "\U0001f600",
        "\ud800",
        "é",
        "a" * 300,
        "[" * 300,
        "{a: " * 300,
        "\x85",
    ),
)


def mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """One to three kinds of damage, one after another."""
    for _ in range(rng.integers(1, 4)):
        data = _BYTES[rng.integers(len(_BYTES))](bytearray(data or b"\0"), others, rng)
    return data


def mutate_text(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Replace, double, drop or swap some tokens, or damage bytes."""
    if rng.random() < 0.25:
        return mutate(data, others, rng)
    tokens = re.findall(r"[\w.]+|\s+|.", data.decode(), re.DOTALL) or [""]
    for _ in range(rng.integers(1, 5)):
        place, other = rng.integers(len(tokens), size=2)
        choices = (
            TOKENS[rng.integers(len(TOKENS))],
            tokens[other],
            tokens[place] * 2,
            "",
            tokens[place] + TOKENS[rng.integers(len(TOKENS))],
        )
        tokens[place] = choices[rng.integers(len(choices))]
    return "".join(tokens).encode("utf-8", "surrogatepass")


def mutate_json(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Replace or drop some values anywhere in a JSON document, or damage its text."""
    if rng.random() < 0.5:
        return mutate_text(data, others, rng)
    root = [json.loads(data)]
    values = (None, True, -1, 0, 1, 2**40, 1.5, "", "x", "float64", [], {}, [[]], "é\0")
    for _ in range(rng.integers(1, 3)):
        here, key = root, 0
        while isinstance(here[key], dict | list) and here[key] and rng.random() < 0.9:
            here = here[key]
            keys = list(here) if isinstance(here, dict) else range(len(here))
            key = keys[rng.integers(len(keys))]
        if rng.random() < 0.2 and here is not root:
            del here[key]
        else:
            here[key] = values[rng.integers(len(values))]
    return json.dumps(root[0]).encode()


def mend_png(data: bytes) -> bytes:
    """The checksums as they should be, so that damage gets past them."""
    out, position = data[:8], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        chunk = data[position + 4 : end]
        out += data[position : position + 4] + chunk
        out += struct.pack(">I", zlib.crc32(chunk))
        position = end + 4
    return out + data[position:]


def _flip(data, others, rng):
    for _ in range(2 ** rng.integers(0, 5)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _replace(data, others, rng):
    for _ in range(2 ** rng.integers(0, 4)):
        data[rng.integers(len(data))] = NUMBERS[rng.integers(6)] % 256
    return bytes(data)


def _truncate(data, others, rng):
    return bytes(data[: rng.integers(len(data))])


def _splice(data, others, rng):
    """Some bytes of this or another file over or between those of this one."""
    other = others[rng.integers(len(others))] or b"\0"
    start = rng.integers(len(other))
    piece = other[start : start + int(2 ** rng.uniform(0, 12))]
    place = rng.integers(len(data))
    end = place + (len(piece) if rng.random() < 0.5 else 0)
    return bytes(data[:place]) + piece + bytes(data[end:])


def _cut(data, others, rng):
    place = rng.integers(len(data))
    return bytes(data[:place] + data[place + int(2 ** rng.uniform(0, 10)) :])


def _zeros(data, others, rng):
    place, length = rng.integers(len(data)), int(2 ** rng.uniform(0, 10))
    data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


def _number(data, others, rng, reach=None):
    """A number of 1, 2, 4 or 8 bytes in either order, near the start or anywhere."""
    size = 2 ** int(rng.integers(4))
    value = NUMBERS[rng.integers(len(NUMBERS))] % 256**size
    place = rng.integers(min(len(data), reach or len(data)))
    order = "little" if rng.random() < 0.5 else "big"
    data[place : place + size] = value.to_bytes(size, order)
    return bytes(data)


def _header(data, others, rng):
    return _number(data, others, rng, 64)


_BYTES = (_flip, _replace, _truncate, _splice, _cut, _zeros, _number, _header, _flip)
