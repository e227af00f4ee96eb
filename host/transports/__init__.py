"""The ways to reach a device, by URL scheme."""

from __future__ import annotations

from collections.abc import Callable

from host.transport import Transport
from moe_hw.errors import UsageError

SCHEMES = {
    "sim": "sim:BOARD, sim:BOARD.yaml or sim:DIRECTORY made by `moe-hw generate`",
    "serial": "serial:PORT or serial:PORT?board=BOARD",
    "udp": "udp:HOST or udp:HOST?board=BOARD",
}


def open_transport(url: str, progress: Callable[[str], None] | None = None) -> Transport:
    """Connect to the device at ``url``; ``progress`` is told what takes long.

    Raises:
        UsageError: an unknown scheme, or a target that does not exist.
        DeviceError: the files behind the URL do not belong together.
        SetupError: a tool that the device needs is missing.
    """
    scheme, _, target = url.partition(":")
    if scheme == "sim" and target:
        from host.transports.sim import open_sim

        return open_sim(target, progress)
    if scheme == "serial" and target:
        from host.transports.serial import open_serial

        return open_serial(target, progress)
    if scheme == "udp" and target:
        from host.transports.udp import open_udp

        return open_udp(target, progress)
    raise UsageError(f"expected a device URL ({'; '.join(SCHEMES.values())}), got {url!r}")
