"""Models that edit: what stays is copied from the source, and only what changes is written."""
