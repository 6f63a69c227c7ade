# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext.formats,jupytext.text_representation.extension,jupytext.text_representation.format_name,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (chapter-plan-to-verdict)=
# # From plan to verdict
#
# **Question.** How does a study become a verdict, through a killed run and over two machines, and who notices a wrong number on the way?
#
# **Answer.** Five commands lead there, a sixth audits, and a kill loses only runs under way.
# One changed number in one record turns *verified* into *refuted*.
# An audit of 8 random runs of 27 meets that record with probability 0.30; told which run, it finds it at once; a forged *verified* names none.
#
# **Time.** Reading: about 26 minutes; running: under a minute on two cores.
#
# **You need:** a terminal, and {doc}`How to read a verdict <../book/how_to_read_a_verdict>`.
#
# This chapter has no claim of its own: what it finds is computed where it stands, live, in a folder that is thrown away.

# %% tags=["parameters", "hide-input"] mystnb={"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
profile = "laptop"  # smoke or laptop
seed = 0  # draws the audit's sample
finished = None  # records after which the study is killed; None: the profile's own number
sample = None  # runs that the audit repeats; None: the profile's own number
device = "cpu"  # cpu or cuda; auto: a GPU where there is one
store = None  # folder for new records; this chapter makes its own and throws them away

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up", "code_prompt_hide": "Set-up"}
from paperkit.chapter import setup, table

p = setup(
    globals(),
    {"smoke": {"finished": 3, "sample": 2}, "laptop": {"finished": 9, "sample": 8}},
    allowed=["seed", "finished", "sample"],
    threads=1,
)

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from paperkit.cli import main
from paperkit.experiments import Record, provenance, run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.audit import BAD, POWER
from paperkit.experiments.paths import claims_folder, results_folder
from paperkit.experiments.records import key_of
from paperkit.experiments.study import configurations, study_named
from paperkit.plotting import COLORS, INK, MARKERS
from paperkit.statistics.intervals import sample_size

# %% [markdown]
# The other chapters show verdicts.
# This one shows where they come from: it takes one study of the book the whole way, and breaks what can be broken.
#
# A **study** asks one question of many configurations, and the list of these is its **grid**.
# A **run** answers one of them.
# A finished run leaves a **record**: its configuration, what it measured, and where it came from.
# A **store** is the folder in which records are kept until they are published.
# A **claim** is a sentence with a criterion, and the **ledger** lists what the records say of every claim.
#
# | step | command | it reads | it leaves |
# |---|---|---|---|
# | plan | `paperkit plan NAME` | the grid, records | nothing |
# | run | `paperkit study run NAME` | the grid, the store | a file for each run, in the store |
# | resume | the same command again | the same | the files that are missing |
# | merge | `paperkit study merge OTHER` | another store | the union, in the store |
# | judge | `paperkit claims ID` | claims, store, `results/` | nothing |
# | publish | `paperkit study publish NAME` | the store | a line for each run, in `results/` |
# | audit | `paperkit audit NAME` | `results/` | a sentence; new marks on old records |
#
# `paperkit study list` names the studies.
# Each command takes `--store`, and without it the store is `_build/store`.
#
# **Symbols.** In the section on audits, $N$ records are published, $b$ of them are bad, and $m$ are drawn.
#
# **Computed here.** The study is `curvature_blocks` of {doc}`chapter 2 <02_curvature_objects>`, whose runs take a fraction of a second each.
# It runs once through a kill, twelve of its runs are shared out to two machines that we pretend to have, and a sample is run again.
# Only records of the laptop or paper profile earn verdicts, so the study's grid is the laptop's, whichever profile this page is run with.
#
# (plan-room)=
# ## A room of our own
#
# The study's records are published already, and what is published is not run again.
# So we need a place without them.
# The environment variable `PAPERKIT_ROOT` names the folder that holds `results/` and `claims/`.
# Ours has no results, and a single claim: the one that we want to decide.

