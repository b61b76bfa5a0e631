"""What a person meets: flags, launch files, the terminal. Runs in the daemon's process: nothing here imports torch."""
