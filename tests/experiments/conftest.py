import os

from repository import (  # noqa: F401
    committed,
    edit,
    log,
    root,
    store,
    studies_folder,
    uncommitted,
)

# Ray runs its workers at the niceness 15, and beside other tests they would hardly get a turn.
os.environ.update(RAY_worker_niceness="0")
