"""Measures, bounds and optimizers for the sharpness of loss minima."""
