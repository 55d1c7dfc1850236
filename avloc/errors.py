"""What every room may raise for its user to read."""

from __future__ import annotations

__all__ = ["UsageError", "told_by"]


class UsageError(ValueError):
    """What was asked for does not exist or does not go together; the message names it and the remedy."""


def told_by(error: BaseException) -> BaseException | None:
    """The package's own exception in a chain of causes: those are written for users, anything else is a defect.

    jsonargparse wraps what a constructor raises.
    """
    told: BaseException | None = error
    while told is not None and type(told).__module__.split(".")[0] not in ("avloc", "data_prep"):
        told = told.__cause__
    return told
