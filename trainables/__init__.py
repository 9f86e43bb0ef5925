"""One trial: load the base model, wrap it with a method, train, evaluate. Knows nothing of scheduling."""

from typing import Any

import torch


def _import_bitsandbytes() -> None:
    """Import bitsandbytes without PyTorch's compiler, which is a fifth of everything a worker imports.

    bitsandbytes compiles its fallbacks for devices that it has no kernels for, and leaves them uncompiled
    where ``torch.compile`` fails. CPUs and CUDA GPUs have kernels.
    """

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("nothing is compiled while bitsandbytes is imported")

    known, torch.compile = torch.compile, refuse  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = known


_import_bitsandbytes()
