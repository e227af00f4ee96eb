"""What a MoE layer computes: its sizes and its semantics, without its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_hw.arch import MAX_GROUPS, ROWS
from moe_hw.errors import UnsupportedLayer
from moe_hw.registers import LAYER
from moe_hw.tables import GATES

SCORES = ("softmax", "sigmoid", "sqrtsoftplus", "given")
"""How logits become scores; the order is that of the descriptor's numbers."""

CORRECTIONS = (None, "score", "logit")
ACTIVATIONS = (*GATES, "relu2")
GATED = tuple(GATES)
CLAMPS = ("before", "after")

LARGEST_SCALE = 2.0**10
"""The largest factor of the routing weights; the smallest is its reciprocal."""

LARGEST_EPSILON = 1.0
"""What the sum of a token's scores may start at."""

LARGEST_ROOT = 64.0
"""The largest score of sqrt(softplus): larger logits than its square count as that."""

_CANNOT = "this version cannot run the layer"

GIVEN_WEIGHTS = 64.0
"""The most that a token's weights may sum to if they come with the call."""


def blocks(size: int) -> int:
    """Blocks of 32 that hold ``size`` elements."""
    return -(-size // ROWS)


@dataclass(frozen=True)
class GroupSpec:
    """A limit of the choice to the best groups of consecutive experts.

    Attributes:
        count: groups, all of one size.
        kept: groups whose experts may be chosen.
        score: what ranks a group: its ``largest`` key, or the sum of the ``two`` largest.
        zero: experts of other groups have the key 0, instead of none.
    """

    count: int
    kept: int
    score: str = "two"
    zero: bool = False

    def __post_init__(self) -> None:
        _size("router.groups.count", self.count, MAX_GROUPS)
        _size("router.groups.kept", self.kept, min(self.count, _largest("kept_groups")))
        _choice("router.groups.score", self.score, ("largest", "two"))
        _choice("router.groups.zero", self.zero, (True, False))


@dataclass(frozen=True)
class RouterSpec:
    """A linear router, or that there is none.

    An expert's key is its logit or, if there is a correction, its score or its logit plus the correction bias; if keys
    of groups are added up or replaced by 0, it is the score. Experts with the largest keys are chosen.

    Attributes:
        experts: routed experts.
        top_k: experts chosen for a token.
        score: how logits become weights: ``softmax``, ``sigmoid`` or ``sqrtsoftplus``, ``sqrt(log(1 + exp(l)))``; or
            ``given``: choices and weights come with each call.
        normalise: the scores of the chosen experts are divided by their sum.
        bias: the logits have one.
        correction: what a bias that counts for the choice alone is added to, ``score`` or, but of a softmax, ``logit``;
            None without.
        groups: a limit of the choice to groups of experts.
        epsilon: what that sum starts at.
        scale: a factor of the weights of the routed experts.
    """

    experts: int
    top_k: int
    score: str = "softmax"
    normalise: bool = True
    bias: bool = False
    correction: str | None = None
    groups: GroupSpec | None = None
    epsilon: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _size("router.experts", self.experts, _largest("experts"))
        _size("router.top_k", self.top_k, min(self.experts, _largest("top_k")))
        _choice("router.score", self.score, SCORES)
        _choice("router.normalise", self.normalise, (True, False))
        _choice("router.bias", self.bias, (False,) if self.given else (True, False))
        corrections = {"given": CORRECTIONS[:1], "softmax": CORRECTIONS[:2]}.get(self.score, CORRECTIONS)
        _choice("router.correction", self.correction, corrections)
        largest = 0.0 if self.given else LARGEST_EPSILON
        if not 0 <= self.epsilon <= largest:
            raise UnsupportedLayer(f"router.epsilon: expected 0 to {largest:g}, got {self.epsilon}; {_CANNOT}")
        largest = 1.0 if self.given else LARGEST_SCALE
        if not 1 / largest <= self.scale <= largest:
            raise UnsupportedLayer(f"router.scale: expected 1/{largest:g} to {largest:g}, got {self.scale}; {_CANNOT}")
        if self.groups is not None:
            self._check_groups(self.groups)

    def _check_groups(self, groups: GroupSpec) -> None:
        axis = "router.groups"
        if self.experts % groups.count:
            what = f"expected a divisor of {self.experts}, got {groups.count}"
            raise UnsupportedLayer(f"{axis}.count: {what}; {_CANNOT}")
        _choice(f"{axis} of given routes", self.given, (False,))
        _choice(f"{axis}.score", groups.score, ("largest", "two"))
        _choice(f"{axis}.zero", groups.zero, (False,) if self.correction == "logit" else (True, False))
        if groups.score == "two":
            _size(f"{axis}.count", groups.count, self.experts // 2)
        if not groups.zero:
            _size("router.top_k", self.top_k, groups.kept * self.experts // groups.count)

    @property
    def given(self) -> bool:
        """Choices and weights come with each call."""
        return self.score == "given"

    @property
    def weight_bound(self) -> float:
        """The most that a token's weights sum to."""
        if self.given:
            return GIVEN_WEIGHTS
        if self.normalise or self.score == "softmax":
            return self.scale
        return self.scale * self.top_k * (LARGEST_ROOT if self.score == "sqrtsoftplus" else 1)

    @property
    def keyed(self) -> str | None:
        """What there is a correction table for, of zeros if there is no correction; None if the keys are the logits."""
        groups = self.groups
        of_scores = groups is not None and (groups.score == "two" or groups.zero)
        # Without a table the softmax is over the choices alone, and epsilon would be added to another sum.
        of_scores |= self.score == "softmax" and self.normalise and self.epsilon > 0
        return self.correction or ("score" if of_scores else None)


@dataclass(frozen=True)
class ExpertSpec:
    """A routed expert: ``down(activation(gate(x)) * up(x))`` if it is gated, else ``down(activation(up(x)))``.

    Attributes:
        intermediate: its width.
        activation: ``silu``, ``gelu_tanh``, ``gelu``, ``quick_gelu`` (``x * sigmoid(1.702 x)``), ``relu`` or ``relu2``.
        gated: it has three matrices.
        bias: all of them have biases.
        limit: of the gate from above, and of the magnitude of up; None without.
        clamp: whether the gate is limited ``before`` the activation or ``after`` it.
        up_offset: what is added to up after that.
        gate_softcap: ``c`` if the activation is ``c * tanh(gate / c) * s(gate)``, not ``gate * s(gate)``; None without.
        up_softcap: that of up.
    """

    intermediate: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    clamp: str = "before"
    up_offset: float = 0.0
    gate_softcap: float | None = None
    up_softcap: float | None = None

    def __post_init__(self) -> None:
        _size("expert.intermediate", self.intermediate, ROWS * (_largest("inter_blocks") - self.bias))
        _choice("expert.gated", self.gated, (True, False))
        _choice("expert.activation", self.activation, GATED if self.gated else ACTIVATIONS)
        _choice("expert.bias", self.bias, (True, False))
        _limit("expert.limit", self.limit)
        _choice("expert.clamp", self.clamp, CLAMPS)
        offset = self.up_offset
        if not abs(offset) < (self.limit or 2.0**20):
            raise UnsupportedLayer(f"expert.up_offset: expected one below the limit, got {offset!r}; {_CANNOT}")
        if offset and not self.gated:
            raise UnsupportedLayer(f"expert.up_offset: expected 0 for two-layer experts, got {offset!r}; {_CANNOT}")
        _limit("expert.gate_softcap", self.gate_softcap)
        _limit("expert.up_softcap", self.up_softcap)
        if self.softcapped:
            _choice("expert.gated of experts with softcaps", self.gated, (True,))
            _choice("expert.bias of experts with softcaps", self.bias, (False,))
            _choice("expert.limit of experts with softcaps", self.limit, (None,))
            _choice("expert.up_offset of experts with softcaps", offset, (0,))

    @property
    def softcapped(self) -> bool:
        """Gate or up has a softcap."""
        return self.gate_softcap is not None or self.up_softcap is not None

    @property
    def square(self) -> bool:
        """The activation is multiplied by its argument once more."""
        return self.activation == "relu2"

    @property
    def degree(self) -> int:
        """Degree of the expert in its input, as far as it is homogeneous."""
        return 2 if self.gated or self.square else 1


@dataclass(frozen=True)
class SharedSpec:
    """An expert that serves every token, of the routed experts' form but without biases.

    Attributes:
        intermediate: its width.
        gated: its result is multiplied by the sigmoid of a linear function of the token.
        limit: as in :class:`ExpertSpec`.
    """

    intermediate: int
    gated: bool
    limit: float | None = None

    def __post_init__(self) -> None:
        _size("shared.intermediate", self.intermediate, ROWS * _largest("shared_blocks"))
        _choice("shared.gated", self.gated, (True, False))
        _limit("shared.limit", self.limit)


@dataclass(frozen=True)
class LayerSpec:
    """A MoE layer: the weighted sum of each token's experts, plus the shared expert if there is one.

    Raises:
        UnsupportedLayer: a size or a choice that the accelerator's descriptor cannot hold.
    """

    hidden: int
    router: RouterSpec
    expert: ExpertSpec
    shared: SharedSpec | None = None

    def __post_init__(self) -> None:
        _size("hidden", self.hidden, ROWS * (_largest("hidden_blocks") - 1))
        offset, limit = self.expert.up_offset, self.shared.limit if self.shared else None
        if limit is not None and abs(offset) >= limit:
            raise UnsupportedLayer(f"shared.limit: expected one above up's offset {offset!r}, got {limit!r}; {_CANNOT}")
        if self.expert.softcapped:
            _choice("shared.limit of experts with softcaps", limit, (None,))
        if self.shared and self.router.given:
            _choice("shared.gated", self.shared.gated, (False,))

    @property
    def hidden_blocks(self) -> int:
        """Blocks of an output."""
        return blocks(self.hidden)

    @property
    def constant(self) -> bool:
        """Tokens have a block of constants behind them, for the biases."""
        return self.expert.bias or self.expert.up_offset != 0 or self.router.bias

    @property
    def input_blocks(self) -> int:
        """Blocks of a token."""
        return self.hidden_blocks + self.constant

    @property
    def inter_blocks(self) -> int:
        """Blocks of a routed expert's hidden activations, with one of constants if down has a bias."""
        return blocks(self.expert.intermediate) + self.expert.bias

    @property
    def first_matrices(self) -> int:
        """Matrices whose rows an expert's first segment interleaves: gate and up, or up alone."""
        return 1 + self.expert.gated

    @property
    def shared_blocks(self) -> int:
        """Blocks of the shared expert's hidden activations; 0 if there is none."""
        return blocks(self.shared.intermediate) if self.shared else 0

    @property
    def shared_gate(self) -> bool:
        """The router matrix has a row for the shared expert's gate."""
        return self.shared is not None and self.shared.gated

    @property
    def router_rows(self) -> int:
        """Rows of the router matrix; 0 if routes are given."""
        return 0 if self.router.given else self.router.experts + self.shared_gate

    def as_dict(self) -> dict[str, Any]:
        """The spec as JSON types; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerSpec:
        """The spec that ``as_dict`` wrote.

        Raises:
            UnsupportedLayer: a value this version does not support.
            KeyError, TypeError: keys are missing, unknown or of another type.
        """
        groups = values["router"]["groups"]
        return cls(
            hidden=values["hidden"],
            router=RouterSpec(**values["router"] | {"groups": GroupSpec(**groups) if groups else None}),
            expert=ExpertSpec(**values["expert"]),
            shared=SharedSpec(**values["shared"]) if values["shared"] else None,
        )


def _largest(word: str) -> int:
    """The largest value that a word of the layer descriptor holds."""
    return (1 << LAYER.words[LAYER.index[word]].bits) - 1


def _size(axis: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise UnsupportedLayer(f"{axis}: expected 1 to {largest}, got {value!r}; {_CANNOT}")


def _limit(axis: str, value: float | None) -> None:
    if value is not None and not 2.0**-20 <= value <= 2.0**20:
        raise UnsupportedLayer(f"{axis}: expected None or a number from 2^-20 to 2^20, got {value!r}; {_CANNOT}")


def _choice(axis: str, value: object, supported: tuple[object, ...]) -> None:
    if value not in supported:
        names = " or ".join(map(str, supported))
        raise UnsupportedLayer(f"{axis}: expected {names}, got {value}; {_CANNOT}")
