"""Shifts, roundings and normalised mantissas of ``docs/numerics.md``, in steps that fit a clock cycle each.

A rounding shift takes two steps: :func:`shift_halves` keeps one bit below the result, :func:`round_halves` rounds it
away. Likewise ``norm16`` is :func:`bit_length`, :func:`align16` and :func:`round16`. Wide values need registers
between the steps, which :class:`Pipeline` writes in one line a stage; :func:`rshift` and :func:`norm16` do all steps
at once.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike, signed

from moe_hw.arch import EXP_BITS, EXP_MIN


class Pipeline:
    """The stages of a computation: registers with a common enable, and a ``valid`` bit that travels along.

    An attribute is a value at the newest stage: ``p.stage(product=p.a * p.b)`` registers the product of what the stage
    before holds. Values that a stage does not name travel along.

    Parameters:
        m: module that holds the registers.
        valid: whether a value enters the first stage.
        enable: the stages advance in the cycles where it is 1.
    """

    def __init__(self, m: Module, valid: ValueLike, enable: ValueLike = 1):
        self._m = m
        self._enable = Value.cast(enable)
        self._values: dict[str, Value] = {"valid": Value.cast(valid)}
        self._depth = 0

    def stage(self, **values: ValueLike | None) -> None:
        """Add a stage that registers ``values``; a name given as None ends before it."""
        self._depth += 1
        registers: dict[str, Value] = {}
        for name, value in {**self._values, **values}.items():
            if value is None:
                continue
            source = Value.cast(value)
            register = Signal(source.shape(), name=f"{name}_{self._depth}", reset_less=name != "valid")
            with self._m.If(self._enable):
                self._m.d.sync += register.eq(source)
            registers[name] = register
        self._values = registers

    def travel(self) -> None:
        """A stage in which nothing happens but that values move, to a multiplier: it lies where the chip has one."""
        self.stage()

    def __getattr__(self, name: str) -> Value:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"expected a value of stage {self._depth}, got {name!r}") from None


def scale_stages(p: Pipeline, name: str, bits: int, shift: Value) -> None:
    """Three stages that make the unsigned value ``name`` ``value << bits >> shift``, limited to ``bits`` bits.

    Parameters:
        shift: of 7 bits, constant while values are under way.
    """
    p.stage(**{name: Cat(Const(0, bits), getattr(p, name)) >> Cat(Const(0, 4), shift[4:])})
    p.stage(**{name: getattr(p, name) >> shift[:4]})
    scaled = getattr(p, name)
    p.stage(**{name: Mux(scaled[bits:].any(), (1 << bits) - 1, scaled[:bits])})


def magnitude(value: Value) -> Value:
    """``|value|`` of a signed value: unsigned, of the same width."""
    return Mux(value[-1], -value, value)[: len(value)]


def bit_length(value: Value) -> Value:
    """Position of an unsigned value's highest set bit plus one, 0 for 0."""
    some, position = _highest(Cat(value, Const(0, (1 << (len(value) - 1).bit_length()) - len(value))))
    return Mux(some, position + 1, 0)


def _highest(value: Value) -> tuple[Value, Value]:
    """Whether a bit is set, and the position of the highest: a tree of one multiplexer a level."""
    if len(value) == 1:
        return value, Const(0, 0)
    half = len(value) // 2
    (low, low_position), (high, high_position) = _highest(value[:half]), _highest(value[half:])
    return low | high, Cat(Mux(high, high_position, low_position), high)


def shift_halves(value: Value, amount: Value) -> Value:
    """``value >> amount`` in units of one half, the first step of a rounding shift."""
    return ((value << 1) >> amount)[: len(value) + 1]


def round_halves(value: Value) -> Value:
    """A value in units of one half, rounded half up."""
    return (value >> 1) + value[0]


def rshift(m: Module, value: Value, amount: Value) -> Value:
    """``rshift`` of the numerics in one step, for a signed or an unsigned value."""
    shape = value.shape()
    halves = Signal(signed(len(value) + 1) if shape.signed else len(value) + 1)
    m.d.comb += halves.eq(shift_halves(value, amount))
    return round_halves(halves)


def align(value: Value, length: Value) -> Value:
    """An unsigned value shifted left until its highest set bit is the top one; ``length`` is its bit length."""
    width = len(value)
    return (value << (width - length)[: width.bit_length()])[:width]


def align16(value: Value, length: Value) -> Value:
    """The 16 bits below an unsigned value's bit length and the one below them: its mantissa in units of one half."""
    return Cat(Const(0, max(0, 17 - len(value))), align(value, length))[-17:]


def round16(aligned: Value, length: Value, exponent: Value) -> tuple[Value, Value]:
    """Mantissa and exponent of a value at ``exponent``, from its bit length and :func:`align16`."""
    mantissa, carry = mantissa16(aligned)
    return mantissa, exponent16(aligned[-1], length, exponent, carry)


def mantissa16(aligned: Value) -> tuple[Value, Value]:
    """Mantissa of what :func:`align16` gives, and what it carries to the exponent."""
    rounded = round_halves(aligned)
    carry = rounded[16]
    # After a carry the lower bits are 0 and the mantissa is 2^15.
    return Cat(rounded[:15], rounded[15] | carry), carry


def exponent16(some: Value, length: Value, exponent: Value, carry: Value) -> Value:
    """Exponent of a value that is ``some`` and not 0, from its bit length and :func:`mantissa16`."""
    return Mux(some, exponent + length - 16 + carry, EXP_MIN)[:EXP_BITS].as_signed()


def norm16(m: Module, value: Value, exponent: Value) -> tuple[Value, Value]:
    """``norm16`` of the numerics in one step.

    Parameters:
        m: module that gets the logic.
        value: unsigned, of any width.
        exponent: signed.

    Returns:
        16-bit mantissa, and exponent of ``EXP_BITS`` bits.
    """
    length = Signal(len(value).bit_length())
    aligned = Signal(17)
    m.d.comb += [length.eq(bit_length(value)), aligned.eq(align16(value, length))]
    return round16(aligned, length, exponent)
