"""Write the ``__init__.pyi`` of every lazy package, from the ``__all__`` lists of its modules."""

from pathlib import Path

from softgate._lazy import stub

SOURCE = Path(__file__).resolve().parent.parent / "src" / "softgate"


def lazy_packages() -> list[Path]:
    return sorted(p.parent for p in SOURCE.glob("*/__init__.py") if "attach(__name__)" in p.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for package in lazy_packages():
        (package / "__init__.pyi").write_text(stub(package), encoding="utf-8")
