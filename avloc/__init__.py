"""avloc: where in the picture does the sound come from?"""

from typing import Any

__version__ = "0.1.0"

RUNS = "runs"  # folder of all runs, in the working directory


def __getattr__(name: str) -> Any:
    """``avloc.load``, imported when it is asked for: the package itself stays light."""
    if name == "load":
        import importlib

        return importlib.import_module("avloc.find").load
    raise AttributeError(f"module 'avloc' has no attribute {name!r}")
