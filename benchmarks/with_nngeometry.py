"""The ways of nngeometry (tfjgeorge/nngeometry).

Its Fisher matrix under the model's own labels is the Gauss–Newton matrix, and its low-rank
representation holds the rows of Λ^{1/2} J. A collection of the weights alone leaves the other
parameters out.
"""

from __future__ import annotations

import torch
from nngeometry.layercollection import Conv2dLayer, LayerCollection, LinearLayer
from nngeometry.metrics import FIM
from nngeometry.object.pspace import PMatDense, PMatImplicit, PMatLowRank
from nngeometry.object.vector import PVector
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import Way, Work
from benchmarks.problems import Problem, entropies, gram_eigenvalues

NAME = "nngeometry"


def _collection(layers: dict[str, nn.Module]) -> LayerCollection:
    collection = LayerCollection()
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size)
            collection.add_layer(name, Conv2dLayer(*sizes, bias=False))
        else:
            sizes = (layer.in_features, layer.out_features)
            collection.add_layer(name, LinearLayer(*sizes, bias=False))
    return collection


def _examples(problem: Problem) -> tuple[Tensor, Tensor]:
    # The inputs are copied, because nngeometry sets requires_grad on those that it is given.
    return problem.inputs.clone(), problem.targets


def _rows(problem: Problem) -> dict[str, PMatLowRank]:
    """Return each layer's Fisher matrix; all of them come from a single pass."""
    all_layers = FIM(
        problem.model,
        _examples(problem),
        PMatLowRank,
        device=problem.inputs.device,
        layer_collection=_collection(problem.layers),
    )
    blocks = {}
    for name, layer in problem.layers.items():
        start = all_layers.generator.layer_collection.p_pos[name]
        columns = all_layers.data[:, :, start : start + layer.weight.numel()].contiguous()
        blocks[name] = PMatLowRank(all_layers.generator, data=columns)
    return blocks


def _products(blocks: dict[str, PMatLowRank], vectors: dict[str, PVector]) -> list[Tensor]:
    return [block.mv(vectors[name]).to_torch() for name, block in blocks.items()]


def _vectors(problem: Problem) -> dict[str, PVector]:
    return {
        name: PVector(
            layer_collection=_collection({name: problem.layers[name]}),
            vector_repr=vector.flatten(),
        )
        for name, vector in problem.layer_vectors(1).items()
    }


def preparation(problem: Problem) -> Work:
    return Work(
        lambda: _rows(problem),
        lambda blocks: torch.cat(_products(blocks, _vectors(problem))),
        remark="the rows of Λ^½ J of all weights",
    )


def layer_products(problem: Problem) -> Work:
    blocks, vectors = _rows(problem), _vectors(problem)
    return Work(
        lambda: _products(blocks, vectors), torch.cat, remark="a vector at a time; given the rows"
    )


def exact_sharpness(problem: Problem) -> Work:
    def spectra() -> Tensor:
        blocks = _rows(problem)
        return entropies([gram_eigenvalues(block.data.flatten(0, 1)) for block in blocks.values()])

    return Work(spectra, remark="eigenvalues from its rows, in float64, by our own lines")


def sharpness(problem: Problem) -> Work:
    matrix = FIM(
        problem.model,
        _examples(problem),
        PMatImplicit,
        variant="regression",
        device=problem.inputs.device,
    )
    return Work(matrix.trace)


def information_geometry(problem: Problem) -> Work:
    """Multiply with the pseudo-inverse from its dense Fisher matrix's eigendecomposition."""
    # The default dtype is set, because nngeometry makes its constants in it.
    torch.set_default_dtype(problem.inputs.dtype)
    model = problem.model
    collection = LayerCollection.from_model(model)

    def sample_losses(*batch: Tensor) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none").unsqueeze(1)

    def value() -> Tensor:
        fisher = FIM(
            model,
            _examples(problem),
            PMatDense,
            device=problem.inputs.device,
            layer_collection=collection,
        )
        gradients = FIM(
            model,
            _examples(problem),
            PMatLowRank,
            function=sample_losses,
            variant="regression",
            layer_collection=collection,
        )
        fisher.compute_eigendecomposition()
        eigenvalues, vectors = fisher.get_eigendecomposition()
        nonzero = eigenvalues > len(eigenvalues) * torch.finfo(vectors.dtype).eps * eigenvalues[-1]
        # nngeometry divides the rows by √n, so that their squares sum to a mean over samples.
        coordinates = gradients.data[0] @ vectors[:, nonzero]
        return (coordinates.square() / eigenvalues[nonzero]).sum()

    return Work(value, remark="pseudo-inverse of its dense Fisher matrix")


WAYS: dict[str, dict[str, Way]] = {
    way.__name__: {NAME: way}
    for way in (preparation, layer_products, exact_sharpness, sharpness, information_geometry)
}
