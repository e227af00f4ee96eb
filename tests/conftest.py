"""One thread a test process: pytest-xdist fills the cores, and threads that share one wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
