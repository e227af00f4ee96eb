"""The code of README and tutorial, run as it stands: a document's blocks one after the other, in one directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory that looks like the checkout, with ``moe-hw`` on the PATH."""
    (tmp_path / "moe_hw").symlink_to(ROOT / "moe_hw")
    command = tmp_path / "bin" / "moe-hw"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moe_hw.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run(command: list[str], text: str, workplace: Path) -> None:
    path = os.pathsep.join([str(workplace / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, text], cwd=workplace, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run(document: str, workplace: Path) -> None:
    found = blocks(document)
    assert {"python", "sh"} <= {language for language, _ in found}
    for text in (text for language, text in found if language == "sh" and "make " not in text):
        run(["bash", "-euc"], text, workplace)
    # The Python blocks build on each other, and on the files of the shell blocks.
    run([sys.executable, "-c"], "\n".join(text for language, text in found if language == "python"), workplace)


@pytest.mark.parametrize("document", (*DOCUMENTS, "CONTRIBUTING.md"))
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^ *make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "docs/design.md", "docs/memory-image.md"])
def test_links_lead_somewhere(document: str) -> None:
    place = (ROOT / document).parent
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert [link for link in links if not (place / link).exists()] == []
