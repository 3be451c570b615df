"""What can go wrong, as the command line reports it: one sentence and an exit code."""

from __future__ import annotations


class RspruneError(Exception):
    """Says in one sentence what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(RspruneError, ValueError):
    """Wrong arguments or settings."""


class TooManyUnreadable(RspruneError):
    """More images are unreadable than ``--max-bad`` allows."""

    exit_code = 3


class BudgetError(RspruneError):
    """The budget cannot be met."""

    exit_code = 4


class StoreError(RspruneError):
    """A store did not answer, however often it was asked; nothing is wrong with the image itself."""

    exit_code = 5


class PartFailed(RspruneError):
    """A part of the work failed several times, and what it makes cannot be done without."""

    exit_code = 1


class NoSpace(RspruneError):
    """What is to be written does not fit on the disk."""

    exit_code = 1


class UnreadableImage(Exception):
    """One image cannot be used; its text becomes the image's `error` in the manifest or the scores."""
