"""`hydra/launcher=ray`: the GPUs, or slots on the processor, of one machine or of a Ray cluster."""

from kd.sweep.ray.launcher import RayLauncher

__all__ = ["RayLauncher"]
