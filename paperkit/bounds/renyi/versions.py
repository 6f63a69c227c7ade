"""The forms in which a statement can be asked for."""

VERSIONS = ("printed", "sharper")
"""As the paper prints it, or in a sharper form of ours."""
