"""`python -m kd.run -m`: many runs as one thing, wherever they run; see `kd.sweep.sweep`."""
