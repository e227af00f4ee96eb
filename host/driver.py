"""The device: its identity, its memory, and the layers in it."""

from __future__ import annotations

from collections.abc import Callable

from host.handle import Handle
from host.memory import Allocator
from host.ring import RING_BYTES, Ring
from host.transport import Transport
from host.transports import open_transport
from moe_hw.errors import DeviceError
from moe_hw.image import LayerImage
from moe_hw.layer import MoELayer
from moe_hw.limits import check_layer
from moe_hw.quantised import CodedLayer, QuantisedLayer
from moe_hw.registers import DEVICE_MAGIC, LAYOUT_VERSION
from moe_hw.stored import StoredLayer


class Device:
    """A connected accelerator.

    Parameters:
        transport: the way to it; closed with the device.

    Attributes:
        arch: the accelerator's sizes.
        memory: what of its memory is taken.
        ring: its command ring.
        workspace: byte address of the records of the commands at hand.

    Raises:
        DeviceError: it is not a moe-hw accelerator, or one of another version or configuration.
    """

    def __init__(self, transport: Transport):
        self.transport = transport
        self.arch = transport.arch
        self._check_identity()
        self.transport.start()
        self.memory = Allocator(transport.memory_bytes, self.arch.segment_bytes)
        self.ring = Ring(transport, self.memory.alloc(RING_BYTES, "the command ring"))
        self.workspace = 0
        self._workspace_bytes = 0
        self._handles: list[Handle] = []

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload every layer and disconnect."""
        for handle in list(self._handles):
            self.unload(handle)
        self.transport.close()

    def load(
        self, layer: MoELayer | CodedLayer | StoredLayer, weight_format: str = "int4", name: str | None = None
    ) -> Handle:
        """Put a layer into device memory.

        Parameters:
            layer: float weights, quantised weights, or a layer of an opened image.
            weight_format: how to quantise float weights, as of ``moe_hw.formats.LayerFormat``; the others have a
                format already.
            name: what errors call the layer.

        Raises:
            UsageError: an unknown weight format.
            ModelError: weights that are not finite.
            ImageError: the stored image is damaged.
            DeviceError: the layer does not fit the accelerator or its memory, or was packed for another one.
        """
        name = name or f"layer {len(self._handles)}"
        check_layer(layer.spec, self.arch, name)
        image = self._image(layer, weight_format, name)
        address = self.memory.alloc(image.size, name)
        try:
            handle = Handle(self, name, image, address)
            self._reserve_workspace(handle.workspace_bytes, name)
            for _, offset, data in image.segments():
                self.transport.write(address + offset, data)
        except BaseException:
            self.memory.free(address)
            raise
        self._handles.append(handle)
        return handle

    def unload(self, handle: Handle) -> None:
        """Free the memory of a layer; its handle cannot be called any more.

        Raises:
            DeviceError: the layer is not on this device.
        """
        if handle not in self._handles:
            raise DeviceError(f"{handle.name} is not on this device; it was unloaded, or loaded into another one")
        self._handles.remove(handle)
        self.memory.free(handle.address)
        handle.detach()

    def _check_identity(self) -> None:
        csr = self.transport.csr_read
        found_hash = csr("config_hash_low") | csr("config_hash_high") << 32
        for what, expected, found, advice in (
            ("magic word", DEVICE_MAGIC, csr("magic"), "load a moe-hw bitstream"),
            ("layout version", LAYOUT_VERSION, csr("version"), "generate the bitstream with this version"),
            ("configuration hash", self.transport.config_hash, found_hash, "use the bitstream of this board"),
        ):
            if found != expected:
                raise DeviceError(f"expected the device's {what} to be {expected:#x}, got {found:#x}; {advice}")

    def _image(
        self, layer: MoELayer | CodedLayer | StoredLayer, weight_format: str, name: str
    ) -> LayerImage | StoredLayer:
        if isinstance(layer, MoELayer):
            layer = QuantisedLayer(layer, weight_format, name)
        if isinstance(layer, CodedLayer):
            return LayerImage(layer, self.arch)
        if layer.config_hash != self.arch.hash:
            raise DeviceError(
                f"{name} was packed for an accelerator of configuration {layer.config_hash:#018x}, "
                f"this one is {self.arch.hash:#018x}; pack it again for this board"
            )
        return layer

    def _reserve_workspace(self, size: int, name: str) -> None:
        if size > self._workspace_bytes:
            larger = self.memory.alloc(size, f"the inputs and outputs of {name}")
            if self._workspace_bytes:
                self.memory.free(self.workspace)
            self.workspace, self._workspace_bytes = larger, size


def open_device(url: str, progress: Callable[[str], None] | None = None) -> Device:
    """Connect to an accelerator.

    Parameters:
        url: ``sim:BOARD`` (a board's name or YAML file) or ``sim:DIRECTORY`` made by ``moe-hw generate``; a board at a
            serial port, ``serial:/dev/ttyUSB0``, or ``serial:/dev/ttyUSB0?board=BOARD`` (or a directory) if it is
            not the default board; a board in the network, ``udp:192.168.1.50``.
        progress: told what takes long, such as building a simulator for the first time.

    Raises:
        UsageError: an unknown scheme, board or directory.
        DeviceError: the device is not the one expected.
        SetupError: a tool that the device needs is missing.
    """
    transport = open_transport(url, progress)
    try:
        return Device(transport)
    except BaseException:
        transport.close()
        raise