# %%
NAME, CLAIM = "curvature_blocks", "block-labels"
on_device = "" if p.device.type == "cpu" else f" --device {p.device}"
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
room = Path(os.path.realpath(folder.name))
published = {record.key: record for record in Archive(room).published.records(NAME)}
kept = [(results_folder() / f"{name}.json").read_text("utf-8") for name in ("faults", "throughput")]
faults, throughput = map(json.loads, kept)  # for the last sections
entries = (claims_folder() / "this_book.yml").read_text(encoding="utf-8").split("\n\n")
(entry,) = [text for text in entries if text.startswith(f"- id: {CLAIM}\n")]


def furnish(root: Path) -> Path:
    for name in ("claims", "results"):
        (root / name).mkdir(parents=True)
    (root / "claims" / "this_book.yml").write_text(f"{entry}\n", encoding="utf-8")
    return root


furnish(room)
print(entry)

# %% [markdown]
# That is a claim as it is written down, and its criterion stands in it, before any run.
# Read it as: *verified*, if `label_dependence` is at most $10^{-12}$ in each run whose network is one of these four.
#
# The commands below are those of a terminal.
# The function `paperkit` runs one in the room, and shows what you would type and what you would see.
# It shortens paths, leaves the value of round-off out, and names an exit status that is not 0.


# %%
def answer(line: str, root: Path = room) -> tuple[int, str]:
    os.environ["PAPERKIT_ROOT"] = str(root)
    told, refused = io.StringIO(), io.StringIO()
    with chdir(root), redirect_stdout(told), redirect_stderr(refused):
        status = main(line.split())
    text = (told.getvalue() or refused.getvalue()).replace(f"{root}{os.sep}", "")
    round_off = r"now (0\.0|\d\S*e-(1[3-9]|[2-9]\d)),"
    return status, re.sub(round_off, "now below 1e-12,", text)


def paperkit(line: str, root: Path = room, without: str = "\0") -> None:
    status, text = answer(line, root)
    print(f"$ paperkit {line}")
    for told in text.splitlines():
        if without not in told:  # a sentence is broken, a row of a table is not
            broken = textwrap.fill(told, 96, subsequent_indent="    ")
            print(told if "  " in told.strip() else broken)
    if status:
        print("exit status", status)


# %% [markdown]
# (plan-plan)=
# ## The plan
#
# Before a study is run one wants to know what it would take.
# The plan counts the runs of the grid by kinds, which are the configurations apart from their seeds.

# %%
study = study_named(NAME)
grid = configurations(study, "laptop")
keys = [key_of(NAME, configuration) for configuration in grid]
print(study.question)
print(f"{len(grid)} runs; the first is {grid[0]}, under the key {keys[0]}.\n")
paperkit(f"plan {NAME}{on_device} --store killed")

# %% [markdown]
# A key is a hash of the study's name and the configuration, so it is the same everywhere.
#
# The seconds are unknown, and the plan says so.
# It guesses nothing: its seconds come from records of the same kind of run, and there is none in this room.
# In the book's own tree the same command finds the published records and projects from these.
# Long studies have a trial besides, a few steps of a run, which `--measure` times on your machine.
#
# (plan-kill)=
# ## A run that is killed
#
# We start the study in another process, by the engine `processes`, which keeps two workers at work.
# As soon as a few records are there we kill it.
# SIGKILL cannot be caught: the process gets no chance to tidy up.
#
# The moment is chosen by the number of records and not by the clock.
# To be sure that the study is not over by then, we hold the lock of its last run, as another process would that is at it.


# %%
def files(store: str) -> dict[str, bytes]:
    found = (room / store / "records" / NAME).glob("*.json")
    return {file.stem: file.read_bytes() for file in found}


line = f"study run {NAME}{on_device} --store killed --engine processes --jobs 2 --cpus 1"
command = [sys.executable, "-m", "paperkit.cli", *line.split()]
with Archive(room / "killed").working.lock(NAME, keys[-1]):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = subprocess.Popen(command, cwd=room, **pipes)
    while len(files("killed")) < p.finished and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
driver.communicate()  # ends when the workers have ended, too
assert driver.returncode == -9  # the number of SIGKILL
print(f"$ paperkit {line}\nkilled")

