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

    The matrices are QR factors of Gaussian matrices, with the signs that make the factorisation
    unique (Mezzadri 2007). Without these signs the result is not uniform.

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
    r"""Return the loss with a layer's inputs a moved to :math:`a + \rho Q a`, for each matrix Q.

    Source: Rényi paper, Proposition 3.1, with A for Q and h for a. For the layer that reads the
    network's input this is :math:`L(S(Q, \rho), \theta)`, the loss on the sample S perturbed by Q;
    for another layer it is the analogue in feature space.

    Parameters
    ----------
    model : nn.Module
        Network, measured in evaluation mode and left as it was.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    layer : str
        Name of a linear layer. (For a convolution a matrix on its inputs is in general no change of
        its kernel.)
    perturbations : Tensor
        Matrices Q, shape (draws, k, k), with k the layer's number of inputs.
    rho : float
        Size ρ of the perturbations.
    loss : str
        Name from :data:`paperkit.network.LOSSES`.

    Returns
    -------
    Tensor
        Losses, shape (draws,), float64, on the CPU.

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
    arguments.tensor("perturbations", perturbations, shape=("draws", d, d), finite=True)
    matrices = perturbations.to(module.weight)
    inputs, targets = as_batch(data)
    losses = []
    for matrix in matrices:

        def move(_: nn.Module, arguments: tuple[Tensor, ...], q: Tensor = matrix) -> Tensor:
            return arguments[0] + rho * arguments[0] @ q.T

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
    r"""Compare the loss with inputs moved by :math:`\rho Q a` and with weights by :math:`\rho W Q`.

    Source: Rényi paper, equation 2; an identity for a linear layer, with or without bias.

    Parameters
    ----------
    model, data, layer, rho, loss
        As in :func:`translated_losses`.
    perturbation : Tensor
        Matrix Q, shape (k, k), the same for all samples, not necessarily orthogonal.

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
    Identity(Rényi paper, eq. 2: W(a + ρQa) = (W + ρWQ)a, here inside the mean loss: 0.693147 =
        0.693147, certified)
    """
    rho = arguments.number("rho", rho)
    module = _linear_layer(model, layer)
    d = module.in_features
    arguments.tensor("perturbation", perturbation, shape=(d, d), finite=True)
    matrices = perturbation.unsqueeze(0)
    left = float(translated_losses(model, data, layer, matrices, rho, loss)[0])
    inputs, targets = as_batch(data)
    moved_weight = module.weight.detach() + rho * module.weight.detach() @ perturbation.to(
        module.weight
    )
    with evaluation(model), torch.no_grad():
        right = float(loss_at(model, {f"{layer}.weight": moved_weight}, inputs, targets, loss))
    owners = [m for m in model.modules() if getattr(m, "weight", None) is module.weight]
    return Identity(
        statement="W(a + ρQa) = (W + ρWQ)a, here inside the mean loss",
        source="Rényi paper, eq. 2",
        left=left,
        right=right,
        assumptions={"weight_belongs_to_one_module": len(owners) == 1},
        tolerance=max(1e-9, 100 * torch.finfo(moved_weight.dtype).eps),
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

    :math:`L(D, \theta) \le E_Q L(S(Q, \rho), \theta) + c\sqrt{\log(1/\delta) / 2n}` with
    probability 1 − δ, for a loss in [0, c]. Source: Rényi paper, Proposition 3.1, Theorem B.1 and
    Corollary B.3. The claim is false as printed, for parameters trained on S: Hoeffding's
    inequality needs a sample that θ does not depend on, and a network that memorises random labels
    violates the claim. On a hold-out S the bound holds.

    Parameters
    ----------
    population_loss : float
        Loss L(D, θ) on the distribution D, or its estimate.
    perturbed_losses : Tensor or sequence of float
        Losses L(S(Q, ρ), θ) for the drawn Q (:func:`translated_losses`); their mean is used.
    n : int
        Number of samples in S.
    epsilon : float
        Probability δ that the bound may fail; the paper's ε.
    loss_range : float
        Upper end c of the loss, which lies in [0, c]; the paper's C.
    perturbed_population_loss : float, optional
        Loss E_Q L(D(Q, ρ), θ), which decides the hypothesis that perturbing does not lower the
        loss.
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
        statement="L(D, θ) ≤ E_Q L(S(Q, ρ), θ) + c √(log(1/δ) / 2n)",
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
    r"""Compare the mean rise of the quadratic loss under WQ with relative flatness.

    :math:`E_Q \tfrac{\rho^2}{2} \mathrm{vec}(WQ)^\top H\, \mathrm{vec}(WQ) = \frac{\rho^2}{2k}
    \sum_{s,s'} \langle w_s, w_{s'} \rangle \mathrm{Tr} H_{ss'}`, because Haar matrices of size k
    have :math:`E Q_{ij} Q_{i'j'} = 1/k` for equal indices and 0 for others. So the translation of
    the Rényi paper's Section 3 leads to the measure of Petzka et al. (2021), and to no entropy.

    Parameters
    ----------
    weight : Tensor
        Weight W, shape (h, k), rows w_s.
    hessian : Tensor
        Hessian block of the layer, (h·k, h·k), W flattened row-major.
    perturbations : Tensor
        Equally likely matrices Q, shape (draws, k, k). Any set with Haar's second moment gives the
        identity exactly, for example the signed permutations; draws give it up to their error.
    rho : float
        Size ρ of the perturbation.

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
    Identity(derived from Rényi paper, Section 3; Petzka et al. 2021: E_Q ½ρ² vec(WQ)ᵀ H vec(WQ) =
        ρ²/(2k) Σ ⟨w_s, w_s'⟩ Tr H_ss': 5 = 5, certified)
    """
    rho = arguments.number("rho", rho)
    arguments.tensor("weight", weight, shape=("h", "k"), finite=True)
    outputs, d = weight.shape
    arguments.tensor("hessian", hessian, shape=(outputs * d, outputs * d))
    arguments.tensor("perturbations", perturbations, shape=("draws", d, d), finite=True)
    w = weight.detach().to(device="cpu", dtype=torch.float64)
    matrix = symmetric_matrix(hessian)
    a = perturbations.detach().to(device="cpu", dtype=torch.float64)
    moves = (w @ a).flatten(1)
    traces = matrix.reshape(outputs, d, outputs, d).diagonal(dim1=1, dim2=3).sum(2)
    flat = a.flatten(1)
    moment = flat.T @ flat / len(a)
    haar = torch.eye(d * d, dtype=torch.float64, device="cpu") / d
    return Identity(
        statement="E_Q ½ρ² vec(WQ)ᵀ H vec(WQ) = ρ²/(2k) Σ ⟨w_s, w_s'⟩ Tr H_ss'",
        source="derived from Rényi paper, Section 3; Petzka et al. 2021",
        left=0.5 * rho * rho * float(((moves @ matrix) * moves).sum(1).mean()),
        right=0.5 * rho * rho / d * float(((w @ w.T) * traces).sum()),
        assumptions={"second_moment_is_haar": torch.allclose(moment, haar, rtol=0, atol=1e-12)},
    )
