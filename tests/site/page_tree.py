"""A page of the site as a tree, read with nothing but the standard library."""

from __future__ import annotations

import functools
from html.parser import HTMLParser
from pathlib import Path

INLINE = {"a", "code", "em", "span", "strong"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Element:
    """An element with its attributes and its children, which are elements and strings."""

    def __init__(self, name, attributes, parent):
        self.name, self.attributes, self.parent, self.children = name, attributes, parent, []

    def walk(self):
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def find(self, name="", **attributes):
        """Elements below with this name and these attributes; ``data_figure`` stands for ``data-figure``."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            element
            for element in self.walk()
            if (not name or element.name == name)
            and all(
                key in element.attributes and (value is True or value in (element.attributes[key] or "").split())
                for key, value in wanted.items()
            )
        ]

    def text(self, without=lambda element: False):
        """The text below; what is not part of a line of text is set apart by spaces."""
        if without(self):
            return " "
        text = "".join(child if isinstance(child, str) else child.text(without) for child in self.children)
        return text if self.name in INLINE else f" {text} "


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.open = Element("", {}, None)

    def handle_starttag(self, name, attributes):
        element = Element(name, dict(attributes), self.open)
        self.open.children.append(element)
        if name not in VOID:
            self.open = element

    def handle_endtag(self, name):
        element = self.open
        while element.parent is not None and element.name != name:
            element = element.parent
        if element.parent is not None:
            self.open = element.parent

    def handle_data(self, text):
        self.open.children.append(text)


def parse(html: str) -> Element:
    """The tree of ``html``."""
    reader = _Reader()
    reader.feed(html)
    return reader.root


@functools.cache
def read(path: Path) -> Element:
    """The tree of the page at ``path``."""
    return parse(path.read_text(encoding="utf-8"))
