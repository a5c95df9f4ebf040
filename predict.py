"""Predict the class of images: ``python predict.py model=models:/tyre-defects/1 input=folder``."""

import os
import sys

import hydra
from omegaconf import DictConfig

from tyre_lightning.command_line import guard, run
from tyre_lightning.config import register_schemas

register_schemas()
SOME_UNREADABLE = 3


def task(cfg: DictConfig) -> int:
    """Import what is heavy only now that the config has been found good; gives the number of unreadable images."""
    # Decoding and the network share the cores: threads that spin while they wait would take them from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from tyre_lightning.prediction import predict

    return predict(cfg).unreadable


@hydra.main(version_base="1.3", config_path="conf/predict", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Give the composed config to :func:`tyre_lightning.prediction.predict`; exit code 3 if some images failed."""
    if guard(task, cfg):
        raise SystemExit(SOME_UNREADABLE)


if __name__ == "__main__":
    sys.exit(run(main))
