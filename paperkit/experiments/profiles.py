"""Names of the profiles under which a study runs."""

from typing import Literal, get_args

Profile = Literal["smoke", "laptop", "paper"]
PROFILES: tuple[str, ...] = get_args(Profile)
