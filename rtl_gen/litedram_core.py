"""LiteDRAM's DDR3 controller and its PHY for the ECP5: two Verilog modules, and DFI between them.

LiteDRAM is written in Migen, and no other file knows that. ``litedram_gen`` would put both into one module. Apart, the
controller is the same text on the FPGA and in simulation, where the primitives of the PHY have no models.
"""

from __future__ import annotations

import types

from litedram.common import GeomSettings, PhySettings, TimingSettings
from litedram.core import LiteDRAMCore
from litedram.core.controller import ControllerSettings
from litedram.phy import ECP5DDRPHY
from litedram.phy.dfi import Interface
from litex.soc.interconnect.csr import CSRStorage
from litex.soc.interconnect.csr_bus import CSRBank
from litex.soc.interconnect.csr_bus import Interface as Registers
from migen import Constant, Instance, Module, Record
from migen.fhdl import verilog
from migen.fhdl.specials import Tristate

from boards import Memory
from moe_hw.ddr3 import BANK_BYTES, CL, CWL, PHASES, REGISTERS_ADDR_BITS
from rtl_gen.sdram_pins import bank_bits, row_bits

CONTROLLER_MODULE, PHY_MODULE = "dram_controller", "dram_phy"
"""Names of the two modules."""

ZQCS_CLOCKS = 64
"""A short calibration of the chip's drivers, once a second."""


def clock_mhz(memory: Memory) -> float:
    """Clock of the controller: half of the chip's, so that four transfers of a pin pass in one."""
    return memory.mt_per_s / (2 * PHASES)


def latencies(memory: Memory) -> tuple[int, int]:
    """Clocks of the controller from a read and from a write at DFI to its data there."""
    settings = _settings(memory)
    return settings.read_latency, settings.write_latency


def controller_verilog(memory: Memory) -> str:
    """The controller with one native port, for :func:`controller_ports`."""
    return _verilog(_Controller(memory), CONTROLLER_MODULE)


def phy_verilog(memory: Memory) -> str:
    """The PHY and its pads."""
    return _verilog(_Phy(memory), PHY_MODULE)


class _Controller(Module):
    """LiteDRAM's controller, its crossbar and its command injector, with the registers ``CONTROLLER``."""

    def __init__(self, memory: Memory):
        settings = _settings(memory)
        geometry = _geometry(memory)
        self.dfi = Interface(
            geometry.addressbits, geometry.bankbits, settings.nranks, settings.dfi_databits, settings.nphases
        )
        self.submodules.core = core = LiteDRAMCore(
            types.SimpleNamespace(settings=settings, dfi=self.dfi),
            geometry,
            _timing(memory),
            clock_mhz(memory) * 1e6,
            # Comparing a bank's next two rows, to close the first one early, is its slowest path.
            controller_settings=ControllerSettings(with_auto_precharge=False),
        )
        # LiteDRAM would begin with refreshes, to a chip that is not initialised. This way clock enable stays low.
        core.dfii._control.storage.reset = Constant(0, len(core.dfii._control.storage))
        port = core.crossbar.get_port()
        self.init_done = CSRStorage()
        registers = [*core.dfii.get_csrs(), self.init_done]
        self.csr = Registers(data_width=32, address_width=REGISTERS_ADDR_BITS - 2)
        self.submodules.bank = CSRBank(registers, 0, self.csr, BANK_BYTES)
        self.ports = {
            *self.dfi.flatten(), *self.csr.flatten(),
            port.cmd.valid, port.cmd.ready, port.cmd.we, port.cmd.addr,
            port.wdata.ready, port.wdata.data, port.wdata.we,
            port.rdata.valid, port.rdata.data,
        }  # fmt: skip


class _Phy(Module):
    """LiteDRAM's PHY, with the registers ``PHY``."""

    def __init__(self, memory: Memory):
        pads = _pads(memory)
        self.submodules.phy = phy = ECP5DDRPHY(pads, clock_mhz(memory) * 1e6, CL, CWL)
        self.csr = Registers(data_width=32, address_width=REGISTERS_ADDR_BITS - 2)
        self.submodules.bank = CSRBank(phy.get_csrs(), 1, self.csr, BANK_BYTES)
        self.ports = {*phy.dfi.flatten(), *self.csr.flatten(), *pads.flatten(), phy.init.stop, phy.init.reset}


class _Pad(Module):
    """A bidirectional pad, as Yosys knows it."""

    def __init__(self, pad: Tristate):
        self.specials += Instance("BB", i_I=pad.o, i_T=~pad.oe, o_O=pad.i, io_B=pad.target)

    lower = classmethod(lambda cls, pad: cls(pad))


def _settings(memory: Memory) -> PhySettings:
    """What the PHY says about itself."""
    return ECP5DDRPHY(_pads(memory), clock_mhz(memory) * 1e6, CL, CWL).settings


def _verilog(module: _Controller | _Phy, name: str) -> str:
    return str(verilog.convert(module, module.ports, name, special_overrides={Tristate: _Pad}))


def _pads(memory: Memory) -> Record:
    """The pins that a board with one chip has; its reset and its chip select are not the FPGA's."""
    strobes = memory.data_bits // 8
    widths = {"a": row_bits(memory), "ba": bank_bits(memory), "dm": strobes, "dq": memory.data_bits, "dqs_p": strobes}
    single = ("clk_p", "cke", "odt", "ras_n", "cas_n", "we_n")
    return Record([*widths.items(), *((name, 1) for name in single)], name="pads")


def _geometry(memory: Memory) -> GeomSettings:
    columns = memory.row_bytes * 8 // memory.data_bits
    return GeomSettings(bank_bits(memory), row_bits(memory), columns.bit_length() - 1)


def _timing(memory: Memory) -> TimingSettings:
    """The chip's times in clocks of the controller.

    LiteDRAM's own table of chips has tRFC as 208 clocks, right for 1600 MT/s: at 400 it is four times too long.
    """
    times = memory.timing

    def between(nanoseconds: float) -> int:
        """Of commands that may be in different phases, the second one in the earlier: one clock more."""
        return -(-(memory.clocks(nanoseconds) + PHASES - 1) // PHASES)

    def apart(nanoseconds: float) -> int:
        """Of commands that are always in the same phase."""
        return -(-memory.clocks(nanoseconds) // PHASES)

    return TimingSettings(
        tRP=between(times.tRP),
        tRCD=between(times.tRCD),
        tRAS=between(times.tRAS),
        tRC=between(times.tRC),
        tWR=between(times.tWR),
        tFAW=between(times.tFAW),
        tRFC=between(times.tRFC),
        tRRD=apart(times.tRRD_L),
        tCCD=apart(times.tCCD_L),
        tWTR=apart(times.tWTR_L),
        tREFI=int(times.tREFI / memory.clock_ns) // PHASES,
        tZQCS=-(-ZQCS_CLOCKS // PHASES),
    )
