"""Trains the demo model on the standard library's own sources: ``python -m moe_hw.demo.train``.

Every machine with CPython has the data, so anybody can make the model again: a byte-level Qwen3-MoE of 1.8 million
parameters, a few minutes on two cores. The same interpreter, versions and machine give the same run; other versions
have other sources.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_hw.demo import MODEL_DIR, PROMPT
from moe_hw.errors import ModelError, SetupError

EOS = 256
WINDOW = 512
"""Tokens of a training sequence, and positions of the model."""

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
"""Tests, other people's packages, and the codecs' tables of numbers."""

SKIPPED_PREFIX = "_sysconfigdata"
"""The generated list of how this interpreter was built."""

HELD_OUT_EVERY = 16
LEAST_SHARE = 0.25
"""Smallest load of an expert that is accepted, as a part of its fair share."""


@dataclass(frozen=True)
class Recipe:
    """What a training run depends on, besides the corpus."""

    seed: int = 0
    steps: int = 1300
    batch: int = 8
    rate: float = 4e-3
    warmup: int = 100
    balance: float = 0.02


@dataclass(frozen=True)
class Corpus:
    """Byte tokens of all training files and of all held-out files, each file followed by ``EOS``."""

    train: torch.Tensor
    held_out: torch.Tensor
    files: int
    held_out_files: int


@dataclass(frozen=True)
class Quality:
    """Held-out perplexity per byte, and each layer's shares of the choices, ``[layers, experts]``."""

    perplexity: float
    shares: torch.Tensor

    @property
    def bits(self) -> float:
        """Bits per byte."""
        return math.log2(self.perplexity)


def read_corpus() -> Corpus:
    """The standard library's sources, in the order of their paths; every 16th file is held out.

    Raises:
        SetupError: the interpreter has no sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts) and not path.name.startswith(SKIPPED_PREFIX)
    ]
    if len(paths) < HELD_OUT_EVERY:
        raise SetupError(f"expected the standard library's .py files in {root}, got {len(paths)}; use a full CPython")
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for number, path in enumerate(paths, start=1):
        tokens = torch.tensor([*path.read_bytes(), EOS], dtype=torch.long)
        parts[number % HELD_OUT_EVERY == 0].append(tokens)
    train, held_out = parts
    return Corpus(torch.cat(train), torch.cat(held_out), len(train), len(held_out))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token numbers are the bytes of the UTF-8 text; 256 ends a text."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=WINDOW,
    )


def new_model(balance: float) -> Qwen3MoeForCausalLM:
    """The model with random weights; ``balance`` is for the record in its configuration."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=257,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=128,
            moe_intermediate_size=128,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            max_position_embeddings=WINDOW,
            initializer_range=0.05,
            router_aux_loss_coef=balance,
            eos_token_id=EOS,
        )
    )


