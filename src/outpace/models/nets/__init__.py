"""Our own sequence-to-sequence networks: one adapter, one file format, and a short file for each architecture."""
