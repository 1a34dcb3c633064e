"""The examples in the docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import srlib

MODULES = sorted(
    path.stem
    for path in Path(srlib.__file__).parent.glob("*.py")
    if "\n>>> " in (text := path.read_text("utf-8")) or "    >>> " in text
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"srlib.{name}"))
    assert (failed, tried > 0) == (0, True)
