"""How the command line ends when something is wrong: one line on standard error and an exit code, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError
from softgate.lab.os_errors import explain_os_error

#: 0: done and every claim held. 1: a claim did not hold, or a finding is not normal.
USAGE, ENVIRONMENT, INTERRUPTED = 2, 3, 130

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_TORCH = "pip install 'torch>=2.10' (a CPU build will do)"

#: Packages whose name is not that of their module.
_PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Exit 2 for a wrong argument, 3 for what this machine lacks; anything else is a defect and keeps its traceback."""
    try:
        yield
    except (ArgumentValueError, ArgumentTypeError) as error:
        _fail(str(error), USAGE)
    except SoftgateError as error:
        _fail(str(error), ENVIRONMENT)
    except OSError as error:
        _fail(explain_os_error(error), ENVIRONMENT)
    except ImportError as error:
        _fail(_missing_package(error), ENVIRONMENT)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        _fail("there is not enough memory; use smaller sizes (--batch, --length), fewer --workers, or a machine with "
              "more", ENVIRONMENT)  # fmt: skip
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def warn(message: str) -> None:
    """Print a line about something that is worth knowing and stops nothing."""
    Console(stderr=True).print(Text(f"softgate: {message}", style="yellow"), soft_wrap=True)


def _missing_package(error: ImportError) -> str:
    module = (error.name or "").partition(".")[0]
    state = "not installed" if isinstance(error, ModuleNotFoundError) else "damaged, or of another version"
    if module == "torch":
        return f"torch is {state} ({error}); install it with: {_TORCH}"
    if not module:
        return f"a package is {state} ({error}); `softgate doctor` looks for the cause"
    package = _PACKAGES.get(module, module)
    return f"{package} is {state} ({error}); install it with: pip install --upgrade {package}"


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print(Text(f"softgate: {message}", style="red"), soft_wrap=True)
    raise SystemExit(code) from None
