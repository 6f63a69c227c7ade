"""Grids of the studies as files that a reader can read: ``NAME.yml`` is that of the study NAME.

A file lists blocks of values for the profiles that the study has; a block stands for every
combination of its values. `schema` says what else a file may hold. A grid is no code: one that was
edited names other runs, and leaves the records of those that it still names as they are.
"""

from paperkit.experiments.grids.reading import grid_named, grid_names, grid_of, profiles_of

__all__ = ["grid_named", "grid_names", "grid_of", "profiles_of"]
