"""Batch normalisation over the images of all processes, as if one process had the whole batch."""

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd.collectives import summed
from kd.errors import ConfigError
from kd.losses._numeric import full_precision

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layer_sync(device: torch.device) -> LayerSync:
    """What replaces batch norms while a network trains: torch's own on a GPU; that refuses the CPU's tensors."""
    return TorchSyncBatchNorm() if device.type == "cuda" else GlobalNorms()


def refuse_unknown_norms(network: nn.Module, owner: str) -> None:
    """Raise `ConfigError` for a batch norm whose statistics cannot be those of all processes."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (type(module) not in KINDS or not module.track_running_stats):
            kind = f"a {type(module).__name__}" + ("" if module.track_running_stats else " without running statistics")
            raise ConfigError(
                f"Layer {name!r} of the {owner} is {kind}, which cannot normalise over the images of several "
                "processes. Train on one device (trainer.strategy=auto trainer.devices=1), or use torch's own "
                "batch norms with running statistics."
            )


class GlobalNorms(LayerSync):
    """Puts a `GlobalNorm` in the place of every batch norm, and the batch norms back afterwards."""

    def __init__(self) -> None:
        self.replaced: dict[str, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        for name, module in found.items():
            model.set_submodule(name, GlobalNorm(module))
        self.replaced = dict(found)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for name, module in self.replaced.items():
            used = model.get_submodule(name)
            module.load_state_dict(used.state_dict())
            model.set_submodule(name, module.train(used.training))
        self.replaced = {}
        return model


class GlobalNorm(_BatchNorm):
    """A batch norm with the parameters of another one; in training it normalises over all processes' images.

    Mean and variance are calculated in two passes, as torch does for one process, so that they agree to rounding.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.affine = norm.affine
        self.weight, self.bias = norm.weight, norm.bias  # the optimiser's own, not copies
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """The layer that this one stands for has seen a batch by now."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        values = full_precision(input)
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = summed(torch.cat([values.sum(over), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = summed(centred.square().sum(over)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are the average over all batches."""
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)
