"""The number formats of weights and tokens: quantising on the host (``docs/numerics.md``, sections 1 to 3)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from moe_hw.arch import E2M1, EXP_ZERO, PLANES_PER_PASS, ROWS, passes_of
from moe_hw.errors import InputError, ModelError, UsageError

MAX_FRACTION = 31
"""Largest distance of a scale from the matrix kind's largest one, in binary orders."""

_TAPER = np.repeat([5, 4, 3, 0], [4, 4, 4, MAX_FRACTION - 11])
"""Bits of ``frac`` for each ``f``."""

_FIRST_BYTE = np.cumsum(1 << _TAPER) - (1 << _TAPER)
"""The byte of the scale with ``frac`` 0, for each ``f``."""


def fraction_bits(f: np.ndarray) -> np.ndarray:
    """Bits of ``frac``, 0 beyond ``MAX_FRACTION``: a scale is finer the nearer it is to the largest of its matrices."""
    return _TAPER[np.clip(f, 0, MAX_FRACTION)]


def scale_bytes(frac: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The bytes of scales, uint8: all that there are, from the largest order to the smallest, are numbered."""
    return (_FIRST_BYTE[f] + (frac >> 5 - fraction_bits(f))).astype(np.uint8)


ZERO_SCALE = int(_FIRST_BYTE[MAX_FRACTION])
"""The byte of the smallest scale, that of blocks of zeros."""

TOKEN_LIMIT = 2.0**100
"""Magnitudes at or above it are refused; a block of magnitudes below its reciprocal is a block of zeros."""

DIGITS = ((96, 16), (8, 8), (1, 8))
"""The values of the constants in descending order, and how many constants have each."""

CONSTANTS = np.array([unit for unit, count in DIGITS for _ in range(count)], np.int8)
"""C: upper halves of the constants that biases are weights of, in units of ``2**CONSTANT_EXPONENT``."""

CONSTANT_EXPONENT = -6

TOKEN_MANTISSA = 32639
"""Largest mantissa of a token, whose upper half is still an int8."""


@dataclass(frozen=True)
class WeightFormat:
    """Signed codes of ``bits`` bits with a scale for each row and block.

    Attributes:
        name: as users write it.
        bits: bits of a code in memory, at least 2.
        token_bits: bits of a token's mantissa that the format is multiplied with: 8, or 16 in the router.
        values: the magnitudes that a code may have, if not all that its bits can say: of E2M1 elements. Their scales
            are powers of two, and in memory is the element.
    """

    name: str
    bits: int
    token_bits: int = 8
    values: tuple[int, ...] = ()

    @property
    def largest(self) -> int:
        """The largest code."""
        return max(self.values, default=(1 << self.bits - 1) - 1)

    @property
    def largest_digit(self) -> int:
        """The largest code up to which there are all."""
        return next((code for code in range(self.largest) if self.values and code + 1 not in self.values), self.largest)

    @property
    def codes(self) -> np.ndarray:
        """All codes, ascending, int64."""
        magnitudes = np.array(self.values or range(self.largest + 1))
        return np.unique(np.concatenate((-magnitudes, magnitudes)))

    @property
    def passes(self) -> int:
        """Passes of the array: slices of a code."""
        return len(passes_of(self.bits))

    def shift(self, blocks: int) -> int:
        """Left shift of the least significant pass in the accumulator, for a reduction over ``blocks`` blocks."""
        token_extra = self.token_bits - 8
        magnitude = 5 + self.largest.bit_length() + 7 + token_extra + 4
        top = PLANES_PER_PASS * (self.passes - 1) + token_extra
        return min(24 - top, 46 - magnitude - (blocks - 1).bit_length())


FORMATS = {
    **{f"int{bits}": WeightFormat(f"int{bits}", bits) for bits in (2, 3, 4, 5, 6, 8)},
    "mxfp4": WeightFormat("mxfp4", 4, values=E2M1),
}
"""Weight formats of the experts by name."""

SCALES = ("largest", "mse", "grid")
"""How the scales of weights are chosen; see :func:`quantise`."""

ROUTER = WeightFormat("router", 16, token_bits=16)
"""Format of the router matrix."""


def weight_format(name: str) -> WeightFormat:
    """The weight format of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"weight format: expected {' or '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


class LayerFormat(NamedTuple):
    """The weight formats of a layer.

    Attributes:
        name: as users write it: ``int4``, or with experts that have formats of their own, ``int4,0-3=int8,9=int2``.
        format: of the shared expert and of the other routed ones.
        own: first and last expert with another, and that.
    """

    name: str
    format: WeightFormat
    own: tuple[tuple[int, int, WeightFormat], ...]

    def of(self, experts: int) -> tuple[WeightFormat, ...]:
        """The format of each of so many routed experts; of ranges that overlap, the last counts.

        Raises:
            UsageError: there is no such expert.
        """
        formats = [self.format] * experts
        for first, last, form in self.own:
            if not first <= last < experts:
                expected = f"expected experts 0 to {experts - 1} in ascending order, got {first}-{last}"
                raise UsageError(f"weight format {self.name!r}: {expected}")
            formats[first : last + 1] = [form] * (last + 1 - first)
        return tuple(formats)


def layer_format(name: str) -> LayerFormat:
    """What the name of a layer's formats says.

    Raises:
        UsageError: it is no such name.
    """
    common, *parts = str(name).split(",")
    default, own = weight_format(common), []
    for part in parts:
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?=(\w+)", part)
        if not found:
            raise UsageError(f"weight format {name!r}: expected EXPERT=FORMAT or FIRST-LAST=FORMAT, got {part!r}")
        first, last, form = found.groups()
        own.append((int(first), int(last or first), weight_format(form)))
    if any(bool(form.values) != bool(default.values) for _, _, form in own):
        raise UsageError(f"weight format {name!r}: expected mxfp4 of all experts or of none")
    return LayerFormat(name, default, tuple(own))


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix of N rows and K columns, ``weight = code * (32 + frac) * 2**(exponent - f - 2)``.

    Attributes:
        codes: int8 (int16 for the router) ``[N, 32 * blocks]``, padded with zeros.
        frac: uint8 ``[N, blocks]``, 0 to 31, of as many bits as :func:`fraction_bits` says.
        f: uint8 ``[N, blocks]``, 0 to 31.
        exponents: S of each of the matrices whose rows are interleaved; row ``n`` has that of number ``n % len``.
        format: width of the codes.
        off_grid: blocks that were to keep the codes of another quantiser, and could not.
        widest: format of the widest matrix that shares the descriptor's words; this one if None.
    """

    codes: np.ndarray
    frac: np.ndarray
    f: np.ndarray
    exponents: tuple[int, ...]
    format: WeightFormat
    off_grid: int = 0
    widest: WeightFormat | None = None

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def blocks(self) -> int:
        return self.frac.shape[1]

    @property
    def scales(self) -> np.ndarray:
        """The stored scale bytes, uint8 ``[N, blocks]``."""
        return scale_bytes(self.frac, self.f)

    @property
    def shift(self) -> int:
        """Left shift of the least significant pass in the accumulator."""
        return (self.widest or self.format).shift(self.blocks)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.frac.nbytes + self.f.nbytes

    def row_exponents(self) -> np.ndarray:
        """S of each row, int64 ``[N]``."""
        return np.resize(np.array(self.exponents, np.int64), self.rows)

    def dequantise(self) -> np.ndarray:
        """The matrix that the codes stand for, float64 ``[N, 32 * blocks]``, exact."""
        return (self.codes.reshape(self.rows, self.blocks, ROWS) * self._scale()[..., None]).reshape(self.codes.shape)

    def _scale(self) -> np.ndarray:
        """The scale of each block, float64 ``[N, blocks]``."""
        return np.ldexp(32.0 + self.frac, self.row_exponents()[:, None] - self.f - 2)

    def row_norms_squared(self) -> np.ndarray:
        """Squared L2 norm of each dequantised row, float64 ``[N]``."""
        codes = torch.from_numpy(self.codes).view(self.rows, self.blocks, ROWS).double()
        return (codes.square_().sum(2).numpy() * self._scale() ** 2).sum(1)


def largest_scale_exponent(magnitude: float, form: WeightFormat) -> int:
    """S of a matrix kind whose weights' largest magnitude is ``magnitude``: the largest scale exponent that occurs."""
    if magnitude == 0:
        return 0
    return int(_scale_of(np.array(magnitude), form)[1])


def largest_magnitude(name: str, matrix: torch.Tensor) -> float:
    """The largest magnitude of a matrix.

    Raises:
        ModelError: the matrix has a NaN or an Inf; the line starts with ``name``.
    """
    low, high = torch.aminmax(matrix)
    magnitude = max(-float(low), float(high))
    if not np.isfinite(magnitude):
        raise ModelError(f"{name}: expected finite weights, got NaN or Inf; the checkpoint is damaged")
    return magnitude


def quantise(
    matrix: torch.Tensor, form: WeightFormat, exponent: int, rows: int | None = None, scales: str = SCALES[0]
) -> QuantisedMatrix:
    """Codes and scales of a finite float matrix.

    Parameters:
        matrix: ``[N, K]``, float32 or float64.
        form: the weight format.
        exponent: S of the matrix kind, at least the matrix's own largest scale exponent.
        rows: number of rows that the result is padded to with rows of zeros; N if not given.
        scales: ``largest``: a block's largest weight has the largest code; ``mse``: of the scales from there down to
            about half, the one with the smallest squared error; ``grid``: weights that are integers times a step of
            their block, as in a checkpoint that was quantised before, keep those integers as codes, or a multiple of
            them, and the step is rounded to the nearest scale; for other blocks as ``mse``. With it, S is one more
            than the largest scale exponent.
    """
    count, width = matrix.shape
    blocks = -(-width // ROWS)
    values = torch.zeros(rows or count, blocks * ROWS, dtype=torch.float64)
    values[:count, :width] = matrix
    values = values.view(-1, blocks, ROWS)
    amax = torch.maximum(values.amax(2), -values.amin(2)).numpy()
    frac, scale_exponent = _representable(*_scale_of(amax, form), exponent)
    if scales in ("mse", "grid"):
        frac, scale_exponent = _best_scale(values, frac, scale_exponent, form, exponent)
    steps = _steps(values, amax, form, exponent) if scales == "grid" else np.zeros(amax.shape)
    on_grid = steps > 0
    if on_grid.any():
        nearest, steps_exponent = _nearest_scale(steps, exponent)
        frac, scale_exponent = np.where(on_grid, nearest, frac), np.where(on_grid, steps_exponent, scale_exponent)
    f = np.where(amax == 0, MAX_FRACTION, np.minimum(exponent - scale_exponent, MAX_FRACTION))
    scale = torch.from_numpy(np.ldexp(32.0 + frac, exponent - f - 2))
    divisor = torch.where(torch.from_numpy(on_grid), torch.from_numpy(steps), scale)
    codes = _nearest(values.div_(divisor[..., None]), form)
    code_type = torch.int8 if form.bits <= 8 else torch.int16
    return QuantisedMatrix(
        codes=codes.to(code_type).view(codes.shape[0], -1).numpy(),
        frac=frac.astype(np.uint8),
        f=f.astype(np.uint8),
        exponents=(exponent,),
        format=form,
        off_grid=int((~on_grid & (amax > 0)).sum()) if scales == "grid" else 0,
    )


def largest_bias_exponent(magnitude: float, form: WeightFormat, constant_exponent: int) -> int:
    """Scale exponent of a bias of this magnitude, not zero: a weight of ``CONSTANTS * 2**constant_exponent``."""
    return int(_bias_exponents(np.array(magnitude), form, constant_exponent))


def _bias_exponents(magnitude: np.ndarray, form: WeightFormat, constant_exponent: int) -> np.ndarray:
    unit, count = DIGITS[0]
    return np.frexp(magnitude / (count * unit * form.largest_digit))[1] - 3 - constant_exponent


def with_bias(matrix: QuantisedMatrix, bias: torch.Tensor, constant_exponent: int) -> QuantisedMatrix:
    """A matrix of one kind and a block of codes behind it that multiply constants (numerics, section 1).

    Parameters:
        matrix: its S is at least the :func:`largest_bias_exponent`.
        bias: finite, float32 or float64 ``[n]``; the other rows have none.
        constant_exponent: the constants are ``CONSTANTS * 2**constant_exponent``.
    """
    values = np.zeros(matrix.rows)
    values[: len(bias)] = bias.double().numpy()
    (exponent,) = matrix.exponents
    needed = _bias_exponents(np.abs(values), matrix.format, constant_exponent)
    f = np.where(values == 0, MAX_FRACTION, np.minimum(exponent - needed, MAX_FRACTION))
    number = np.rint(np.ldexp(values, f - exponent - 3 - constant_exponent)).astype(np.int64)
    codes = np.empty((matrix.rows, ROWS), np.int64)
    for unit, count in DIGITS:
        digit = np.rint(number / unit).astype(np.int64)
        codes[:, unit == CONSTANTS] = (digit[:, None] + np.arange(count)) // count
        number = number - unit * digit
    return dataclasses.replace(
        matrix,
        codes=np.concatenate((matrix.codes, codes.astype(matrix.codes.dtype)), axis=1),
        frac=np.pad(matrix.frac, ((0, 0), (0, 1))),
        f=np.concatenate((matrix.f, f[:, None].astype(np.uint8)), axis=1),
    )


def interleave(matrices: Iterable[QuantisedMatrix]) -> QuantisedMatrix:
    """One matrix with the rows of equally sized matrices in turn: row 0 of each, row 1 of each, …"""
    parts = tuple(matrices)

    def rows_in_turn(arrays: list[np.ndarray]) -> np.ndarray:
        return np.stack(arrays, axis=1).reshape(-1, arrays[0].shape[1])

    return QuantisedMatrix(
        codes=rows_in_turn([part.codes for part in parts]),
        frac=rows_in_turn([part.frac for part in parts]),
        f=rows_in_turn([part.f for part in parts]),
        exponents=tuple(exponent for part in parts for exponent in part.exponents),
        format=parts[0].format,
        off_grid=sum(part.off_grid for part in parts),
    )


@dataclass(frozen=True)
class Tokens:
    """Tokens as blocks of 32 mantissas of 16 bits, ``(256 * hi + lo) * 2**exponent``.

    Attributes:
        hi: int8 ``[T, blocks, 32]``, upper half of the mantissas.
        lo: int8 ``[T, blocks, 32]``, lower half, signed.
        exponents: int16 ``[T, blocks]``.
    """

    hi: np.ndarray
    lo: np.ndarray
    exponents: np.ndarray

    def __len__(self) -> int:
        return self.hi.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> Tokens:
        return Tokens(self.hi[index], self.lo[index], self.exponents[index])

    def with_constants(self) -> Tokens:
        """The tokens with a block of :data:`CONSTANTS` behind each."""
        block = np.broadcast_to(CONSTANTS, (len(self), 1, ROWS))
        exponents = np.full((len(self), 1), CONSTANT_EXPONENT - 8, np.int16)
        return Tokens(
            np.concatenate((self.hi, block), axis=1),
            np.concatenate((self.lo, np.zeros_like(block)), axis=1),
            np.concatenate((self.exponents, exponents), axis=1),
        )

    @property
    def exponent(self) -> np.ndarray:
        """E of each token, int64 ``[T]``."""
        return self.exponents.max(axis=1).astype(np.int64)

    @property
    def mantissas(self) -> np.ndarray:
        """int16 ``[T, blocks, 32]``."""
        return (self.hi.astype(np.int32) * 256 + self.lo).astype(np.int16)


def quantise_tokens(x: torch.Tensor | np.ndarray, constant: bool = False) -> Tokens:
    """Tokens from activations ``[T, H]`` of any float type.

    Parameters:
        x: the activations.
        constant: append the block of constants that biases are weights of.

    Raises:
        InputError: another shape, or a value that is NaN, Inf or of magnitude 2^100 and above; the line names
            its token and element.
    """
    values = torch.as_tensor(x).detach()
    if values.dim() != 2 or not values.dtype.is_floating_point:
        raise InputError(f"tokens: expected floats of shape [tokens, hidden], got {values.dtype} {list(values.shape)}")
    floats = values.to(torch.float64).cpu().numpy()
    if (bad := np.argwhere(~(np.abs(floats) < TOKEN_LIMIT))).size:
        token, element = bad[0]
        raise InputError(
            f"token {token}, element {element}: expected a finite value below 2^100, got {floats[token, element]:g}"
        )
    count, width = floats.shape
    blocks = -(-width // ROWS)
    padded = np.zeros((count, blocks * ROWS))
    padded[:, :width] = floats
    padded = padded.reshape(count, blocks, ROWS)
    amax = np.abs(padded).max(axis=2)
    empty = amax < 1 / TOKEN_LIMIT
    exponents = np.where(empty, EXP_ZERO, np.frexp(amax)[1] - 15)
    padded[empty] = 0
    mantissas = np.rint(np.ldexp(padded, -exponents[..., None]))
    high = np.abs(mantissas).max(axis=2) > TOKEN_MANTISSA
    exponents = exponents + high
    mantissas = np.where(high[..., None], np.rint(np.ldexp(padded, -exponents[..., None])), mantissas).astype(np.int32)
    hi = (mantissas + 128) >> 8
    tokens = Tokens(hi.astype(np.int8), (mantissas - 256 * hi).astype(np.int8), exponents.astype(np.int16))
    return tokens.with_constants() if constant else tokens


def _unit(scale_exponent: np.ndarray, exponent: int) -> np.ndarray:
    """What ``frac`` is a multiple of in a scale with this exponent, below S ``exponent``."""
    return 1 << 5 - fraction_bits(exponent - scale_exponent)


def _representable(frac: np.ndarray, scale_exponent: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest scales from these on that there are with S ``exponent``."""
    unit = _unit(scale_exponent, exponent)
    frac = (frac + unit - 1) // unit * unit
    carry = frac == 32
    return np.where(carry, 0, frac), scale_exponent + carry


def _nearest_scale(wanted: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """(frac, s) of the scales nearest to positive numbers, with S ``exponent``."""
    mantissa, scale_exponent = np.frexp(wanted)
    scale_exponent = scale_exponent - 4
    unit = _unit(scale_exponent, exponent)
    rounded = (np.rint(mantissa * 64 / unit) * unit).astype(np.int64)
    carry = rounded == 64
    return np.where(carry, 0, rounded - 32), scale_exponent + carry


def _best_scale(
    values: torch.Tensor, frac: np.ndarray, scale_exponent: np.ndarray, form: WeightFormat, exponent: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of scales up to one binary order below these, sixteen of an order, those with the smallest squared error."""
    first = 32 * scale_exponent + frac
    best, best_error = first, torch.full(first.shape, torch.inf, dtype=torch.float64)
    for step in range(0, 33, 32 if form.values else 2):
        exponents, fracs = np.divmod(first - step, 32)
        fracs -= fracs % _unit(exponents, exponent)
        scale = torch.from_numpy(np.ldexp(32.0 + fracs, exponents - 2))[..., None]
        error = (_nearest(values / scale, form) * scale - values).square_().sum(2)
        better = error < best_error
        best = np.where(better.numpy(), 32 * exponents + fracs, best)
        best_error = torch.where(better, error, best_error)
    exponents, fracs = np.divmod(best, 32)
    return fracs, exponents


def _steps(values: torch.Tensor, amax: np.ndarray, form: WeightFormat, exponent: int) -> np.ndarray:
    """A step of which a block's weights are integer multiples that fit a code; 0 if there is none.

    It is the largest one divided by the integer with which it is nearest to a scale. Weights may be rounded to float16:
    to 11 significant bits.
    """
    relative = values / torch.from_numpy(np.where(amax > 0, amax, 1))[..., None]
    most = torch.zeros(amax.shape, dtype=torch.float64)  # the largest weight's multiple
    for multiple in range(form.largest, 0, -1):
        scaled = relative * multiple
        fits = ((scaled - scaled.round()).abs() <= multiple * 2.0**-10).all(2)
        most = torch.where(fits, float(multiple), most)
    largest_step = amax / most.clamp(min=1).numpy()
    best, least = largest_step, np.full(amax.shape, np.inf)
    for divisor in range(form.largest, 0, -1):
        step = largest_step / divisor
        frac, scale_exponent = _nearest_scale(step, exponent)
        error = np.abs(np.ldexp(32.0 + frac, scale_exponent - 2) / np.where(step > 0, step, 1) - 1)
        nearer = (most.numpy() * divisor <= form.largest) & (error < least)
        best, least = np.where(nearer, step, best), np.where(nearer, error, least)
    return np.where((amax > 0) & (most.numpy() > 0), best, 0)


def _nearest(values: torch.Tensor, form: WeightFormat) -> torch.Tensor:
    """The nearest codes, ties to an even integer, or of E2M1 to an even mantissa."""
    if not form.values:
        return values.round_().clamp_(-form.largest, form.largest)
    magnitude = values.abs()
    # Elements of one binary order are evenly spaced: 1 below 4, 2 below 8, 4 from there on.
    spacing = torch.where(magnitude < 4, 1.0, torch.where(magnitude < 8, 2.0, 4.0))
    rounded = (magnitude / spacing).round_().mul_(spacing).clamp_(max=max(form.values))
    return torch.copysign(rounded, values)


def _scale_of(amax: np.ndarray, form: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """(frac, s) of the scale ``(32 + frac) * 2**(s - 2)`` of blocks with these largest magnitudes; frac 0 for zeros."""
    if not form.values:
        return _scales(amax, form)
    # MXFP4's scale is 2^(floor(log2(amax)) - 2), of elements twice as large as the codes say.
    return np.zeros(amax.shape, np.int64), np.frexp(amax)[1].astype(np.int64) - 3 - 4


def _scales(amax: np.ndarray, form: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """(frac, s) of the smallest scale of five bits whose largest code reaches ``amax``; frac 0 for zeros."""
    mantissa, exponent = np.frexp(amax / form.largest)
    exponent = exponent - 4
    steps = np.floor(mantissa * 64)
    # The quotient was rounded; this product, of at most 21 bits, is exact.
    steps += np.ldexp(steps * form.largest, exponent - 2) < amax
    carry = steps == 64
    return np.where(carry | (amax == 0), 0, steps - 32).astype(np.int64), exponent + carry
