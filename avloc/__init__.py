"""avloc: where in the picture does the sound come from?"""

__version__ = "0.1.0"

RUNS = "runs"  # folder of all runs, in the working directory
