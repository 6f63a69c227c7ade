"""The committed record of a benchmark as text: for the terminal, and as a page of the book.

``python -m benchmarks.render`` writes the page. No number on it is typed: a test compares it with
what the record renders to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import device_section
from benchmarks.comparing import root_mean_square
from benchmarks.quantities import (
    AHEAD_CEILING,
    BEST,
    COMBINED,
    COMBINED_CEILING,
    DENSITY_PROBES,
    DENSITY_STEPS,
    NETWORK_ESTIMATES,
    NETWORK_PRODUCTS,
    NETWORK_QUANTITIES,
    OURS,
    PLAIN,
    PLAIN_CEILING,
    QUANTITIES,
    REFERENCE_BATCH,
    REFERENCE_SAMPLES,
    RENEWALS,
    STEP_CEILING,
    STEP_KINDS,
    STEP_TOLERANCE,
    TRACE_CEILING,
    TRACE_PRODUCTS,
    TRACE_SEEDS,
    Quantity,
)
from benchmarks.references import REMAINDER_PROBES
from paperkit.memory import GIBIBYTE

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "benchmarks.json"
PAGE = ROOT / "book" / "benchmarks.md"
USERS_PAGE = ROOT / "book" / "measure_your_network.md"
TEMPLATE = ROOT / "benchmarks" / "page.md"
NETWORKS_TEMPLATE = ROOT / "benchmarks" / "networks.md"

MEBIBYTE = 2**20
_BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}
_KINDS = {kind.key: kind for kind in STEP_KINDS}
_TOLERANCES = {quantity.key: quantity.tolerance for quantity in QUANTITIES} | dict.fromkeys(
    _KINDS, STEP_TOLERANCE
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A ceiling that was fixed before the measurement, and the measured value.

    Attributes
    ----------
    what : str
        Name of the value, with the unit.
    value, ceiling : float
        Value that was measured, and the largest that is allowed.
    judged : bool
        Whether the run had the size that the ceiling is for.
    """

    what: str
    value: float
    ceiling: float
    judged: bool

    @property
    def verdict(self) -> str:
        """``met``, ``NOT MET`` or ``not judged``."""
        if not self.judged:
            return "not judged"
        return "met" if self.value <= self.ceiling else "NOT MET"

    @property
    def shown(self) -> str:
        """The measured value, with as many digits as tell it from a ceiling that it misses."""
        text, decimals = number(self.value), 3
        while text == f"{self.ceiling:.{decimals - 1}f}" and self.value > self.ceiling:
            text, decimals = f"{self.value:.{decimals}f}", decimals + 1
        return text


def targets(record: Row) -> list[Target]:
    """Return every ceiling beside its value in the record, or in the part that was run."""
    parts = {
        "rows": _quantity_targets,
        "networks": _network_targets,
        "traces": _trace_targets,
        "steps": _step_targets,
    }
    return [
        target
        for group, targets_of in parts.items()
        if group in record
        for target in targets_of(record)
    ]


def _quantity_targets(record: Row) -> list[Target]:
    full = record["settings"]["samples"] == REFERENCE_SAMPLES
    ours = {row["quantity"]: row for row in record["rows"] if row["tool"] == OURS}
    ceilings = [
        Target(f"{q.title}, in gradients", ours[q.key]["gradients"], q.ceiling, full)
        for q in QUANTITIES
        if q.ceiling is not None
    ]
    (others,) = (row for row in record["rows"] if row["tool"] == BEST)
    ratio = ours[COMBINED]["gradients"] / others["gradients"]
    ceilings.append(
        Target(f"{_BY_KEY[COMBINED].title}, over {BEST}", ratio, COMBINED_CEILING, full)
    )
    ceilings += [
        Target(f"{q.title}, over the plain program", ratio, PLAIN_CEILING, full)
        for q in QUANTITIES
        if q.measure and (ratio := over_the_plain_program(record, q)) is not None
    ]
    largest = max(row["peak"] for row in ours.values()) / MEBIBYTE
    budget = GIBIBYTE / MEBIBYTE
    ceilings.append(
        Target("largest peak of ours, in MiB (the default budget)", largest, budget, full)
    )
    return ceilings


def over_the_plain_program(record: Row, quantity: Quantity) -> float | None:
    """Return our time over that of the fastest plain program, None where there is none."""
    rows = [row for row in record["rows"] if row["quantity"] == quantity.key and not void(row)]
    plain = [row["gradients"] for row in rows if row["tool"].startswith(PLAIN)]
    ours = [row["gradients"] for row in rows if row["tool"] == OURS]
    return ours[0] / min(plain) if ours and plain else None


