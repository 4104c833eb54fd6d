"""Random changes that `benchmarks.fuzz` makes to valid files: of their bytes, their structure or their characters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Change = Callable[[Random], bytes]
_SPECIAL = (
    *(
        b"\x00",
        b"\xff",
        b"\n",
        b"\r\n",
        b"\x1b[2J",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
        b": ",
        b"- ",
        b"../",
        b"/etc/passwd",
        b"1e999",
        b"-1",
        b"NaN",
    ),
    *(b"9" * 30, b"[" * 2000, b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"os:abort", b"<script>", b"${x}", b"%s%n", b"{}"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, float("nan"), float("inf")),
    *("", "a", "\x1b[31mred\n", "\u202e", "\ud800", "../../etc/passwd", "/dev/zero", "os:abort", "<b>|`*", "9" * 400),
    *("a" * 5000, [], {}, [[]], {"": {}}, [1, "a", None], {"a": [1]}),
)
_CHARACTERS = "aZ09 _-.,:;/\\'\"`*[]()<>|&#!~{}\n\r\t\x00\x1b\x7f\u202e\u200d\ufeff\u00e9\u0301\u4e2d\U0001f600\ud800"


def bytes_of(seeds: Sequence[bytes]) -> Change:
    """Change the bytes of one of these files at a few places."""

    def make(random: Random) -> bytes:
        data = bytearray(random.choice(seeds))
        for _ in range(random.choice((1, 1, 2, 4, 16))):
            at = random.randrange(len(data) + 1)
            kind = random.randrange(6)
            if kind == 0 and data:
                data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
            elif kind == 1:
                del data[at : at + random.choice((1, 2, 8, 64))]
            elif kind == 2:
                data[at:at] = random.choice(_SPECIAL)
            elif kind == 3:
                data[at:at] = data[random.randrange(len(data) + 1) :][: random.choice((1, 8, 64, 512))]
            elif kind == 4:
                special = random.choice(_SPECIAL)
                data[at : at + len(special)] = special
            elif random.random() < 0.2:
                del data[at:]
        return bytes(data)

    return make


def structure_of(seeds: Sequence[Any], dump: Callable[[Any], bytes]) -> Change:
    """Change a few values, keys or lengths of one of these structures; every fourth case also some bytes."""

    def make(random: Random) -> bytes:
        value = copy.deepcopy(random.choice(seeds))
        for _ in range(random.choice((1, 1, 2, 3))):
            value = _changed(value, random)
        text = dump(value)
        return bytes_of([text])(random) if random.random() < 0.25 else text

    return make


def _changed(value: Any, random: Random) -> Any:
    """The structure with one place in it changed."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        kind = random.randrange(12)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[str(random.choice(_VALUES))[:500]] = copy.deepcopy(random.choice(_VALUES))
        elif kind == 2:
            value[random.choice(list(value))] = copy.deepcopy(value[key])
        else:
            value[key] = _changed(value[key], random)
        return value
    if isinstance(value, list) and value and random.random() < 0.9:
        at, kind = random.randrange(len(value)), random.randrange(8)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.insert(at, copy.deepcopy(random.choice(_VALUES)))
        elif kind == 2:
            value += copy.deepcopy(value[at:][:50])
        else:
            value[at] = _changed(value[at], random)
        return value
    return copy.deepcopy(random.choice(_VALUES))


def text_of(seeds: Sequence[str]) -> Change:
    """Change characters of one of these texts, also to those that are invisible or mean something to a terminal."""

    def make(random: Random) -> bytes:
        text = list(random.choice(seeds))
        for _ in range(random.choice((1, 2, 4, 8))):
            at = random.randrange(len(text) + 1)
            text[at : at + random.randrange(3)] = random.choices(_CHARACTERS, k=random.choice((0, 1, 2, 5)))
        return "".join(text).encode(errors="surrogatepass" if random.random() < 0.1 else "replace")

    return make
