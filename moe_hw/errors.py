"""Errors that users see: one line that says what was expected, what came and what to do, and an exit code."""

from __future__ import annotations


class MoeHwError(Exception):
    """Base of all errors that are the user's to mend; the command line prints them without a traceback."""

    exit_code = 1


class UsageError(MoeHwError):
    """A wrong argument: an unknown board, a format that does not exist."""

    exit_code = 2


class SetupError(MoeHwError):
    """The environment lacks something: a tool, a package, disk space."""

    exit_code = 3


class ModelError(MoeHwError):
    """A model that cannot be used: not a MoE model, files missing, tensors of the wrong shape."""

    exit_code = 4


class UnsupportedLayer(ModelError):
    """A MoE layer with a feature that this version cannot represent; the message names the feature."""


class ImageError(ModelError):
    """A memory image that is truncated, corrupt or made for another configuration."""


class InputError(ModelError):
    """Activations that cannot be represented: NaN, Inf, a wrong shape."""


class DeviceError(MoeHwError):
    """The device is missing, of another configuration, too small, or answered an error."""

    exit_code = 5


class DeviceTimeout(DeviceError):
    """The device did not complete a command within its bound; the message names the blocked streams."""


class TimingError(MoeHwError):
    """A bitstream that is not fast enough for the clocks of its board."""

    exit_code = 6
