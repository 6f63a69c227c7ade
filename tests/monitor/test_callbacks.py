"""The monitor in the trainers of Lightning and of transformers, whose runs stay as they were."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from paperkit.monitor import SharpnessMonitor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 3))


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 6, generator=generator), torch.randint(3, (48,), generator=generator)


def fitted(folder: Path, *, monitored: bool, **options: Any) -> tuple[list[Tensor], Any, Any]:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: no callback")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Classifier()
    monitor = SharpnessMonitor(model.network, samples(), every=2, budget=None)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=lightning.pytorch.loggers.CSVLogger(folder),
        callbacks=[monitor.lightning_callback()] if monitored else [],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(model, DataLoader(TensorDataset(*samples()), batch_size=8))
    return [p.detach().clone() for p in model.parameters()], monitor, trainer


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 12), (2, 6)])
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
def test_lightning_counts_optimizer_steps_and_logs(tmp_path, accumulated, steps) -> None:
    options = {"accumulate_grad_batches": accumulated}
    plain, _, _ = fitted(tmp_path / "plain", monitored=False, **options)
    followed, monitor, trainer = fitted(tmp_path / "monitored", monitored=True, **options)
    assert all(map(torch.equal, plain, followed))
    assert [reading.step for reading in monitor.readings] == list(range(2, steps + 1, 2))
    trainer.logger.save()
    written = (Path(trainer.logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "sharpness/hessian_trace" in written[0].split(",")
    assert len(written) == 1 + len(monitor.readings)


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_the_counts_with_a_checkpoint(tmp_path) -> None:
    _, monitor, trainer = fitted(tmp_path, monitored=True)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=False)["callbacks"]
    assert [state for state in saved.values() if state.get("steps") == 12] == [monitor.state_dict()]


class Sentences(Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, targets = samples()
        return {"x": inputs[index], "labels": targets[index]}


class Model(nn.Module):
    """A model as transformers' trainer expects it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(x)
        found = {"logits": logits}
        return found if labels is None else {"loss": cross_entropy(logits, labels), **found}


PAGE = (Path(__file__).parents[2] / "book" / "api" / "training_loops.md").read_text()


def loops(heading: str) -> list[str]:
    """Return the code of a section of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_plain_loop_of_the_page_runs(capsys) -> None:
    model, (inputs, targets) = network(), samples()
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    space = {
        "SharpnessMonitor": SharpnessMonitor,
        "torch": torch,
        "cross_entropy": cross_entropy,
        "model": model,
        "samples": samples(),
        "batches": batches,
    }
    (code,) = loops("A monitor in a plain loop")
    exec(code, space)
    assert "readings in 6 steps" in capsys.readouterr().out
    assert space["monitor"].readings[-1].step == 6


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_of_the_page_take_the_callbacks(tmp_path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: no callback")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the trainer needs")
    first, second = loops("A monitor in a trainer")
    space = {"SharpnessMonitor": SharpnessMonitor, "lightning": lightning}
    exec(first, {**space, "model": network(), "samples": samples()})
    inputs, targets = samples()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    space = {
        "SharpnessMonitor": SharpnessMonitor,
        "transformers": transformers,
        "arguments": arguments,
        "model": Model(),
        "inputs": inputs,
        "targets": targets,
    }
    exec(second, space)
    numbers = space["monitor"].read()
    expected = cross_entropy(space["model"].eval()(inputs)["logits"], targets)
    assert numbers["sharpness/mean_loss"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_counts_optimizer_steps_and_logs(tmp_path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: no callback"
    )
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the trainer needs")

    def run(*, monitored: bool) -> tuple[list[Tensor], SharpnessMonitor, Any]:
        model = Model()
        monitor = SharpnessMonitor(model.network, samples(), every=2, budget=None)
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                max_steps=6,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
            ),
            train_dataset=Sentences(),
            callbacks=[monitor.trainer_callback()] if monitored else [],
        )
        trainer.train()
        return [p.detach().clone() for p in model.parameters()], monitor, trainer

    plain, _, _ = run(monitored=False)
    followed, monitor, trainer = run(monitored=True)
    assert all(map(torch.equal, plain, followed))
    assert [reading.step for reading in monitor.readings] == [2, 4, 6]
    logged = [entry for entry in trainer.state.log_history if "sharpness/mean_loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert logged[0]["sharpness/mean_loss"] == monitor.series()["mean_loss"][1][0]
