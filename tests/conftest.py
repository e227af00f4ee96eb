"""One thread a test process: pytest-xdist fills the cores, and threads that share one wait for each other."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

# Who starts the tests in the background has them ignore Ctrl-C, and those that press it would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