# %% [markdown]
# How many records there are now differs from one execution to the next, between the number that we waited for and all but one.
# Each of them has to be whole.
# To read a record is to check it: that it is JSON, that no field is missing or of another type, that each number is finite, and that its key is the hash of its configuration.
# Beyond that, each has all the metrics that the book's record of the same run has.

# %%
survivors = files("killed")
assert p.finished <= len(survivors) < len(grid)
read = Archive(room / "killed").working.records(NAME)
assert sorted(record.key for record in read) == sorted(survivors)
assert all(record.metrics.keys() == published[record.key].metrics.keys() for record in read)
print("every record that the kill left is whole")

half = next(iter(survivors.values()))[:200]
torn = room / "torn" / "records" / NAME / f"{keys[0]}.json"
torn.parent.mkdir(parents=True)
torn.write_bytes(half)
paperkit(f"study run {NAME}{on_device} --store torn")

# %% [markdown]
# The last lines show that the reading can fail: 200 bytes of a record are refused, with the file and the remedy.
# The kill left no such file, because a record is written under another name, forced to the disk, and only then given its own; a file system does the latter at one stroke.
#
# (plan-resume)=
# ## The same command again
#
# There is no command to resume.
# One gives the same command, here with the engine `in-process`, which is the default, and what has a record is skipped.
# If a run that was finished were made again, its record would be another one: it holds the moment at which it was made, the seconds that it took, and a name of the session.
# So the files of before have to be there byte for byte.

# %%
paperkit(f"study run {NAME}{on_device} --store killed", without="uncommitted")
complete = files("killed")
assert complete.keys() == set(keys)
assert survivors.items() <= complete.items()
assert not [path for path in (room / "killed" / "unfinished").rglob("*") if path.is_file()]
print("what was finished was not run again, and nothing half finished is left")

# %% [markdown]
# (In a tree with uncommitted changes the command adds a sentence, which is left out here and shown {ref}`below <plan-marks>`.)
#
# This is the record of the first run, with the names of what it holds.

# %%
first = Archive(room / "killed").working.record(NAME, keys[0])
parts = ("configuration", "metrics", "provenance")
table(["part", "entries"], {part: ", ".join(sorted(getattr(first, part))) for part in parts})

# %% [markdown]
# The provenance has the commit, whether the tree was *dirty*, that is had uncommitted changes, and the *fingerprint*, a hash of the code that the study imports.
# These three decide what a record is worth, as we shall see.
#
# Would the assertion notice a run that was made twice?
# We delete a record that the kill left, so that this run has to be made again.

# %%
deleted = min(survivors)  # made by a worker, before the kill
file = room / "killed" / "records" / NAME / f"{deleted}.json"
file.unlink()
paperkit(f"study run {NAME}{on_device} --store killed", without="uncommitted")
again = files("killed")
changed = [key for key in keys if again[key] != complete[key]]
print("other files than before:", len(changed))
assert changed == [deleted]
metrics = [json.loads(content[deleted])["metrics"] for content in (complete, again)]
assert metrics[0] == metrics[1]
print("with the same metrics:", metrics[0] == metrics[1])

# %% [markdown]
# It would: the bytes are others.
# The metrics are the same to the last bit, although a worker of two made the first and this notebook the second, since on one machine and one thread the same instructions ran on the same numbers.
#
# (plan-merge)=
# ## Two machines
#
# A long study is shared out: a laptop takes one part of the grid, a workstation another, each with a store of its own.
# No command takes a part of a grid, but a study is a plain object, and one line gives it another grid.
# Our claim needs the first twelve runs, those of its four networks.
# The laptop makes eight of them and the workstation six, so that two runs are made on both.


# %%
def run_part(store: str, part: slice) -> None:
    own = replace(study, grid=lambda profile: configurations(study, profile)[part])
    run_study(own, "laptop", room / store, device=p.device, progress=False)


run_part("laptop", slice(0, 8))
run_part("workstation", slice(6, 12))

