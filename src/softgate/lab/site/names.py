"""The public names of the rooms, which paper each comes from, and the example in its docstring."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import softgate
from softgate._lazy import public_names
from softgate.lab.paper import Paper
from softgate.registry import SITES

#: A reference of reST, ``:func:`x```, with what stands between the backticks.
ROLE = re.compile(r":(?:class|func|mod|data|meth|attr|exc|obj|math):`~?\.?([^`]+)`")
#: Pages of the reference beside those of the rooms.
MODULES = ("softgate", "softgate.numpy", "softgate.testing", "softgate.errors")


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        module: where a user imports it from, e.g. ``"softgate.losses"``.
        name: the name itself.
        docstring: its docstring, clean of indentation.
    """

    module: str
    name: str
    docstring: str

    @property
    def path(self) -> str:
        """The whole dotted path."""
        return f"{self.module}.{self.name}"

    @property
    def page(self) -> str:
        """Page of the reference, below the root of the site."""
        return f"api/{self.module.removeprefix('softgate.')}.html"

    @property
    def summary(self) -> str:
        """First line of the docstring, its code in single backticks."""
        return ROLE.sub(r"`\1`", self.docstring.split("\n", 1)[0]).replace("``", "`")

    @cached_property
    def example(self) -> str:
        """The doctest of the docstring as a program, its output as comments; empty if there is none."""
        examples = doctest.DocTestParser().get_examples(self.docstring)
        return _program(self, examples) if examples else ""


def _program(name: Name, examples: list[doctest.Example]) -> str:
    """Imports first, those that doctest takes for granted too; what the prompt would show is printed."""
    source = "".join(example.source for example in examples)
    bound = _bound(source)
    missing = [
        *(["import torch\n"] if "torch." in source and "torch" not in bound else []),
        *([] if name.name in bound else [f"from {name.module} import {name.name}\n"]),
    ]
    given = [example.source for example in examples if _is_import(example)]
    imports = "".join(sorted([*missing, *given], key=lambda line: line.startswith("from softgate")))
    lines = [line for example in examples if not _is_import(example) for line in _statement(example)]
    return f"{imports}\n{''.join(lines)}"


def _is_import(example: doctest.Example) -> bool:
    return example.source.startswith(("import ", "from "))


def _statement(example: doctest.Example) -> Iterator[str]:
    body = ast.parse(example.source).body
    if example.want and len(body) == 1 and isinstance(body[0], ast.Expr) and not example.source.startswith("print("):
        shown = ast.get_source_segment(example.source, body[0]) or ""
        bare = isinstance(body[0].value, ast.Tuple) and not shown.startswith("(")
        yield example.source.replace(shown, f"print(({shown}))" if bare else f"print({shown})", 1)
    else:
        yield example.source
    for line in example.want.splitlines():
        yield f"# {line}\n"


def _bound(source: str) -> set[str]:
    """Names that the imports of ``source`` bind."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def rooms() -> list[str]:
    """Rooms that have public names."""
    home = Path(str(softgate.__file__)).parent
    return [site for site in SITES if (home / site / "__init__.py").is_file() and public_names(home / site)]


def names_of(module: str) -> list[Name]:
    """Public names of ``module`` (functions, classes and constants with a docstring), sorted."""
    home = importlib.import_module(module)
    return [
        Name(module, name, inspect.getdoc(value) or "")
        for name, value in sorted(_members(home), key=lambda item: item[0].lower())
        if callable(value)
    ]


def _members(home: Any) -> Iterator[tuple[str, Any]]:
    for name in getattr(home, "__all__", None) or [n for n in vars(home) if not n.startswith("_")]:
        value = getattr(home, name)
        if hasattr(home, "__all__") or getattr(value, "__module__", "") == home.__name__:
            yield name, value


def all_names() -> list[Name]:
    """Public names of every room, in the order of the rooms."""
    return [name for room in rooms() for name in names_of(f"softgate.{room}")]


def names_for(paper: Paper, names: list[Name]) -> list[Name]:
    """What implements ``paper``: its methods first, then every name whose docstring cites it."""
    by_path = {name.path: name for name in names}
    first = [by_path[f"softgate.{method}"] for method in paper.methods if f"softgate.{method}" in by_path]
    return list(dict.fromkeys([*first, *(name for name in names if paper.arxiv in name.docstring)]))


def example_for(paper: Paper, names: list[Name]) -> Name | None:
    """The name whose example the page shows: the first of :func:`names_for` that has one."""
    return next((name for name in names_for(paper, names) if name.example), None)
