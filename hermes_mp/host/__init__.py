"""Effects: each facility of the operating system is touched in exactly one file of this package; no torch, no numpy."""
