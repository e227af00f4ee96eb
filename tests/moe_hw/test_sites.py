"""The MoE layers of real transformers blocks, of all families, against the blocks themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from host.integrate import swap_of
from host.modules import LayerTotals
from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.layer import MoELayer
from moe_hw.reference import reference
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.sites import REFUSED, SHARED, Site, moe_sites
from moe_hw.spec import SharedSpec
from tests.moe_hw.blocks import ENTRIES, HIDDEN, REFUSED_ENTRIES, RUN, SETTINGS, Model, output


class FloatHandle:
    """A layer that is computed in floating point, with the interface of one on a device."""

    def __init__(self, layer: MoELayer):
        self.layer = layer
        self.spec = layer.spec

    def __call__(self, x: torch.Tensor, routes: GivenRoutes | None = None) -> Result:
        result = reference(self.layer, x.reshape(-1, x.shape[-1]), routes)
        return dataclasses.replace(result, output=result.output.reshape(x.shape))


def swapped(model: Model) -> list[Any]:
    """The model's layers replaced by their float references."""
    swaps = [swap_of(site, FloatHandle(site.layer()), LayerTotals(site.name), None) for site in moe_sites(model)]
    for swap in swaps:
        swap.do()
    return swaps


def test_the_entries_are_all_of_the_families() -> None:
    assert len({entry.block for entry in ENTRIES.values()}) == 75
    assert len(RUN) - len({"deepseek_v4 by token"}) >= 70


@pytest.mark.parametrize("name", RUN)
def test_the_float_reference_equals_the_block(name: str) -> None:
    """1e-5 of outputs of order one: float32 sums of some 50 products, against float64."""
    model = Model(ENTRIES[name].build())
    expected = output(model, name)
    assert expected.abs().max() > 0.1
    swaps = swapped(model)
    torch.testing.assert_close(output(model, name), expected, rtol=1e-5, atol=1e-5)
    for swap in swaps:
        swap.undo()
    assert torch.equal(output(model, name), expected)


@pytest.mark.parametrize("name", REFUSED_ENTRIES)
def test_a_family_that_does_not_run_names_the_axis(name: str) -> None:
    with pytest.raises(UnsupportedLayer, match=REFUSED_ENTRIES[name]):
        moe_sites(Model(ENTRIES[name].build()))


def site_of(name: str, **changes: Any) -> Site:
    (site,) = moe_sites(Model(ENTRIES[name].build(**changes)))
    return site


def test_what_stays_on_the_host_is_said() -> None:
    assert site_of("mixtral").stays == ""
    assert site_of("phimoe").stays == "all but the routed experts: PhimoeSparseMoeBlock is run by transformers"
    assert site_of("deepseek_v3").stays == ""
    least = site_of("ernie4_5_moe", moe_norm_min=0.1)
    assert least.stays.startswith("all but the routed and shared experts: router.norm_min: expected at most 1e-06")
    latent = site_of("nemotron_h", moe_latent_size=16)
    assert latent.stays.startswith("all but the routed experts: NemotronHMoE: expected no parameter fc1_latent_proj")


@pytest.mark.parametrize(
    ("name", "top_k"), [("phimoe", 2), ("zaya", 1), ("longcat_flash", 2), ("switch_transformers", 1), ("gemma4", 2)]
)
def test_the_most_choices_of_a_token(name: str, top_k: int) -> None:
    assert site_of(name).spec.router.top_k == top_k


def test_the_shared_expert_runs_with_the_routed_ones() -> None:
    assert site_of("ernie4_5_moe", moe_norm_min=0.1).spec.shared == SharedSpec(24, gated=False)
    assert site_of("ernie4_5_moe", moe_norm_min=0.1, use_bias=True).spec.shared is None
    assert site_of("laguna", moe_router_logit_softcapping=30.0).spec.shared is None  # the routed experts' are scaled
    assert {entry.block for name, entry in ENTRIES.items() if name in RUN} >= set(SHARED)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("glm5_next", SharedSpec(24, gated=False, limit=10.0)),
        ("hy_v4", SharedSpec(24, gated=False)),
        ("minimax_m3_vl", SharedSpec(33, gated=False, limit=7.0)),
        ("nemotron_h", SharedSpec(33, gated=False)),
        ("qwen2_moe", SharedSpec(33, gated=True)),
    ],
)
def test_a_shared_expert_has_limits_of_its_own(name: str, shared: SharedSpec) -> None:
    assert site_of(name).spec.shared == shared


