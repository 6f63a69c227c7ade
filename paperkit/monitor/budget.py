"""Time for readings: who may spend it, and when.

With a budget b, readings may take b of the whole time, so training earns b / (1 − b) seconds of
reading for each of its own. Each measure has a purse. What training has earned since the last time
is dealt out from the cheapest measure to the dearest: each gets an equal part of what is left, and
gives back what it does not need for its next reading. So cheap measures are read as often as they
are asked for, and a dear one is never starved by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Account:
    """The time of a measure, or of those that share a pass.

    Attributes
    ----------
    cost : float
        Seconds that the next reading is taken to need.
    purse : float
        Seconds that it may spend; negative after a reading that took longer than expected.
    spent : float
        Seconds that all its readings took.
    readings : int
        Number of readings.
    postponed : int
        Number of times that a reading was due and its purse did not hold the cost.
    last : float
        Seconds of the last reading.
    """

    cost: float
    purse: float = 0.0
    spent: float = 0.0
    readings: int = 0
    postponed: int = 0
    last: float = 0.0

    def pay(self, seconds: float) -> None:
        """Take the seconds of a reading out of the purse, and expect no less of the next one."""
        self.cost = max(seconds, self.last)
        self.last = seconds
        self.spent += seconds
        self.purse -= seconds
        self.readings += 1


def deal(earned: float, accounts: Iterable[Account]) -> None:
    """Deal out seconds among accounts, the cheapest first.

    Parameters
    ----------
    earned : float
        Seconds to deal out; a part that nobody needs is dropped. Where more has been spent than
        earned there is nothing to deal out.
    accounts : iterable of Account
        Accounts; their purses grow, up to the cost of their next reading.
    """
    earned = max(0.0, earned)
    waiting = sorted(accounts, key=lambda account: account.cost)
    for position, account in enumerate(waiting):
        part = earned / (len(waiting) - position)
        taken = min(part, max(0.0, account.cost - account.purse))
        account.purse += taken
        earned -= taken
