"""Sharpness while a network trains: measures at a bounded share of the time.

A monitor reads chosen measures every so many steps, the cheap ones first, and leaves training bit
for bit as it was.
"""

from paperkit.monitor.monitor import DEFAULT_MEASURES, MonitorWarning, Reading, SharpnessMonitor

__all__ = ["DEFAULT_MEASURES", "MonitorWarning", "Reading", "SharpnessMonitor"]