def _network_targets(record: Row) -> list[Target]:
    what = "calls on other people's networks in which a tool is both faster and more accurate"
    full = record["settings"]["estimates"] == NETWORK_ESTIMATES
    cases = {(ours["network"], ours["quantity"]) for ours, _ in ahead(record)}
    return [Target(what, len(cases), AHEAD_CEILING, full)]


def _trace_targets(record: Row) -> list[Target]:
    best = min(row["percent"] for row in record["traces"] if row["tool"] == OURS)
    what = f"relative error of Tr H after {TRACE_PRODUCTS} products, in percent"
    return [Target(what, best, TRACE_CEILING, record["settings"]["seeds"] == TRACE_SEEDS)]


def _step_targets(record: Row) -> list[Target]:
    what = "a step of SAM outside its closures, in percent of the time inside"
    full = record["settings"]["batch"] == REFERENCE_BATCH
    return [Target(what, _step(record, "sam")["percent"], STEP_CEILING, full)]


def _step(record: Row, key: str) -> Row:
    """Return the row of a kind of step; ours comes first."""
    return next(row for row in record["steps"] if row["quantity"] == key)


def void(row: Row) -> bool:
    """Whether a tool's result differs from ours by more than round-off can explain."""
    if row["difference"] is None or row["quantity"] not in _TOLERANCES:
        return False
    return not row["difference"] <= _TOLERANCES[row["quantity"]]


def beaten(record: Row) -> list[tuple[Quantity, Row, Row]]:
    """Return the quantities that another tool computes faster, with its row and ours."""
    slower = []
    for quantity in QUANTITIES:
        rows = [row for row in record["rows"] if row["quantity"] == quantity.key and not void(row)]
        best = min(rows, key=lambda row: row["gradients"])
        if best["tool"] != OURS:
            slower.append((quantity, best, next(row for row in rows if row["tool"] == OURS)))
    return slower


def more_accurate(row: Row, other: Row) -> bool:
    """Whether an error is smaller than another by more than two standard errors of both."""
    if not row["errors"] or not other["errors"]:
        return bool(row["errors"])
    (value, spread), (larger, chance) = (root_mean_square(r["errors"]) for r in (row, other))
    return larger - value > 2 * math.hypot(spread, chance)


def faster_networks(record: Row) -> list[tuple[Row, Row]]:
    """Return our row and another tool's where it is faster and not less accurate."""
    pairs = []
    rows = record.get("networks", {}).get("rows", ())
    for ours in (row for row in rows if row["tool"] == OURS):
        others = (
            row
            for row in rows
            if (row["network"], row["quantity"]) == (ours["network"], ours["quantity"])
            and row["tool"] != OURS
            and row["errors"]
        )
        for row in others:
            quicker = ours["gradients"] is None or row["gradients"] < ours["gradients"]
            if quicker and not more_accurate(ours, row):
                pairs.append((ours, row))
    return pairs


def ahead(record: Row) -> list[tuple[Row, Row]]:
    """Return our row and another tool's where it is both faster and more accurate.

    Products are left out, because their errors are round-off, in which no tool is better.
    """
    return [
        (ours, row)
        for ours, row in faster_networks(record)
        if ours["quantity"] != "product" and more_accurate(row, ours)
    ]


# --- for the terminal ------------------------------------------------------------------------


def console_row(row: Row) -> str:
    """Return one row of the terminal's table."""
    agreement = "" if row["difference"] is None else f"differs by {row['difference']:.0e}"
    cost = "void" if void(row) else number(row["gradients"])
    return (
        f"{row['quantity']:24s} {row['tool']:32s} {cost:>9s} gradients "
        f"{number(row['seconds']):>9s} s {row['peak'] / MEBIBYTE:8.0f} MiB  "
        f"{agreement:18s} {row['remark']}"
    )


def console_step(row: Row) -> str:
    """Return one row of the terminal's table of steps."""
    agreement = "" if row["difference"] is None else f"differs by {row['difference']:.0e}"
    cost = "void" if void(row) else number(row["percent"])
    return (
        f"{row['quantity']:36s} {row['tool']:18s} {row['closures']:3d} closures "
        f"{cost:>9s} % outside {number(1e3 * row['outside']):>9s} ms of "
        f"{number(row['inside']):>6s} s {row['peak'] / MEBIBYTE:8.0f} MiB  {agreement}"
    )


