"""The curvature engine's time and memory beside those of other libraries: ``make benchmark``."""
