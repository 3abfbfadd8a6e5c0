"""Models behind the `Adapter` contract."""
