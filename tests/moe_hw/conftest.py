"""One thread a test process: pytest-xdist fills the cores, and threads that share one wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
