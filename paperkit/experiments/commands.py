"""The commands of studies: ``paperkit study | plan | audit | measure``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from paperkit.experiments import measuring, plan_command, provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.audit import audit
from paperkit.experiments.engines import ENGINES, Allotment
from paperkit.experiments.merging import merge
from paperkit.experiments.running import RERUN, run_study
from paperkit.experiments.study import PROFILES, configurations, study_named, study_names
from paperkit.experiments.tensorboard import Follower, follow


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``command``, a function of the arguments to the exit status."""
    study = subparsers.add_parser("study", help="list, run and publish studies")
    _add_study_commands(study.add_subparsers(required=True, metavar="COMMAND"))

    plan_command.add_command(subparsers)
    measuring.add_command(subparsers)

    parser = _command(subparsers, "audit", _audit, "run a sample of published records again")
    parser.add_argument("name", help="the study")
    parser.add_argument(
        "--sample",
        type=int,
        help="how many records (as many as meet a bad fifth with probability 0.9)",
    )
    parser.add_argument("--seed", help="draws the sample (the date)")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="KEY",
        help="run this record again in place of a sample",
    )
    parser.add_argument(
        "--both-codes",
        action="store_true",
        help="run the sample by the code of the records too, and compare the two: on another "
        "processor than that of the records",
    )
    parser.add_argument("--profile", choices=PROFILES[1:], default="laptop")
    _add_store_and_device(parser)


def _add_study_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    parser = _command(subparsers, "list", _list, "list the studies and what is finished")
    parser.add_argument("--store", help="the working store")

    parser = _command(subparsers, "run", _run, "run what is missing of a study")
    parser.add_argument("name", help="the study")
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="in-process")
    parser.add_argument("--jobs", type=int, help="number of runs at a time (as many as fit)")
    parser.add_argument("--cpus", type=int, help="cores for a run")
    parser.add_argument("--gpus", type=float, help="GPUs for a run, or the part of one (ray)")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory for a run (ray)")
    parser.add_argument(
        "--rerun",
        choices=RERUN,
        action="append",
        default=[],
        help="run again what other code, or uncommitted code, made",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan of what is missing, and run nothing"
    )
    _add_store_and_device(parser)

    parser = _command(
        subparsers, "tensorboard", _tensorboard, "copy a study's runs to TensorBoard's files"
    )
    parser.description = (
        "Copy the epochs of a study's runs, from their checkpoints, and the numbers of their "
        "records to TensorBoard's files. Runs are not told of it: another process may be at them."
    )
    parser.add_argument("name", help="the study")
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--store", help="the working store (_build/store)")
    parser.add_argument("--logdir", help="where the files go (_build/tensorboard)")
    parser.add_argument(
        "--follow",
        type=float,
        metavar="SECONDS",
        help="do it again after so many seconds, until every run is finished",
    )

    parser = _command(subparsers, "merge", _merge, "merge another machine's store into this one")
    parser.add_argument("other", help="the other working store")
    parser.add_argument("--store", help="the working store (_build/store)")

    parser = _command(subparsers, "publish", _publish, "merge a study's records into results/")
    parser.add_argument("name", help="the study")
    parser.add_argument("--store", help="the working store")
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="publish records of uncommitted code too; they earn no verdict",
    )
    parser.add_argument("--checkpoint", metavar="KEY", help="copy this run's checkpoint too")


def _command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=command)
    return parser


def _add_store_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", help="the working store (_build/store)")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")


def _list(arguments: argparse.Namespace) -> int:
    archive = Archive(arguments.store)
    for name in study_names():
        study = study_named(name)
        print(f"{name}: {study.question}")
        for profile in PROFILES:
            runs = len(configurations(study, profile))
            if not runs:
                print(f"  {profile:<7} no such profile")
                continue
            records = archive.records(name, profile)
            seconds = sum(record.provenance["seconds"] for record in records)
            print(
                f"  {profile:<7} {len(records)} of {runs} runs, "
                f"{sum(archive.is_stale(study, r) for r in records)} stale, "
                f"{sum(not r.clean for r in records)} of uncommitted code, {seconds:.0f} s"
            )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        told = (arguments.name, arguments.profile, arguments.store, arguments.device)
        print(plan_command.text_of_one(*told))
        return 0
    _warn_of_uncommitted_code(arguments)
    records = run_study(
        arguments.name,
        arguments.profile,
        arguments.store,
        arguments.engine,
        allotment=Allotment(
            arguments.jobs,
            arguments.cpus,
            arguments.gpus,
            None if arguments.memory is None else round(1e9 * arguments.memory),
        ),
        device=arguments.device,
        rerun=arguments.rerun,
    )
    archive, study = Archive(arguments.store), study_named(arguments.name)
    stale = sum(archive.is_stale(study, record) for record in records)
    dirty = sum(not record.clean for record in records)
    print(f"{arguments.name}: {len(records)} runs of the {arguments.profile} profile are finished.")
    if stale:
        print(f"{stale} of them are stale: `paperkit audit {arguments.name}` or --rerun stale.")
    if dirty:
        print(f"{dirty} of them come from uncommitted code and earn no verdict: --rerun dirty.")
    return 0


