"""The ECP5's PLL: dividers for the clocks that a board needs, and the primitive, which is not simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.errors import UsageError

PFD_MHZ = (10.0, 400.0)
VCO_MHZ = (400.0, 800.0)
OUTPUT_MHZ = (3.125, 400.0)
"""Limits of phase detector, oscillator and outputs in the data sheet (FPGA-DS-02012, sysCLOCK PLL timing)."""

INPUT_DIVIDERS = range(1, 129)
FEEDBACK_DIVIDERS = range(1, 81)
OUTPUT_DIVIDERS = range(1, 129)

PHASE_STEPS = 8
"""Phases of the oscillator that an output can start from."""

OUTPUTS = ("CLKOS", "CLKOS2", "CLKOS3")
"""Outputs beside CLKOP, which closes the loop: so no ratio between the clocks has to be made by its divider."""

TOLERANCE = 1e-3
"""Relative error of a frequency, at most: some serial rates have no exact divider."""


@dataclass(frozen=True)
class Clock:
    """A clock that is wanted: its frequency in MHz, and by how many degrees it lags the others."""

    mhz: float
    phase: float = 0.0


@dataclass(frozen=True)
class Output:
    """An output's divider, and its phase in whole periods of the oscillator (``coarse``) and in eighths (``fine``)."""

    divider: int
    coarse: int
    fine: int


@dataclass(frozen=True)
class Dividers:
    """What a PLL is configured with; ``loop`` is the divider of CLKOP."""

    input: int
    feedback: int
    loop: int
    vco_mhz: float
    outputs: tuple[Output, ...]

    def mhz(self, index: int) -> float:
        """Frequency of an output."""
        return self.vco_mhz / self.outputs[index].divider

    def phase(self, index: int) -> float:
        """Degrees by which an output lags."""
        output = self.outputs[index]
        periods = (output.coarse + 1) % output.divider + output.fine / PHASE_STEPS
        return periods / output.divider * 360


def dividers(input_mhz: float, clocks: Sequence[Clock]) -> Dividers:
    """The configuration nearest to ``clocks``; of equal ones that with the fastest phase detector, then oscillator.

    Raises:
        UsageError: more clocks than outputs, or a frequency that no dividers give within ``TOLERANCE``.
    """
    if not 1 <= len(clocks) <= len(OUTPUTS):
        raise UsageError(f"PLL: expected 1 to {len(OUTPUTS)} clocks, got {len(clocks)}; use a second PLL")
    best: tuple[tuple[float, float, float], Dividers] | None = None
    for divider in INPUT_DIVIDERS:
        pfd = input_mhz / divider
        if not PFD_MHZ[0] <= pfd <= PFD_MHZ[1]:
            continue
        for multiple in range(int(VCO_MHZ[0] / pfd), int(VCO_MHZ[1] / pfd) + 1):
            found = _with_vco(pfd, divider, multiple, clocks)
            if found is None:
                continue
            error = max(abs(found.mhz(index) / clock.mhz - 1) for index, clock in enumerate(clocks))
            cost = (round(error, 9), -pfd, -found.vco_mhz)
            if best is None or cost < best[0]:
                best = cost, found
    if best is None or best[0][0] > TOLERANCE:
        wanted = ", ".join(f"{clock.mhz:g}" for clock in clocks)
        nearest = f"at best {best[0][0]:.2%} off" if best else "no dividers at all"
        raise UsageError(
            f"PLL: expected clocks that an oscillator of {VCO_MHZ[0]:g} to {VCO_MHZ[1]:g} MHz can be divided into, "
            f"got {wanted} MHz from {input_mhz:g} MHz, {nearest}; choose other frequencies"
        )
    return best[1]


def _with_vco(pfd: float, divider: int, multiple: int, clocks: Sequence[Clock]) -> Dividers | None:
    """The configuration whose oscillator runs at ``multiple`` times ``pfd``, if it can."""
    vco = pfd * multiple
    if not VCO_MHZ[0] <= vco <= VCO_MHZ[1]:
        return None
    loops = (loop for loop in OUTPUT_DIVIDERS if multiple % loop == 0 and multiple // loop in FEEDBACK_DIVIDERS)
    # The slowest: nothing but the loop runs at it.
    loop = max((loop for loop in loops if OUTPUT_MHZ[0] <= vco / loop <= OUTPUT_MHZ[1]), default=None)
    outputs = []
    for clock in clocks:
        size = round(vco / clock.mhz)
        if size not in OUTPUT_DIVIDERS or not OUTPUT_MHZ[0] <= vco / size <= OUTPUT_MHZ[1]:
            return None
        steps = round(clock.phase % 360 / 360 * size * PHASE_STEPS)
        # An output without phase has its first edge after `divider` periods of the oscillator: its value is one less.
        outputs.append(Output(size, (size - 1 + steps // PHASE_STEPS) % size, steps % PHASE_STEPS))
    return None if loop is None else Dividers(divider, multiple // loop, loop, vco, tuple(outputs))


class ECP5PLL(wiring.Component):
    """One EHXPLLL.

    Parameters
    ----------
    input_mhz : float
        Frequency of ``clk_in``, from which nextpnr derives the outputs' once it is constrained.
    clocks : sequence of Clock
        Up to three clocks.

    Members
    -------
    clk_in : In(1)
        From a pin.
    clk_0, clk_1, clk_2 : Out(1)
        The clocks, in their order.
    locked : Out(1)
        Asynchronous; the clocks are stable.

    Attributes
    ----------
    dividers : Dividers
    """

    def __init__(self, input_mhz: float, clocks: Sequence[Clock]):
        self.input_mhz = input_mhz
        self.clocks = tuple(clocks)
        self.dividers = dividers(input_mhz, clocks)
        outputs = {f"clk_{index}": Out(1) for index in range(len(clocks))}
        super().__init__({"clk_in": In(1), **outputs, "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self.dividers
        loop = Signal()
        ports: dict[str, object] = {}
        for index, (name, output) in enumerate(zip(OUTPUTS, sizes.outputs, strict=False)):
            ports |= {
                f"p_{name}_ENABLE": "ENABLED",
                f"p_{name}_DIV": output.divider,
                f"p_{name}_CPHASE": output.coarse,
                f"p_{name}_FPHASE": output.fine,
                f"o_{name}": getattr(self, f"clk_{index}"),
            }
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{self.input_mhz:g}",
            a_ICP_CURRENT="12",  # charge pump and loop filter as in Lattice's own configurations of this range
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_CLKI_DIV=sizes.input,
            p_CLKFB_DIV=sizes.feedback,
            p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=sizes.loop,
            p_CLKOP_CPHASE=sizes.loop - 1,
            p_CLKOP_FPHASE=0,
            i_CLKI=self.clk_in,
            i_CLKFB=loop,
            o_CLKOP=loop,
            i_RST=0,
            i_STDBY=0,
            i_PHASESEL0=0,
            i_PHASESEL1=0,
            i_PHASEDIR=1,
            i_PHASESTEP=1,
            i_PHASELOADREG=1,
            i_PLLWAKESYNC=0,
            i_ENCLKOP=0,
            o_LOCK=self.locked,
            **ports,
        )
        return m
