"""The gate between training and the line: ``python -m tyre_lightning.promote`` lets only a better model pass.

Its exit code is 0 when the challenger was promoted (or, in a dry run, would be), 4 when it was not, 2 when it could not
be judged. ``python -m tyre_lightning.promote rollback`` returns to the champion before, and ``... anchor`` makes the
champion the version that no later one may be much worse than.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from tyre_lightning.command_line import guard, run
from tyre_lightning.config import register_schemas

register_schemas()
CONF = Path(__file__).parents[2] / "conf" / "promote"
UNUSABLE, NOT_PROMOTED = 2, 4
WORDS = {"rollback": "rollback=true", "anchor": "anchor=true", "--dry-run": "dry_run=true"}


def task(cfg: DictConfig) -> None:
    """Import what is heavy only now that the config has been found good."""
    from tyre_lightning.promote.promote import move_anchor, promote, roll_back

    if cfg.rollback:
        gone, back = roll_back(cfg)
        print(f"version {back} of {cfg.model} is the champion again, in the place of version {gone}")
        return
    if cfg.anchor:
        before, now = move_anchor(cfg)
        print(f"version {now} of {cfg.model} is the anchor" + (f", in the place of version {before}" if before else ""))
        return
    found = promote(cfg)
    against = "no champion" if found.champion is None else f"version {found.champion}, the champion"
    if found.anchor not in (None, found.champion):
        against += f", and version {found.anchor}, the anchor"
    print(f"version {found.challenger} of {cfg.model} against {against}")
    print(f"by {found.images} test images, which have judged {found.judged_before} other versions before")
    for who in ("challenger", "champion", "anchor"):
        if who in found.numbers:
            print(f"{who}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.numbers[who].items()))
    if not found.promoted:
        print("not promoted: " + "; ".join(found.reasons))
        sys.exit(NOT_PROMOTED)
    print(f"version {found.challenger} would be promoted" if cfg.dry_run else f"version {found.challenger} is promoted")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="promote")
def main(cfg: DictConfig) -> None:
    """Give the composed config to :func:`tyre_lightning.promote.promote.promote` and print what it decided."""
    guard(task, cfg, UNUSABLE)


if __name__ == "__main__":
    sys.argv[1:] = [WORDS.get(argument, argument) for argument in sys.argv[1:]]
    sys.exit(run(main, UNUSABLE))
