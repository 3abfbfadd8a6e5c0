"""Settings of a method declare their range: see `outpace.setting`."""

from outpace.setting import Range, check, setting

__all__ = ["Range", "check", "setting"]
