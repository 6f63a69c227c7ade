"""A monitor in Lightning's trainer."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lightning_callback(monitor: Any) -> Any:
    """Return a callback of Lightning that calls the monitor after each step of an optimizer."""
    packages = [name for name in ("lightning", "pytorch_lightning") if find_spec(name)]
    if not packages:
        raise ModuleNotFoundError(
            "lightning_callback() needs Lightning: pip install lightning, or call step() yourself."
        )
    # A program works with one of the two packages, whose callbacks are not each other's.
    used = next((name for name in packages if name in sys.modules), packages[0])
    package: Any = import_module("lightning.pytorch" if used == "lightning" else used)

    class MonitorCallback(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            # Batches of accumulated gradients end without a step. Another fit counts anew.
            if not trainer.is_global_zero or trainer.global_step == monitor.steps:
                return
            numbers = monitor.step(trainer.global_step)
            if numbers is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, step=trainer.global_step)

        def state_dict(self) -> dict[str, Any]:
            return monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            monitor.load_state_dict(state_dict)

    return MonitorCallback()
