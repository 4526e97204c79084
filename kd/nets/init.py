"""The initialisation that the CIFAR networks share."""

from torch import nn


def he(model: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan_out) and set their biases to 0 (He et al. 2015, 1502.01852).

    Batch norms and linear layers keep PyTorch's own: weight 1 and bias 0; uniform in +-1/sqrt(fan_in).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
