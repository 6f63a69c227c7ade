"""The sharpness-aware optimizers, one file each, on one core.

Each is a :class:`torch.optim.Optimizer` that wraps a base optimizer, or has step sizes of its own.
Its ``step`` takes PyTorch's closure, which clears the gradients, computes the loss of the whole
batch, calls ``backward`` and returns the loss, and calls it as often as the method needs.

Examples
--------
>>> import torch
>>> from paperkit.optim import SAM
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 3)
... )
>>> inputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
>>> cross_entropy = torch.nn.functional.cross_entropy

Running statistics change once a step, and dropout masks are the same in all passes:

>>> optimizer = SAM(model, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
>>> def closure():
...     optimizer.zero_grad()
...     loss = cross_entropy(model(inputs), targets)
...     loss.backward()
...     return loss
>>> loss = optimizer.step(closure)
>>> int(model[1].num_batches_tracked)
1

Gradients accumulated over micro-batches, all of them inside the closure; the step's gradient
clipped; a learning-rate scheduler:

>>> optimizer = SAM(model, lr=0.1, max_norm=1.0)
>>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
>>> def accumulate():
...     optimizer.zero_grad()
...     for x, y in zip(inputs.split(3), targets.split(3), strict=True):
...         loss = cross_entropy(model(x), y) / 2
...         loss.backward()
>>> optimizer.step(accumulate)
>>> scheduler.step()

Mixed precision: the closure scales its loss, and an overflow in any pass skips the step:

>>> scaler = torch.amp.GradScaler("cpu")
>>> def scaled():
...     optimizer.zero_grad()
...     with torch.autocast("cpu"):
...         loss = cross_entropy(model(inputs), targets)
...     scaler.scale(loss).backward()
...     return loss
>>> loss = optimizer.step(scaled, scaler=scaler)
>>> scaler.update()

A loop written by hand:

>>> from paperkit.optim import RandomState
>>> random_state = RandomState([inputs.device])
>>> optimizer.zero_grad()
>>> cross_entropy(model(inputs), targets).backward()
>>> optimizer.first_step()
>>> with random_state.replayed():
...     cross_entropy(model(inputs), targets).backward()
>>> optimizer.second_step()

Several workers, each with the perturbation of its own batch (``parallel`` is a
DistributedDataParallel model; without ``no_sync`` they share one perturbation). Parameters that are
sharded over processes, as by FSDP, are refused::

    optimizer = SAM(parallel, lr=0.1, no_sync=parallel.no_sync)

Groups with a radius of their own, and what each step did:

>>> groups = [{"params": model[0], "rho": 0.2}, {"params": model[3]}]
>>> optimizer = SAM(groups, rho=0.05, lr=0.1, log=True)
>>> loss = optimizer.step(closure)
>>> optimizer.log[0].step, optimizer.gradient_evaluations
(0, 2)

A compiled model; its running statistics, too, change once a step:

>>> compiled = torch.compile(model, backend="eager")
>>> optimizer = SAM(compiled, lr=0.1)
>>> before = int(model[1].num_batches_tracked)
>>> def fast():
...     optimizer.zero_grad()
...     loss = cross_entropy(compiled(inputs), targets)
...     loss.backward()
...     return loss
>>> loss = optimizer.step(fast)
>>> int(model[1].num_batches_tracked) - before
1

Training saved and continued; without the save it would go on in the same way, bit for bit:

>>> saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
>>> optimizer = SAM(model, lr=0.1)
>>> optimizer.load_state_dict(saved["optimizer"])
>>> optimizer.gradient_evaluations
2

A gradient that is not finite skips the step, whichever pass it comes from, and leaves the weights
as they were:

>>> weight = model[0].weight.detach().clone()
>>> def broken():
...     optimizer.zero_grad()
...     loss = cross_entropy(model(inputs), targets) * float("nan")
...     loss.backward()
...     return loss
>>> loss = optimizer.step(broken)
>>> optimizer.skipped_steps, torch.equal(model[0].weight, weight)
(1, True)

Sparse gradients stay sparse, and parameters without a gradient stay as they are:

>>> embedding, unused = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 3)
>>> optimizer = SAM([*embedding.parameters(), *unused.parameters()], lr=0.1)
>>> def look_up():
...     optimizer.zero_grad()
...     loss = embedding(torch.tensor([0, 2])).square().sum()
...     loss.backward()
...     return loss
>>> loss = optimizer.step(look_up)
>>> embedding.weight.grad.is_sparse, unused.weight.grad is None
(True, True)
"""

from paperkit.optim.asam import ASAM
from paperkit.optim.core import MultiPassOptimizer
from paperkit.optim.eigen_sam import EigenSAM
from paperkit.optim.gradient_regularization import GradientRegularization
from paperkit.optim.igsam import IGSAM
from paperkit.optim.opened import StepRecord
from paperkit.optim.replay import RandomState
from paperkit.optim.rsam import RSAM
from paperkit.optim.sam import SAM
from paperkit.optim.sasam import SASAM
from paperkit.optim.sasgd import SASGD
from paperkit.optim.smoothness_adaptive import SmoothnessAdaptiveOptimizer, adaptive_step_size
from paperkit.optim.vector import Vector
from paperkit.optim.wrapped import WrappedOptimizer

__all__ = [
    "ASAM",
    "IGSAM",
    "RSAM",
    "SAM",
    "SASAM",
    "SASGD",
    "EigenSAM",
    "GradientRegularization",
    "MultiPassOptimizer",
    "RandomState",
    "SmoothnessAdaptiveOptimizer",
    "StepRecord",
    "Vector",
    "WrappedOptimizer",
    "adaptive_step_size",
]