def _warn_of_uncommitted_code(arguments: argparse.Namespace) -> None:
    """Say before the first run, and not after hours, that its records will earn no verdict."""
    study, archive = study_named(arguments.name), Archive(arguments.store)
    runs = len(configurations(study, arguments.profile))
    is_finished = len(archive.records(study.name, arguments.profile)) == runs
    is_dirty = provenance.tree_state().dirty
    if arguments.profile == "smoke" or is_dirty is False or (is_finished and not arguments.rerun):
        return
    print(
        "The code has uncommitted changes, and records of it earn no verdict: commit first."
        if is_dirty
        else "The code is in no git repository, and its records earn no verdict before they are "
        "merged into a clone that has committed the same code.",
        file=sys.stderr,
    )


def _tensorboard(arguments: argparse.Namespace) -> int:
    follower = Follower(arguments.name, arguments.profile, arguments.store, arguments.logdir)
    print(f"tensorboard --logdir {follower.folder.parent}", flush=True)
    begun, finished = follow(follower, arguments.follow)
    print(
        f"{arguments.name}: of {len(follower.configurations)} runs of the {arguments.profile} "
        f"profile {begun} are shown, {finished} of them finished."
    )
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    done = merge(arguments.other, arguments.store)
    print(
        f"{done.added} records are new, {done.replaced} replaced older or lesser ones, "
        f"{done.kept} were here already."
    )
    if done.vouched:
        print(
            f"{done.vouched} come from a tree without git whose code is the committed code of "
            "this one, and now count as committed."
        )
    for conflict in done.conflicts:
        print(
            f"conflict in {conflict.study}: {conflict.other} and {conflict.kept} disagree, though "
            "the same code made both; the latter was kept."
        )
    return 1 if done.conflicts else 0


def _publish(arguments: argparse.Namespace) -> int:
    archive = Archive(arguments.store)
    done = archive.publish(arguments.name, allow_dirty=arguments.allow_dirty)
    print(f"{done.path}: {done.total} records, {done.changed} of them new or replaced.")
    if arguments.checkpoint:
        print(archive.publish_checkpoint(arguments.name, arguments.checkpoint))
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    outcome = audit(
        arguments.name,
        arguments.sample,
        arguments.seed,
        runs=arguments.run,
        both_codes=arguments.both_codes,
        profile=arguments.profile,
        store=arguments.store,
        device=arguments.device,
    )
    before = "earlier code" if arguments.both_codes else "recorded"
    for comparison in outcome.comparisons:
        if not comparison.agrees:
            print(
                f"{comparison.key} {comparison.metric}: {before} {comparison.recorded}, now "
                f"{comparison.audited}, allowed {comparison.allowed}"
            )
    word = "agree" if outcome.agrees else "do NOT agree"
    if outcome.undecided:
        word = "do not disagree, but not all can be compared"
    drawn = "repeated" if arguments.run else f"drawn with seed {outcome.seed}"
    runs = f"{len(outcome.sample)} run{'s' * (len(outcome.sample) != 1)}"
    print(
        f"{outcome.study}: {runs} {drawn}; the {len(outcome.comparisons)} numbers {word} with "
        + ("what the earlier code finds here." if arguments.both_codes else "what is recorded.")
    )
    if arguments.run:
        return 0 if outcome.agrees else 1
    if outcome.renewed:
        print(f"{outcome.renewed} stale records were renewed in results/{outcome.study}.jsonl.")
    elif outcome.stale and outcome.agrees:
        print(f"{outcome.stale} records stay stale: the code has uncommitted changes; commit it.")
    elif outcome.stale:
        print(f"{outcome.stale} records stay stale.")
    return 0 if outcome.passed else 1
