"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from boards import load_board
from host import driver, modules
from host.driver import Device
from moe_hw import __version__, cli
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError
from moe_hw.fit import arch_of
from moe_hw.generated import read_generated
from tests.host.fake import FakeTransport
from tests.host.models import save_checkpoint

ARCH = Arch(columns=4, max_tokens=4, max_experts=16, max_top_k=4, logit_words=64)


INTERRUPTED = """
import sys
from moe_hw import cli
from rtl_gen import accelerator

class Interrupting(accelerator.Accelerator):
    def elaborate(self, platform):
        super().elaborate(platform)
        raise KeyboardInterrupt

accelerator.Accelerator = Interrupting
sys.exit(cli.main())
"""
"""Ctrl-C in the middle of the elaboration."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that were opened; each is a fake device."""
    urls: list[str] = []

    def open_fake(url: str, progress: Callable[[str], None] | None = None) -> Device:
        urls.append(url)
        return Device(FakeTransport(ARCH))

    monkeypatch.setattr(driver, "open_device", open_fake)
    return urls


def fails(capsys: pytest.CaptureFixture[str], code: int, line: str, *argv: object) -> None:
    """The command ends with ``code`` and one line on stderr that ``line`` matches."""
    assert cli.main([str(arg) for arg in argv]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.match(f"moe-hw: .*{line}", err), err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, text in (
        (["--version"], f"moe-hw {__version__}"),
        (["--help"], "Exit codes: 0 done"),
        *(([command, "--help"], "usage: moe-hw") for command in ("boards", "generate", "pack", "run", "demo")),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0 and text in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["generate"],
        ["run", "--model", "x"],
        ["demo", "--max-new-tokens", "0"],
        ["demo", "--max-new-tokens", "many"],
        ["run", "--model", "x", "--prompt", "y", "--seed", "z"],
    ],
)
def test_wrong_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2 and "usage: moe-hw" in capsys.readouterr().err


def test_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "moe_hw.cli", "boards"], capture_output=True, text=True)
    assert done.returncode == 0 and "ulx3s-85f (default)" in done.stdout and done.stderr == ""


def test_boards_lists_each_board_with_its_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boards"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ulx3s-85f"))
    assert line.split()[-3:] == ["80", "32", "0.27"]


