"""Bad arguments of every public name end in one sentence of the library that names them.

The message of an error is the library's own if a ``raise`` in its code raised it. What need not be
refused may give a result, and the model comes back as it was in each case.
"""

import linecache
import random
import warnings
import zlib
from pathlib import Path

import pytest
import torch

import paperkit
from tests import public_calls
from tests.public_calls import CALLS, KINDS, bad_values, cases, names_it, valid_arguments

HOME = Path(paperkit.__file__).resolve().parent
NAMES = public_calls.public_names()
CALLED = sorted(name for name in NAMES if not public_calls.is_made_by_the_library(NAMES[name]))
COUNTS: dict[str, tuple[int, int]] = {}


def state_of(model: object) -> list[object] | None:
    if not isinstance(model, torch.nn.Module) or any(p.is_meta for p in model.parameters()):
        return None
    if any(isinstance(m, torch.nn.LazyLinear) for m in model.modules()):
        return None
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [t.tolist() for t in tensors],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]


def raised_by_the_library(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    assert frame is not None
    file = frame.tb_frame.f_code.co_filename
    line = linecache.getline(file, frame.tb_lineno)
    return HOME in Path(file).resolve().parents and line.strip().startswith("raise")


def complaint(name: str, argument: str, value: object, must: bool, tmp_path: Path) -> str | None:
    """Return what is wrong with how one bad argument is met; None if nothing is."""
    function = NAMES[name]
    given = valid_arguments(name, function) | {argument: value}
    if "store" in given or (name.startswith("experiments.") and argument != "store"):
        given = {"store": tmp_path, **given} if "store" in _parameters(function) else given
    model, before = given.get("model"), state_of(given.get("model"))
    found = None
    try:
        result = function(**given)
        if hasattr(result, "__next__"):
            next(result)
    except (ValueError, TypeError, RuntimeError) as error:
        if not raised_by_the_library(error):
            found = f"foreign {type(error).__name__}: {error}"
        elif not names_it(str(error), argument):
            found = f"does not name it: {error}"
    except Exception as error:
        found = f"foreign {type(error).__name__}: {error}"
    else:
        if must:
            found = "taken in silence"
    if found is None and not name.startswith(("training.train", "optim.")):
        found = None if state_of(model) == before else "the model was left changed"
    if found is None:
        return None
    return f"{name}({argument}={paperkit.arguments.shown(value)}): {found}"


def _parameters(function: object) -> set[str]:
    import inspect

    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_every_public_name_has_a_valid_call() -> None:
    assert set(CALLED) == set(CALLS)


@pytest.mark.parametrize("name", [name for name in CALLED if CALLS[name].runs])
def test_the_valid_call_is_valid(name: str, tmp_path: Path) -> None:
    function = NAMES[name]
    given = valid_arguments(name, function)
    if "store" in _parameters(function) and name != "plotting.landing_record":
        given["store"] = tmp_path
    before = state_of(given.get("model"))
    result = function(**given)
    if hasattr(result, "__next__"):
        next(result)
    if not name.startswith("training.train"):
        assert state_of(given.get("model")) == before


@pytest.mark.parametrize("name", CALLED)
def test_bad_arguments_end_in_a_sentence_that_names_them(name: str, tmp_path: Path) -> None:
    rng = random.Random(zlib.crc32(name.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = list(cases(name, NAMES[name], rng))
        found = [complaint(name, *case, tmp_path) for case in drawn]
    complaints = [one for one in found if one is not None]
    COUNTS[name] = len(drawn), len(complaints)
    assert not complaints, f"{len(complaints)} of {len(drawn)}:\n" + "\n".join(complaints)


def test_all_sentences_name_their_argument() -> None:
    """The counts of all public names together, where all of them have run."""
    if set(COUNTS) != set(CALLED):
        pytest.skip("only some of the public names were tried")
    drawn, complaints = (sum(column) for column in zip(*COUNTS.values(), strict=True))
    print(f"{drawn} bad arguments of {len(COUNTS)} public names, {complaints} complaints")
    assert complaints == 0 and drawn > 50 * len(COUNTS)


def test_kinds_name_arguments_and_know_values() -> None:
    for kind in set(KINDS.values()):
        bad_values(kind, public_calls.data() if kind == "data" else torch.ones(2), random.Random(0))