_, text = answer(f"plan {NAME}{on_device} --store laptop --json")
(plan,) = json.loads(text)
rows = [[k["kind"], k["runs"], k["missing"], k["origin"] or "unknown"] for k in plan["kinds"]]
table(["kind of run", "runs", "missing", "seconds of a run from"], rows)

# %% [markdown]
# So reads the plan of the laptop's store, by `paperkit plan curvature_blocks --store laptop --json`.
# Now there are records of three kinds, and their seconds are known from these; of the other kinds the plan still says that it knows nothing.
#
# Copy the workstation's folder to the laptop, by whatever means you have, and merge.
# Two copies of the union are made here, in either order.

# %%
for union, order in (("one", "laptop workstation"), ("other", "workstation laptop")):
    for part in order.split():
        paperkit(f"study merge {part} --store {union}")
assert files("one") == files("other") and files("one").keys() == set(keys[:12])
print("\nin either order the union is the same, byte for byte")

# %% [markdown]
# Of two records of one run the merge keeps the better one.
# A record of committed code is better than one of uncommitted code, one by the present code better than one by older code, and a later one better than an earlier one.
# The workstation was later, so its two records took the place of the laptop's in one order and stayed in the other.
# A machine may also have a copy of the code without its history.
# Its records do not know whether their code was committed; if it is the code of this tree, and this tree is committed, the merge vouches for them and says so.
#
# **A conflict.** Two records of one run by the same code ought to have the same metrics.
# If they have not, one of them is wrong, or two processors rounded differently, and the merge cannot say which.
# We copy the workstation's store and change one metric.


# %%
def altered(source: Path, target: Path, key: str, **metrics: object) -> None:
    shutil.copytree(source, target)
    shelf = Archive(target).working
    record = shelf.record(NAME, key)
    shelf.add([replace(record, metrics={**record.metrics, **metrics})])


altered(room / "workstation", room / "edited", keys[11], label_dependence=0.5)
before = files("one"), files("edited")
paperkit("study merge edited --store one")
assert (files("one"), files("edited")) == before
print("\nneither store has changed")

# %% [markdown]
# The command names both files, and its exit status stops a script.
# Look at both, run that configuration once more, and delete the wrong one; if they differ by round-off alone, delete either.
#
# (plan-verdict)=
# ## The verdict
#
# A verdict is computed from the records whenever somebody asks for it.
# A record says of itself whether the code was committed when it was made, since nobody can run again what was never committed.
# Whether the tree under this page is committed we cannot know, and its verdicts must not depend on it.
# So we first check that each record has the mark of the tree, and then give copies of the stores the marks that we want.

# %%
# False: committed; True: not; None: there is no repository
states = {provenance.tree_state().dirty}
for name in ("killed", "laptop", "workstation"):
    assert {r.provenance["dirty"] for r in Archive(room / name).working.records(NAME)} <= states


def marked(source: str, target: str, **marks: object) -> None:
    found = Archive(room / source).working.records(NAME)
    own = (replace(record, provenance={**record.provenance, **marks}) for record in found)
    Archive(room / target).working.add(own)


marked("laptop", "laptop-committed", dirty=False)
marked("one", "committed", dirty=False)
for name in ("laptop-committed", "committed"):
    paperkit(f"claims {CLAIM} --store {name}")

# %% [markdown]
# The laptop alone decides nothing: the claim needs all of its twelve runs.
# With the union it has them, and the criterion returns a word and the sentence beside it.
# The study has fifteen more runs, which other claims need and this one does not.
#
# The figure is the way so far: the grid, who ran what, and the part that the claim looks at.

