"""The examples of the docstrings do what they say; the reference and the pages of the papers show them."""

import doctest
import importlib
import sys

import pytest
import torch
from torch import nn

import softgate
from softgate.lab.site.names import names_of, rooms

#: What an example may use without an import.
GIVEN = {"torch": torch, "nn": nn, "softgate": softgate}


@pytest.mark.parametrize("room", rooms())
def test_examples_print_what_they_say(room):
    wrong, tried = [], 0
    for name in names_of(f"softgate.{room}"):
        value = getattr(importlib.import_module(name.module), name.name)
        known = {**GIVEN, **vars(sys.modules[value.__module__]), name.name: value}
        example = doctest.DocTestParser().get_doctest(name.docstring, known, name.path, None, 0)
        torch.manual_seed(0)
        doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=wrong.append)
        tried += bool(example.examples)
    assert tried and not wrong, "".join(wrong)
