"""The tyres of a predictions file in strata: what was decided on them, and how near that was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.operating_point import ACCEPT, REJECT, REVIEW
from tyre_lightning.errors import UserError
from tyre_lightning.lake.listing import good_class
from tyre_lightning.model.inspector import NOVELTY

if TYPE_CHECKING:
    from pandas import DataFrame

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Names = NDArray[np.object_]

REJECTED = "rejected"
# Of the accepted tyres these shares: the nearest to the threshold, of the others the least like good ones, of the
# others the next nearest; the rest is plain.
_SHARES = {"accepted, near the threshold": 0.05, "accepted, unlike good tyres": 0.05, "accepted, less near to it": 0.15}
_NEAR, _NOVEL, _LESS_NEAR = _SHARES
_PLAIN, _ALL = "accepted, plain", "accepted"
ORDER = (REVIEW, *_SHARES, _PLAIN, _ALL, REJECTED)  # of the strata
_FEW = 100  # accepted tyres that are not divided


@dataclass(frozen=True)
class Window:
    """T tyres in the order of their names.

    Args:
        names: of the tyres, shape (T,); of a picture whose file name tells no tyre, its key.
        decisions: shape (T,); what the line said nothing of is for a person to review.
        scores: P(defective), shape (T,): the highest of a tyre's pictures; NaN where none could be read.
        novelty: the lowest of a tyre's pictures, shape (T,); 1 where the model tells none.
        looks: class probabilities of the picture with the highest P(defective), [T, classes].
        places: the rows of each tyre's pictures in the predictions.
        good: the class of good tyres.
    """

    names: Names
    decisions: Names
    scores: Floats
    novelty: Floats
    looks: Floats
    places: Sequence[Ints]
    good: str

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, table: DataFrame, configured: str | None, source: str) -> Window:
        """The tyres of predictions.

        Args:
            table: as :func:`tyre_lightning.evaluation.predictions.read_predictions` gives it.
            configured: the class of good tyres; None: the one with such a name.
            source: what the table was read from, for the errors.

        Raises:
            UserError: the predictions hold no decision, or no class is known to be the good one.
        """
        columns = [name for name in table.columns if name.startswith("p_")]
        good = good_class([name[2:] for name in columns], configured)
        if good is None:
            raise UserError(f"which class of {source} is that of good tyres is not known: give good_class=...")
        if table["decision"].isna().all():
            raise UserError(f"{source} holds no decision: predict with a model that has an operating point")
        looks = table[columns].to_numpy(dtype=float)
        tyres = table["tyre"].where(table["tyre"].notna(), table["key"]).to_numpy(dtype=object)
        names, place = np.unique(tyres.astype(str), return_inverse=True)
        score = np.nan_to_num(1 - looks[:, columns.index(f"p_{good}")], nan=-1)
        order = np.lexsort((score, place))  # within a tyre the highest comes last
        last = np.searchsorted(place[order], np.arange(len(names)), side="right") - 1
        deciding = order[last]
        novelty = np.full(len(names), np.inf)
        np.fmin.at(novelty, place, table[NOVELTY].to_numpy(dtype=float))
        decisions = table["decision"].fillna(REVIEW).to_numpy(dtype=object)[deciding]
        return cls(
            names.astype(object), decisions, np.where(score[deciding] < 0, np.nan, score[deciding]),
            np.minimum(novelty, 1), np.nan_to_num(looks[deciding]), np.split(order, last[:-1] + 1), good,
        )  # fmt: skip

    def strata(self) -> Names:
        """The stratum of each tyre, shape (T,): accepted ones by how near they were to being something else."""
        found = np.where(self.decisions == REJECT, REJECTED, REVIEW).astype(object)
        accepted = np.flatnonzero(self.decisions == ACCEPT)
        found[accepted] = _ALL if len(accepted) < _FEW else _PLAIN
        if len(accepted) < _FEW:
            return found
        near = accepted[np.argsort(-self.scores[accepted], kind="stable")]
        sizes = {name: round(share * len(accepted)) for name, share in _SHARES.items()}
        found[near[: sizes[_NEAR]]] = _NEAR
        rest = near[sizes[_NEAR] :]
        if np.ptp(self.novelty[rest]) > 0:  # the model tells it
            unlike = rest[np.argsort(self.novelty[rest], kind="stable")[: sizes[_NOVEL]]]
            found[unlike] = _NOVEL
            rest = rest[found[rest] == _PLAIN]
        found[rest[: sizes[_LESS_NEAR]]] = _LESS_NEAR
        return found

    def risks(self, strata: Names, names: Sequence[str]) -> Floats:
        """The share of each stratum that the model takes for defective, shape (H,).

        What is unlike good tyres the model does not know, whatever it says: it counts as much as what is near.
        """
        known = np.where(np.isnan(self.scores), 0.5, self.scores)
        found = {name: float(known[strata == name].mean()) for name in names}
        if _NOVEL in found:
            found[_NOVEL] = max(found[_NOVEL], found[_NEAR])
        return np.array([found[name] for name in names])
