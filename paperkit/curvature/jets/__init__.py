r"""Hessian products of a network, several at a time, from one pass forward and one back.

The *jet* of a quantity x(θ) along vectors :math:`v_1, \dots, v_k` is the stack of its value and its
k derivatives :math:`\dot x_j`. A pass forward with jets is forward mode for all vectors. A pass
back with the jets of the cotangents, :math:`(\bar x, \dot{\bar x}_1, \dots, \dot{\bar x}_k)`, gives
the gradient in the parameters and its k derivatives, the Hessian products (forward over reverse,
Pearlmutter 1994). Autograd's own tape serves for the pass back, with a stack in place of each
tensor, where every operation has its rule for jets:

* An operation that is linear and treats samples alike is its own rule, forward and back: the stack
  is a longer batch.
* A product :math:`y = W * x`, also a convolution, has :math:`\dot y = W * \dot x + \dot W * x`, and
  its two products on the way back likewise: six for each vector, where a gradient takes three.
* A function of each entry has :math:`\dot y = φ'(x)\, \dot x` and, on the way back,
  :math:`\dot{\bar x} = φ'(x)\, \dot{\bar y} + φ''(x)\, \dot x\, \bar y`.
* Normalisation by frozen statistics is folded into the weight of the layer before it, where the
  product rule costs nothing.

An operation without a rule raises :class:`NoRuleError`, and the caller takes another way.
"""

from paperkit.curvature.jets import rules as rules  # fills the table that jets follow
from paperkit.curvature.jets.jet import Jet, NoRuleError, ParameterJet

__all__ = ["Jet", "NoRuleError", "ParameterJet"]
