"""Rows to train and measure a judge on: the built-in `world` (its words are in `lexicon`), or your own.

`sources` reads rows from files, folders and the hub, `columns` converts their layouts, `splits` sorts them, `loading` puts
these together, and `overlap` reports text that splits share."""

from srlib.data import columns, overlap, sources, splits, world
from srlib.data.loading import Loaded, RowFailure, load, read_rows
from srlib.data.splits import balanced, baselines

__all__ = ["Loaded", "RowFailure", "balanced", "baselines", "columns", "load"]
__all__ += ["overlap", "read_rows", "sources", "splits", "world"]
