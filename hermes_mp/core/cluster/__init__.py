"""Several boards as figures: what is known of them, who should run which layers, and what that comes to."""
