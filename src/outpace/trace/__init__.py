"""Traces: what each step proposed, what was kept and where the time went, as JSON lines and as one web page."""

from outpace.trace.page import render
from outpace.trace.record import Recorder, read_trace

__all__ = ["Recorder", "read_trace", "render"]
