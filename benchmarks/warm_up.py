"""Load the code of ``torch.func`` in the process from which the measuring processes fork.

The first use of ``torch.func`` takes seconds, which are no part of any measurement. The tensors are
too small for threads, which would not survive the fork.
"""

import torch
from torch.func import grad, jacrev, jvp, vmap

_ONE = torch.ones(1, device="cpu")
vmap(jacrev(torch.sin))(_ONE)
jvp(grad(lambda x: torch.sin(x).sum()), (_ONE,), (_ONE,))
