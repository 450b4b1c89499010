"""Turn the markup of our docstrings (Google sections, reST roles and formulas) into Markdown for the reference."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import griffe

from softgate.lab.site.formulas import formula
from softgate.lab.site.names import ROLE

_MATH = re.compile(r"^(?P<indent> *)\.\. math:: *(?P<first>.*)\n?(?P<rest>(?:(?P=indent) +\S.*\n?)*)", re.MULTILINE)
_LITERAL = re.compile(r"(?<=\S)::[ ]*$", re.MULTILINE)
_TAG = re.compile(r"<(?=[A-Za-z/!])")


class Markdown(griffe.Extension):
    """A griffe extension that rewrites every docstring before it is parsed."""

    def __init__(self, known: Collection[str] = ()) -> None:
        """Take the dotted paths that the reference has: those become links."""
        self.known = frozenset(known)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, self.known)


def markdown(text: str, known: Collection[str] = ()) -> str:
    """``text`` with references as links or code, formulas as pictures, and no word that could be taken for a tag."""

    def reference(match: re.Match[str]) -> str:
        target = match[1]
        return f"[`{target}`][{target}]" if target in known else f"`{target}`"

    text = _LITERAL.sub(":", _MATH.sub(_formula, text))
    text = ROLE.sub(reference, text)
    return "\n".join(line if _is_code(line) else _without_tags(line) for line in text.split("\n"))


def _formula(match: re.Match[str]) -> str:
    indent = match["indent"]
    latex = " ".join([match["first"], *match["rest"].split()]).strip()
    drawn = formula(latex)
    shown = drawn if drawn is not None else f"```latex\n{indent}{latex}\n{indent}```"
    return f"\n{indent}{shown}\n\n"


def _is_code(line: str) -> bool:
    """Examples, and what :func:`_formula` has written."""
    return line.lstrip().startswith((">>>", "...", '<p class="formulas">'))


def _without_tags(line: str) -> str:
    """Outside of backticks an angle bracket before a letter would open a tag."""
    pieces = line.split("`")
    return "`".join(piece if index % 2 else _TAG.sub("&lt;", piece) for index, piece in enumerate(pieces))
