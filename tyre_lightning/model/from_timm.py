"""The networks of timm (Wightman, PyTorch Image Models), which is imported when one of them is asked for.

A network is known by its name alone, which timm's own registry must have: nothing else of what a file says is built.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from tyre_lightning.data.transforms import Preset
from tyre_lightning.errors import UserError, first_line

PREFIX = "timm/"  # of the names of these networks, wherever a backbone is named
_STEM = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier.1"}
# Of an EfficientNet's blocks: what timm calls their parts, by a part that only this kind of block has, and where they
# lie in torchvision's.
_SQUEEZE = "se.conv_reduce", "se.conv_expand"
_BLOCKS: dict[str, dict[str, str]] = {
    "conv_exp": {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"},
    "conv_pwl": {
        "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1",
        **dict(zip(_SQUEEZE, ("2.fc1", "2.fc2"), strict=True)), "conv_pwl": "3.0", "bn3": "3.1",
    },
    "conv_dw": {
        "conv_dw": "0.0", "bn1": "0.1", **dict(zip(_SQUEEZE, ("1.fc1", "1.fc2"), strict=True)),
        "conv_pw": "2.0", "bn2": "2.1",
    },
    "conv": {"conv": "0.0", "bn1": "0.1"},
}  # fmt: skip


def is_timm(name: str) -> bool:
    """Whether a backbone's name is that of one of these networks."""
    return name.startswith(PREFIX)


def timm_preset(name: str) -> Preset:
    """What the weights of a network were evaluated with.

    Raises:
        UserError: timm is not installed or has no network of that name, or it takes no square pictures.
    """
    config = _config(name)
    _, height, width = config.input_size
    if height != width:
        raise UserError(f"model.name={_own(name)} takes pictures of {width} x {height} pixels, not square ones: give "
                        "another")  # fmt: skip
    how = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    mean, std = tuple(config.mean), tuple(config.std)
    fixed = config.fixed_input_size
    return Preset(round(height / config.crop_pct), height, how, mean, std, fixed=fixed, least=0)


def build(name: str, size: int | None, pretrained: bool = False) -> nn.Module:
    """A network that ends in its pooled features.

    Args:
        name: with ``PREFIX``.
        size: of the pictures' side in pixels, for networks that take only one; None for their own.
        pretrained: with timm's weights, from the hub or where an earlier download left them, else with random ones.

    Raises:
        UserError: as :func:`timm_preset`; or the network cannot be had for pictures of that size.
    """
    config = _config(name)
    own = config.input_size[-1]
    resized = {"img_size": size} if config.fixed_input_size and size not in (None, own) else {}
    options: dict[str, Any] = {"num_classes": 0, "exportable": True, **resized}
    try:
        model: nn.Module = _timm().create_model(_own(name), pretrained=pretrained, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        if not resized or pretrained:
            raise
        raise UserError(
            f"model.name={_own(name)} cannot be built for pictures of {size} pixels ({first_line(error)}): give "
            f"data.image_size={own}, its own, or another that it can divide"
        ) from error
    return model


def pretrained_state(name: str, size: int | None) -> dict[str, Tensor]:
    """The tensors of timm's own weights for a network, as it names them.

    Raises:
        UserError: there are none; they cannot be downloaded.
    """
    if not _config(name).has_weights:
        raise UserError(f"timm has no weights for model.name={_own(name)}: give model.weights=PATH or s3://... of a "
                        "file, model.weights=none, or another model.name")  # fmt: skip
    try:
        return build(name, size, pretrained=True).state_dict()
    except Exception as error:  # of the hub, its client, or the file
        raise UserError(
            f"timm's weights of {_own(name)} cannot be had from the hub ({first_line(error)}): give model.weights=PATH "
            "or s3://... of a saved copy, HF_HOME with a copy of the hub's cache, or model.weights=none"
        ) from error


def fitted(backbone: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file as one of these networks names and shapes them, without those of a head.

    Names of other origins and positions for pictures of another size are brought into the network's own form by timm;
    torchvision's names of an EfficientNet's tensors are translated here.
    """
    names = {there: here for here, there in torchvision_names(backbone.state_dict()).items()}
    found = {names.get(key, key): value for key, value in state.items() if not key.startswith("classifier.1.")}
    mend = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        mended = mend(found, backbone) if mend is not None else found
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError):  # of a file of another network
        mended = found
    heads: Any = backbone.pretrained_cfg.get("classifier") or ()  # type: ignore[operator,union-attr]
    heads = (heads,) if isinstance(heads, str) else heads
    return {key: value for key, value in mended.items() if not key.startswith(tuple(f"{head}." for head in heads))}


def stages(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """A network's parameters from the stem on, in groups, of which the first may be frozen."""
    group = import_module("timm.models").group_parameters
    groups = group(backbone, backbone.group_matcher(coarse=True), return_values=True)  # type: ignore[operator]
    return [groups[index] for index in sorted(groups)]


def stage_of_cells(backbone: nn.Module, pixels: int) -> nn.Module | None:
    """The last stage whose cells are so many pixels wide; None where there is none."""
    found: Any = getattr(backbone, "feature_info", None) or []
    named = [item["module"] for item in found if item["reduction"] == pixels]
    sizes = {item["reduction"] for item in found}
    return backbone.get_submodule(named[-1]) if named and len(sizes) > 1 else None


def torchvision_names(keys: Iterable[str]) -> dict[str, str]:
    """torchvision's name of each tensor of an EfficientNet that timm has named; nothing for other networks.

    EfficientNet B0 to B7 and Lite, and V2: in torchvision's stages every block is a list of its parts, in timm's each
    part has a name.
    """
    keys = [*keys]
    if "conv_stem.weight" not in keys:
        return {}
    blocks: dict[str, set[str]] = {}
    for key in keys:
        if match := re.match(r"(blocks\.\d+\.\d+)\.(.+)\.\w+$", key):
            blocks.setdefault(match[1], set()).add(match[2])
    last = 2 + max((int(block.split(".")[1]) for block in blocks), default=-1)
    ends = {**_STEM, "conv_head": f"features.{last}.0", "bn2": f"features.{last}.1"}
    return {key: new for key in keys if (new := _torchvision_name(key, ends, blocks))}


def _torchvision_name(key: str, ends: Mapping[str, str], blocks: Mapping[str, set[str]]) -> str | None:
    part, _, leaf = key.rpartition(".")
    if part in ends:
        return f"{ends[part]}.{leaf}"
    match = re.match(r"blocks\.(\d+)\.(\d+)\.(.+)$", part)
    if match is None:
        return None
    parts = blocks[f"blocks.{match[1]}.{match[2]}"]
    kind = next((names for only, names in _BLOCKS.items() if only in parts), {})
    place = kind.get(match[3])
    return None if place is None else f"features.{int(match[1]) + 1}.{match[2]}.block.{place}.{leaf}"


def _own(name: str) -> str:
    return name.removeprefix(PREFIX)


def _config(name: str) -> Any:
    """What timm knows of a network and its weights."""
    own, timm = _own(name), _timm()
    known = timm.list_models()
    with_tags = timm.list_pretrained()
    if own not in known and own not in with_tags:  # never a hub's address, from which timm would build anything
        near = difflib.get_close_matches(own, [*known, *with_tags], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "`timm.list_models()` lists them"
        raise UserError(f"model.name='{own}' is none of timm's networks: {hint}")
    return timm.models.get_pretrained_cfg(own)


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise UserError("timm is not installed, whose networks model=timm takes: `pip install timm`") from error
