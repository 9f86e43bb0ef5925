"""One trial: load the base model, wrap it with a method, train, evaluate. Knows nothing of scheduling.

In the order in which to read it:

- the trial: trial, setup, stretch, training, batches, scoring, checkpoints, state
- what it reads: data, sources, embedded_text; pretrained, base_model, quantization, embedded
- methods: methods
- what makes it fast: attention, dropout, last_tokens, inference, features, graphs
- several processes for a trial: parallel
- several trials in a process: pack, guests, shared_base, stacks, stacked_layers
- what it costs: measure, probe
"""

from pathlib import Path
from typing import Any

import torch
from transformers.utils import import_utils


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


def _import_models() -> None:
    """Import transformers' package of models, and have it read their 1,649 files once instead of twice.

    To know what it could import, transformers reads them for itself and again for ``transformers.models``,
    since it names the directory in two ways. That is a tenth of everything a worker imports.
    """
    known = import_utils.create_import_structure_from_path

    def of_directory(path: Path | str) -> Any:
        path = Path(path)
        return known(path.parent if path.name == "__init__.py" else path)

    import_utils.create_import_structure_from_path = of_directory  # type: ignore[assignment]
    try:
        import transformers.models  # noqa: F401
    finally:
        import_utils.create_import_structure_from_path = known


_import_bitsandbytes()
_import_models()
