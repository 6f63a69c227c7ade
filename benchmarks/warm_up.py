"""Imported by the process that the measuring ones fork from: what ``torch.func`` loads when used.

Its first use takes seconds, which are no part of any measurement. The tensors are too small for
threads, which would not survive the fork.
"""

import torch
from torch.func import grad, jacrev, jvp, vmap

_ONE = torch.ones(1, device="cpu")
vmap(jacrev(torch.sin))(_ONE)
jvp(grad(lambda x: torch.sin(x).sum()), (_ONE,), (_ONE,))
