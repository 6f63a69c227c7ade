"""Both sides of every numbered statement of the four papers, with what they assume."""