def test_a_shared_expert_of_another_form_stays() -> None:
    limits = {"swiglu_limits": [7.0, 7.0], "swiglu_limits_shared": [5.0, 5.0], "share_expert_dim": 33}
    whole = site_of("step3p7", **limits)
    assert whole.stays == "" and whole.spec.shared == SharedSpec(33, gated=False, limit=5.0)
    block = ENTRIES["deepseek_v3"].build()
    block.shared_experts.act_fn = torch.nn.ReLU()
    (site,) = moe_sites(Model(block))
    expected = "all but the routed experts: shared.activation: expected silu as of the routed experts, got relu"
    assert site.stays.startswith(expected) and site.spec.shared is None


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
def test_settings_of_a_router_that_runs_on_the_device(name: str, changes: dict[str, Any]) -> None:
    """As above, with other settings than the defaults; all but near-ties of the choice are the block's."""
    model = Model(ENTRIES[name].build(3, **changes))
    expected = output(model, name)
    (site,) = moe_sites(model)
    assert site.stays == ""
    swapped(model)
    torch.testing.assert_close(output(model, name), expected, rtol=1e-5, atol=1e-5)


def test_forms() -> None:
    forms = {name: site_of(name).spec.expert for name in ("hy_v4", "minimax_m3_vl", "nemotron_h", "gpt_oss")}
    assert (forms["hy_v4"].limit, forms["hy_v4"].clamp) == (10.0, "before")
    gpt_oss = ("quick_gelu", 7.0, "before", 1.0)
    for name in ("minimax_m3_vl", "gpt_oss"):
        form = forms[name]
        assert (form.activation, form.limit, form.clamp, form.up_offset) == gpt_oss
    assert (forms["nemotron_h"].activation, forms["nemotron_h"].gated) == ("relu2", False)
    after = site_of("step3p7", swiglu_limits=[7.0, 7.0]).spec.expert
    assert (after.limit, after.clamp) == (7.0, "after")
    capped = site_of("inkling2", mlp_up_softcap=3.0).spec.expert
    assert (capped.activation, capped.gate_softcap, capped.up_softcap) == ("silu", 4.0, 3.0)


@pytest.mark.parametrize("limit", [0.5, 1.5])
def test_a_limit_is_what_the_block_has(limit: float) -> None:
    """Limits that many activations reach, before and after the activation."""
    for name, changes in (("hy_v4", {"swiglu_limit": limit}), ("step3p7", {"swiglu_limits": [limit, limit]})):
        model = Model(ENTRIES[name].build(**changes))
        expected = output(model, name)
        swapped(model)
        torch.testing.assert_close(output(model, name), expected, rtol=1e-5, atol=1e-5)


def test_a_form_is_what_the_module_computes_and_not_what_it_says() -> None:
    block = ENTRIES["hy_v4"].build()
    block.experts._apply_gate = lambda both: both.chunk(2, -1)[0].tanh() * both.chunk(2, -1)[1]
    with pytest.raises(UnsupportedLayer, match=r"expert\.glu: expected .*, got HYV4Experts\._apply_gate"):
        moe_sites(Model(block))
    block = ENTRIES["nemotron_h"].build()
    block.experts.act_fn = torch.nn.Tanh()
    with pytest.raises(UnsupportedLayer, match=r"expert\.activation: expected silu or .*, got Tanh"):
        moe_sites(Model(block))


def test_experts_with_more_parameters_are_refused() -> None:
    block = ENTRIES["deepseek_v3"].build()
    block.experts.scale = torch.nn.Parameter(torch.ones(6))
    with pytest.raises(UnsupportedLayer, match="expected the parameters gate_up_proj, down_proj; scale is a feature"):
        moe_sites(Model(block))


def test_shapes_that_contradict_each_other() -> None:
    block = ENTRIES["deepseek_v3"].build()
    block.experts.down_proj = torch.nn.Parameter(torch.zeros(6, HIDDEN, 23))
    with pytest.raises(ModelError, match=r"gate_up_proj: expected shape \[6, 46, 40\], got \[6, 48, 40\] with"):
        moe_sites(Model(block))


def test_weights_that_are_not_loaded() -> None:
    block = ENTRIES["deepseek_v3"].build().to("meta")
    (site,) = moe_sites(Model(block))
    with pytest.raises(ModelError, match="expected a loaded weight, got one on the meta device"):
        site.layer()


def test_refused_blocks_exist() -> None:
    assert set(REFUSED) <= {entry.block for entry in ENTRIES.values()}