def shares_of(router_logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Each expert's part of the choices, ``[experts]``, from logits ``[tokens, experts]``."""
    chosen = router_logits.topk(top_k).indices
    return torch.bincount(chosen.flatten(), minlength=router_logits.shape[-1]) / chosen.numel()


def balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """Switch Transformer's load-balancing loss, ``top_k`` when the load is even; the mean over the layers.

    The loss of ``transformers`` adds the layers' loads before it compares them, so one layer may hide another.
    """
    terms = [
        logits.shape[-1] * top_k * (shares_of(logits, top_k) * logits.softmax(-1).mean(0)).sum()
        for logits in router_logits
    ]
    return torch.stack(terms).mean()


def train(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, recipe: Recipe) -> None:
    """Train ``model`` in place on random windows of ``tokens``: AdamW, warm-up, cosine decay."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.1)

    def schedule(step: int) -> float:
        warm = min(1.0, (step + 1) / recipe.warmup)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    offsets = torch.arange(WINDOW + 1)
    started = time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        starts = torch.randint(len(tokens) - WINDOW, (recipe.batch, 1), generator=generator)
        windows = tokens[starts + offsets]
        out = model(input_ids=windows[:, :-1], output_router_logits=True, use_cache=False)
        loss = functional.cross_entropy(out.logits.flatten(0, 1), windows[:, 1:].flatten())
        balance = balance_loss(out.router_logits, model.config.num_experts_per_tok)
        (loss + recipe.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == recipe.steps:
            print(
                f"step {step:5} of {recipe.steps}  {loss.item() / math.log(2):.3f} bits/byte  "
                f"balance {balance.item():.3f}  {time.monotonic() - started:4.0f} s",
                flush=True,
            )


@torch.no_grad()
def measure(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, windows: int = 128) -> Quality:
    """Perplexity and expert loads on ``windows`` windows that are spread evenly over ``tokens``."""
    model.eval()
    top_k = model.config.num_experts_per_tok
    starts = torch.linspace(0, len(tokens) - WINDOW - 1, windows).long()
    losses, shares = [], []
    for batch in (starts[:, None] + torch.arange(WINDOW + 1)).split(8):
        text = tokens[batch]
        out = model(input_ids=text[:, :-1], output_router_logits=True, use_cache=False)
        losses.append(functional.cross_entropy(out.logits.float().flatten(0, 1), text[:, 1:].flatten()))
        shares.append(torch.stack([shares_of(logits, top_k) for logits in out.router_logits]))
    return Quality(torch.stack(losses).mean().exp().item(), torch.stack(shares).mean(0))


def check_balance(shares: torch.Tensor) -> None:
    """Refuse a model with a starved expert.

    Raises:
        ModelError: an expert has less than a quarter of its fair share.
    """
    least = LEAST_SHARE / shares.shape[-1]
    for layer, row in enumerate(shares):
        expert = int(row.argmin())
        if row[expert] < least:
            raise ModelError(
                f"layer {layer}, expert {expert}: expected at least {least:.1%} of the choices, "
                f"got {row[expert]:.1%}; raise Recipe.balance"
            )


def share_table(shares: torch.Tensor) -> str:
    """Markdown table of the expert shares in percent."""
    experts = range(shares.shape[1])
    lines = ["| layer | " + " | ".join(map(str, experts)) + " |", "|---" * (shares.shape[1] + 1) + "|"]
    for layer, row in enumerate(shares):
        lines.append(f"| {layer} | " + " | ".join(f"{100 * share:.1f}" for share in row.tolist()) + " |")
    return "\n".join(lines)


@torch.no_grad()
def sample(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, length: int = 240) -> str:
    """The model's continuation of ``PROMPT``, with it; nucleus sampling."""
    torch.manual_seed(0)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(
        **inputs, max_new_tokens=length, do_sample=True, temperature=0.6, top_p=0.9, pad_token_id=EOS
    )
    return tokenizer.decode(out[0], skip_special_tokens=True)


def model_card(
    recipe: Recipe, corpus: Corpus, parameters: int, seconds: float, exact: Quality, rounded: Quality, text: str
) -> str:
    """README.md of the model directory: data, run, figures, how to make it again."""
    tokens = recipe.steps * recipe.batch * WINDOW
    return f"""# Demo model

A Qwen3-MoE of Python source code, small enough to be kept in the repository and to be simulated in RTL. It shows that
a real, trained router and real experts work; it is no useful programmer.

| | |
|---|---|
| architecture | Qwen3MoeForCausalLM: hidden 128, 4 layers, 8 experts, top-2, expert intermediate size 128 |
| parameters | {parameters:,}, stored in bf16 |
| tokenizer | bytes; 256 ends a text |
| context | {WINDOW} bytes |
| training data | {corpus.files} files, {len(corpus.train) / 1e6:.1f} MB: the standard library's .py sources \
(no tests, no codec tables) of CPython {platform.python_version()} |
| held out | {corpus.held_out_files} other files, {len(corpus.held_out) / 1e6:.2f} MB: every {HELD_OUT_EVERY}th path |
| training | {recipe.steps} steps of {recipe.batch} x {WINDOW} bytes ({tokens / 1e6:.1f} MB), AdamW, \
peak rate {recipe.rate}, balance loss {recipe.balance} per layer, seed {recipe.seed} |
| wall time | {seconds / 60:.1f} minutes, CPU threads: {torch.get_num_threads()}, \
torch {torch.__version__.split('+')[0]}, \
transformers {transformers.__version__} |
| held-out, fp32 | perplexity {exact.perplexity:.4f} per byte, {exact.bits:.4f} bits/byte |
| held-out, bf16 | perplexity {rounded.perplexity:.4f} per byte, {rounded.bits:.4f} bits/byte |

## Load of the experts

Percent of the choices on held-out text, bf16; the fair share is {100 / rounded.shares.shape[1]:.1f}.

{share_table(rounded.shares)}

## A sample

```python
{text.rstrip()}
```

## Make it again

    OMP_NUM_THREADS={torch.get_num_threads()} python -m moe_hw.demo.train

writes this directory. Another CPython release has other sources, and so gives other weights.
The sources it learnt from are under the PSF licence.
"""


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, check and save; prints the model card."""
    parser = argparse.ArgumentParser(prog="python -m moe_hw.demo.train", description="Train the demo model.")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=MODEL_DIR, help="model directory (default: %(default)s)")
    options = parser.parse_args(arguments)
    recipe = Recipe(steps=options.steps)

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(recipe.seed)
    corpus = read_corpus()
    model, tokenizer = new_model(recipe.balance), byte_tokenizer()
    print(f"{model.num_parameters():,} parameters; {len(corpus.train):,} bytes to learn from", flush=True)
    started = time.monotonic()
    train(model, corpus.train, recipe)
    seconds = time.monotonic() - started

    exact = measure(model, corpus.held_out)
    model.to(torch.bfloat16)
    rounded = measure(model, corpus.held_out)
    check_balance(rounded.shares)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    text = sample(model, tokenizer)
    card = model_card(recipe, corpus, model.num_parameters(), seconds, exact, rounded, text)
    (options.output / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    try:
        main()
    except (ModelError, SetupError) as error:
        sys.exit(f"error: {error}")
