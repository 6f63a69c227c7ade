"""Two processes on one machine: the checks are in workers.py."""

from pathlib import Path

import torch.multiprocessing
import workers


def test_two_workers_keep_equal_weights_and_take_the_steps_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(workers.check, (str(tmp_path / "rendezvous"),), nprocs=2)
