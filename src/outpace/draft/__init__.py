"""Where candidates come from: drafters own their state, and never run the target's loop."""
