"""The first cell after a chapter's parameters: check them, and make every run alike."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from paperkit import arguments
from paperkit.experiments.parameters import resolve
from paperkit.plotting import book_style

OF_EVERY_CHAPTER = ("profile", "device", "store")


def setup(
    namespace: dict[str, Any],
    profiles: dict[str, dict[str, Any]],
    allowed: Iterable[str] = (),
    *,
    threads: int | None = None,
) -> SimpleNamespace:
    """Resolve a chapter's parameters, set the figures' style, and seed what draws at random.

    ``p = setup(globals(), {"smoke": {…}, "laptop": {…}, "paper": {…}}, ["seed", "samples"])``

    Parameters
    ----------
    namespace : dict
        Globals of the notebook.
    profiles : dict of dict
        Settings that each profile gives: values for the parameters that are None, and further
        settings of this chapter. A profile that is left out is refused; ``"paper"`` is left out
        where no paper has settings for what the chapter does.
    allowed : iterable of str
        Parameters of this chapter; ``profile``, ``device`` and ``store`` belong to each and may be
        left out.
    threads : int, optional
        Threads of PyTorch. On small matrices, sharing the work costs more than it saves, so a
        chapter that has nothing else takes 1. None leaves the number as it is.

    Returns
    -------
    SimpleNamespace
        The profile's settings overridden by the parameters, as
        :func:`paperkit.experiments.resolve` returns them.

    Raises
    ------
    ValueError
        If a name is no parameter, or the profile, engine or device does not exist.
    TypeError
        If a value has the wrong type.

    Examples
    --------
    The template ``notebooks/TEMPLATE.py`` shows the call in its place. A misspelt name is refused:

    >>> from paperkit.chapter import setup
    >>> setup({"sampels": 8}, {"laptop": {"samples": 15}}, ["samples"])
    Traceback (most recent call last):
        ...
    ValueError: 'sampels' is not a parameter of this notebook; did you mean 'samples'?
    """
    own = arguments.strings("allowed", allowed, "a list of names of parameters")
    if threads is not None:
        threads = arguments.integer("threads", threads, at_least=1)
    parameters = resolve(namespace, profiles, [*OF_EVERY_CHAPTER, *own])
    book_style()
    if threads is not None:
        torch.set_num_threads(threads)
    if isinstance(seed := getattr(parameters, "seed", None), int):
        torch.manual_seed(seed)
    # The optimizers search all live objects for the modules around their parameters. No module has
    # been built yet, so the search may pass over what the imports have left, which is most of it.
    gc.freeze()
    return parameters
