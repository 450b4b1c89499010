"""Formulas of the docstrings as pictures, drawn when the site is built: readable without scripts and fonts."""

from __future__ import annotations

import base64
import io
import re

from softgate.lab.page.html import Markup, tag

#: Commands that matplotlib's mathtext does not know, and those that mean the same or nothing but a size.
_SAME = {
    r"\lVert": r"\Vert ", r"\rVert": r"\Vert ", r"\le": r"\leq ", r"\ge": r"\geq ", r"\ne": r"\neq ",
    r"\tfrac": r"\frac", r"\big": "", r"\bigl": "", r"\bigr": "", r"\Big": "", r"\Bigl": "", r"\Bigr": "",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\\?\w+)")
_SHORT_ROOT = re.compile(r"\\sqrt\s+(\w)")
_GAP = re.compile(r",?\s*\\q?quad\s*")
#: Points of the picture that make one em of the page: letters a little larger than those of the text.
_POINTS = 8.0


def formula(latex: str) -> Markup | None:
    """The pictures of ``latex``, one for each part between wide gaps, or None if it cannot be drawn."""
    parts = [part for part in _GAP.split(latex) if part.strip()]
    try:
        pictures = [_picture(part) for part in parts]
    except ValueError:
        return None
    return tag("p", *pictures, cls="formulas")


def _picture(latex: str) -> Markup:
    import matplotlib

    with matplotlib.rc_context(
        {
            "svg.hashsalt": "softgate",
            "mathtext.fontset": "cm",
            "font.size": 10,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
        }
    ):
        from matplotlib.mathtext import math_to_image

        drawn = io.BytesIO()
        math_to_image(f"${_known(latex)}$", drawn, dpi=72, format="svg")
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", "", drawn.getvalue().decode(),
                 flags=re.DOTALL)  # fmt: skip
    height = float(re.search(r'height="([\d.]+)pt"', svg)[1]) / _POINTS  # type: ignore[index]
    address = "data:image/svg+xml;base64," + base64.b64encode(svg.strip().encode()).decode()
    return tag("img", src=address, alt=latex.strip(), cls="formula", style=f"height:{height:.2f}em")


def _known(latex: str) -> str:
    text = _COMMAND.sub(lambda match: _SAME.get(match[0], match[0]), latex)
    return _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
