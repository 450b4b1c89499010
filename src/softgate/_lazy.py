"""Lazy re-export: a room shows the public names of its modules without importing them.

Each module declares ``__all__`` as a literal list. A room's ``__init__`` reads those lists as text, so adding a method
needs no edit there, and importing a room costs no torch. The generated ``__init__.pyi`` beside it (``make stubs``)
tells type checkers and editors the same; a test keeps both equal.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from softgate.errors import did_you_mean

_ALL = re.compile(r"^__all__(?:: [^=]+)? = (\[[^\]]*\])", re.MULTILINE)


def public_names(package_dir: Path) -> dict[str, str]:
    """Map every public name to its module (or subpackage) inside ``package_dir``."""
    names: dict[str, str] = {}
    for module, path in _modules(package_dir):
        found = _ALL.search(path.read_text(encoding="utf-8"))
        for name in ast.literal_eval(found.group(1)) if found else ():
            if name in names:
                raise ImportError(f"{name} is public in both {names[name]} and {module} of {package_dir.name}")
            names[name] = module
    clash = set(names) & set(names.values())
    if clash:  # importing the module would overwrite the function on the package
        raise ImportError(f"{package_dir.name}: a module and a public name are both called {', '.join(clash)}")
    return names


def _modules(package_dir: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(package_dir.iterdir()):
        if path.suffix == ".py" and path.stem != "__init__":
            yield path.stem, path
        elif (path / "__init__.py").is_file():
            yield path.name, path / "__init__.py"


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for the room ``package``."""
    home = sys.modules[package]
    names = public_names(Path(str(home.__file__)).parent)

    modules = set(names.values())

    def __getattr__(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in names:
            known = ", ".join(sorted(names)) or "nothing yet"
            hint = did_you_mean(name, names)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint or ';'} it offers {known}")
        value = getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        setattr(home, name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(home), *names})

    return __getattr__, __dir__, sorted(names)


def stub(package_dir: Path) -> str:
    """Text of the ``__init__.pyi`` that states the same names for type checkers."""
    # as ruff sorts imports: by module, names in capitals first, then classes, without regard to case
    names = public_names(package_dir).items()
    order = sorted(names, key=lambda item: (item[1], not item[0].isupper(), item[0][0].islower(), item[0].lower()))
    return "".join(f"from .{module} import {name} as {name}\n" for name, module in order)
