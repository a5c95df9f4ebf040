"""What a run is called, where nobody has said."""

from __future__ import annotations

from textwrap import shorten

from hydra.core.hydra_config import HydraConfig

from tyre_lightning.config import TrainConfig
from tyre_lightning.names import RUN_LENGTH, short_names
from tyre_lightning.resuming import CHANGE_NOTHING
from tyre_lightning.tracking.sweeps import in_sweep

_IN_FRONT = {"model", "model.name", "data.image_size", "seed"}  # of every name
_PLACES = {
    "trainer",
    "data.root",
    "data.bucket",
    "data.prefix",
    "data.catalog",
    "data.from_run",
}  # and not what is done
_PLACES_BELOW = ("logger.", "paths.", "s3.")


def run_name(config: TrainConfig, size: int) -> str:
    """What tells a run from others: backbone, pixels, seed, and of a sweep's run what else it was given.

    Args:
        config: of the training.
        size: of what the network sees, in pixels.
    """
    if config.logger.run_name:
        return config.logger.run_name
    name = f"{config.model.name.removeprefix('efficientnet_')} {size}px seed {config.seed}"
    return shorten(" ".join([name, *_given_in_sweep()]), RUN_LENGTH, placeholder=" ...")


def _given_in_sweep() -> list[str]:
    """The overrides of a sweep's run that say what is trained, by short names, such as ``head_lr=0.01``."""
    if not in_sweep():
        return []
    pairs = (text.lstrip("+~").partition("=") for text in HydraConfig.get().overrides.task)
    left_out = _IN_FRONT | _PLACES | CHANGE_NOTHING
    given = {key: value for key, _, value in pairs if key not in left_out and not key.startswith(_PLACES_BELOW)}
    return [f"{short}={given[key]}" for key, short in short_names([*given]).items()]