def console_network(facts: Row) -> str:
    """Return the terminal's line on a network and its references."""
    return (
        f"{facts['name']}: {facts['parameters']:,} parameters, n = {facts['samples']}, loss "
        f"{number(facts['loss'])}; Tr H {number(facts['trace'])} ± {facts['trace_error']:.1e}, top "
        f"eigenvalue {number(facts['top'][0])}; references in {facts['seconds']:.0f} s"
    )


def console_compared(row: Row) -> str:
    """Return one row of the terminal's table of other people's networks."""
    start = f"  {row['quantity']:8s} {row['tool']:32s} "
    if not row["errors"]:
        return start + row["remark"]
    return (
        f"{start}{row['products']:3d} products  error {_error(row):20s} "
        f"{number(row['gradients']):>7s} gradients {number(row['seconds']):>7s} s "
        f"{row['peak'] / MEBIBYTE:8.0f} MiB"
    )


def _error(row: Row) -> str:
    value, spread = root_mean_square(row["errors"])
    return f"{value:.2g}" + (f" ± {spread:.1g}" if 0 < spread < math.inf else "")


def console_summary(record: Row) -> str:
    """Return the terminal's lines on Tr H, the drift and the targets."""
    lines = [
        f"Tr H  {row['tool']:24s} {row['method']:12s} {row['percent']:6.2f} % "
        f"after {row['products']:.0f} products"
        for row in record.get("traces", ())
    ]
    if "rows" in record:
        lines.append(f"the unit varied by a factor of {drift(record):.2f} during the run")
    lines += [
        f"{target.verdict:11s} {target.shown:>8s} (at most {number(target.ceiling)})  {target.what}"
        for target in targets(record)
    ]
    return "\n".join(lines)


def drift(record: Row) -> float:
    """Return the largest over the smallest median time of a gradient of ResNet-20."""
    units = [
        row["gradient_seconds"]
        for row in record["rows"]
        if row["quantity"] not in _BY_KEY or _BY_KEY[row["quantity"]].problem == "ResNet-20"
    ]
    return max(units) / min(units)


