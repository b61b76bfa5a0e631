"""The processes: thin shells that join a pure mind of `core` to the effects of `host` (and, for compute, `models`)."""
