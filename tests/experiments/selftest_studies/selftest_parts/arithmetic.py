"""Doubles."""


def double(value):
    """Return the double."""
    # A comment.
    return 2 * value
