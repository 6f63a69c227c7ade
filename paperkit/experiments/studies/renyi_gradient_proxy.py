r"""Equation 9 of the Rényi paper: squares of the gradient's entries, in the place of the Hessian.

Each of the vectors below has an entropy of its entries' magnitudes; that of the Hessian's
eigenvalues is what they are to stand for.

* ``hessian``: the eigenvalues of the Hessian of all parameters.
* ``diagonal``: its diagonal.
* ``mean_of_squares``: :math:`\frac1n \sum_i g_i^2`, entry by entry, of the samples' gradients.
* ``square_of_mean``: :math:`(\frac1n \sum_i g_i)^2`, which is equation 9.
* ``batch``: the same of a batch's gradient, which is what RSAM has; a mean over batches.
"""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from paperkit import data, models
from paperkit.curvature import dense_hessian
from paperkit.data import Split
from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies._renyi_facts import Configuration, Metrics, generator_of

ORDERS = (0.5, 1.1, 1.2, 1.5)
PAPERS_ORDERS = (1.1, 1.2)
"""Orders with which the paper trains."""
ALLOWED = 0.5
"""Largest difference in nats with which one entropy may stand for another (our criterion)."""
BATCHES, BATCH = 50, 50
DRAWS = 20


def absolute_moment(power: float) -> float:
    """Return E|z|^power of a standard Gaussian z."""
    return 2 ** (power / 2) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)


def gaussian_bias(alpha: float) -> float:
    r"""Return the entropy of squared Gaussian draws less that of their variances.

    :math:`\log E|z|^{2\alpha} / (1 - \alpha)`, in the limit in which no entry outweighs the others:
    the sums over :math:`\sigma_j^2 z_j^2` and their powers then are their expectations.
    """
    return math.log(absolute_moment(2 * alpha)) / (1 - alpha)


# ---------------------------------------------------------------------------------------------
# One draw
# ---------------------------------------------------------------------------------------------


def _gaussian_draw(configuration: Configuration) -> Metrics:
    """Compare the entropy of squared Gaussian draws with that of their variances."""
    alpha, d = configuration["alpha"], configuration["dimension"]
    generator = generator_of(configuration)
    variances = np.arange(1, d + 1) ** -configuration["decay"]
    biases = []
    for _ in range(DRAWS):
        drawn = variances * generator.standard_normal(d) ** 2
        values = (renyi_entropy(torch.from_numpy(x), alpha) for x in (drawn, variances))
        biases.append(next(values) - next(values))
    bias, expected = fmean(biases), gaussian_bias(alpha)
    return {"bias": bias, "expected_bias": expected, "bias_slack": 0.02 - abs(bias - expected)}


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


def trained(configuration: Configuration) -> tuple[nn.Module, Split]:
    """Return a perceptron after some steps on 8 × 8 digits, and the digits, in float64."""
    digits = data.load("digits", dtype=torch.float64).train
    count, seed = configuration["images"], configuration["seed"]
    images = Split(digits.inputs[:count], digits.targets[:count])
    model = models.build(
        "mlp",
        in_channels=1,
        num_classes=10,
        input_shape=(1, 8, 8),
        hidden=(16, 16),
        activation=configuration["activation"],
        seed=seed,
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _ in range(configuration["steps"]):
        chosen = torch.randint(count, (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images.inputs[chosen]), images.targets[chosen]).backward()
        optimizer.step()
    return model, images


def sample_gradients(model: nn.Module, images: Split) -> Tensor:
    """Return the gradient of each sample's loss, one in a row."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images.inputs, images.targets)
    return torch.cat([found[name].flatten(1) for name in parameters], dim=1)


def stand_ins(gradients: Tensor, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Return the vectors of squares that may stand for the eigenvalues, and those of batches."""
    draws = (torch.randperm(len(gradients), generator=generator)[:BATCH] for _ in range(BATCHES))
    return {
        "mean_of_squares": [gradients.square().mean(0)],
        "square_of_mean": [gradients.mean(0).square()],
        "batch": [gradients[chosen].mean(0).square() for chosen in draws],
    }


def entropies(vectors: dict[str, list[Tensor]]) -> dict[str, dict[str, float]]:
    """Return the mean entropy by name and order; that of a batch is one of many."""
    return {
        name: {f"{alpha:g}": fmean(renyi_entropy(v, alpha) for v in found) for alpha in ORDERS}
        for name, found in vectors.items()
    }


def _network(configuration: Configuration) -> Metrics:
    """Return the entropy of a network's Hessian and of all that may stand for it."""
    model, images = trained(configuration)
    hessian = dense_hessian(model, images.inputs, images.targets)
    gradients = sample_gradients(model, images)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    generator = torch.Generator(device="cpu").manual_seed(1000 + configuration["seed"])
    exact = {"hessian": [eigenvalues], "diagonal": [hessian.diagonal()]}
    found = entropies({**exact, **stand_ins(gradients, generator)})

    def difference(one: str, other: str, alpha: float) -> float:
        return found[one][f"{alpha:g}"] - found[other][f"{alpha:g}"]

    def slack(one: str, other: str) -> list[float]:
        return [ALLOWED - abs(difference(one, other, alpha)) for alpha in PAPERS_ORDERS]

    errors = {
        name: {f"{alpha:g}": difference(name, "hessian", alpha) for alpha in ORDERS}
        for name in found
        if name != "hessian"
    }
    return {
        "entropy": found,
        "error": errors,
        "proxy_slack": slack("square_of_mean", "hessian"),
        "diagonal_slack": slack("mean_of_squares", "diagonal"),
        "at_order_1_2": {name: values["1.2"] for name, values in found.items()},
        "draw_bias": {
            f"{alpha:g}": difference("batch", "mean_of_squares", alpha) for alpha in ORDERS
        },
        "expected_draw_bias": {f"{alpha:g}": gaussian_bias(alpha) for alpha in ORDERS},
        "negative_share": float(eigenvalues.clamp(max=0).abs().sum() / eigenvalues.abs().sum()),
        "parameters": len(eigenvalues),
        "loss": float(cross_entropy(model(images.inputs), images.targets).detach()),
        "gradient": float(gradients.mean(0).norm()),
    }


FACTS = {"Gaussian draw": _gaussian_draw, "network": _network}


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute the entropies of one fact."""
    return FACTS[configuration["fact"]](configuration)


STUDY = Study(
    name="renyi_gradient_proxy",
    question="How far is the entropy of the squared mean gradient from that of the Hessian, while "
    "a network trains, and what does a single draw of it cost?",
    grid=grid_of("renyi_gradient_proxy"),
    run=run,
    trained=True,
)
