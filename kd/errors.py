"""Errors written for people: each carries the exit status with which `python -m kd.run` ends."""


class UserError(ValueError):
    """Base of everything a user can mend. The message says what is wrong, what was given and what is allowed."""

    status = 2


class ConfigError(UserError):
    """The configuration is wrong (exit status 2)."""


class DataError(UserError):
    """The data are missing, damaged or do not fit the configuration (exit status 3)."""

    status = 3


class StoreError(UserError):
    """A checkpoint, a teacher's file or a store entry cannot be used (exit status 4)."""

    status = 4


class MachineError(UserError):
    """The machine cannot go on: out of memory, or a process of the run has died (exit status 1)."""

    status = 1


class NumericError(UserError):
    """Training produced NaN or infinity (exit status 5)."""

    status = 5