# %% tags=["hide-input"] mystnb={"image": {"alt": "A grid of nine rows, the networks, and three columns, the seeds. The first eight cells, row by row, hold a circle for the laptop. The seventh to the twelfth hold a square for the workstation, so that two cells hold both. A box surrounds the first four rows, which are complete; the five rows below are empty."}, "figure": {"caption": "The grid of the study. A circle is a record of the laptop, a square one of the workstation. The box holds the runs that the claim needs; the union has them all.", "name": "fig-plan-grid"}}
networks = list(dict.fromkeys(configuration["network"] for configuration in grid))
figure, axes = plt.subplots(figsize=(5.5, 4.4))
looks = zip((-0.13, 0.13), ("laptop", "workstation"), COLORS[:2], MARKERS[:2], strict=True)
for offset, name, color, marker in looks:
    own = [grid[keys.index(key)] for key in files(name)]
    x = [configuration["seed"] + offset for configuration in own]
    y = [networks.index(configuration["network"]) for configuration in own]
    axes.plot(x, y, marker, color=color, ms=9, label=name)
axes.add_patch(plt.Rectangle((-0.45, -0.45), 2.9, 3.9, fill=False, ec=INK, lw=1.4))
axes.set(xticks=range(3), yticks=range(9), yticklabels=networks, xlabel="seed", ylim=(8.5, -0.6))
axes.set_xlim(-0.6, 2.6)
axes.grid(False)
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# (plan-marks)=
# ### Two marks
#
# The same records, once as if the code had not been committed, and once as if it had changed since.

# %%
marked("one", "uncommitted", dirty=True)
marked("committed", "stale", fingerprint="of other code")
for name in ("uncommitted", "stale"):
    paperkit(f"claims {CLAIM} --store {name}")
marked("killed", "whole-uncommitted", dirty=True)
paperkit(f"study run {NAME}{on_device} --store whole-uncommitted")
paperkit(f"study publish {NAME} --store whole-uncommitted")

# %% [markdown]
# Records of uncommitted code earn no verdict, and are not published; in a tree with uncommitted changes `study run` also warns before its first run.
# Those of changed code keep theirs, with a mark.
# The fingerprint covers the code that the study imports, without comments and docstrings, so a change elsewhere makes nothing stale.
#
# (plan-flip)=
# ### One number
#
# How much does a verdict hang on one record?
# We copy the store of the verified claim and change one metric of one run.

# %%
altered(room / "committed", room / "altered", keys[0], label_dependence=0.5)
paperkit(f"claims {CLAIM} --store altered")

# %% [markdown]
# One counterexample refutes an identity, and the ledger takes a record at its word.
# It names the configuration, so that anybody can run it again.
# That is the next section's business.
#
# (plan-publish)=
# ## Into the ledger
#
# The store of the killed study has the fifteen runs that the union lacks.
# It is merged as well, and the study is complete.
# To publish is to write a line for each record into `results/`, sorted by key, so that a commit shows which are new.

# %%
marked("killed", "killed-committed", dirty=False)
paperkit("study merge killed-committed --store committed")
paperkit(f"study publish {NAME} --store committed")
paperkit(f"claims {CLAIM} --store nothing")

# %% [markdown]
# Twelve runs were in both stores, most of those in the killed one made by a worker, and none is a conflict.
# The last command reads `results/` alone.
#
# In your own clone, commit `results/curvature_blocks.jsonl` now; `make html` shows the word on the page of the ledger and in the chapter that the claim's anchor names.
#
# **Are they the book's records?** The book's were made on another day, and perhaps on another processor, which adds in another order.
# So they agree within round-off, and the study says what that means.
# Two numbers are the same if they differ by a millionth at most, relative to the first, or if both are below $10^{-10}$; an audit, below, compares by the same rule, `study.tolerance` and `study.round_off`.


# %%
def entries_of(value: object, name: str = "metrics") -> dict:
    if not isinstance(value, dict):
        return {name: value}
    parts = [entries_of(item, f"{name}.{part}") for part, item in value.items()]
    return {entry: one[entry] for one in parts for entry in one}


def same(a: object, b: object) -> bool:
    if not (type(a) in (int, float) and type(b) in (int, float)):
        return a == b
    return max(abs(a), abs(b)) < study.round_off or abs(b - a) <= study.tolerance * abs(a)


def disagreements(one: Record, other: Record) -> list[str]:
    a, b = entries_of(one.metrics), entries_of(other.metrics)
    return [name for name in a.keys() | b.keys() if not same(a.get(name), b.get(name))]


