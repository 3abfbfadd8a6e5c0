"""Settings of a method declare their range: see `outpace.setting`."""

from outpace.setting import Range, check, ordered, setting

__all__ = ["Range", "check", "ordered", "setting"]
