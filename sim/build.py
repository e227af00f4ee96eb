"""Compiles the simulated board, the host bridge and the memory models to shared libraries, cached by their content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from moe_hw import tools
from moe_hw.arch import Arch
from moe_hw.errors import SetupError
from sim import verilator

Progress = Callable[[str], None]

TOP = "moe_hw"
BRIDGE_TOP = "bridge_board"
SERIAL_BOARD_TOP = "serial_board"
DDR3_BOARD_TOP = "ddr3_board"
SUB_ARRAY = "moe_sub_array"
"""Translated and compiled once, however many there are."""

_FOLDER = Path(__file__).parent
_HARNESS = ("harness.cpp", "api.h", "axi_memory.h", "dram.cpp", "dram.h")
_DRAM = ("dram.cpp", "dram.h")
_LINE = ("line.h", "api.h", "uart.h")
_BRIDGE = ("bridge.cpp", *_LINE, "axi_memory.h", *_DRAM)
_SDRAM_CHIP = ("sdram_chip.cpp", "sdram_chip.h")
_SERIAL_BOARD = ("serial_board.cpp", "clocked_board.h", *_LINE, *_SDRAM_CHIP)
_DDR3_CHIP = ("ddr3_chip.cpp", "ddr3_chip.h")
_DDR3_BOARD = ("ddr3_board.cpp", "ddr3_phy.h", "clocked_board.h", "network_part.h", *_LINE, *_DDR3_CHIP)
_JOBS = 2
_LEAST_ROOM = 16 << 20
"""Bytes. A step that fails on a disk with less free has failed for that reason."""

_OPTIMISE = ("OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2")
"""-O2 doubles the build (35 s for 19 s on two cores) for a simulation 4 % faster."""

_COMPILE = "-std=c++17 -fPIC -fno-gnu-unique"
"""``-fno-gnu-unique``: several accelerators live in one process, each with its own copy of Verilator's runtime."""

_FLAGS = f"{_COMPILE} -I. -I{_FOLDER}"
"""Of the C++ that Verilator makes, and of what is compiled with it."""

_VERILATE = (
    "--cc", "--exe", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "--no-assert",
    "-Wno-fatal", "-Wno-lint", "-Wno-style", "--Mdir", ".", "-LDFLAGS", "-shared -Wl,-Bsymbolic", "-o", "library.so",
)  # fmt: skip


def cache_root() -> Path:
    """Where the libraries are kept; ``MOE_HW_CACHE`` moves it."""
    return tools.cache_root("sim")


def prepare() -> None:
    """Check, before anything that takes long, that tools and cache are there; builds nothing.

    Raises:
        SetupError: a tool is missing, or the cache cannot be written.
    """
    verilator.environment()
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room(root, error) from None


def build(verilog: str, arch: Arch, progress: Progress | None = None) -> Path:
    """Shared library of the simulated board with the accelerator ``verilog``; see :mod:`sim.board`.

    The same inputs give the same library: it is compiled once, and processes that ask for it meanwhile wait.

    Parameters:
        verilog: the text of module ``moe_hw`` and of all that it instantiates.
        arch: the sizes it was generated for.
        progress: called with one line before each step that takes long.

    Raises:
        SetupError: a tool is missing, a step failed (the message names its log), or the disk is full.
    """
    flags = f"{_FLAGS} -DMOE_HW_DATA_BITS={arch.data_bits} -DMOE_HW_CHANNELS={arch.channels}"
    texts = {f"{TOP}.v": verilog, "channels.h": _channels(arch)}
    hierarchy, makefile = [], f"V{TOP}.mk"
    if arch.channels > 1:
        texts["hierarchy.vlt"] = f'`verilator_config\nhier_block -module "{SUB_ARRAY}"\n'
        hierarchy, makefile = ["--hierarchical", "hierarchy.vlt"], f"V{TOP}_hier.mk"
    steps = [
        ("translating the accelerator to C++", _verilate(TOP, _HARNESS, flags, hierarchy)),
        ("compiling the simulator", _make(makefile)),
    ]
    return _library(steps, _HARNESS, texts, progress)


def build_bridge(verilog: str, progress: Progress | None = None) -> Path:
    """Shared library of the host bridge alone; see :mod:`sim.bridge`.

    Parameters:
        verilog: the text of the module ``bridge_board``.
        progress: as of :func:`build`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _device("bridge", BRIDGE_TOP, _BRIDGE, verilog, progress)


def build_serial_board(verilog: str, progress: Progress | None = None) -> Path:
    """Shared library of a whole board at its pins; see :mod:`sim.serial_board`.

    Parameters:
        verilog: the text of the module ``serial_board`` and of the accelerator.
        progress: as of :func:`build`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _device("board", SERIAL_BOARD_TOP, _SERIAL_BOARD, verilog, progress)


