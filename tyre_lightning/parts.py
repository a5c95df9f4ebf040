"""A user's own parts of a training: what a config names by ``_target_``, as Hydra has it.

``_target_`` says what to call, by its place in an importable module; the other keys are its arguments, which may be
parts themselves. Parts come from the config of the training that is started, never from what a model, a checkpoint or
an earlier run has saved, where they are no more than names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor
    from torch.optim import Optimizer

    from tyre_lightning.config import TrainConfig

TARGET, _PARTIAL = "_target_", "_partial_"
EXTRA_CALLBACKS, EXTRA_AUGMENT = "callbacks.extra", "data.augment.extra"
OWN_OPTIMIZER, OWN_LOSS = "model.optimizer.own", "model.loss"
ADAMW = "torch.optim.AdamW"  # where nothing else is named

Spec = Mapping[str, Any]
Transform = Callable[["Tensor"], "Tensor"]
Loss = Callable[["Tensor", "Tensor"], "Tensor"]


def make(key: str, spec: Spec, *given: Any) -> Any:
    """Call what a part of the config names.

    Modules are found where Python finds them, and in the folder that the command was started in.

    Args:
        key: the config key of the part, for errors.
        spec: ``_target_`` and arguments.
        given: arguments before those.

    Raises:
        UserError: it cannot be imported, or does not take these arguments.
    """
    from hydra.utils import instantiate

    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return instantiate(dict(spec), *given, _convert_="all")
    except (Exception, SystemExit) as error:  # of Hydra, or of what was called
        raise UserError(f"{key}: {spec[TARGET]} cannot be used ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """What is behind an error of Hydra's."""
    while error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return first_line(error)
    module, _, name = error.name.rpartition(".")
    if module in sys.modules:
        return f"{module} has no {name}"
    return f"there is no module {error.name}: install it, or start where it lies"


def check_spec(key: str, spec: Any) -> None:
    """Raise a :class:`UserError` unless a part of the config names what to call; imports nothing."""
    several, _, name = key.rpartition(".")
    if name == TARGET:
        raise UserError(f"{several} holds parts, each by a name of yours: give {several}.NAME.{TARGET}=module.Name")
    target = spec.get(TARGET) if isinstance(spec, Mapping) else None
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"{key} must say what to call: give {key}.{TARGET}=module.Name, and its arguments beside it")


def specs(config: TrainConfig) -> dict[str, Spec]:
    """The parts that a config names, by their keys."""
    own: dict[str, Spec] = {OWN_OPTIMIZER: config.model.optimizer.own, OWN_LOSS: config.model.loss}
    return {
        **{f"{EXTRA_CALLBACKS}.{name}": spec for name, spec in config.callbacks.extra.items()},
        **{f"{EXTRA_AUGMENT}.{name}": spec for name, spec in config.data.augment.extra.items()},
        **{key: spec for key, spec in own.items() if spec},
    }


def check_parts(config: TrainConfig) -> None:
    """Make and try each part once, before anything is listed or read.

    Raises:
        UserError: names the config key, and what is wrong with what it names.
    """
    import torch

    make_callbacks(config.callbacks.extra)
    picture = torch.arange(3 * 48 * 48).view(3, 48, 48).to(torch.uint8)
    for name, transform in make_transforms(config.data.augment.extra).items():
        apply(name, transform, picture)
    if config.model.optimizer.own:
        weights = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]  # in two groups, as a model's are
        groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.0} for weight in weights]
        make_optimizer(config.model.optimizer.own, groups)
    if config.model.loss:
        make_loss(config.model.loss)


def make_callbacks(extra: Mapping[str, Spec]) -> list[L.Callback]:
    """The callbacks of ``callbacks.extra``.

    Raises:
        UserError: as :func:`make`, or one is none.
    """
    from lightning.pytorch import Callback

    return [_of_kind(Callback, f"{EXTRA_CALLBACKS}.{name}", spec) for name, spec in extra.items()]


def make_transforms(extra: Mapping[str, Spec]) -> dict[str, Transform]:
    """The transforms of ``data.augment.extra``, in order.

    Raises:
        UserError: as :func:`make`.
    """
    return {name: make(f"{EXTRA_AUGMENT}.{name}", spec) for name, spec in extra.items()}


def apply(name: str, transform: Transform, picture: Tensor) -> Tensor:
    """What a transform makes of a picture, both uint8 [3, H, W] of one size.

    Raises:
        UserError: it fails, or makes something else.
    """
    import torch

    key = f"{EXTRA_AUGMENT}.{name}"
    try:
        found = transform(picture)
    except Exception as error:
        raise UserError(f"{key} fails on a picture of {[*picture.shape]}: {first_line(error)}") from error
    if not isinstance(found, torch.Tensor) or found.dtype != torch.uint8 or found.shape != picture.shape:
        made = f"{found.dtype} {[*found.shape]}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(f"{key} makes {made} of torch.uint8 {[*picture.shape]}, and must keep both")
    return found


def make_optimizer(spec: Spec, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimiser of ``model.optimizer.own``, which is called with the parameter groups first.

    Raises:
        UserError: as :func:`make`, or it is none.
    """
    from torch.optim import Optimizer

    optimizer: Optimizer = _of_kind(Optimizer, OWN_OPTIMIZER, spec, groups)
    return optimizer


def make_loss(spec: Spec, classes: int | None = None, *, multi_label: bool = False) -> Loss:
    """The loss of ``model.loss``, tried on three images of so many classes where they are known.

    It is called with logits float32 [N, classes] and labels int64 [N], and gives one number to go down from. With
    ``multi_label`` labels are float32 [N, classes], 1 for what an image shows.

    Raises:
        UserError: as :func:`make`, or it gives something else, or has weights of its own to learn.
    """
    import torch

    loss: Loss = make(OWN_LOSS, spec)
    target = spec[TARGET]
    if not callable(loss):
        raise UserError(f"{OWN_LOSS}: {target} gives {type(loss).__name__}, which cannot be called")
    if isinstance(loss, torch.nn.Module) and any(True for _ in loss.parameters()):
        raise UserError(f"{OWN_LOSS}: {target} has weights to learn, which no optimiser here would see")
    if classes is None:
        return loss
    logits = torch.zeros(3, classes, requires_grad=True)
    labels = torch.eye(classes)[torch.arange(3) % classes] if multi_label else torch.arange(3) % classes
    try:
        value = loss(logits, labels)
    except Exception as error:
        said, shape = first_line(error), [*labels.shape]
        raise UserError(f"{OWN_LOSS}: {target} fails on logits [3, {classes}] and labels {shape}: {said}") from error
    if not isinstance(value, torch.Tensor) or value.ndim or not value.requires_grad:
        raise UserError(f"{OWN_LOSS}: {target} must give one number, a tensor that depends on the logits")
    return loss


def _of_kind(kind: type, key: str, spec: Spec, *given: Any) -> Any:
    found = make(key, spec, *given)
    if not isinstance(found, kind):
        wanted = f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"
        if spec.get(_PARTIAL):
            raise UserError(f"{key}: leave out {_PARTIAL}, with which {spec[TARGET]} is no {wanted} yet")
        raise UserError(f"{key}: {spec[TARGET]} gives {type(found).__name__}, which is no {wanted}")
    return found