def test_interrupt_and_closed_pipe_are_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.boards, "execute", interrupted)
    fails(capsys, 130, "interrupted", "boards")
    done = subprocess.run(
        f"{sys.executable} -m moe_hw.cli boards | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )
    assert done.returncode in (0, 141) and done.stderr == ""


def test_interrupted_generation_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-c", INTERRUPTED, "generate", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "moe-hw: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_a_setup_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> Callable[[Any], int]:
        def execute(args: Any) -> int:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return execute

    monkeypatch.setattr(cli.boards, "execute", missing("yaml.nodes"))
    fails(capsys, 3, "expected the Python package yaml, got none; run `make setup`", "boards")
    monkeypatch.setattr(cli.boards, "execute", missing("moe_hw.nothing"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["boards"])


def test_generate_is_reproducible_and_complete(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["generate", "--board", "ulx3s-85f", "--model", str(checkpoint), "-o"]
    assert cli.main([*argv, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "fits: 2 MoE layers" in printed and re.search(r"array_dsps +128\b", printed)
    assert "array: 8 columns; 8 would fit, limited by multipliers; 4 would saturate the memory\n" in printed
    names = ["board.yaml", "manifest.json", "moe_hw.v", "registers.json", "registers.md", "resources.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    board = load_board("ulx3s-85f")
    generated = read_generated(out)
    assert (generated.arch, generated.board) == (arch_of(board), board)
    assert "module moe_hw(" in generated.verilog
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["version"] == __version__ and manifest["config_hash"] == f"{generated.arch.hash:#018x}"
    assert manifest["layers"][0]["count"] == 2 and manifest["layers"][0]["spec"]["hidden"] == 40
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-m", "moe_hw.cli", *argv, str(again)], check=True, capture_output=True)
    assert all((out / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_generate_refuses(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    fails(capsys, 2, "did you mean ulx3s-85f", "generate", "--board", "ulx3s", "-o", out)
    fails(capsys, 2, "expected int2 or .* or mxfp4, got 'int7'",
          "generate", "--model", checkpoint, "--format", "int7", "-o", out)  # fmt: skip
    fails(capsys, 4, "expected a checkpoint directory", "generate", "--model", tmp_path / "nothing", "-o", out)
    board = tmp_path / "small.yaml"
    text = (Path(driver.__file__).parents[1] / "boards" / "ulx3s-85f.yaml").read_text()
    board.write_text(text.replace("max_experts: 256", "max_experts: 4"))
    fails(capsys, 5, "6 experts, this accelerator at most 4; .* larger max_experts",
          "generate", "--board", board, "--model", checkpoint, "-o", out)  # fmt: skip
    assert not out.exists()


def test_pack_and_generate_refuse_a_model_larger_than_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "large", hidden_size=512, moe_intermediate_size=512)
    board = tmp_path / "small.yaml"
    text = (Path(driver.__file__).parents[1] / "boards" / "ulx3s-85f.yaml").read_text()
    board.write_text(text.replace("size_mib: 32", "size_mib: 1"))
    for command in ("pack", "generate"):
        fails(capsys, 5, r"need [\d,]+ bytes in int4, the board has 1,048,576; choose a narrower format",
              command, "--board", board, "--model", checkpoint, "-o", tmp_path / command)  # fmt: skip


def test_generate_looks_at_its_directory_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtl_gen import emit

    monkeypatch.setattr(emit, "to_verilog", lambda *args: pytest.fail("generated before looking"))
    (tmp_path / "thesis.tex").write_text("")
    fails(capsys, 2, "exists and was not made by `moe-hw generate`", "generate", "-o", tmp_path)
    fails(capsys, 3, "cannot write .*(Not a directory|File exists)",
          "generate", "-o", tmp_path / "thesis.tex" / "out")  # fmt: skip


def run_argv(checkpoint: Path, *more: str) -> list[str]:
    return ["run", "--model", str(checkpoint), "--device", "fake:1", "--prompt", "hello", *more]


def test_run_writes_text_and_a_table(
    checkpoint: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(run_argv(checkpoint, "--max-new-tokens", "3")) == 0
    captured = capsys.readouterr()
    assert fake_device == ["fake:1"] and captured.err == ""
    assert captured.out.startswith("hello") and "perplexity" not in captured.out
    # Each layer ran the prompt, 4 + 1 tokens, and two more of the new ones.
    row = next(line for line in captured.out.splitlines() if line.startswith("model.layers.1.mlp")).split()
    assert row[1:3] == ["3", f"{5028 + 3 * 5007:,}"]
    assert "5 + 3 tokens: 40,098 cycles in MoE layers, 0.000401 s at 100 MHz" in captured.out


def test_run_says_what_stays_on_the_host(
    tmp_path: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_checkpoint(tmp_path / "model", "phimoe")
    assert cli.main(run_argv(path, "--max-new-tokens", "2", "--check")) == 0
    out = capsys.readouterr().out
    kept = "all but the routed experts: PhimoeSparseMoeBlock is run by transformers"
    assert f"on the host, of 2 layers: {kept}" in out
    assert "bit-exact: 6 of 6 layer calls" in out


def test_run_checks_and_is_reproducible(
    checkpoint: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = []
    for _ in range(2):
        assert cli.main(run_argv(checkpoint, "--max-new-tokens", "4", "--check", "--seed", "5")) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    # Two layers: the prompt, three steps, and the perplexity's pass.
    assert "bit-exact: 10 of 10 layer calls" in texts[0]
    found = re.search(r"perplexity of the text above, 9 tokens: (\S+) in int4, (\S+) in float32", texts[0])
    assert found and 0.8 < float(found[1]) / float(found[2]) < 1.25
    text_file = tmp_path / "text"
    text_file.write_text("x" * 150)
    assert cli.main(run_argv(checkpoint, "--check", "--max-new-tokens", "1", "--text-file", str(text_file))) == 0
    assert "perplexity of text, 150 tokens" in capsys.readouterr().out


def test_run_fails_if_a_call_differs(
    checkpoint: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = modules.golden

    def other(*args: Any, **kwargs: Any) -> Any:
        result = honest(*args, **kwargs)
        result.weights[0, 0] += 2**-24
        return result

    monkeypatch.setattr(modules, "golden", other)
    assert cli.main(run_argv(checkpoint, "--max-new-tokens", "1", "--check")) == DeviceError.exit_code
    captured = capsys.readouterr()
    assert "bit-exact: 0 of 4 layer calls" in captured.out
    assert "4 of 4 layer calls differ" in captured.err


def test_run_refuses(
    checkpoint: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fails(capsys, 2, "expected --check together with --text-file", *run_argv(checkpoint, "--text-file", "x"))
    fails(capsys, 2, "--text-file: expected a readable",
          *run_argv(checkpoint, "--check", "--text-file", str(tmp_path / "x")))  # fmt: skip
    fails(capsys, 2, "at most 64 tokens .* got 65", *run_argv(checkpoint, "--max-new-tokens", "60"))
    fails(capsys, 2, "--prompt: expected at least one token", *run_argv(checkpoint, "--prompt", ""))
    fails(capsys, 2, "expected int2 or .* or mxfp4, got 'int7'", *run_argv(checkpoint, "--format", "int7"))
    assert fake_device == []


def test_unknown_device_is_a_usage_error(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "expected a device URL .* got 'fake:1'", *run_argv(checkpoint))


def damage(path: Path, kind: str) -> None:
    weights, config = path / "model.safetensors", path / "config.json"
    if kind == "no weights":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "shard missing":
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    elif kind == "bad index":
        (path / "model.safetensors.index.json").write_text("[]")
    elif kind == "no config":
        config.unlink()
    elif kind == "bad config":
        config.write_text("{")
    elif kind == "no tokenizer":
        for file in path.glob("tokenizer*"):
            file.unlink()
    elif kind == "other sizes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "moe_intermediate_size": 32}))
    elif kind == "more layers":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    elif kind == "not a mapping":
        config.write_text("null")
    elif kind == "wrong type":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": "many"}))
    elif kind == "no step":
        config.write_text(json.dumps({**json.loads(config.read_text()), "decoder_sparse_step": 0}))
    elif kind == "nan":
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.gate.weight"][2, 3] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
    elif kind == "dense":
        config.write_text('{"model_type": "llama"}')
    elif kind == "other experts":
        config.write_text('{"model_type": "doge", "is_moe": true}')
    elif kind == "unknown type":
        config.write_text('{"model_type": "nothing_of_the_kind"}')


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("no weights", r"expected weights in \*.safetensors, got none"),
        ("truncated", "model.safetensors: expected a whole safetensors file"),
        ("shard missing", "expected model-2.safetensors, which model.safetensors.index.json names"),
        ("bad index", "model.safetensors.index.json cannot be read"),
        ("no config", "expected config.json, got none"),
        ("bad config", "config.json cannot be read"),
        ("no tokenizer", "copied: expected tokenizer.json or .*, got none"),
        ("other sizes", r"expected model.layers.0.mlp.experts.down_proj of shape \[6, 40, 32\], got \[6, 40, 24\]"),
        ("more layers", "expected 11 more weights such as model.layers.2"),
        ("not a mapping", "config.json: expected a JSON object"),
        ("wrong type", "Validation error for field 'hidden_size': .*expected int.*; mend it"),
        ("no step", "qwen3_moe: expected a configuration that transformers can build, got: integer modulo by zero"),
        ("dense", "not a MoE model"),
        ("other experts", "router.keys: expected a row of weights for each expert, got product keys"),
        ("unknown type", "config.json cannot be read"),
    ],
)
def test_damaged_checkpoint_is_one_line(
    copied: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str], kind: str, line: str
) -> None:
    damage(copied, kind)
    fails(capsys, 4, line, *run_argv(copied))
    assert fake_device == []


@pytest.mark.parametrize("command", ["run", "pack"])
def test_damaged_weights_are_named_with_their_layer(
    copied: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    damage(copied, "nan")
    pack = ["pack", "--jobs", "1", "--model", copied, "-o", tmp_path / "image"]
    argv = run_argv(copied) if command == "run" else pack
    fails(capsys, 4, "model.layers.1.mlp: router: expected finite weights, got NaN or Inf", *argv)


def test_sizes_that_grouped_matrix_products_refuse(
    tmp_path: Path, fake_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path, moe_intermediate_size=7)
    assert cli.main(run_argv(checkpoint, "--max-new-tokens", "1", "--check")) == 0
    assert "bit-exact: 4 of 4 layer calls" in capsys.readouterr().out


def test_whatever_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fails(capsys, 3, "File name too long; check the path", "pack", "--model", "a" * 5000, "-o", tmp_path / "image")

    def exhausted(args: Any) -> int:
        raise MemoryError

    monkeypatch.setattr(cli.boards, "execute", exhausted)
    fails(capsys, 3, "expected more memory", "boards")


def test_demo_runs_the_built_in_model_checked(
    fake_device: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import moe_hw.demo

    monkeypatch.setattr(moe_hw.demo, "MODEL_DIR", checkpoint)
    assert cli.main(["demo", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert fake_device == ["sim:ulx3s-85f"]
    length = len(moe_hw.demo.HELD_OUT.read_bytes())
    assert out.startswith(moe_hw.demo.PROMPT) and f"perplexity of held_out.txt, {length} tokens" in out
    # Two layers: the prompt, one step, and the held-out text in stretches of 64.
    calls = 2 * (2 + -(-length // 64))
    assert f"bit-exact: {calls} of {calls} layer calls" in out


def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from moe_hw.cli.console import Progress

    with Progress() as progress:
        progress("hidden")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress() as progress:
        progress.steps(1, 2, "shown")
    assert capsys.readouterr().err == "\r\x1b[K[1/2] shown\r\x1b[K"