# %%
ours = {record.key: record for record in Archive(room).published.records(NAME)}
assert ours.keys() == published.keys() == set(keys)
found = {key: disagreements(published[key], ours[key]) for key in keys}
assert not any(found.values())
compared = sum(len(entries_of(record.metrics)) for record in ours.values())
print(f"{len(ours)} records, {compared} entries, {sum(map(len, found.values()))} disagree")
wrong = Archive(room / "altered").working.record(NAME, keys[0])
print("of the altered record:", ", ".join(disagreements(published[keys[0]], wrong)))

# %% [markdown]
# (plan-audit)=
# ## The audit
#
# The comparison above needed a second set of records.
# An audit makes one: it runs a sample of the published configurations again, in an empty store that is thrown away, and compares number by number.
# A study whose outcome hangs on training is compared with the spread over its seeds instead, because training moves with round-off.
#
# How large must the sample be?
# Say that $b$ of $N$ records are bad, and that $m$ are drawn.
# The draw is without replacement, all draws are equally likely, and which records are bad does not enter.
# It misses all bad ones if it falls among the $N - b$ good ones:
#
# $$
# P(\text{no bad one is drawn}) = \binom{N-b}{m} \Big/ \binom{N}{m} .
# $$ (eq-plan-sample)
#
# The audit takes the smallest $m$ that meets a bad one with probability 0.9 if at least a fifth of the records, here six, are bad.


# %%
def meets(bad: int, drawn: int) -> float:
    return 1 - math.comb(len(grid) - bad, drawn) / math.comb(len(grid), drawn)


fifth = math.ceil(BAD * len(grid))
rows = {drawn: [meets(fifth, drawn), meets(1, drawn)] for drawn in (1, 4, 7, 8, 27)}
enough = next(drawn for drawn in range(1, len(grid) + 1) if meets(fifth, drawn) >= POWER)
assert enough == sample_size(len(grid), BAD, POWER) == 8
table(["drawn", f"meets one of {fifth} bad ones", "meets a single bad one"], rows)

# %% [markdown]
# Seven would be too few of 27, and eight are enough.
# We draw and run them.

# %%
paperkit(f"audit {NAME}{on_device} --store nothing --seed {p.seed} --sample {p.sample}")

# %% [markdown]
# Without `--sample` the command draws as many as the rule says, and without `--seed` the day draws them.
#
# Whoever chooses the seed could choose the draw, so an audit does not protect against its own auditor: what audits are mostly for is code that was edited.
# When the code behind a study is edited, all of its records become stale at once, and a sample that agrees under the new code renews them all; each then says that it was renewed, when, and by which sample.
# That happens in a committed tree alone.
# A run that disagrees is noted in its record, and belongs to every later sample.
#
# Against a single bad record a sample is weak, as the last column says: 0.30 for eight runs.
# We publish the altered record in a second room, where the claim stands refuted, and ask for the run that the ledger named.

# %%
forged = furnish(room / "forged")
shutil.copytree(room / "altered", forged / "altered")
paperkit(f"study publish {NAME} --store altered", forged)
paperkit(f"claims {CLAIM} --store nothing", forged)
paperkit(f"audit {NAME}{on_device} --store nothing --run {keys[0]}", forged)

# %% [markdown]
# The audit repeats the run and does not find the number again.
# So a refutation is cheap to check: the counterexample is one configuration, and one command runs it.
# A *verified* that rests on a forged record is harder to find, because no record is named.
# There only a larger sample helps, up to all of them: `--sample 27`.
#
# (plan-tried)=
# ## A hundred kills
#
# One kill on this page proves little.
# The test `tests/experiments/test_experiments_faults.py` kills again and again: a study of 60 short runs, with checkpoints, loses its driver or its workers at random moments, and is started anew each time, until a hundred kills are counted for an engine.
# After each kill every finished record has to be whole.
# At the end no finished run may have been begun again, each run has one record and one checkpoint, the records are those of an undisturbed study, and no other file is left.
# Where one of these fails, so does the test, and the counts are not kept.
# These are the counts of the long form (`--faults 100`), in `results/faults.json`; every run of the tests repeats a short one.

