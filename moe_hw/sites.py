"""The MoE layers of a transformers model: whole blocks where the accelerator can run them, else their experts.

A configuration is read by building its model without weights, so nothing is known of a family's configuration here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from moe_hw.block import check_loaded, read_block, read_spec
from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.experts import Experts, read_experts
from moe_hw.families import BY_BLOCK, Family
from moe_hw.layer import MoELayer
from moe_hw.shared import read_shared
from moe_hw.spec import LayerSpec, RouterSpec

REFUSED = {
    "DogeCDMoE": "router.keys: expected a row of weights for each expert, got product keys",
    "VitPoseBackboneMoeMLP": "router: expected one that sees the token, got the number of the dataset",
    "NllbMoeSparseMLP": "router.choice: transformers 5.23 runs experts 0 and 1 alone, whatever the router chooses",
}
"""Blocks whose experts do not run on the accelerator either, and why."""

OF_ATTENTION = ("JetMoeMoA",)
"""Modules called experts that are part of an attention: they stay on the host."""

SHARED = {
    **dict.fromkeys(
        (
            "DeepseekV3MoE", "DeepseekV32MoE", "Glm4MoeMoE", "Glm4MoeLiteMoE", "Glm4vMoeTextMoE", "GlmMoeDsaMoE",
            "Dots1MoE", "Dots3NoteTextMoE", "KimiLinearMoE", "BailingHybridMoE", "SolarOpenMoE",
            "ExaoneMoeSparseMoEBlock", "AXK1MoE", "AXK2MoE", "HYV3MoE", "HYV4MoE", "Mistral4MoE",
            "MistralLarge4TextMoE", "AfmoeSparseMoeBlock", "Kolibri1SparseMoeBlock", "Ernie4_5_MoeSparseMoeBlock",
        ),
        "shared_experts",
    ),
    "FlintSparseMoeBlock": "shared_expert",
}  # fmt: skip
"""Blocks that add what this module makes of the token to what their experts make of it: it runs with the experts."""


@dataclass(frozen=True)
class Site:
    """A MoE layer in a model.

    Attributes:
        name: qualified name of ``module``.
        parent, attribute: where it is.
        module: the whole block, or the module of its experts alone.
        spec: the layer's spec.
        family: of a whole block.
        experts: of the experts alone.
        shared: name of the shared expert's module in ``parent``, if it runs with the experts.
        stays: what of the block the host goes on to do, and why; empty for a whole block.
    """

    name: str
    parent: torch.nn.Module
    attribute: str
    module: torch.nn.Module
    spec: LayerSpec
    family: Family | None = None
    experts: Experts | None = None
    shared: str = ""
    stays: str = ""

    def within(self, model: torch.nn.Module) -> Site:
        """The same layer in another instance of its model."""
        parent, module = model.get_submodule(self.name.rpartition(".")[0]), model.get_submodule(self.name)
        experts = None if self.experts is None else read_experts(module)
        return dataclasses.replace(self, parent=parent, module=module, experts=experts)

    def layer(self) -> MoELayer:
        """The layer.

        Raises:
            ModelError: weights that are not loaded.
        """
        if self.experts is None:
            return read_block(self.module)
        check_loaded(self.module)
        if not self.shared:
            return MoELayer(self.spec, expert=self.experts.read)
        shared = read_shared(self.parent.get_submodule(self.shared))  # now: another module may take its place
        return MoELayer(self.spec, expert=self.experts.read, shared=shared.read)


def moe_sites(model: torch.nn.Module) -> list[Site]:
    """The MoE layers of a model in its order: whole blocks where the accelerator can run them, else their experts.

    Raises:
        UnsupportedLayer: the experts of a layer cannot be run either; the message names the feature.
        ModelError: the model has no experts.
    """
    modules = dict(model.named_modules())
    sites: list[Site] = []
    whole: list[str] = []

    def add(name: str, spec: LayerSpec, **what: Any) -> None:
        parent, _, attribute = name.rpartition(".")
        sites.append(Site(name, modules[parent], attribute, modules[name], spec, **what))

    reasons: dict[str, str] = {}
    for name, module in modules.items():
        if not name or any(name.startswith(f"{block}.") for block in whole):
            continue
        kind = type(module).__name__
        if kind in REFUSED:
            raise UnsupportedLayer(f"{REFUSED[kind]} ({kind}); this version cannot run the layer")
        if kind in BY_BLOCK:
            try:
                spec = read_spec(module)
            except UnsupportedLayer as error:
                reasons[name] = str(error)
            else:
                whole.append(name)
                add(name, spec, family=BY_BLOCK[kind])
        elif name.rpartition(".")[2] == "experts" and kind not in OF_ATTENTION:
            parent = name.rpartition(".")[0]
            why = reasons.get(parent) or f"{type(modules[parent]).__name__} is run by transformers"
            experts = read_experts(module)
            spec, shared = _spec_of(modules[parent], experts)
            rest = "all but the routed and shared experts" if shared else "all but the routed experts"
            add(name, spec, experts=experts, shared=shared, stays=f"{rest}: {why}")
    if not sites:
        if reasons:
            raise UnsupportedLayer(next(iter(reasons.values())))
        raise ModelError(f"{type(model).__name__} is not a MoE model: none of its modules has experts")
    return sites


def _spec_of(block: torch.nn.Module, experts: Experts) -> tuple[LayerSpec, str]:
    """The spec of a block's experts with routes from the host, and the name of the shared expert that runs with them.

    That is one of the routed experts' form whose output is added to theirs.
    """
    router = RouterSpec(experts.count, _top_k(block, experts.count), score="given")
    name = SHARED.get(type(block).__name__, "")
    if name and hasattr(block, name):
        try:
            spec = LayerSpec(experts.hidden, router, *read_shared(getattr(block, name)).spec(experts.spec, gated=False))
        except UnsupportedLayer:
            pass
        else:
            return spec, name
    return LayerSpec(experts.hidden, router, experts.spec), ""


def _top_k(block: torch.nn.Module, experts: int) -> int:
    """The most experts that a token may choose, by what the block, its modules or their configuration call it."""
    modules = [*block.modules()]
    configs = [module.config for module in modules if hasattr(module, "config")]
    for source in (*modules, *configs):
        for name in ("top_k", "num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k"):
            value = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return min(value, experts)
    return 1 if type(block).__name__.startswith("Switch") else experts


def layer_specs(config: Any) -> list[LayerSpec]:
    """The specs of the MoE layers that a transformers configuration describes, in model order.

    Raises:
        UnsupportedLayer: a MoE model of a family, or with a feature, that is not supported.
        ModelError: the configuration has no MoE layer, or transformers can build no model from it.
    """
    return [site.spec for site in sites_of(config)]


def sites_of(config: Any) -> list[Site]:
    """The MoE layers that a transformers configuration describes, without weights; as :func:`layer_specs`."""
    return moe_sites(_empty_model(config))


def _empty_model(config: Any) -> torch.nn.Module:
    """The configuration's model with weights that have shapes but no values."""
    import transformers

    problem: Exception | None = None
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        try:
            with torch.device("meta"):
                return auto.from_config(config)
        except Exception as error:  # whatever a model's constructor makes of a configuration's values
            problem = problem or error
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    raise ModelError(
        f"{config.model_type}: expected a configuration that transformers can build, got: {reason}; mend config.json"
    )
