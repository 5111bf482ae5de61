"""The user's mistakes, one family: each message names what was given, what was found, and the fix."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can fix; the commands show it as one message, without a traceback."""


class DataError(UserError):
    """A dataset that cannot be used; the message names the source, what was found, and the fix."""


class CheckpointError(UserError):
    """No checkpoint, a damaged one, or one of something else."""


class UsageError(UserError):
    """Wrong arguments of a command."""


class DiskFullError(OSError):
    """No room on a file system. Not a mistake in what was asked for: the commands end with exit code 1."""
