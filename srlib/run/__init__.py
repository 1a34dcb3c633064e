"""A run: stages over notebooks, cached by content, resumed after a kill.

`stages` says which notebook makes which directory and when again, `stage` opens one from inside its notebook, `pipeline` runs all
of them, each in a process of its own (`execute`), `cluster` the same on Ray, and `plan` forecasts their memory."""

from srlib.run.stage import open_run as open_run
from srlib.run.stage import open_stage as open_stage
from srlib.run.stages import RunError as RunError
