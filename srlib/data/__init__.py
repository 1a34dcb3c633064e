"""Rows to train and measure a judge on: the built-in `world` (its words are in `lexicon`), or your own.

`sources` reads rows from files, folders and the hub, `columns` converts their layouts, `splits` sorts them, `loading` puts
these together, and `overlap` reports text that splits share."""

# ruff: noqa: F401
from srlib.data.loading import RowFailure, load, read_rows
from srlib.data.splits import balanced, baselines
