"""A study of two kinds of runs that tells what they cost, and how a trial of one is made."""

from paperkit.experiments import Cost, RunContext, Study


def grid(profile):
    if profile == "paper":
        return []
    steps = {"smoke": 1, "laptop": 10}[profile]
    return [
        {"width": width, "steps": steps, "seed": seed} for width in (1, 100) for seed in range(3)
    ]


def run(configuration, context: RunContext):
    with (context.store / "log").open("a") as log:
        log.write(f"{configuration['width']} {configuration['seed']}\n")
    return {"sum": configuration["width"] + configuration["seed"]}


def cost(configuration):
    kind = "narrow" if configuration["width"] == 1 else "wide"
    return Cost(kind, configuration["steps"], "steps", size=2.0)


def trial(configuration, steps, context):
    if configuration["width"] == 1:
        context.record_of("selftest_training", {"steps": 4, "seed": 0})
    return 0.5


STUDY = Study("selftest_costed", "What does it cost?", grid, run, cost=cost, trial=trial)
