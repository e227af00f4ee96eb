"""Compiled libraries, for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]
"""The types of a function's result and of its arguments, by its name."""


def load(path: Path, signatures: Signatures) -> ctypes.CDLL:
    """The library at ``path``, whose functions check their arguments.

    Raises:
        OSError: it is none of this machine's.
    """
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
