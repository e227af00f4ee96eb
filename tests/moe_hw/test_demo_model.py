"""The committed demo model: size, tokenizer, quality on text it has not seen, load of its experts."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from moe_hw.demo import HELD_OUT, MODEL_DIR, PROMPT
from moe_hw.demo.train import Recipe, balance_loss, check_balance, new_model, shares_of, train
from moe_hw.errors import ModelError

EXCERPT = HELD_OUT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)


def test_size() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 4_000_000


def test_configuration(model) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["output_router_logits"] is False
    assert model.dtype == torch.bfloat16
    assert "router_logits" not in model(input_ids=torch.tensor([[1]]))


def test_prompt_leaves_room_to_generate(model, tokenizer) -> None:
    assert len(tokenizer(PROMPT)["input_ids"]) < model.config.max_position_embeddings // 2


@given(text=st.text())
def test_tokens_are_the_bytes(tokenizer, text: str) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokens = tokenizer(text)["input_ids"]
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text


def test_end_of_text_is_one_token(tokenizer) -> None:
    assert tokenizer("a<|endoftext|>")["input_ids"] == [ord("a"), 256]
    assert tokenizer.eos_token_id == 256


@torch.no_grad()
def test_quality_on_held_out_code(model, tokenizer) -> None:
    tokens = tokenizer(EXCERPT, return_tensors="pt")["input_ids"][:, : model.config.max_position_embeddings]
    logits = model(input_ids=tokens).logits.float()
    bits = functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item() / math.log(2)
    counts = Counter(tokens[0].tolist())
    # The excerpt's own byte frequencies: no unigram model does better on it.
    unigram = -sum(count / tokens.numel() * math.log2(count / tokens.numel()) for count in counts.values())
    assert bits < 2.6 < unigram < math.log2(257)


@torch.no_grad()
def test_experts_are_alive(model, tokenizer) -> None:
    tokens = tokenizer(EXCERPT, return_tensors="pt")["input_ids"]
    router_logits = model(input_ids=tokens, output_router_logits=True).router_logits
    assert len(router_logits) == model.config.num_hidden_layers
    shares = torch.stack([shares_of(logits, model.config.num_experts_per_tok) for logits in router_logits])
    assert shares.min() > 0


def test_shares_and_balance_loss() -> None:
    even = torch.eye(4).repeat(3, 1)
    assert torch.equal(shares_of(even, 1), torch.full((4,), 0.25))
    assert balance_loss((even, even), 1).item() == pytest.approx(1.0)
    starved = torch.tensor([[5.0, 0.0, -5.0, -5.0]]).repeat(12, 1)
    assert shares_of(starved, 2).tolist() == [0.5, 0.5, 0.0, 0.0]
    assert balance_loss((starved,), 2).item() > 3.9
    # Layers that starve different experts do not make up for each other.
    assert balance_loss((starved, starved.flip(1)), 2).item() > 3.9


def test_a_starved_expert_is_refused() -> None:
    check_balance(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.07, 0.43, 0.25, 0.25]]))
    with pytest.raises(ModelError, match="layer 1, expert 0: expected at least 6.2% of the choices, got 6.0%"):
        check_balance(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.06, 0.44, 0.25, 0.25]]))


def test_training_learns(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = new_model(balance=0.02)
    tokens = torch.tensor(list(b"def f(x):\n    return x\n") * 40)

    def loss() -> float:
        with torch.no_grad():
            return model(input_ids=tokens[None, :64], labels=tokens[None, :64]).loss.item()

    before = loss()
    train(model, tokens, Recipe(steps=8, batch=1, warmup=2))
    assert loss() < 0.7 * before
    assert "step     8 of 8" in capsys.readouterr().out
