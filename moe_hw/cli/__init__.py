"""The ``moe-hw`` command."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from moe_hw import __version__
from moe_hw.cli import bench, boards, build, demo, estimate, generate, pack, program, quality, run
from moe_hw.errors import MoeHwError, SetupError

COMMANDS = (boards, generate, pack, run, quality, estimate, bench, demo, build, program)
EXIT_CODES = "0 done, 2 usage, 3 environment, 4 model or image, 5 device, 6 timing, 130 interrupted"
_OWN_PACKAGES = ("boards", "host", "moe_hw", "rtl_gen", "sim")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command sets ``execute``."""
    top = argparse.ArgumentParser(
        prog="moe-hw",
        description="FPGA accelerators for Mixture-of-Experts models: generate, verify and run them.",
        epilog=f"Exit codes: {EXIT_CODES}.",
    )
    top.add_argument("--version", action="version", version=f"moe-hw {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    # torch's threads would spin between the simulator's steps and the compiler's, and slow them down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return guarded(lambda: args.execute(args))


def guarded(command: Callable[[], int]) -> int:
    """Exit code of ``command``; what the user can mend is one line on stderr."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except MoeHwError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OWN_PACKAGES:
            raise
        return _fail(f"expected the Python package {package}, got none; run `make setup`", SetupError.exit_code)
    except KeyboardInterrupt as end:
        # Amaranth warns about every block whose elaboration was cut short.
        warnings.simplefilter("ignore")
        return _fail("; ".join(("interrupted", *map(str, end.args))), 130)
    except BrokenPipeError:
        # The reader has gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}"
        return _fail(f"{reason}; check the path, its permissions and the disk", SetupError.exit_code)
    except MemoryError:
        return _fail("expected more memory than this machine has free; use a smaller model", SetupError.exit_code)


def _fail(line: str, code: int) -> int:
    print(f"moe-hw: {line}", file=sys.stderr)
    return code
