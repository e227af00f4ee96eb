"""Modules that stand in for MoE layers of a transformers model, or for their experts, and run them on a device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from host.handle import Handle
from moe_hw.errors import UsageError
from moe_hw.quantised import QuantisedLayer
from moe_hw.report import Report
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.twins.layer import golden


@dataclass
class LayerTotals:
    """What one layer did so far.

    Attributes:
        name: qualified name of the block, or of its experts, in the model.
        stays: what of the block the host goes on to do, and why; empty if the accelerator runs all of it.
        calls: calls of the block.
        report: sum of the calls' reports.
        equal: calls whose output, experts and weights had exactly the golden model's bits; counted only with ``check``.
        failed: calls that differed in at least one bit.
    """

    name: str
    stays: str = ""
    calls: int = 0
    report: Report = field(default_factory=Report)
    equal: int = 0
    failed: int = 0


class AcceleratedLayer(torch.nn.Module):
    """Stands in for a MoE layer of a transformers model, or for its experts; inference only.

    Parameters:
        handle: the layer on the device.
        totals: where calls are counted.
        checked: the layer's quantised weights if each call is to be compared with the golden model.
    """

    def __init__(self, handle: Handle, totals: LayerTotals, checked: QuantisedLayer | None):
        super().__init__()
        self._handle = handle
        self._totals = totals
        self._checked = checked

    def run(self, x: torch.Tensor, routes: GivenRoutes | None = None) -> Result:
        """Run ``[..., hidden]`` on the device and count the call."""
        if self.training:
            raise UsageError(f"{self._totals.name}: expected a model in inference mode; call model.eval()")
        result = self._handle(x, routes)
        self._totals.calls += 1
        self._totals.report += result.report or Report()
        if self._checked is not None:
            tokens = x.detach().reshape(-1, x.shape[-1]).cpu()
            expected = golden(self._checked, tokens, routes=routes)
            equal = (
                torch.equal(result.output.reshape(tokens.shape), expected.output)
                and torch.equal(result.experts, expected.experts)
                and torch.equal(result.weights, expected.weights)
            )
            self._totals.equal += equal
            self._totals.failed += not equal
        return result


class AcceleratedBlock(AcceleratedLayer):
    """Stands in for a whole block.

    Parameters:
        output_bias: a vector that is added to the outputs, on the host.
        after: a module that makes the block's output of theirs, on the host.
        returns_scores: return the weights of the experts, too.
    """

    def __init__(
        self,
        handle: Handle,
        totals: LayerTotals,
        checked: QuantisedLayer | None,
        output_bias: torch.Tensor | None = None,
        after: torch.nn.Module | None = None,
        returns_scores: bool = False,
    ):
        super().__init__(handle, totals, checked)
        self._output_bias = output_bias
        self._after = after
        self._returns_scores = returns_scores

    def forward(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """``[batch, sequence, hidden]`` to the same shape, type and place; ``input_ids`` do not count (DeepSeek-V4)."""
        result = self.run(hidden_states)
        output = result.output.to(dtype=hidden_states.dtype, device=hidden_states.device)
        if self._output_bias is not None:
            output = output + self._output_bias
        if self._after is not None:
            output = self._after(output)
        if self._returns_scores:
            return output, result.weights.to(dtype=hidden_states.dtype, device=hidden_states.device)
        return output


class AcceleratedExperts(AcceleratedLayer):
    """Stands in for a module of experts; the router, and what else there is in the block, stays on the host."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Tokens ``[T, H]``, experts and weights ``[T, K]``, to ``[T, H]``. Experts that there are not add nothing."""
        spec = self._handle.spec.router
        experts = top_k_index.reshape(-1, top_k_index.shape[-1])
        experts = torch.where(experts < spec.experts, experts, -1)
        missing = spec.top_k - experts.shape[1]
        if missing < 0:
            raise UsageError(
                f"{self._totals.name}: expected at most {spec.top_k} experts a token, got {experts.shape[1]}"
            )
        experts = torch.nn.functional.pad(experts, (0, missing), value=-1)
        weights = torch.nn.functional.pad(top_k_weights.reshape(len(experts), -1), (0, missing))
        # An expert that a token chose twice has both weights, once.
        same = experts[:, :, None] == experts[:, None, :]
        weights = (same * weights[:, None, :]).sum(-1)
        experts = torch.where((same & same.new_ones(same.shape[1:]).tril(-1)).any(-1), -1, experts)
        output = self.run(hidden_states.reshape(len(experts), -1), GivenRoutes(experts, weights)).output
        return output.to(dtype=hidden_states.dtype, device=hidden_states.device).reshape(hidden_states.shape)


class Nothing(torch.nn.Module):
    """Stands in for a shared expert that runs with the routed ones."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class _Identities(AcceleratedExperts):
    """Experts from number ``count`` on have no weights and return their input (LongCat)."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        routed = super().forward(hidden_states, top_k_index, top_k_weights)
        own = torch.where(top_k_index >= self._handle.spec.router.experts, top_k_weights, 0).sum(-1, keepdim=True)
        return routed + (hidden_states * own).to(routed.dtype)


class _OneHot(AcceleratedExperts):
    """The choice is a mask ``[T, 1, experts]``, of zeros for a token beyond the capacity (Switch)."""

    def forward(
        self, hidden_states: torch.Tensor, selected_experts: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        chosen = selected_experts.amax(-1) > 0
        index = torch.where(chosen, selected_experts.argmax(-1), -1)
        return super().forward(hidden_states, index, routing_weights)


class _Dense(AcceleratedExperts):
    """All experts get all tokens, weighted before the experts and mostly by zero (Llama 4): those are left out."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        count = self._handle.spec.router.experts
        rows = torch.nonzero((hidden_states != 0).any(-1))[:, 0]
        experts = rows * count // len(hidden_states)
        output = torch.zeros_like(hidden_states)
        ones = torch.ones(len(rows), 1)
        output[rows] = super().forward(hidden_states[rows], experts[:, None], ones)
        return output


ADAPTERS: dict[str, type[AcceleratedExperts]] = {
    "DbrxExperts": AcceleratedExperts,
    "Step3p7Experts": AcceleratedExperts,
    "LongcatFlashExperts": _Identities,
    "SwitchTransformersExperts": _OneHot,
    "Llama4TextExperts": _Dense,
}
"""What replaces the modules of experts that do not take part in transformers' experts interface."""
