"""Look at a lake before training on it: ``python -m tyre_lightning.audit data.root=s3://bucket/prefix/version``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from tyre_lightning.command_line import guard, run
from tyre_lightning.config import register_schemas

register_schemas()
CONF = Path(__file__).parents[2] / "conf"


def task(cfg: DictConfig) -> None:
    """Import what is heavy only now that the config has been found good."""
    from tyre_lightning.audit.audit import audit
    from tyre_lightning.audit.page import show

    show(audit(cfg), cfg.output)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="audit")
def main(cfg: DictConfig) -> None:
    """Give the composed config to :func:`tyre_lightning.audit.audit.audit` and print what it found."""
    guard(task, cfg)


if __name__ == "__main__":
    sys.exit(run(main))
