from repository import (  # noqa: F401
    committed,
    edit,
    log,
    root,
    store,
    studies_folder,
    uncommitted,
)
