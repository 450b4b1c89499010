"""The rules of the house that can be read off the source: imports go one way, nothing unsafe, nothing too large."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import softgate
from softgate.registry import SITES

SOURCE = Path(softgate.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
#: What rooms may not know: what is built on top of them.
ABOVE_THE_ROOMS = ("papers", "lab", "swapping", "integrations", "testing", "cli")
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "rich", "typer", "hypothesis", "pytest", "transformers", "ray")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache  # four tests read every file
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _package(path: Path) -> list[str]:
    return ["softgate", *path.relative_to(SOURCE).parent.parts]


def _imported(path: Path, tree: ast.Module) -> Iterator[str]:
    """Absolute names of everything imported in the file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = _package(path)
            base = ".".join(home[: len(home) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _below_the_top(path: Path) -> bool:
    first = path.relative_to(SOURCE).parts[0]
    return first in (*SITES, "_math") or first in ("registry.py", "dispatch.py", "errors.py", "_checks.py", "_lazy.py")


def _breaks_one_way(path: Path, tree: ast.Module) -> list[str]:
    forbidden = tuple(f"softgate.{name}" for name in ABOVE_THE_ROOMS)
    return [
        name
        for name in _imported(path, tree)
        if name in forbidden or name.startswith(tuple(f"{f}." for f in forbidden))
    ]


@pytest.mark.parametrize("path", [p for p in MODULES if _below_the_top(p)], ids=_name)
def test_rooms_do_not_import_what_is_built_on_them(path: Path) -> None:
    assert _breaks_one_way(path, _tree(path)) == []


def test_softgate_imports_nothing_heavy() -> None:
    code = f"import sys, softgate; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_suite_imports_without_pytest_and_hypothesis() -> None:
    code = "import sys, softgate.testing; print([m for m in ('pytest', 'hypothesis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _unsafe(tree: ast.Module, path: Path) -> list[str]:
    found = [name for name in _imported(path, tree) if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "__import__", "yaml.load", "torch.load", "os.system", "os.popen"):
            found.append(called)
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and is_true:
                found.append(f"{keyword.arg}=True")
    return found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_code_comes_in_through_data(path: Path) -> None:
    assert _unsafe(_tree(path), path) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "torch.load('x')",
        "yaml.load(f)",
        "subprocess.run('ls', shell=True)",
        "load(x, trust_remote_code=True)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_the_scan_sees_what_it_forbids(line: str) -> None:
    assert _unsafe(ast.parse(f"def f():\n    {line}"), SOURCE / "registry.py") != []


@pytest.mark.parametrize("line", ["import softgate.lab", "from softgate import papers", "from ..lab.files import x"])
def test_the_import_scan_sees_every_way_up(line: str) -> None:
    assert _breaks_one_way(SOURCE / "losses" / "x.py", ast.parse(f"def f():\n    {line}")) != []


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from ``def`` on, without its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    tree = _tree(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    long = {f"{f.name}: {_code_lines(f)} lines" for f in _functions(tree) if _code_lines(f) > 60}
    wide = {f"line {f.lineno}" for f in _functions(tree) if f.name == "__init__" and _arguments(f) > 16}
    assert not long
    assert not wide


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) - 1


def _room_modules() -> Iterator[Path]:
    for room in SITES:
        for path in sorted((SOURCE / room).glob("*")):
            module = path / "__init__.py" if path.is_dir() else path
            if module.is_file() and module.suffix == ".py" and module != SOURCE / room / "__init__.py":
                yield module


@pytest.mark.parametrize("path", list(_room_modules()), ids=_name)
def test_room_modules_list_their_public_names_literally(path: Path) -> None:
    is_private = any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(SOURCE).parts)
    lists = [
        node.value
        for node in _tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    ]
    assert is_private or len(lists) == 1
    for found in lists:
        assert isinstance(found, ast.List)
        assert all(isinstance(name, ast.Constant) for name in found.elts)


def _undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring; overloads and property setters repeat another's."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            members = node.body if isinstance(node, ast.ClassDef) else []
            methods = [m for m in members if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
            for item in (node, *methods):
                repeats = any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in item.decorator_list)
                if ast.get_docstring(item) is None and not repeats:
                    found.append(item.name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_functions_are_documented(path: Path) -> None:
    assert _undocumented(_tree(path)) == []
