"""What is measured on validation and test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
)
from torchmetrics.utilities.data import dim_zero_cat


class InspectionMetrics(nn.Module):
    """Loss, accuracy, macro F1, precision and recall per class, AUROC, and the confusion matrix.

    Macro F1 and AUROC are means over the classes that occur among the images seen; a class of the model that the test
    folder lacks does not pull them down. Works over several processes: every process updates with its own images and
    :meth:`compute` gives all of them the whole.

    Args:
        classes: names in index order.
        good_class: the class of tyres without a defect; with it, ``auroc_defective`` is measured on 1 - P(good).
    """

    def __init__(self, classes: Sequence[str], good_class: str | None) -> None:
        super().__init__()
        self.classes = list(classes)
        self.good = None if good_class is None else self.classes.index(good_class)
        count = len(self.classes)
        self.loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(count)
        self.auroc = MulticlassAUROC(count, average="none", thresholds=None)
        self.auroc_defective = BinaryAUROC(thresholds=None)

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count a batch: logits [N, classes], labels int64 [N]."""
        if not len(label):
            return
        self.loss.update(cross_entropy(logits.float(), label), len(label))
        probability = logits.float().softmax(dim=1)
        self.confusion.update(probability, label)
        self.auroc.update(probability, label)
        if self.good is not None:
            self.auroc_defective.update(1 - probability[:, self.good], (label != self.good).long())

    def matrix(self) -> Tensor:
        """Confusion matrix int64 [classes, classes]: rows are the true classes, columns the predicted."""
        matrix: Tensor = self.confusion.compute()
        return matrix

    def compute(self) -> dict[str, Tensor]:
        """Every metric by name; what the images cannot tell (a class without images) is left out."""
        matrix = self.matrix().double()
        true_positive, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        occurs = true > 0
        scores = {
            "loss": self.loss.compute(),
            "accuracy": true_positive.sum() / true.sum(),
            "f1": (2 * true_positive / (true + predicted))[occurs].mean(),
            "images": true.sum(),
        }
        for index, name in enumerate(self.classes):
            if occurs[index]:
                scores[f"recall/{name}"] = true_positive[index] / true[index]
            if predicted[index]:
                scores[f"precision/{name}"] = true_positive[index] / predicted[index]
        return scores | self._areas(occurs)

    def _areas(self, occurs: Tensor) -> dict[str, Tensor]:
        if occurs.sum() < 2:  # no class to tell the one class from
            return {}
        areas = {"auroc": self.auroc.compute()[occurs].mean()}
        if self.good is not None and occurs[self.good]:
            areas["auroc_defective"] = self.auroc_defective.compute()
        return areas

    def escape_rate(self, share: float) -> float | None:
        """The escape rate of images at the lowest threshold on P(defective) that rejects at most a share of good ones.

        By the images of all processes; None where no class is known to be the good one, or there are no images of
        it or of others.

        Args:
            share: of the good images, from 0 to 1.
        """
        area = self.auroc_defective
        if self.good is None:
            return None
        with area.sync_context():  # in which they are lists or, from several processes, tensors
            if not len(area.preds):
                return None
            scores, defective = dim_zero_cat(area.preds), dim_zero_cat(area.target).bool()
        return escape_rate(scores[defective], scores[~defective], share)

    def reset(self) -> None:
        """Forget all images."""
        for metric in (self.loss, self.confusion, self.auroc, self.auroc_defective):
            metric.reset()


def escape_rate(defective: Tensor, good: Tensor, share: float) -> float | None:
    """The share of defective images that pass where as many good ones are rejected as may be, and no more.

    Args:
        defective: P(defective) of defective images, shape (D,).
        good: of good ones, shape (G,).
        share: of the good ones that may be rejected, from 0 to 1.

    Returns:
        None where images of one of both kinds are missing.
    """
    if not len(defective) or not len(good):
        return None
    allowed = min(int(share * len(good) + 1e-9), len(good) - 1)
    highest = good.sort(descending=True).values[allowed]  # of those that must pass
    return float((defective <= highest).double().mean())


def class_weights(counts: Sequence[int]) -> list[float]:
    """Balanced loss weights: inversely proportional to a class's images, with a mean of 1 over all images."""
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights: list[float] = (numbers.sum() / (len(numbers) * numbers)).tolist()
    return weights
