"""How the time for readings is dealt out, worked by hand."""

from __future__ import annotations

import random

from paperkit.monitor.budget import Account, deal


def purses(earned: float, *accounts: Account) -> list[float]:
    deal(earned, accounts)
    return [round(account.purse, 12) for account in accounts]


def test_each_gets_an_equal_part_and_gives_back_what_it_does_not_need() -> None:
    # The first needs 1 of its 2, the second its 2.5 of (6 − 1) / 2, the third has the rest.
    assert purses(6.0, Account(1.0), Account(5.0), Account(9.0)) == [1.0, 2.5, 2.5]


def test_the_cheapest_comes_first_wherever_it_stands() -> None:
    assert purses(6.0, Account(9.0), Account(1.0)) == [5.0, 1.0]


def test_no_purse_holds_more_than_the_next_reading_needs() -> None:
    assert purses(100.0, Account(1.0), Account(3.0)) == [1.0, 3.0]
    full = Account(2.0, purse=2.0)
    assert purses(4.0, full, Account(9.0)) == [2.0, 4.0]


def test_a_reading_that_took_too_long_is_paid_back_first() -> None:
    account = Account(1.0, purse=1.0)
    account.pay(3.0)
    assert (account.purse, account.cost, account.readings) == (-2.0, 3.0, 1)
    assert purses(4.0, account) == [2.0]
    account.pay(2.0)
    assert account.cost == 3.0  # the longer one of the last two


def test_a_debt_takes_nothing_out_of_any_purse() -> None:
    assert purses(-5.0, Account(1.0, purse=0.5), Account(9.0, purse=2.0)) == [0.5, 2.0]


def test_nothing_is_dealt_out_twice_and_nobody_starves() -> None:
    generator = random.Random(0)
    accounts = [Account(10.0**k) for k in range(-3, 2)]
    earned = 0.0
    for _ in range(20_000):
        income = generator.uniform(0.0, 0.02)
        earned += income
        before = sum(account.purse for account in accounts)
        deal(income, accounts)
        assert sum(account.purse for account in accounts) - before <= income + 1e-12
        for account in accounts:
            if account.purse >= account.cost:
                account.pay(account.cost * generator.uniform(0.8, 1.0))
    assert sum(account.spent for account in accounts) <= earned
    # The dearest costs 10 of about 200, a fifth of which is its own.
    assert all(account.readings >= 3 for account in accounts)
