"""From notebooks and records to a book that was checked in a browser.

``notebooks`` executes the chapters, ``book`` builds the pages, ``browser`` looks at them,
``nbval_tolerance`` compares committed with recomputed outputs by ``printed_numbers``, and
``sphinx_extension`` puts the verdicts on the pages. Nothing else in the package imports this
room except the command line.
"""