# %%
WHO = ("driver", "worker")
rows = {}
for engine, told in faults.items():
    if "kills" not in told:
        continue
    of = {who: sum(n for victim, _, n in told["places"] if victim == who) for who in WHO}
    moments = len({moment for _, moment, _ in told["places"]})
    rows[engine] = told["kills"], *of.values(), moments, told["begun_again"]
    assert told["kills"] >= 100 and sum(of.values()) == told["kills"]
lost = faults["a machine of two"]
assert lost["finished_when_it_was_lost"] < lost["runs"]
table(["engine", "kills", *(f"of a {who}" for who in WHO), "kinds of moments", "begun again"], rows)

# %% [markdown]
# Runs that were begun again are runs that were under way when they were killed.
# The moments are told by what lies in the store: a file half written, a record without its checkpoint, a run with a checkpoint of its own or without.
# An in-process study has no workers.
# Under Ray each run has a store of its own, which is looked at, too.
# Besides, one of two machines that Ray believes in was lost in the middle of the study, and no record with it.
#
# (plan-throughput)=
# ## What it costs to be careful
#
# Checkpoints, records and processes take time themselves.
# `make throughput` measures how much, against two bounds that were set before anything was timed.
# The library's training loop may take at most 2 % more than a bare one: the same small residual network, batches and steps, without anything else.
# And two processes with a core each may take at most 0.6 of the time in which one process with one core finishes a study of 30 trainings.
# Only ratios within one run count; that of the loops is the median over pairs of trainings.

# %%
ratios, took = sorted(throughput["loop"]), throughput["study"]
loop = ratios[len(ratios) // 2]
two = took["two processes, a core each"] / took["one process, one core"]
assert loop <= 1.02 and two <= 0.6 and not throughput["quick"]
rows = {"the library's loop against a bare one": (loop, 1.02)}
rows["two processes against one"] = two, 0.6
table(["time", "ratio", "at most"], rows, spec=".3f")

# %% [markdown]
# (plan-limits)=
# ## Deviations, and what failed
#
# * *A merge asks for the same bits.* Two machines with other processors may differ in the last digits of a run that both have made, and each such run is then reported as a conflict.
#   Share the grid out without an overlap, as far as you can.
# * *A grid is shared out by hand.* The command line runs whole grids, and the part of a machine takes the few lines of Python above.
# * *Marks are text.* This page wrote marks into records to show what they do, and so could anybody.
#   The ledger protects against mistakes; against lies there is the audit.
# * *One machine.* The laptop and the workstation are two folders of one computer here.
#
# ## Exercises
#
# **1.** The driver is killed after a run's metrics are computed, and before its record has got its name.
# What does the next start of the study do?
#
# ````{dropdown} Solution
# There is no record, so the run is missing, and it is made again.
# At most one run of each worker is lost in this way.
# A long run keeps a checkpoint beside it, from which it goes on; the runs of this study have none.
# ````
#
# **2.** How many runs must an audit of 27 draw to meet a single bad one with probability 0.9?
# Answer first, then ask `meets`.
#
# ````{dropdown} Solution
# With $b = 1$ equation {eq}`eq-plan-sample` is $1 - m/27$, so the probability of meeting it is $m/27$, and $m = 25$ is the first that reaches 0.9.
# Almost everything has to be run again: `meets(1, 24)` is 0.89, and `meets(1, 25)` is 0.93.
# ````
#
# **3.** Had `label_dependence` in the altered copy been $10^{-11}$ instead of 0.5, which word would the claim get, and why not *refuted*?
#
# ````{dropdown} Solution
# *Inconclusive.*
# The tolerance is $10^{-12}$, and up to a thousand times that an ill-conditioned run could be the reason; only from $10^{-9}$ on the criterion refutes.
# To see it, change the number in the cell of {ref}`the altered copy <plan-flip>` and execute that cell again in a new run of the page.
# ````
#
# ## How to cite
#
# Cite the book as `CITATION.cff` says.
