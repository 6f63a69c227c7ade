"""The studies, one module each: the module ``NAME`` holds ``STUDY = Study(name="NAME", …)``.

Modules whose name begins with an underscore are shared by studies and are no studies.
"""
