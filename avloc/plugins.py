"""Other people's code: a package or a module of the working folder that adds to the suite.

A method needs nothing of this. Its YAML names the class, ``class_path: mymethods.Mine``, and every command finds the
module among the installed packages or in the working folder. What is known by a name of its own registers itself when
its module is imported: a protocol (`avloc.evaluation.protocols.register`), a test set
(`avloc.evaluation.benchmarks.register`), a paper's numbers (`avloc.report.published.register`). Imported before a
command runs are

- the modules that installed packages name as entry points of the group ``avloc.plugins``::

      [project.entry-points."avloc.plugins"]
      mine = "mypackage.protocols"

- the modules in the environment variable ``AVLOC_PLUGINS``, with commas between them: ``AVLOC_PLUGINS=myprotocols``.

Nothing else is: no file of the working folder runs because it lies there.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

__all__ = ["PluginError", "load_plugins", "may_import", "plugins"]

GROUP, VARIABLE = "avloc.plugins", "AVLOC_PLUGINS"


class PluginError(RuntimeError):
    """A plugin that cannot be imported; the message names it, who asks for it, and the remedy."""


def plugins() -> dict[str, tuple[str, str]]:
    """Modules that add to the suite: name to who asks for it and what to do without it."""
    found = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.name
        found[point.module] = (f"the entry point {point.name!r} of {package}", f"Mend or uninstall {package}")
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        found[name] = (VARIABLE, f"Mend it, install it, go to its folder, or take it out of {VARIABLE}")
    return found


def load_plugins() -> None:
    """Let modules of the working folder be found, and import the plugins.

    Raises:
        PluginError: one of them cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that a file there stands in for no installed module
    for name, (asked_by, remedy) in plugins().items():
        try:
            importlib.import_module(name)
        except Exception as e:
            raise PluginError(
                f"Plugin {name}, which {asked_by} names, cannot be imported ({type(e).__name__}: {e}). {remedy}."
            ) from e


def may_import(module: str) -> bool:
    """Whether a module that a file names, as a checkpoint does, may be imported on that file's word.

    A file may come from anybody, and an import runs code: so only what is the suite's, a plugin's, or imported already.
    """
    ours = {"avloc", *(name.partition(".")[0] for name in plugins())}
    return module in sys.modules or module.partition(".")[0] in ours
