"""The study of all layers on many samples, at its smallest profile."""

import math

from paperkit.experiments.studies.renyi_many_samples import ALLOWED, GRADIENTS, STUDY


def test_what_a_run_states_is_what_it_compares() -> None:
    (configuration,) = STUDY.grid("smoke")
    metrics = STUDY.run(configuration, context=None)
    keys = {f"{layer}, {order}" for layer in metrics["layers"] for order in (0.5, 1.5)}
    for name in ("entropy", "stated", "stated_slack", "error", "within_slack"):
        assert set(metrics[name]) == keys
    assert metrics["gradients_slack"] == GRADIENTS - metrics["gradients"]
    # Directions are taken out of most layers, and something is left.
    assert sum(share > 0 for share in metrics["rest_share"].values()) > len(metrics["layers"]) / 2
    for key in keys:
        assert math.isclose(metrics["stated"][key] + metrics["stated_slack"][key], ALLOWED)
        # Entropies of n (C − 1) = 72 rows at most.
        assert 0 <= metrics["entropy"][key] <= math.log(72) + metrics["stated"][key]
        assert metrics["within_slack"][key] >= 0, key
