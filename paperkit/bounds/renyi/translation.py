"""Section 3 and Appendix B: from perturbed data to perturbed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    assumptions_of,
    check_probability,
    loss_at,
    symmetric_matrix,
)
from paperkit.bounds.statement import Identity, Inequality
from paperkit.linalg.probes import generator_of
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import evaluation


def haar_matrices(dimension: int, draws: int, seed: int = 0) -> Tensor:
    """Draw orthogonal matrices from the Haar measure on O(d): (draws, d, d), float64, CPU.

    The QR factors of Gaussian matrices, with the signs that make the factorisation unique
    (Mezzadri 2007); without them the result is not uniform.

    Raises
    ------
    ValueError
        If the dimension or the number of draws is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import haar_matrices
    >>> rotations = haar_matrices(3, draws=2, seed=0)
    >>> rotations.shape
    torch.Size([2, 3, 3])
    >>> torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    True
    """
    dimension = arguments.integer("dimension", dimension, at_least=1)
    draws = arguments.integer("draws", draws, at_least=1)
    generator = generator_of(seed)
    shape = (draws, dimension, dimension)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


def translated_losses(
    model: nn.Module,
    data: object,
    layer: str,
    perturbations: Tensor,
    rho: float,
    loss: str = "cross_entropy",
) -> Tensor:
    r"""Return the loss with a layer's inputs h moved to :math:`h + \rho A h`, for each A.

    Source: Rényi paper, Proposition 3.1: for the layer that reads the network's input it is
    :math:`L(S(A, \rho), \theta)`; for another it is its analogue in feature space.

    Parameters
    ----------
    model : nn.Module
        Measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    layer : str
        The name of a linear layer. (For a convolution a matrix on its inputs is in general no
        change of its kernel.)
    perturbations : Tensor
        Matrices A, shape (k, d, d), d the layer's number of inputs.
    rho : float
        Their size.
    loss : str
        A name from :data:`paperkit.network.losses.LOSSES`.

    Returns
    -------
    Tensor
        Shape (k,), float64, on the CPU.

    Raises
    ------
    ValueError
        If the layer is not linear or the matrices do not fit it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.renyi import translated_losses
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)
    >>> signs = torch.tensor([[[1.0]], [[-1.0]]])
    >>> translated_losses(model, data, "0", signs, rho=0.5, loss="half_squared_error")  # ½ (1 ± ½)²
    tensor([1.1250, 0.1250], dtype=torch.float64)
    """
    rho = arguments.number("rho", rho)
    module = _linear_layer(model, layer)
    d = module.in_features
    arguments.tensor("perturbations", perturbations, shape=("k", d, d), finite=True)
    matrices = perturbations.to(module.weight)
    inputs, targets = as_batch(data)
    losses = []
    for matrix in matrices:

        def move(_: nn.Module, arguments: tuple[Tensor, ...], a: Tensor = matrix) -> Tensor:
            return arguments[0] + rho * arguments[0] @ a.T

        handle = module.register_forward_pre_hook(move)
        try:
            with evaluation(model), torch.no_grad():
                losses.append(float(loss_at(model, {}, inputs, targets, loss)))
        finally:
            handle.remove()
    return torch.tensor(losses, dtype=torch.float64, device="cpu")


def _linear_layer(model: nn.Module, layer: str) -> nn.Linear:
    arguments.module("model", model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise ValueError(f"model={arguments.shown(model)} has no linear layer.")
    return linear[arguments.choice("layer", layer, linear)]


def perturbation_translation(
    model: nn.Module,
    data: object,
    layer: str,
    perturbation: Tensor,
    rho: float,
    loss: str = "cross_entropy",
) -> Identity:
    r"""Compare the loss with inputs moved by :math:`\rho A h` and with weights by :math:`\rho W A`.

    Source: Rényi paper, equation 2; an identity for a linear layer, with or without bias.

    Parameters
    ----------
    model, data, layer, rho, loss
        As in :func:`translated_losses`.
    perturbation : Tensor
        A, shape (d, d); the same for all samples. It need not be orthogonal.

    Raises
    ------
    ValueError
        As :func:`translated_losses`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.renyi import perturbation_translation
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    >>> _ = nn.init.eye_(model[0].weight)
    >>> data = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    >>> swap = torch.eye(2).flip(0)
    >>> perturbation_translation(model, data, "0", swap, rho=1.0)  # equal logits: log 2
    Identity(Rényi paper, eq. 2: g(W(h + ρAh)) = g((W + ρWA)h), here inside the mean loss: 0.693147
        = 0.693147, certified)
    """
    rho = arguments.number("rho", rho)
    module = _linear_layer(model, layer)
    d = module.in_features
    arguments.tensor("perturbation", perturbation, shape=(d, d), finite=True)
    matrices = perturbation.unsqueeze(0)
    left = float(translated_losses(model, data, layer, matrices, rho, loss)[0])
    inputs, targets = as_batch(data)
    moved = module.weight.detach() + rho * module.weight.detach() @ perturbation.to(module.weight)
    with evaluation(model), torch.no_grad():
        right = float(loss_at(model, {f"{layer}.weight": moved}, inputs, targets, loss))
    owners = [m for m in model.modules() if getattr(m, "weight", None) is module.weight]
    return Identity(
        statement="g(W(h + ρAh)) = g((W + ρWA)h), here inside the mean loss",
        source="Rényi paper, eq. 2",
        left=left,
        right=right,
        assumptions={"weight_belongs_to_one_module": len(owners) == 1},
        tolerance=max(1e-9, 100 * torch.finfo(moved.dtype).eps),
    )


def haar_translation(
    population_loss: float,
    perturbed_losses: Values,
    n: int,
    epsilon: float,
    *,
    loss_range: float = 1.0,
    perturbed_population_loss: float | None = None,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the population loss by the mean loss on perturbed data.

    :math:`L(D, \theta) \le E_A L(S(A, \rho), \theta) + C\sqrt{\log(1/\varepsilon) / 2n}` with
    probability 1 − ε. Source: Rényi paper, Proposition 3.1, Theorem B.1 and Corollary B.3. False
    as printed, for parameters trained on S: Hoeffding's inequality needs a sample that θ does not
    depend on, and a network that memorises random labels violates it. It holds on a hold-out S.

    Parameters
    ----------
    population_loss : float
        L(D, θ), or its estimate.
    perturbed_losses : Tensor or sequence of float
        L(S(A, ρ), θ) for the drawn A (:func:`translated_losses`); their mean is used.
    n : int
        Samples in S.
    epsilon : float
        Probability that the bound may fail.
    loss_range : float
        C, the loss lies in [0, C].
    perturbed_population_loss : float, optional
        E_A L(D(A, ρ), θ); decides the hypothesis that perturbing does not lower the loss.
    known : mapping of str to bool, optional
        Answers to ``parameters_independent_of_sample``, ``loss_within_range`` and
        ``expectation_over_the_haar_measure``.

    Raises
    ------
    ValueError
        If n, epsilon or the range is out of range, or ``known`` has another name.

    Examples
    --------
    >>> from paperkit.bounds.renyi import haar_translation
    >>> trained_on_it = {"parameters_independent_of_sample": False}
    >>> bound = haar_translation(0.2, [0.25, 0.35], n=1000, epsilon=0.05, known=trained_on_it)
    >>> round(bound.right, 4)  # 0.3 and Hoeffding's deviation
    0.3387
    >>> bound.holds, bound.certified
    (True, False)
    """
    population_loss = arguments.number("population_loss", population_loss)
    losses = arguments.vector("perturbed_losses", perturbed_losses)
    n, epsilon = arguments.integer("n", n, at_least=1), check_probability("epsilon", epsilon)
    loss_range = arguments.number("loss_range", loss_range, above=0)
    raises = None
    if perturbed_population_loss is not None:
        perturbed = arguments.number("perturbed_population_loss", perturbed_population_loss)
        raises = population_loss <= perturbed
    deviation = loss_range * math.sqrt(math.log(1.0 / epsilon) / (2.0 * n))
    return Inequality(
        statement="L(D, θ) ≤ E_A L(S(A, ρ), θ) + C √(log(1/ε) / 2n)",
        source="Rényi paper, Prop. 3.1 and Thm. B.1",
        left=population_loss,
        right=float(losses.mean()) + deviation,
        assumptions=assumptions_of(
            dict.fromkeys(
                (
                    "parameters_independent_of_sample",
                    "loss_within_range",
                    "expectation_over_the_haar_measure",
                )
            ),
            known,
            perturbation_raises_population_loss=raises,
        ),
    )


