"""Whether the GPUs of this machine are some that this PyTorch can compute on."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from tyre_lightning.errors import UserError


def check_kernels(devices: Iterable[torch.device]) -> None:
    """Refuse a GPU that PyTorch sees and has no kernels for: the first step on it would end in a traceback.

    Raises:
        UserError: names the GPU, and what there are kernels for.
    """
    built = torch.cuda.get_arch_list() if torch.version.hip is None else []  # AMD's are named otherwise
    for device in devices if built else ():
        if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():  # Lightning refuses the latter
            continue
        major, minor = torch.cuda.get_device_capability(device)
        if not any(runs_on((major, minor), name) for name in built):
            raise UserError(
                f"PyTorch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)} (compute "
                f"capability {major}.{minor}), but for {', '.join(built)}: install one that has, or use the CPU "
                "(CUDA_VISIBLE_DEVICES= in the environment hides the GPU)"
            )


def runs_on(capability: tuple[int, int], built: str) -> bool:
    """Whether a GPU can run what was built for an architecture, by the rules of NVIDIA's CUDA C++ programming guide.

    Machine code (``sm_86``) runs on GPUs of the same major and at least the same minor number; that of one architecture
    (``sm_90a``) there alone, that of a family (``sm_100f``) on its later members. PTX (``compute_90``) is compiled for
    any GPU from there on.

    Args:
        capability: of the GPU, as major and minor number.
        built: as ``torch.cuda.get_arch_list()`` has it.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if found is None:
        return False
    kind, wanted, only = found[1], (int(found[2]), int(found[3])), found[4]
    if only == "a":
        return capability == wanted
    if kind == "compute" and not only:
        return capability >= wanted
    return capability[0] == wanted[0] and capability[1] >= wanted[1]
