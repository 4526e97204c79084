"""A teacher that does not learn must be the same network after a training as before: it is sealed while it teaches."""

import hashlib
from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Hash of every weight and buffer, batch norm's statistics with them: the same on any device, in any layout."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


class Seals:
    """The networks that must not change, each with its fingerprint."""

    def __init__(self) -> None:
        self._taken: list[tuple[nn.Module, str]] = []

    def take(self, networks: Iterable[nn.Module]) -> None:
        self._taken += [(network, fingerprint(network)) for network in networks]

    def check(self) -> None:
        """Raise `AssertionError` if a network has changed since it was sealed, and break all seals."""
        taken, self._taken = self._taken, []
        for network, before in taken:
            if fingerprint(network) != before:
                raise AssertionError(
                    f"The frozen teacher {type(getattr(network, 'network', network)).__name__} has changed while it "
                    "taught: its weights or batch-norm statistics are not those it began with, and the student is not "
                    "stored. This is a fault in the code, of this project or of the network (one that updates buffers "
                    "in eval mode), and no setting of yours."
                )


class Unchanged(Callback):
    """Seals the teacher when a training begins, and looks at the seals when it ends."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.teacher.seal()  # type: ignore[operator, union-attr]

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.teacher.seals.check()  # type: ignore[operator, union-attr]
