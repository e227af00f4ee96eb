"""Device memory: a first-fit allocator."""

from __future__ import annotations

from moe_hw.arch import SEGMENT_ALIGN
from moe_hw.errors import DeviceError
from moe_hw.image import aligned


class Allocator:
    """First-fit allocation of a device's memory.

    Parameters:
        size: bytes of device memory; a last partial unit is not used.
        unit: bytes to whose multiples addresses and sizes are rounded.
    """

    def __init__(self, size: int, unit: int = SEGMENT_ALIGN):
        self.size = size // unit * unit
        self._unit = unit
        self._holes = [(0, self.size)] if self.size else []
        self._taken: dict[int, int] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes that are not allocated, over all holes."""
        return sum(size for _, size in self._holes)

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest allocation that would succeed."""
        return max((size for _, size in self._holes), default=0)

    def alloc(self, size: int, what: str) -> int:
        """Take the first hole of at least ``size`` bytes.

        Parameters:
            size: bytes, at least 1; rounded up to whole units.
            what: what it is for, named by the error.

        Returns:
            The byte address, a multiple of ``unit``.

        Raises:
            DeviceError: there is no such hole.
        """
        size = aligned(max(size, 1), self._unit)
        for position, (address, room) in enumerate(self._holes):
            if room >= size:
                rest = [(address + size, room - size)] if room > size else []
                self._holes[position : position + 1] = rest
                self._taken[address] = size
                return address
        raise DeviceError(
            f"device memory is full: {what} needs {size:,} bytes, {self.free_bytes:,} of {self.size:,} are free "
            f"(the largest hole has {self.largest_hole:,}); unload layers, or use int4 weights or a larger board"
        )

    def free(self, address: int) -> None:
        """Give back what :meth:`alloc` returned.

        Raises:
            KeyError: nothing is allocated at ``address``.
        """
        holes = sorted([*self._holes, (address, self._taken.pop(address))])
        merged = holes[:1]
        for start, size in holes[1:]:
            before, length = merged[-1]
            if before + length == start:
                merged[-1] = (before, length + size)
            else:
                merged.append((start, size))
        self._holes = merged
