"""What is measured on validation and test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MultilabelAUROC,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelStatScores,
)
from torchmetrics.utilities.data import dim_zero_cat

from tyre_lightning.decision.outputs import Outputs


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
        self.confusion: Metric = MulticlassConfusionMatrix(count)
        self.auroc: Metric = MulticlassAUROC(count, average="none", thresholds=None)
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

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images by class, each int64 [classes]: rightly said to show it, that show it, said to."""
        matrix = self.matrix()
        return matrix.diag(), matrix.sum(1), matrix.sum(0)

    def accuracy(self) -> tuple[Tensor, Tensor]:
        """The share of images that are classified rightly, and how many images there are."""
        matrix = self.matrix()
        return matrix.diag().double().sum() / matrix.sum(), matrix.sum()

    def matrix(self) -> Tensor:
        """Confusion matrix int64 [classes, classes]: rows are the true classes, columns the predicted."""
        matrix: Tensor = self.confusion.compute()
        return matrix

    def compute(self) -> dict[str, Tensor]:
        """Every metric by name; what the images cannot tell (a class without images) is left out."""
        true_positive, true, predicted = (numbers.double() for numbers in self.counts())
        occurs = true > 0
        accuracy, images = self.accuracy()
        scores = {
            "loss": self.loss.compute(),
            "accuracy": accuracy,
            "f1": (2 * true_positive / (true + predicted))[occurs].mean(),
            "images": images.double(),
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
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()


class DefectMetrics(InspectionMetrics):
    """The same where images may show several defects, of all that is listed; and the average precision of each defect.

    Accuracy is the share of images of which exactly what they show is listed.

    Args:
        classes: names in index order.
        good_class: the class of tyres without a defect.
    """

    def __init__(self, classes: Sequence[str], good_class: str) -> None:
        super().__init__(classes, good_class)
        count = len(self.classes)
        self.outputs = Outputs(self.good, multi_label=True)
        self.confusion = MultilabelStatScores(count, average=None)
        self.exact = MultilabelExactMatch(count)
        self.auroc = MultilabelAUROC(count, average="none", thresholds=None)
        self.precision = MultilabelAveragePrecision(count, average="none", thresholds=None)

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count a batch: logits [N, classes], labels int64 [N, classes] of 0 and 1."""
        if not len(label):
            return
        losses = binary_cross_entropy_with_logits(logits.float(), label.float(), reduction="none").sum(1)
        self.loss.update(losses.mean(), len(label))
        values = logits.detach().double().cpu().numpy()
        probability = torch.from_numpy(self.outputs.probabilities(values)).float().to(label.device)
        listed = torch.from_numpy(self.outputs.listed(values)).long().to(label.device)
        self.confusion.update(listed, label)
        self.exact.update(listed, label)
        self.auroc.update(probability, label)
        self.precision.update(probability, label)
        self.auroc_defective.update(1 - probability[:, self.good], 1 - label[:, self.good])

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """As in the class above."""
        hits, false, _, _, true = self.confusion.compute().T
        return hits, true, hits + false

    def accuracy(self) -> tuple[Tensor, Tensor]:
        """As in the class above."""
        return self.exact.compute(), self.confusion.compute()[0, :4].sum()

    def _areas(self, occurs: Tensor) -> dict[str, Tensor]:
        _, true, _ = self.counts()
        told = occurs & (true < self.accuracy()[1])
        areas = {"auroc": self.auroc.compute()[told].mean()} if told.any() else {}
        if self.good is not None and told[self.good]:
            areas["auroc_defective"] = self.auroc_defective.compute()
        shown = [index for index in range(len(self.classes)) if occurs[index] and index != self.good]
        if shown:
            found = self.precision.compute()
            areas |= {f"average_precision/{self.classes[index]}": found[index] for index in shown}
            areas["average_precision"] = found[shown].mean()
        return areas


def metrics_of(classes: Sequence[str], good_class: str | None, multi_label: bool) -> InspectionMetrics:
    """What is measured of a model: of one class of several, or of several defects."""
    if multi_label and good_class is not None:
        return DefectMetrics(classes, good_class)
    return InspectionMetrics(classes, good_class)


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
