"""What a device is to the driver: memory, CSRs and a way to wait. Simulator and boards implement it alike."""

from __future__ import annotations

import abc

import numpy as np

from moe_hw.arch import Arch


class Transport(abc.ABC):
    """One connected accelerator.

    Attributes:
        arch: the sizes that the bitstream is believed to have; the driver checks them against its CSRs.
        clock_mhz: clock of the accelerator.
        memory_bytes: size of device memory.
        memory_bytes_per_cycle: what the memory's pins can move in one cycle of the accelerator.
    """

    arch: Arch
    clock_mhz: float
    memory_bytes: int
    memory_bytes_per_cycle: float

    @property
    def config_hash(self) -> int:
        """64-bit hash that the device has to show."""
        return self.arch.hash

    def start(self) -> None:  # noqa: B027, most memories need nothing
        """Make memory usable. Called once, when the device has turned out to be the right one.

        Raises:
            DeviceError: the memory does not work.
        """

    @abc.abstractmethod
    def read(self, address: int, size: int) -> np.ndarray:
        """``size`` bytes of device memory, uint8."""

    @abc.abstractmethod
    def write(self, address: int, data: np.ndarray) -> None:
        """Store the bytes of ``data``, of any type, at byte ``address``."""

    @abc.abstractmethod
    def csr_read(self, name: str) -> int:
        """Value of the CSR ``name`` of :data:`moe_hw.registers.CSRS`."""

    @abc.abstractmethod
    def csr_write(self, name: str, value: int) -> None:
        """Write the CSR ``name``."""

    @abc.abstractmethod
    def wait(self, until_head: int, max_cycles: int) -> None:
        """Return when the CSR ``head`` equals ``until_head``, or after about ``max_cycles`` if it never does."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Bring the accelerator to its state after power-up. Memory keeps its content, CSRs do not."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the device."""
