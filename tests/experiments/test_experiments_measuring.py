"""``paperkit measure CHECKPOINT``."""

import json

import pytest
import torch

from paperkit import data, models
from paperkit.cli import main
from paperkit.estimators import measure
from paperkit.experiments.measuring import chosen
from paperkit.training import train

MLP = ["--model", "mlp", "-o", "hidden=[16]", "--dataset", "digits", "--samples", "12", "--double"]
NAMES = ["renyi_sharpness", "mean_loss"]


@pytest.fixture
def model():
    shape = data.load("digits").shape
    options = {"in_channels": 1, "num_classes": 10, "input_shape": shape, "hidden": (16,)}
    return models.build("mlp", seed=3, **options)


def expected(model):
    split = chosen(data.load("digits", dtype=torch.float64).train, 12, 0)
    return measure(model.double(), split, NAMES)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_saved_weights_give_the_report_of_the_model(model, tmp_path, prefix, capsys):
    path = tmp_path / "weights.pt"
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, path)
    assert main(["measure", str(path), *MLP, "--measures", *NAMES, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = expected(model)
    assert told["metrics"] == json.loads(json.dumps(report.metrics()))
    assert (told["samples"], told["provenance"]["device"][:3]) == (12, "cpu")
    assert main(["measure", str(path), *MLP, "--measures", *NAMES]) == 0
    assert capsys.readouterr().out.strip() == str(report).strip()


def test_a_checkpoint_of_training_is_measured_at_its_last_and_at_its_best(model, tmp_path, capsys):
    digits = data.load("digits", train_size=60, test_size=30)
    path = tmp_path / "run.pt"
    result = train(
        model,
        digits.train,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        epochs=3,
        batch_size=20,
        validation=digits.test,
        checkpoint=path,
        progress=False,
    )
    last = expected(model).metrics()
    model.load_state_dict(result.best.weights)
    best = expected(model).metrics()
    for words, metrics in (([], last), (["--best"], best)):
        assert main(["measure", str(path), *MLP, "--measures", *NAMES, "--json", *words]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["metrics"] == json.loads(json.dumps(metrics))


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        ("other", [], "holds the weights of another model than MLP"),
        ("none", [], "holds no weights: save model.state_dict()"),
        ("damaged", [], "is damaged"),
        ("missing", [], "No such file"),
        ("right", ["--best"], "keeps no best weights: leave out --best"),
        ("right", ["--samples", "0"], "samples=0"),
        ("right", ["--samples", "99999"], "samples=99999 is more than the 1437 that there are"),
        ("right", ["-o", "hidden"], "-o hidden is no option: write -o NAME=VALUE"),
        ("right", ["-o", "hidden=["], "is no value that YAML reads"),
        ("right", ["-o", "depth=3"], "depth"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    model, tmp_path, content, words, sentence, capsys
):
    path = tmp_path / "weights.pt"
    if content == "damaged":
        path.write_bytes(b"nothing")
    elif content != "missing":
        states = {
            "right": model.state_dict(),
            "other": {"weight": torch.zeros(3, device="cpu")},
            "none": {"epoch": 3},
        }
        torch.save(states[content], path)
    assert main(["measure", str(path), *MLP, *words]) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
