"""What other libraries say and do without need in a normal run, switched off: each line names what, and why."""

import logging
import os
import warnings

import torch


def quiet() -> None:
    """Switch off tips and warnings that do not concern a user of this project. Errors stay."""
    if not torch.cuda.is_available():
        # Lightning has torch ask for GPUs by loading a library, each time, and Adam asks at every step
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("lightning.pytorch", "lightning.fabric"):  # "GPU available: ...", tips, "Trainer.fit stopped: ..."
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",  # the resident loader has none by design
        r".*Starting from v1\.9\.0, `tensorboardX`.*",
        r".*Total length of `list` across ranks is zero.*",  # data.val=0: there is nothing to validate on
        r".*resuming from a checkpoint that ended before the epoch ended.*",  # our loaders begin where it ended
        r".*have no `val_dataloader`.*",  # the same, in `kd.distill`
        r".*module\(s\) in eval mode at the start of training.*",  # what a first stage has trained stays frozen
        r".*`LightningModule.configure_optimizers` returned `None`.*",  # each student of a group has its own
        r".*performance drop because we have not yet implemented the batching rule.*",  # stacking is timed, and told
        r".*`srun` command is available.*",  # a run may start on a cluster without being a task of its queue
        r".*`broadcast_buffers` is deprecated.*",  # its successor is not in every torch that will do
        r".*`dataloader_iter`.*",  # experimental, they say: kd.distiller uses it as documented, and tests hold it
        r".*isinstance\(treespec, LeafSpec\).*",  # raised inside Lightning by newer torch
    ):
        warnings.filterwarnings("ignore", message)
