"""Sends the routes of the tokens that are weighed."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from rtl_gen.types import expert_bits, layer_layout, route_layout, token_bits, weight_layout

TOKENS = 2
"""Tokens that can be weighed at once."""


def token_layout(arch: Arch) -> data.StructLayout:
    """What is known of a token that is weighed; ``last`` of its batch or of its job."""
    return data.StructLayout({"token": token_bits(arch), "last": 1, "last_of_job": 1})


class RouteSender(wiring.Component):
    """Joins a token's choices with their weights; adds the shared expert's route.

    Latency: two cycles from a weight to its route; throughput: a route every two cycles.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable from the first token to the last route.
    tokens : In(stream of token_layout(arch))
        A token, before its choices.
    choose : In(1), choice : In, last_choice : In(1)
        Pulse: the token's next expert; the last one of it.
    weights : In(stream of weight_layout)
        One for each choice, and one for the shared expert if it is gated.
    routes : Out(stream of route_layout)
        As of ``Router``.
    busy : Out(1)
        There are tokens whose routes have not all been sent.
    job_done : Out(1)
        Pulse: those of a job have.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "tokens": In(stream.Signature(token_layout(arch))),
                "choose": In(1),
                "choice": In(expert_bits(arch)),
                "last_choice": In(1),
                "weights": In(stream.Signature(weight_layout())),
                "routes": Out(stream.Signature(route_layout(arch))),
                "busy": Out(1),
                "job_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch, layer = self.arch, self.layer
        # The token whose scores are added up, and the one before, whose routes leave.
        m.submodules.waiting = waiting = SyncFIFOBuffered(width=token_layout(arch).size, depth=TOKENS)
        oldest = data.View(token_layout(arch), waiting.r_data)
        entry_bits = ceil_log2(arch.max_top_k)
        m.submodules.chosen = chosen = Memory(shape=expert_bits(arch), depth=TOKENS << entry_bits, init=[])
        write, read = chosen.write_port(), chosen.read_port()
        entry, bank = Signal(range(arch.max_top_k)), Signal()  # of the newest token
        m.d.comb += [
            waiting.w_data.eq(self.tokens.payload),
            waiting.w_en.eq(self.tokens.valid),
            self.tokens.ready.eq(waiting.w_rdy),
            self.busy.eq(waiting.level != 0),
            write.en.eq(self.choose),
            write.addr.eq(Cat(entry[:entry_bits], bank)),
            write.data.eq(self.choice),
        ]
        with m.If(self.choose):
            m.d.sync += entry.eq(entry + 1)
            with m.If(self.last_choice):
                m.d.sync += [entry.eq(0), bank.eq(~bank)]

        sent = Signal.like(entry)
        sending = Signal()  # the bank of the oldest token
        shared = Signal()
        final_choice = Signal.like(layer.top_k)
        m.d.sync += final_choice.eq(layer.top_k - 1)
        end_of_choices = sent == final_choice
        has_shared = layer.shared_blocks != 0
        end_of_token = shared | (end_of_choices & ~has_shared)
        one = shared & ~layer.shared_gate  # a shared expert without a gate
        route, weight = self.routes.payload, self.weights.payload
        m.d.comb += [
            read.addr.eq(Cat(sent[:entry_bits], sending)),
            route.token.eq(oldest.token),
            route.expert.eq(Mux(shared, layer.experts, read.data)),
            route.weight.mantissa.eq(Mux(one, 1 << 15, weight.mantissa)),
            route.weight.exponent.eq(Mux(one, -15, weight.exponent)),
            route.last.eq(end_of_token & oldest.last),
        ]
        with m.FSM():
            with m.State("READ"), m.If(waiting.r_rdy):
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [
                    self.routes.valid.eq(self.weights.valid | one),
                    self.weights.ready.eq(self.routes.ready & ~one),
                ]
                with m.If(self.routes.valid & self.routes.ready):
                    m.d.sync += [sent.eq(sent + 1), shared.eq(end_of_choices & has_shared)]
                    with m.If(end_of_choices | shared):
                        m.d.sync += sent.eq(0)
                    with m.If(end_of_token):
                        m.d.comb += [waiting.r_en.eq(1), self.job_done.eq(oldest.last_of_job)]
                        m.d.sync += [sending.eq(~sending), shared.eq(0)]
                    m.next = "READ"
        return m
