"""What the papers claim, by which criterion it is decided, and the verdict that the records earn.

A claim is a sentence of a paper with a criterion that was fixed before the run; a verdict is
computed from the records (`verdicts`) and shown wherever a page or a chapter asks for it
(`show_verdicts`, `render`).
"""

from paperkit.ledger import render
from paperkit.ledger.render import show_verdicts
from paperkit.ledger.verdict import Verdict, verdicts

__all__ = ["Verdict", "render", "show_verdicts", "verdicts"]
