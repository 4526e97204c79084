"""Silence for what other libraries say in a normal run: each line names what is silenced and why."""

import logging
import os
import warnings


def quiet() -> None:
    """Switch off tips and warnings that do not concern a user of this project. Errors stay."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("lightning.pytorch", "lightning.fabric"):  # "GPU available: ...", tips, "Trainer.fit stopped: ..."
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",  # the resident loader has none by design
        r".*Starting from v1\.9\.0, `tensorboardX`.*",
        r".*Total length of `list` across ranks is zero.*",  # data.val=0: there is nothing to validate on
        r".*have no `val_dataloader`.*",  # the same, in `kd.distill`
        r".*module\(s\) in eval mode at the start of training.*",  # what a first stage has trained stays frozen
        r".*`srun` command is available.*",  # a run may start on a cluster without being a task of its queue
        r".*`broadcast_buffers` is deprecated.*",  # its successor is not in every torch that will do
        r".*isinstance\(treespec, LeafSpec\).*",  # raised inside Lightning by newer torch
    ):
        warnings.filterwarnings("ignore", message)