def haar_relative_flatness(
    weight: Tensor, hessian: Tensor, perturbations: Tensor, rho: float = 1.0
) -> Identity:
    r"""Compare the mean rise of the quadratic loss under WA with relative flatness.

    :math:`E_A \tfrac{\rho^2}{2} \mathrm{vec}(WA)^\top H\, \mathrm{vec}(WA) =
    \frac{\rho^2}{2d} \sum_{s,s'} \langle w_s, w_{s'} \rangle \mathrm{Tr} H_{ss'}`, because Haar
    matrices have :math:`E A_{kj} A_{k'j'} = \delta_{kk'} \delta_{jj'} / d`. So the translation of
    the Rényi paper's Section 3 leads to the measure of Petzka et al. (2021), and to no entropy.

    Parameters
    ----------
    weight : Tensor
        W, shape (o, d), rows w_s.
    hessian : Tensor
        The layer's block, (o·d, o·d), W flattened row-major.
    perturbations : Tensor
        Equally likely matrices A, shape (k, d, d). Any set with Haar's second moment gives the
        identity exactly, for example the signed permutations; draws give it up to their error.
    rho : float
        The size of the perturbation.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import haar_relative_flatness
    >>> flip, swap = torch.diag(torch.tensor([1.0, -1.0])), torch.eye(2).flip(0)
    >>> group = torch.stack([torch.eye(2), flip, swap, swap @ flip])  # Haar's second moment
    >>> weight, hessian = torch.tensor([[1.0, 2.0]]), torch.diag(torch.tensor([3.0, 1.0]))
    >>> haar_relative_flatness(weight, hessian, group)  # ‖w‖² Tr H / 2d
    Identity(derived from Rényi paper, Section 3; Petzka et al. 2021: E_A ½ρ² vec(WA)ᵀ H vec(WA) =
        ρ²/(2d) Σ ⟨w_s, w_s'⟩ Tr H_ss': 5 = 5, certified)
    """
    rho = arguments.number("rho", rho)
    arguments.tensor("weight", weight, shape=("o", "d"), finite=True)
    outputs, d = weight.shape
    arguments.tensor("hessian", hessian, shape=(outputs * d, outputs * d))
    arguments.tensor("perturbations", perturbations, shape=("k", d, d), finite=True)
    w = weight.detach().to(device="cpu", dtype=torch.float64)
    matrix = symmetric_matrix(hessian)
    a = perturbations.detach().to(device="cpu", dtype=torch.float64)
    moves = (w @ a).flatten(1)
    traces = matrix.reshape(outputs, d, outputs, d).diagonal(dim1=1, dim2=3).sum(2)
    flat = a.flatten(1)
    moment = flat.T @ flat / len(a)
    haar = torch.eye(d * d, dtype=torch.float64, device="cpu") / d
    return Identity(
        statement="E_A ½ρ² vec(WA)ᵀ H vec(WA) = ρ²/(2d) Σ ⟨w_s, w_s'⟩ Tr H_ss'",
        source="derived from Rényi paper, Section 3; Petzka et al. 2021",
        left=0.5 * rho * rho * float(((moves @ matrix) * moves).sum(1).mean()),
        right=0.5 * rho * rho / d * float(((w @ w.T) * traces).sum()),
        assumptions={"second_moment_is_haar": torch.allclose(moment, haar, rtol=0, atol=1e-12)},
    )
