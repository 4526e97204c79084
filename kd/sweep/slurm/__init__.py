"""`hydra/launcher=slurm`: the tasks of a sweep as jobs of a SLURM cluster; docs/cluster.md."""

from kd.sweep.slurm.launcher import SlurmLauncher

__all__ = ["SlurmLauncher"]
