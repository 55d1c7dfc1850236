"""What every room may raise for its user to read."""

from __future__ import annotations

__all__ = ["UsageError"]


class UsageError(ValueError):
    """What was asked for does not exist or does not go together; the message names it and the remedy."""
