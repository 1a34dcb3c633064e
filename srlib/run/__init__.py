"""A run: stages over notebooks, cached by content, resumed after a kill.

stages         which notebook makes which directory of a run, what it depends on, when it has to run again
stage          a stage from inside its notebook: opened, tracked, finished
pipeline       all stages of a run, each in a process of its own (execute)
cluster        the same processes as tasks of a Ray cluster
plan, colab    memory before a run starts; the second cell of a notebook in Colab"""

from srlib.run.stage import open_run as open_run
from srlib.run.stage import open_stage as open_stage
from srlib.run.stages import RunError as RunError