def build_ddr3_board(verilog: str, progress: Progress | None = None) -> Path:
    """Shared library of a whole board with DDR3 behind DFI; see :mod:`sim.ddr3_board`.

    Parameters:
        verilog: the text of the module ``ddr3_board``, of the accelerator and of the controller.
        progress: as of :func:`build`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _device("board", DDR3_BOARD_TOP, _DDR3_BOARD, verilog, progress)


def _device(what: str, top: str, sources: Sequence[str], verilog: str, progress: Progress | None) -> Path:
    """Shared library of the module ``top`` with the harness in ``sources``."""
    steps = [
        (f"translating the {what} to C++", _verilate(top, sources, _FLAGS)),
        (f"compiling the simulator of the {what}", _make(f"V{top}.mk")),
    ]
    return _library(steps, sources, {f"{top}.v": verilog}, progress)


def _verilate(top: str, sources: Sequence[str], flags: str, options: Sequence[str] = ()) -> list[str]:
    files = (str(_FOLDER / name) for name in sources if name.endswith(".cpp"))
    names = ("--top-module", top, "--prefix", f"V{top}")
    return ["verilator", *_VERILATE, *names, *options, "-CFLAGS", flags, f"{top}.v", *files]


def _make(makefile: str) -> list[str]:
    return ["make", f"-j{_JOBS}", "-f", makefile, *_OPTIMISE]


def _channels(arch: Arch) -> str:
    """C++ that names every port for weights: ``CHANNEL(n)`` for each, if there are several."""
    return "".join(f"CHANNEL({number})\n" for number in range(arch.channels)) if arch.channels > 1 else ""


def build_dram(progress: Progress | None = None) -> Path:
    """Shared library of the DRAM timing model; see :mod:`sim.dram`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _model("compiling the DRAM model", _DRAM, progress)


def build_sdram_chip(progress: Progress | None = None) -> Path:
    """Shared library of the SDRAM chip at its pins; see :mod:`sim.sdram_chip`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _model("compiling the SDRAM chip", _SDRAM_CHIP, progress)


def _model(title: str, sources: Sequence[str], progress: Progress | None) -> Path:
    """Shared library of a C++ model: its one .cpp and its header."""
    compile = ["g++", "-O2", *_COMPILE.split(), "-shared", "-o", "library.so", str(_FOLDER / sources[0])]
    return _library([(title, compile)], sources, {}, progress)


def build_ddr3_chip(progress: Progress | None = None) -> Path:
    """Shared library of the DDR3 chip alone; see :mod:`sim.ddr3_chip`.

    Raises:
        SetupError: as of :func:`build`.
    """
    return _model("compiling the DDR3 chip", _DDR3_CHIP, progress)


def _library(
    steps: Sequence[tuple[str, list[str]]], sources: Sequence[str], texts: dict[str, str], progress: Progress | None
) -> Path:
    """Run ``steps`` in a folder with ``texts`` and keep the ``library.so`` they make."""
    environment = verilator.environment()
    digest = hashlib.sha256(metadata.version("verilator").encode())
    for _, command in steps:
        digest.update("\0".join(command).encode())
    for content in (*((_FOLDER / name).read_bytes() for name in sources), *(text.encode() for text in texts.values())):
        digest.update(hashlib.sha256(content).digest())
    root = cache_root()
    name = digest.hexdigest()[:20]
    library = root / f"{name}.so"
    if library.exists():
        return library
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{name}.lock"):
            if not library.exists():
                _compile(steps, texts, library, environment, progress)
    except OSError as error:
        raise _no_room(root, error) from None
    return library


def _no_room(root: Path, error: OSError) -> SetupError:
    return SetupError(
        f"{root}: expected room and permission to build the simulator, got: {error.strerror}; "
        "free space or set MOE_HW_CACHE to another folder"
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold ``path`` against other processes. The system releases it when this one dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(
    steps: Sequence[tuple[str, list[str]]], texts: dict[str, str], library: Path, environment: dict[str, str],
    progress: Progress | None,
) -> None:  # fmt: skip
    log = library.with_suffix(".log")
    # A build that was killed leaves its folder behind, and compilers that go on writing into it for a while.
    _remove_partial(library)
    folder = Path(tempfile.mkdtemp(dir=library.parent, prefix=f"{library.stem}.partial-"))
    try:
        for name, text in texts.items():
            (folder / name).write_text(text)
        with log.open("w") as output:
            for title, command in steps:
                if progress is not None:
                    progress(title)
                made = command[0] == "make"
                with verilator.shared_library(folder, _COMPILE, *_OPTIMISE) if made else contextlib.nullcontext():
                    code = tools.run(command, folder, output.fileno(), environment)
                if code != 0:
                    if shutil.disk_usage(folder).free < _LEAST_ROOM:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise SetupError(f"{title} failed: {tools.first_error(log)}; the log is {log}")
        os.replace(folder / "library.so", library)
    finally:
        _remove_partial(library)


def _remove_partial(library: Path) -> None:
    for folder in library.parent.glob(f"{library.stem}.partial-*"):
        shutil.rmtree(folder, ignore_errors=True)
