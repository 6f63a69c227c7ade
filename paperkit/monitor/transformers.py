"""A monitor in the trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any


def trainer_callback(monitor: Any) -> Any:
    """Return a callback of transformers that calls the monitor after each step of the optimizer."""
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "trainer_callback() needs transformers: pip install transformers, or call step() "
            "yourself."
        ) from error

    class MonitorCallback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.is_world_process_zero:
                return
            numbers = monitor.step(state.global_step)
            if numbers is not None:
                state.log_history.append(
                    {**numbers, "epoch": state.epoch, "step": state.global_step}
                )

    return MonitorCallback()
