"""What in a text of SQL is a literal, a quoted name or a comment, without a parser. Pure, and linear in the text.

In: a text as it is read with standard_conforming_strings = off, where a backslash escapes in every plain literal. Out:
where each begins and ends. PostgreSQL documentation, 4.1 "Lexical Structure": comments nest, and dollar quotes name
their end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from pglast.parser import ParseError

PLAIN: Final = "plain"
ESCAPED: Final = "escaped"
OTHER: Final = "other"

_START: Final = re.compile(
    r"""(?P<escaped>(?<![\w$])[eE]')|(?P<verbatim>(?<![\w$])(?:[bBxXnN]|[uU]&)')|(?P<plain>')|(?P<name>")
      | (?P<dollar>(?<![\w$])\$(?:[^\W\d]\w*)?\$)|(?P<line>--)|(?P<block>/\*)""",
    re.VERBOSE,
)
_REST: Final = {
    "escaped": re.compile(r"(?:[^'\\]|\\.|'')*+'", re.DOTALL),
    "plain": re.compile(r"(?:[^'\\]|\\.|'')*+'", re.DOTALL),
    "verbatim": re.compile(r"[^']*+'"),
    "name": re.compile(r'(?:[^"]|"")*+"'),
    "line": re.compile(r"[^\n]*+"),
}
_BLOCK: Final = re.compile(r"/\*|\*/")


class Piece(NamedTuple):
    """From `start` up to `end`; `kind` is PLAIN or ESCAPED for a literal in which a backslash escapes, else OTHER."""

    kind: str
    start: int
    end: int


def pieces(text: str, *, standard: bool = False) -> Iterator[Piece]:
    """In their order. What has no end is no literal: the server would have refused it, so nothing after it is told.

    `standard`: the text is read with standard_conforming_strings = on.
    """
    at = 0
    while (start := _START.search(text, at)) and (end := _end(text, start, standard=standard)) is not None:
        kind = start.lastgroup
        yield Piece(kind if kind in {PLAIN, ESCAPED} else OTHER, start.start(), end)
        at = end


def _end(text: str, start: re.Match[str], *, standard: bool) -> int | None:
    kind = start.lastgroup or ""
    kind = "verbatim" if kind == PLAIN and standard else kind
    if kind == "block":
        return _end_of_comment(text, start.end())
    if kind == "dollar":
        found = text.find(start[0], start.end())
        return None if found < 0 else found + len(start[0])
    rest = _REST[kind].match(text, start.end())
    return None if rest is None else rest.end()


def _end_of_comment(text: str, at: int) -> int | None:
    depth = 1
    for mark in _BLOCK.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return None


_OPERATORS: Final = re.compile(r"[-+*/<>=~!@#%^&|`?]{1000,}")
"""A run of what operators are made of. PostgreSQL's scanner takes all of it, gives back what is none of the first, and
begins anew: where comments stand side by side each looks at all that follow (scan.l, xcstart and operator)."""


def scannable(text: str) -> str:
    """The same for a scanner whose time grows with the square of such a run: without comments, where there is one.

    As it is read with standard_conforming_strings = on. Raises ParseError where it holds one outside of comments.
    """
    if _OPERATORS.search(text) is None:
        return text
    parts, outside, at = list[str](), list[str](), 0
    for _, start, end in pieces(text, standard=True):
        between = text[at:start]
        outside.append(between)
        parts += [between, " " if text.startswith(("--", "/*"), start) else text[start:end]]
        at = end
    if _OPERATORS.search(" ".join([*outside, text[at:]])):
        raise ParseError("an operator that is too long", 0)
    return "".join([*parts, text[at:]])


def with_standard_strings(text: str) -> str:
    """The same for standard_conforming_strings = on."""
    parts, at = list[str](), 0
    for kind, start, end in pieces(text):
        if kind == PLAIN and "\\" in text[start:end]:
            parts += [text[at:start], " E", text[start:end]]
            at = end
    return "".join([*parts, text[at:]])


def length_outside(text: str) -> int:
    """Characters outside of literals, names in quotes and comments."""
    return len(text) - sum(end - start for _, start, end in pieces(text))
