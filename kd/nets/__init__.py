"""The networks: plain classifiers from an image (B, C, H, W) to logits (B, num_classes).

Every network of this package is written so that the rest of the house can work with it:

- `num_classes` and `image_shape` (C, H, W), where a constructor has them, are filled in from the dataset;
- stages have names (`layer1`, `block0`, ...) and `torch.fx` can trace the forward pass, so any output can be tapped;
- nothing works in place: an in-place ReLU would overwrite a tapped pre-activation;
- no activation module is used twice: int8 quantisers keep one observed range per module.
"""
