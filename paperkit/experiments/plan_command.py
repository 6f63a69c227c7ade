"""The command ``paperkit plan``: what is left of the studies, and what it would take."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from paperkit import arguments
from paperkit.experiments import plan_text
from paperkit.experiments.archive import Archive
from paperkit.experiments.planned import any_study, every_study
from paperkit.experiments.planning import StudyPlan, measured_aloud, plan_of
from paperkit.experiments.profiles import PROFILES
from paperkit.experiments.projections import checked_projection, keep_projection
from paperkit.experiments.study import Study, configurations
from paperkit.experiments.timing import Timing, keep
from paperkit.experiments.training_cost import timed_as

EXAMPLES = """\
examples:
  paperkit plan                                      every study at the laptop profile
  paperkit plan --profile paper --price-per-hour 2.5 what the papers' own settings would cost
  paperkit plan mnist5k_training --measure           time a trial of each kind of run first
  paperkit plan mnist5k_training --check             run it in an empty store, and compare
"""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plan",
        help="say what a study would take, without running it",
        description="Say what studies would take: runs that are finished and missing, their steps, "
        "the seconds of a step and where these come from (a trial that is timed now, records, or "
        "a kept timing), and projected hours. Nothing is run. A named study is told by kinds of "
        "runs, together with the studies that it needs. Where no time is known the plan says so.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_plan)
    parser.add_argument("name", nargs="*", help="the study, or several (every study)")
    parser.add_argument("--profile", choices=PROFILES, default="laptop", help="whose grid (laptop)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time a few steps of one run of each kind of which runs are missing",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep what was timed, or checked, in results/, where the book finds it",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run a study in an empty store that is thrown away, and compare with its plan",
    )
    parser.add_argument(
        "--price-per-hour", type=float, metavar="PRICE", help="of the machine, in any currency"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list, by kinds of runs")
    parser.add_argument("--store", help="the working store (_build/store)")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")


def _plan(given: argparse.Namespace) -> int:
    price = given.price_per_hour
    if price is not None:
        price = arguments.number("price-per-hour", price, at_least=0)
    if given.save and not (given.measure or given.check):
        raise ValueError("--save keeps what --measure or --check found: add one of them.")
    device = arguments.device("device", given.device)
    if device.type == "meta":
        raise ValueError("device='meta' holds no numbers: pass 'cpu' or 'cuda'.")
    if given.check:
        return _check(given)
    archive = Archive(given.store)
    measure = measured_aloud(_tell) if given.measure else None
    studies = _with_needs(given.name) if given.name else every_study()
    plans = [plan_of(s, given.profile, archive, device, measure=measure) for s in studies]
    if given.json:
        print(json.dumps([plan_text.plain(plan, price) for plan in plans], indent=2))
    else:
        print(plan_text.text(plans, price, kinds=bool(given.name)))
    if given.save:
        _tell(f"kept in {keep(_timed_now(plans))}")
    return 0


def text_of_one(name: str, profile: str, store: str | None, device: str) -> str:
    """Return the plan of a study, and of those that it needs, by kinds of runs.

    Parameters
    ----------
    name : str
        Name of the study.
    profile : {"smoke", "laptop", "paper"}
        Profile whose grid is planned.
    store : str or None
        The working store.
    device : str
        Device that the projection is for.
    """
    archive, chosen = Archive(store), arguments.device("device", device)
    plans = [plan_of(study, profile, archive, chosen) for study in _with_needs([name])]
    return plan_text.text(plans, kinds=True)


def _with_needs(names: Sequence[str]) -> list[Study]:
    """Return the studies of these names, and after each what it needs."""
    found: dict[str, Study] = {}
    waiting = list(names)
    while waiting:
        study = any_study(waiting.pop(0))
        if study.name not in found:
            found[study.name] = study
            waiting = [*study.needs, *waiting]
    return list(found.values())


def _timed_now(plans: Sequence[StudyPlan]) -> Iterator[tuple[str, str, str, Timing]]:
    for plan in plans:
        for kind in plan.kinds:
            if kind.timing is not None and kind.timing.origin.startswith("timed now"):
                yield timed_as(plan.study), kind.kind, kind.unit, kind.timing


def _check(given: argparse.Namespace) -> int:
    if len(given.name) != 1:
        raise ValueError("--check runs one study: name it.")
    study, device = any_study(given.name[0]), arguments.device("device", given.device)
    measure = measured_aloud(_tell) if given.measure else None
    total = len(configurations(study, given.profile))
    shown = "{desc}: {bar}| {n_fmt}/{total_fmt} runs"
    with tqdm(total=total, desc=study.name, bar_format=shown) as bar:
        found = checked_projection(
            study, given.profile, device, measure=measure, on_run=lambda record: bar.update()
        )
    print(
        f"{found.study} at the {found.profile} profile: {found.runs} runs took "
        f"{found.taken:.1f} s; the plan said {found.projected:.1f} s ({'; '.join(found.origins)}). "
        f"It was off by a factor of {found.factor:.2f} by the clock, and of "
        f"{found.processor_factor:.2f} by the processor's seconds."
    )
    if given.save:
        _tell(f"kept in {keep_projection(found)}")
    return 0


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
