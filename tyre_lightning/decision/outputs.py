"""What a network's outputs mean: one class of several, or any number of defects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tyre_lightning.decision.calibration import Floats, Labels, softmax

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Outputs:
    """Reads the logits of N images, float64 [N, classes], each divided by a temperature.

    With ``multi_label`` every output is a sigmoid of its own: a defect's says that the picture shows it, the good
    class's that it shows none. So P(defective) = 1 - P(good) is learnt, not put together: 1 - prod(1 - P(defect)) would
    take defects for independent and grow with their number, and the greatest P(defect) is too low where two are in
    doubt. It is the objectness beside the logistic classes of YOLOv3 (arXiv:1804.02767). No defect is likelier than
    that there is one: its probability is at most P(defective).

    Listed is what is at least as likely as not, which makes the fewest wrong labels where probabilities are right;
    thresholds that are fitted to a class's few validation pictures are not safer (Yang, SIGIR 2001). A picture that is
    rather defective than good lists at least its likeliest defect (Boutell et al., Pattern Recognition 37, 2004).

    Args:
        good: the index of the class without a defect, if one is known; with ``multi_label`` it is.
        multi_label: whether a picture may show several defects.
    """

    good: int | None = None
    multi_label: bool = False

    def probabilities(self, logits: Floats, temperature: float = 1.0) -> Floats:
        """The probability of every class, float64 [N, classes]; with several defects a row may sum up to any number."""
        if not self.multi_label:
            return softmax(logits, temperature)
        found = np.asarray(expit(logits / temperature))
        good = found[:, self.good]
        bounded: Floats = np.minimum(found, (1 - good)[:, None])
        bounded[:, self.good] = good
        return bounded

    def likeliest(self, logits: Floats) -> Labels:
        """The index of the class of every image, shape (N,): good where that is likelier than not, else a defect."""
        if not self.multi_label:
            return np.asarray(logits.argmax(axis=1))
        defects = logits.copy()
        defects[:, self.good] = np.where(logits[:, self.good] > 0, np.inf, -np.inf)
        return np.asarray(defects.argmax(axis=1))

    def listed(self, logits: Floats) -> Bools:
        """Whether each class is said of each image, [N, classes]: good alone, or one defect or more."""
        found = np.zeros(logits.shape, bool)
        said = self.likeliest(logits)
        if self.multi_label:
            found |= (logits >= 0) & (said != self.good)[:, None]
            found[:, self.good] = False
        found[np.arange(len(logits)), said] = True
        return found

    def outcomes(self, logits: Floats, labels: Labels) -> tuple[Floats, Labels]:
        """What calibration looks at: logits and class indices; with several defects of good (0) and defective (1).

        The sigmoid of a logit is the softmax of that logit and 0.
        """
        if not self.multi_label:
            return logits, labels
        good = logits[:, self.good]
        return np.stack([good, np.zeros_like(good)], axis=1), (labels != self.good).astype(np.int64)


ONE_CLASS = Outputs()