def number(value: float) -> str:
    """Format with three digits, without exponents."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


# --- the page --------------------------------------------------------------------------------


def page(record: Row, device: Row | None = None) -> str:
    """Return the book's page: the template with the record's figures, and those of a GPU."""
    settings = record["settings"]
    unit, channels_last = (row for row in record["rows"] if row["quantity"] == "gradient")
    commit = f"`{record['commit'][:10]}`" if record["commit"] else "an unknown commit"
    return TEMPLATE.read_text(encoding="utf-8").format(
        samples=settings["samples"],
        repeats=settings["repeats"],
        most=3 * settings["repeats"],
        longest=number(settings["longest"]),
        seeds=settings["seeds"],
        products=TRACE_PRODUCTS,
        unit_seconds=number(unit["gradient_seconds"]),
        unit_peak=_mebibytes(unit),
        channels_last=number(channels_last["gradients"]),
        drift=number(drift(record)),
        device=record["device"],
        threads=record["threads"],
        software=", ".join(f"{name} {value}" for name, value in record["versions"].items()),
        commit=commit + (" with uncommitted changes" if record["dirty"] else ""),
        date=record["date"],
        minutes=number(record["seconds"] / 60),
        warning=_warning(settings),
        target_rows=_target_rows(record),
        table_rows=_table_rows(record),
        networks=_networks(record),
        trace_rows=_trace_rows(record),
        batch=settings["batch"],
        steps=settings["steps"],
        renewals=RENEWALS,
        first_outside=number(1e3 * _step(record, "sam")["first_outside"]),
        step_rows=_step_rows(record),
        step_remarks=_step_remarks(record),
        weaknesses=_weaknesses(record),
        gpu=device_section.section(record, device),
    )


def _warning(settings: Row) -> str:
    sizes = {
        "samples": ("n = {}", REFERENCE_SAMPLES),
        "seeds": ("{} seeds", TRACE_SEEDS),
        "batch": ("batches of {}", REFERENCE_BATCH),
        "estimates": ("{} estimates on other people's networks", NETWORK_ESTIMATES),
    }
    sizes = {name: size for name, size in sizes.items() if name in settings}
    if all(settings[name] == size for name, (_, size) in sizes.items()):
        return ""
    here, there = (
        ", ".join(words.format(value) for words, value in pairs)
        for pairs in (
            [(words, settings[name]) for name, (words, _) in sizes.items()],
            sizes.values(),
        )
    )
    return (
        f"```{{warning}}\nThis was a trial run with {here}; the ceilings are for {there}.\n```\n\n"
    )


def _mebibytes(row: Row) -> str:
    return f"{row['peak'] / MEBIBYTE:,.0f}"


def _target_rows(record: Row) -> str:
    return "\n".join(
        f"| {target.what} | {target.shown} | {number(target.ceiling)} | {target.verdict} |"
        for target in targets(record)
    )


def _table_rows(record: Row) -> str:
    lines = []
    for quantity in QUANTITIES:
        title = quantity.title
        for row in record["rows"]:
            if row["quantity"] != quantity.key:
                continue
            cost = (
                ["void", "void"]
                if void(row)
                else [number(row["gradients"]), number(row["seconds"])]
            )
            apart = "" if row["difference"] is None else _power(row["difference"])
            cells = [title, row["tool"], *cost, _mebibytes(row), apart]
            lines.append(f"| {' | '.join(cells)} | {row['remark']} |")
            title = ""
    return "\n".join(lines)


def _power(value: float) -> str:
    """Round up to a power of ten, because round-off differs from machine to machine."""
    if value == 0:
        return "0"
    exponent = int(f"{value:e}".split("e")[1]) + 1
    return f"< 1e{exponent}"


def _networks(record: Row) -> str:
    """Return the section on other people's networks, empty where the record has none."""
    if "networks" not in record:
        return ""
    prepared, rows = record["networks"]["prepared"], record["networks"]["rows"]
    calls = [len(row["errors"]) for row in rows if row["errors"]]
    rules = [
        "for the {} {} of them and {} probes of {} steps (half of the steps are {} away)".format(
            facts["name"], *facts["density"], number(facts["density_moved"])
        )
        for facts in prepared
        if any(facts["density"])
    ]
    return NETWORKS_TEMPLATE.read_text(encoding="utf-8").format(
        products=NETWORK_PRODUCTS,
        network_rows="\n".join(_network_row(facts) for facts in prepared),
        fewest=min(calls),
        most=max(calls),
        rest_probes=REMAINDER_PROBES,
        probes=DENSITY_PROBES,
        steps=DENSITY_STEPS,
        reference_rules=", ".join(rules),
        compared_rows=_compared_rows(rows),
        verdict=_verdict(record),
    )


def _network_row(facts: Row) -> str:
    trace = number(facts["trace"])
    if facts["trace_error"]:
        trace += f" ± {facts['trace_error']:.1g}"
    cells = [
        facts["name"],
        f"{facts['parameters']:,}",
        str(facts["samples"]),
        str(facts["steps"]),
        number(facts["loss"]),
        trace,
        number(facts["top"][0]),
    ]
    return f"| {' | '.join(cells)} |"


