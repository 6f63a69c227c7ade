"""Run examples and say what did not print as shown."""

import doctest
import io
import warnings

import pytest


def failures(test: doctest.DocTest, config: pytest.Config) -> str:
    """Return doctest's report of an example, empty if all is as shown. A warning is an error.

    The options are those of pytest's own runner of docstrings, so that both say the same.
    """
    names = config.getini("doctest_optionflags")
    flags = sum(doctest.OPTIONFLAGS_BY_NAME[name] for name in names)
    report = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=report.write)
    return report.getvalue()
