import math

import pytest
import torch

from paperkit.bounds.compression import compression_bounds
from paperkit.experiments.studies import compression_architectures as study
from paperkit.experiments.studies._stacks import Stack, generator_of, spectral
from paperkit.models.untied import operator_matrix


def test_opposite_heads_at_equal_inputs_leave_the_shared_weight_without_gradient():
    parameters = {
        "w": torch.ones(1, 1, dtype=torch.float64),
        "v": torch.tensor([[10.0, -10.0]], dtype=torch.float64),
    }
    inputs = torch.ones(1, 1, 2, dtype=torch.float64)
    stages = study.position_stage("w"), study.read_out_stage("v")
    stack = Stack(stages, ("w", "v"), parameters, inputs)
    assert stack.sharpness() == pytest.approx(2.0)
    assert stack.weight_norms()[0].tolist() == [0]
    assert float(spectral(stack.input_jacobians()[0])) == pytest.approx(math.sqrt(200.0))


def test_the_library_finds_the_same_sides_for_a_scalar_convolution():
    model = torch.nn.Sequential(
        torch.nn.Conv1d(1, 1, 1, bias=False),
        torch.nn.Flatten(),
        torch.nn.Linear(2, 1, bias=False),
    ).double()
    model[0].weight.data.fill_(2.0)
    model[2].weight.data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    inputs = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    parameters = {"w": model[0].weight.data[:, :, 0], "v": model[2].weight.data}
    stages = study.position_stage("w"), study.read_out_stage("v")
    found = study.violations(Stack(stages, ("w", "v"), parameters, inputs))
    library = compression_bounds(model, (inputs, torch.zeros(1)), norm="matrix")
    for equation in ("11", "12"):
        expected = library[equation].left / library[equation].right - 1.0
        assert found[f"equation_{equation}"] == pytest.approx(expected, rel=1e-6)


def test_the_matrix_of_a_convolution_is_the_library_s():
    stack = study.convolutional_stack(generator_of(0))
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False).double()
    convolution.weight.data = stack.parameters["w0"]
    (found,) = study.operators(
        Stack(stack.stages[:1], ("w0",), stack.parameters, stack.inputs),
        (study.convolution_stage("w0", False),),
    )
    torch.testing.assert_close(found, operator_matrix(convolution, (1, 4, 4)))


@pytest.mark.parametrize("configuration", study.STUDY.grid("smoke"), ids=lambda c: c["fact"])
def test_each_fact_of_a_smoke_run_gives_numbers(configuration):
    metrics = study.run(configuration, context=None)
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())
