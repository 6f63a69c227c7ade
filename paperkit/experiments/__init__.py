"""Studies, their records, and the verdicts that the records earn.

A study is a grid of configurations and a function from one to metrics (`Study`, `run_study`); a
record is one finished run (`records_of`); a claim is what a paper says with a criterion fixed
before the run, and a verdict is computed from the records (`verdicts`).
"""

from paperkit.experiments import render
from paperkit.experiments.parameters import resolve
from paperkit.experiments.published import records_of
from paperkit.experiments.records import Record
from paperkit.experiments.render import show_verdicts
from paperkit.experiments.running import RunContext, run_study
from paperkit.experiments.study import Study
from paperkit.experiments.verdict import Verdict, verdicts

__all__ = [
    "Record",
    "RunContext",
    "Study",
    "Verdict",
    "records_of",
    "render",
    "resolve",
    "run_study",
    "show_verdicts",
    "verdicts",
]
