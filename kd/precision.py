"""The numbers that a run computes in."""

import torch

from kd.schema import TrainerConfig


def precision(trainer: TrainerConfig) -> str:
    """Lightning's name of the precision; `auto` is bf16-mixed where the device has instructions for bfloat16.

    What bfloat16 does to accuracies is measured in docs/performance.md.
    """
    if trainer.precision != "auto":
        return trainer.precision
    if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chosen = trainer.accelerator == "auto" and not torch.backends.mps.is_available()
        found = (chosen or trainer.accelerator == "cpu") and _on_cpu()
    return "bf16-mixed" if found else "32-true"


def _on_cpu() -> bool:
    """Whether the CPU multiplies bfloat16 itself; emulated, it is slower than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))
