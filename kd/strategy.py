"""What Lightning's Trainer is told of the devices and of the other processes of a run."""

from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from kd import build
from kd.checkpoints import CheckedIO
from kd.data import DistillationData
from kd.distiller import Distiller
from kd.global_norm import layer_sync
from kd.parallel import Team, own_device
from kd.schema import TrainerConfig
from kd.types import Batch


def devices(settings: TrainerConfig, team: Team, module: L.LightningModule, data: DistillationData) -> dict[str, Any]:
    """Return a Trainer's arguments. Of several processes all must call this: it waits until they are connected."""
    if team.size == 1:
        own = {"accelerator": settings.accelerator, "devices": own_device(settings)}
        return {**own, "plugins": [LightningEnvironment(), CheckedIO()]}  # not SLURM's: one process is one run
    assert isinstance(module, Distiller), "students that train together have one process"
    device = build.device(settings)
    team.meet(device)
    return {
        "accelerator": device.type,
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "strategy": DDPStrategy(
            broadcast_buffers=False,  # every process has the same, batch norms' among them
            find_unused_parameters=leaves_parameters_unused(module, data),
        ),
        "plugins": [TorchElasticEnvironment(), layer_sync(device), CheckedIO()],
    }


def leaves_parameters_unused(module: Distiller, data: DistillationData) -> bool:
    """Whether a step gives some trained parameter no gradient, as first stages do: torch must know, and it costs time.

    Tried on two blank images in eval mode, which changes nothing.
    """
    if not module.objective.has_all_terms_always:
        return True
    label = torch.zeros(2, dtype=torch.int64)
    batch = Batch(torch.zeros(2, *data.image_shape), label, data.transfer_set()[0][:2])
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        loss, _ = module.objective(module.student(batch.image), module.teacher(batch), batch)
    finally:
        for part, mode in modes.items():
            part.training = mode
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(loss, trained, allow_unused=True))
