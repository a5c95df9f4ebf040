"""A uniform sample out of one that was drawn with unequal, known probabilities; and who of it is held out.

Of tyres drawn with probability p, each is kept with probability p_min / p: then every tyre of the window is in what
remains with probability p_min, whatever its stratum, so that its rates are those of the window without any weights
(Poisson thinning; Särndal et al., Model Assisted Survey Sampling, 1992, section 9.2, has it as two-phase sampling).
Chance is a hash of names, so that the same tyres are kept every time, on every machine.
"""

from __future__ import annotations

from hashlib import blake2b

TRAIN, VAL, TEST = "train", "val", "test"


def chance(seed: int, use: str, name: str) -> float:
    """A number in [0, 1), uniform over names, and independent between seeds and uses."""
    text = f"{seed}\0{use}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64


def stays(name: str, probability: float, smallest: float, seed: int) -> bool:
    """Whether a drawn tyre is in the uniform sample.

    Args:
        name: of the tyre.
        probability: with which it was drawn; NaN: not by chance.
        smallest: of the window's strata.
        seed: of the thinning.
    """
    return chance(seed, "thinned", name) < smallest / probability  # of NaN this is False


def held_out(name: str, val: float, test: float, seed: int) -> str:
    """Which usage a tyre of the uniform sample gets: shares of them are held out."""
    drawn = chance(seed, "usage", name)
    return TEST if drawn < test else VAL if drawn < test + val else TRAIN
