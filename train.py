"""Train, test and register a classifier: ``python train.py data.root=s3://bucket/prefix/version``."""

import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from tyre_lightning.command_line import guard, run
from tyre_lightning.config import register_schemas
from tyre_lightning.telling import tell_start

register_schemas()


def task(cfg: DictConfig) -> dict[str, float]:
    """Import what is heavy only now that the config has been found good, and something has been said."""
    tell_start(cfg)
    from tyre_lightning.training import train

    return train(cfg)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> Any:
    """Give the composed config to :func:`tyre_lightning.training.train`; returns the test metrics."""
    return guard(task, cfg)


if __name__ == "__main__":
    sys.exit(run(main))
