"""Dividers of the PLL, and the primitive through nextpnr's own derivation of its clocks (``test_bitstream``)."""

import random

import pytest

from moe_hw.errors import UsageError
from rtl_gen.ecp5_pll import OUTPUT_MHZ, PFD_MHZ, TOLERANCE, VCO_MHZ, Clock, dividers
from sim.bench.runner import random_seed


def test_clocks_of_the_ulx3s() -> None:
    sizes = dividers(25, [Clock(80), Clock(400 / 3), Clock(400 / 3, phase=225)])
    assert (sizes.input, sizes.feedback, sizes.loop, sizes.vco_mhz) == (1, 1, 32, 800)
    assert [output.divider for output in sizes.outputs] == [10, 6, 6]
    # 225 degrees of 6 periods are 3 periods and 6 eighths.
    assert [(output.coarse, output.fine) for output in sizes.outputs] == [(9, 0), (5, 0), (2, 6)]
    assert [sizes.phase(index) for index in range(3)] == [0, 0, 225]


def test_every_configuration_is_within_the_limits() -> None:
    seed = random_seed()
    print(f"COCOTB_RANDOM_SEED={seed}")
    random.seed(seed)
    found = 0
    for _ in range(100):
        source = random.choice([12, 16, 25, 48, 50, 100, 125])
        clocks = [Clock(random.uniform(5, 300), random.uniform(0, 360)) for _ in range(random.randint(1, 3))]
        try:
            sizes = dividers(source, clocks)
        except UsageError as error:
            assert "MHz" in str(error)
            continue
        found += 1
        detector = source / sizes.input
        assert PFD_MHZ[0] <= detector <= PFD_MHZ[1] and VCO_MHZ[0] <= sizes.vco_mhz <= VCO_MHZ[1]
        assert sizes.vco_mhz == pytest.approx(detector * sizes.feedback * sizes.loop)
        assert OUTPUT_MHZ[0] <= sizes.vco_mhz / sizes.loop <= OUTPUT_MHZ[1]
        for index, (clock, output) in enumerate(zip(clocks, sizes.outputs, strict=True)):
            assert sizes.mhz(index) == pytest.approx(clock.mhz, rel=TOLERANCE)
            assert 0 <= output.coarse < output.divider and 0 <= output.fine < 8
            # The nearest step: an eighth of the oscillator's period, so 45 degrees over the divider.
            off = (sizes.phase(index) - clock.phase + 180) % 360 - 180
            assert abs(off) <= 45 / output.divider / 2 + 1e-9
    assert found > 10


@pytest.mark.parametrize(
    ("source", "clocks", "line"),
    [
        (25, [], "expected 1 to 3 clocks, got 0; use a second PLL"),
        (25, [Clock(50)] * 4, "expected 1 to 3 clocks, got 4"),
        (25, [Clock(401)], "got 401 MHz from 25 MHz"),
        (25, [Clock(80), Clock(83.1)], "got 80, 83.1 MHz from 25 MHz, at best .*% off; choose other frequencies"),
        (5, [Clock(80)], "from 5 MHz, no dividers at all"),
    ],
)
def test_what_no_dividers_give_is_refused(source: float, clocks: list[Clock], line: str) -> None:
    with pytest.raises(UsageError, match=f"^PLL: .*{line}"):
        dividers(source, clocks)
