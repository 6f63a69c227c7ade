import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperkit.data.splits import class_quotas, stratified


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_quotas_sum_to_the_size_and_stay_within_one_of_each_share(counts, fraction, seed):
    counts = np.array(counts)
    size = round(fraction * counts.sum())
    quotas = class_quotas(counts, size, np.random.default_rng(seed))
    assert quotas.sum() == size
    assert (quotas <= counts).all()
    assert (np.abs(quotas - counts * size / counts.sum()) < 1).all()


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_chosen_and_rest_cover_every_sample_once(labels, fraction, seed):
    labels = np.array(labels)
    size = round(fraction * len(labels))
    chosen, rest = stratified(labels, size, np.random.default_rng(seed))
    assert len(chosen) == size
    assert sorted([*chosen, *rest]) == list(range(len(labels)))


def test_a_divisible_size_takes_the_same_number_of_every_class():
    labels = np.repeat(np.arange(10), 50)
    chosen, rest = stratified(labels, 120, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [12] * 10
    assert np.bincount(labels[rest]).tolist() == [38] * 10


def test_the_order_of_the_chosen_does_not_follow_the_classes():
    labels = np.repeat(np.arange(10), 50)
    chosen, _ = stratified(labels, 100, np.random.default_rng(0))
    # A sorted order would put classes 0 to 4 first, whose mean is 2; in a random order the
    # mean of the first half is 4.5 with standard error 0.29 (50 of 100, without replacement).
    assert labels[chosen[:50]].mean() == pytest.approx(4.5, abs=4 * 0.29)


def test_the_same_seed_makes_the_same_choice_and_another_seed_another():
    labels = np.repeat(np.arange(10), 50)

    def choice(seed):
        return stratified(labels, 100, np.random.default_rng(seed))[0].tolist()

    assert choice(3) == choice(3)
    assert choice(3) != choice(4)


def test_ties_between_classes_are_broken_at_random():
    counts = np.full(10, 100)
    extras = sum(class_quotas(counts, 64, np.random.default_rng(seed)) - 6 for seed in range(500))
    # Each class wins one of the four extra places with probability 0.4.
    deviation = np.sqrt(500 * 0.4 * 0.6)
    assert np.abs(extras - 200).max() < 4 * deviation
