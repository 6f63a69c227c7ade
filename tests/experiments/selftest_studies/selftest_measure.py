"""A study that measures what another one trained."""

import json

from paperkit.experiments.studies.selftest_parts import double

from paperkit.experiments import RunContext, Study


def grid(profile):
    seeds = {"smoke": [0], "laptop": [0, 1, 2], "paper": [0, 1, 2, 3]}[profile]
    return [{"part": part, "seed": seed} for seed in seeds for part in ("small", "large")]


def run(configuration, context: RunContext):
    """Measure a run."""
    training = {"steps": 4, "seed": configuration["seed"]}
    record = context.record_of("selftest_training", training)
    state = json.loads(context.checkpoint_of("selftest_training", training).read_text())
    with (context.store / "log").open("a") as log:
        log.write(f"measuring {configuration['part']} {configuration['seed']}\n")
    size = {"small": 1.0, "large": 10.0}[configuration["part"]]
    return {
        "gap": double(state["total"]) - 2 * record.metrics["total"],
        "size": size + 0.1 * configuration["seed"],
        "layers": {"conv": size, "fc": [size, 2 * size]},
        "slack": -0.5 if configuration["seed"] == 2 else 0.5,
    }


STUDY = Study("selftest_measure", "Is it measured?", grid, run, needs=("selftest_training",))
