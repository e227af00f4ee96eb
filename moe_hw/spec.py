"""What a MoE layer computes: its sizes and its semantics, without its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_hw.arch import ROWS
from moe_hw.errors import UnsupportedLayer
from moe_hw.registers import LAYER

SCORES = ("softmax",)
ACTIVATIONS = ("silu",)


def blocks(size: int) -> int:
    """Blocks of 32 that hold ``size`` elements."""
    return -(-size // ROWS)


@dataclass(frozen=True)
class RouterSpec:
    """A linear router.

    Attributes:
        experts: routed experts.
        top_k: experts chosen for a token.
        score: how logits become weights; ``softmax``.
        normalise: softmax over the chosen experts, instead of over all of them.
    """

    experts: int
    top_k: int
    score: str = "softmax"
    normalise: bool = True

    def __post_init__(self) -> None:
        _size("router.experts", self.experts, _largest("experts"))
        _size("router.top_k", self.top_k, min(self.experts, _largest("top_k")))
        _choice("router.score", self.score, SCORES)
        _choice("router.normalise", self.normalise, (True, False))


@dataclass(frozen=True)
class ExpertSpec:
    """A routed expert: ``down(activation(gate(x)) * up(x))``, without biases."""

    intermediate: int
    activation: str = "silu"
    gated: bool = True

    def __post_init__(self) -> None:
        _size("expert.intermediate", self.intermediate, ROWS * _largest("inter_blocks"))
        _choice("expert.activation", self.activation, ACTIVATIONS)
        _choice("expert.gated", self.gated, (True,))


@dataclass(frozen=True)
class SharedSpec:
    """An expert that serves every token, of the routed experts' form.

    Attributes:
        intermediate: its width.
        gated: its result is multiplied by the sigmoid of a linear function of the token.
    """

    intermediate: int
    gated: bool

    def __post_init__(self) -> None:
        _size("shared.intermediate", self.intermediate, ROWS * _largest("shared_blocks"))
        _choice("shared.gated", self.gated, (True, False))


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
        _size("hidden", self.hidden, ROWS * _largest("hidden_blocks"))

    @property
    def hidden_blocks(self) -> int:
        return blocks(self.hidden)

    @property
    def inter_blocks(self) -> int:
        return blocks(self.expert.intermediate)

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
        """Rows of the router matrix."""
        return self.router.experts + self.shared_gate

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
        return cls(
            hidden=values["hidden"],
            router=RouterSpec(**values["router"]),
            expert=ExpertSpec(**values["expert"]),
            shared=SharedSpec(**values["shared"]) if values["shared"] else None,
        )


def _largest(word: str) -> int:
    """The largest value that a word of the layer descriptor holds."""
    return (1 << LAYER.words[LAYER.index[word]].bits) - 1


def _size(axis: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise UnsupportedLayer(f"{axis}: expected 1 to {largest}, got {value!r}; this version cannot run the layer")


def _choice(axis: str, value: object, supported: tuple[object, ...]) -> None:
    if value not in supported:
        names = " or ".join(map(str, supported))
        raise UnsupportedLayer(f"{axis}: expected {names}, got {value}; this version cannot run the layer")