def _compared_rows(rows: Sequence[Row]) -> str:
    lines, network, quantity = [], "", ""
    for row in rows:
        first = row["network"] != network
        cells = [
            row["network"] if first else "",
            NETWORK_QUANTITIES[row["quantity"]] if first or row["quantity"] != quantity else "",
            row["tool"],
        ]
        network, quantity = row["network"], row["quantity"]
        if row["errors"]:
            cells += [str(row["products"]), _error(row)]
            cells += [number(row["gradients"]), number(row["seconds"]), _mebibytes(row), ""]
        else:
            cells += ["", "cannot", "", "", "", row["remark"].replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(record: Row) -> str:
    pairs = ahead(record)
    rule = (
        "An error counts as smaller where it is so by more than two standard errors of the "
        "difference."
    )
    if not pairs:
        return (
            f"In no call was another tool both faster and more accurate than this library. {rule}"
        )
    return (
        "Another tool was **both faster and more accurate** than this library in:\n\n"
        + "\n".join(_compared_line(*pair) for pair in pairs)
        + f"\n\n{rule}"
    )


def _compared_line(ours: Row, row: Row) -> str:
    own = (
        f"an error of {_error(ours)} after {number(ours['gradients'])}"
        if ours["errors"]
        else "no result"
    )
    return (
        f"* {NETWORK_QUANTITIES[row['quantity']]}, {row['network']}: {row['tool']} has an error of "
        f"{_error(row)} after {number(row['gradients'])} gradients, this library {own}."
    )


def _trace_rows(record: Row) -> str:
    return "\n".join(
        f"| {row['tool']} | {row['method']} | {row['percent']:.2f} | {row['products']:.0f} |"
        for row in record["traces"]
    )


def _step_rows(record: Row) -> str:
    lines = []
    for row in record["steps"]:
        kind = _KINDS[row["quantity"]]
        cost = [number(row["percent"]), number(1e3 * row["outside"]), number(row["inside"])]
        cells = [
            kind.title,
            row["tool"],
            str(row["closures"]),
            *(["void"] * len(cost) if void(row) else cost),
            _mebibytes(row),
            "" if row["difference"] is None else _power(row["difference"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _step_remarks(record: Row) -> str:
    measured = dict.fromkeys(row["quantity"] for row in record["steps"])
    return "\n".join(
        f"* {_KINDS[key].title}: {_KINDS[key].remark}." for key in measured if _KINDS[key].remark
    )


def _slower_steps(record: Row) -> list[str]:
    """Say where another tool's optimizer spends less time outside its closures than ours."""
    lines = []
    for row in record["steps"]:
        ours = _step(record, row["quantity"])
        if row["difference"] is None or void(row) or row["percent"] >= ours["percent"]:
            continue
        lines.append(
            f"* a step of {_KINDS[row['quantity']].title}: {row['tool']} spends "
            f"{number(row['percent'])} % of the closures' time outside, this library "
            f"{number(ours['percent'])} %."
        )
    return lines


def _weaknesses(record: Row) -> str:
    slower = [
        f"* {quantity.title}: {best['tool']} takes {number(best['gradients'])} gradients and "
        f"{_mebibytes(best)} MiB, this library {number(row['gradients'])} and {_mebibytes(row)}."
        for quantity, best, row in beaten(record)
    ]
    slower += _slower_steps(record)
    slower += [_compared_line(*pair) for pair in faster_networks(record)]
    if not slower:
        return "* No other tool was faster in this run."
    return "Another tool was faster in:\n\n" + "\n".join(slower) + "\n\nAnd in general:\n"


def costs(record: Row) -> str:
    """Return a table of what calls on networks of several sizes cost, for the page of users."""
    lines = ["| network | parameters | samples | call | gradients | seconds | MiB |"]
    lines.append("|---|---|---|---|---|---|---|")
    (ours,) = (r for r in record["rows"] if (r["quantity"], r["tool"]) == (COMBINED, OURS))
    rows = [("ResNet-20", RESNET20_PARAMETERS, record["settings"]["samples"], _COMBINED_CALL, ours)]
    prepared = {facts["name"]: facts for facts in record["networks"]["prepared"]}
    rows += [
        (name, facts["parameters"], facts["samples"], _NETWORK_CALLS[row["quantity"]], row)
        for name, facts in prepared.items()
        for row in record["networks"]["rows"]
        if (row["network"], row["tool"]) == (name, OURS) and row["quantity"] in _NETWORK_CALLS
    ]
    for name, parameters, samples, call, row in rows:
        cells = [name, f"{parameters:,}", str(samples), call, number(row["gradients"])]
        lines.append(f"| {' | '.join([*cells, number(row['seconds']), _mebibytes(row)])} |")
    return "\n".join(lines)


_COMBINED_CALL = "exact Rényi sharpness of all layers and four more measures, by `measure`"
_NETWORK_CALLS = {
    "trace": "`hessian_trace`, 10 or 30 products",
    "top": "five top eigenvalues, at most 30 products",
    "density": "`spectral_density`, 30 products",
}
RESNET20_PARAMETERS = 269_722
"""Number of parameters of the reference network."""

BEGIN_COSTS = "<!-- costs: written by benchmarks.render -->\n"
END_COSTS = "<!-- end of costs -->\n"


def with_costs(text: str, record: Row) -> str:
    """Return the page of users with the table of costs between its marks."""
    before, _, rest = text.partition(BEGIN_COSTS)
    _, _, after = rest.partition(END_COSTS)
    return f"{before}{BEGIN_COSTS}\n{costs(record)}\n\n{END_COSTS}{after}"


def main() -> None:
    """Write the pages from the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page(record, device_section.read()), encoding="utf-8")
    users = USERS_PAGE.read_text(encoding="utf-8")
    USERS_PAGE.write_text(with_costs(users, record), encoding="utf-8")


if __name__ == "__main__":
    main()
