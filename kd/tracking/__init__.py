"""Dashboards beside metrics.csv: Weights & Biases, trackio, TensorBoard. Start reading at `kd.tracking.tracking`.

Nothing is imported here: `names` and `server` are used where Lightning, which takes seconds, is not needed.
"""
