"""Builds a component with Verilator and runs a module of cocotb tests on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import sys
from collections.abc import Iterator

from amaranth.lib import wiring
from cocotb_tools.runner import get_runner

from moe_hw import tools
from moe_hw.errors import SetupError
from rtl_gen.emit import to_verilog
from sim import verilator
from sim.bench.collisions import unknown_collisions
from sim.netlist import to_netlist


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def random_seed() -> int:
    """``COCOTB_RANDOM_SEED``, or a new one."""
    return int(os.environ.get("COCOTB_RANDOM_SEED", random.SystemRandom().randrange(1 << 31)))


def run_bench(
    component: wiring.Component,
    test_module: str,
    tests: str = "",
    *,
    beside: str = "",
    netlist: bool = False,
    **parameters: object,
) -> None:
    """Run the cocotb tests of ``test_module`` on ``component``.

    Parameters:
        component: the block under test, top module ``dut``.
        test_module: importable name of the module with the ``@cocotb.test`` coroutines.
        tests: beginning of the names of the tests to run; all of them if empty.
        beside: Verilog of what the component instantiates and does not emit.
        netlist: run them on what synthesis makes of the block.
        parameters: strings the tests read back with :func:`parameter`.

    Raises:
        AssertionError: a cocotb test failed. The seed to replay it is printed: set ``COCOTB_RANDOM_SEED``.
        SetupError: the bench does not build; the message shows the end of its log.
    """
    options = ["-Wno-fatal", "-Wno-lint", "-Wno-style", "--x-initial", "unique", "--x-assign", "1"]
    # cocotb needs the ports. All signals of an accelerator are minutes of compiling, and half the speed.
    options += ["--no-public-flat-rw", "--public-depth", "1"]
    if netlist:
        text = to_netlist(to_verilog(component, "dut"), "dut")
    else:
        with unknown_collisions():
            text = to_verilog(component, "dut") + beside
    # Verilator writes where it and cocotb are installed into its makefile, and does not notice that they have moved.
    digest = hashlib.sha256("\0".join((sys.prefix, *options, text)).encode()).hexdigest()[:16]
    build = tools.cache_root("bench") / digest
    build.mkdir(parents=True, exist_ok=True)
    source = build / "dut.v"
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    seed = random_seed()
    print(f"{test_module}: COCOTB_RANDOM_SEED={seed}")
    environment = verilator.environment()
    environment.update({f"BENCH_{name.upper()}": str(value) for name, value in parameters.items()})
    # A netlist's C++ takes nine times as long to compile with -Os as without, and a bench is short.
    environment["MAKEFLAGS"] += f" OPT_FAST={'-O0' if netlist else '-O1'}"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    # Not torch and all that it imports: without a cache of what was rewritten, that takes 15 s.
    environment["COCOTB_REWRITE_ASSERTION_FILES"] = "tests/*.py"
    with _environment(environment):
        runner = get_runner("verilator")
        log = build / "build.log"
        try:
            with verilator.shared_library(build):
                runner.build(
                    sources=[source],
                    hdl_toplevel="dut",
                    build_dir=build,
                    build_args=options,
                    log_file=log,
                )
        except RuntimeError as error:
            raise SetupError(f"{error}; the end of {log}:\n{log.read_text()[-2000:]}") from None
        results = runner.test(
            hdl_toplevel="dut",
            test_module=test_module,
            build_dir=build,
            test_dir=build,
            seed=seed,
            test_filter=re.escape(f"{test_module}.{tests}"),
            results_xml=str(build / f"results-{os.getpid()}.xml"),
        )
    from cocotb_tools.check_results import get_results

    count, failures = get_results(results)
    assert count > 0, f"{test_module}: no cocotb test was found"
    assert failures == 0, f"{test_module}: {failures} of {count} tests failed, seed {seed}"


def parameter(name: str) -> str:
    """A parameter of :func:`run_bench`, read inside the simulation."""
    return os.environ[f"BENCH_{name.upper()}"]
