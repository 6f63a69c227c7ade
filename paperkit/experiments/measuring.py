"""Measuring a saved model: ``paperkit measure CHECKPOINT``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit import arguments, checkpoint, data, models
from paperkit.data import Split
from paperkit.estimators import MEASURES, Report, measure
from paperkit.experiments import provenance

# Wrappers that save a model's weights under a name of their own.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "measure",
        help="measure a saved model",
        description="Measure a saved model: a checkpoint of `train` or of a study, or a file of "
        "weights that torch.save wrote.",
        epilog="For example `paperkit measure run.pt --model mlp -o hidden=[64,32] --dataset "
        "digits --samples 100`.",
    )
    parser.set_defaults(command=_measure)
    parser.add_argument("checkpoint", help="the file")
    parser.add_argument("--model", required=True, choices=models.NAMES, help="its architecture")
    parser.add_argument(
        "-o",
        dest="options",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the architecture, as often as needed; the value is YAML",
    )
    parser.add_argument(
        "--dataset", required=True, choices=data.NAMES, help="what it is measured on"
    )
    parser.add_argument("--samples", type=int, default=64, help="number of training images (64)")
    parser.add_argument("--seed", type=int, default=0, help="chooses them (0)")
    parser.add_argument(
        "--measures", nargs="+", choices=sorted(MEASURES), help="the default set, or these"
    )
    parser.add_argument("--all", action="store_true", help="every measure, the dear ones too")
    parser.add_argument(
        "--best", action="store_true", help="the best weights of `train`, not the last"
    )
    parser.add_argument("--double", action="store_true", help="in double precision")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON, with provenance")


def _measure(given: argparse.Namespace) -> int:
    dtype = torch.float64 if given.double else torch.float32
    device = arguments.device("device", given.device)
    images = data.load(given.dataset, dtype=dtype)
    model = models.build(
        given.model,
        in_channels=images.shape[0],
        num_classes=images.num_classes,
        input_shape=images.shape,
        **options(given.options),
    )
    load_weights(model, Path(given.checkpoint), best=given.best)
    model.to(device, dtype).eval()
    split = chosen(images.train, given.samples, given.seed)
    split = Split(split.inputs.to(device), split.targets.to(device))
    report = measure(model, split, "all" if given.all else given.measures)
    print(_json(report, given, device) if given.json else report)
    return 0


def options(given: Sequence[str]) -> dict[str, Any]:
    """Return an architecture's options from words NAME=VALUE."""
    import yaml  # here, because studies run where it is missing

    found = {}
    for text in given:
        name, is_one, value = text.partition("=")
        if not is_one or not name:
            raise ValueError(f"-o {text} is no option: write -o NAME=VALUE.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"-o {text}: {value!r} is no value that YAML reads.") from None
    return found


def load_weights(model: nn.Module, path: Path, *, best: bool = False) -> None:
    """Load a model's weights and buffers from a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, holds no weights, or those of another model. The sentence names it.
    """
    state = checkpoint.load(path)
    weights = _weights(state, path, best=best)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n")[1].split()) if "\n" in str(error) else str(error)
        raise ValueError(
            f"{path} holds the weights of another model than {type(model).__name__}: {detail} "
            "Name the architecture and its options that it was saved with."
        ) from None


def _weights(state: Mapping[str, Any], path: Path, *, best: bool) -> dict[str, Tensor]:
    if best:
        kept = state.get("best")
        if not isinstance(kept, Mapping):
            raise ValueError(f"{path} keeps no best weights: leave out --best.")
        found: Any = kept["model"]
    else:
        found = next((state[n] for n in ("model", "state_dict") if n in state), state)
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"{path} holds no weights: save model.state_dict(), or a checkpoint of `train`."
        )
    weights = dict(found)
    for wrapper in WRAPPERS:
        if weights and all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def chosen(split: Split, samples: int, seed: int) -> Split:
    """Return so many samples, drawn by the seed."""
    samples = arguments.integer("samples", samples, at_least=1)
    if samples > len(split.targets):
        raise ValueError(f"samples={samples} is more than the {len(split.targets)} that there are.")
    generator = torch.Generator(device="cpu").manual_seed(arguments.seed("seed", seed))
    index = torch.randperm(len(split.targets), generator=generator, device="cpu")[:samples]
    return Split(split.inputs[index], split.targets[index])


def _json(report: Report, given: argparse.Namespace, device: torch.device) -> str:
    told = {
        "checkpoint": given.checkpoint,
        "model": given.model,
        "dataset": given.dataset,
        "samples": given.samples,
        "seed": given.seed,
        "metrics": report.metrics(),
        "missing": dict(report.missing),
        "provenance": {
            **provenance.describe(provenance.tree_state(), device),
            "date": provenance.now(),
        },
    }
    return json.dumps(told, indent=2, default=str)
