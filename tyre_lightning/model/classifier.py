"""The LightningModule: a network, its loss, its optimiser and what is measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Preprocessing, recolour
from tyre_lightning.decision.operating_point import JUDGEMENT
from tyre_lightning.errors import Diverged, UserError
from tyre_lightning.memory import keep_freed_memory
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.examples import EXAMPLES
from tyre_lightning.model.from_timm import is_timm
from tyre_lightning.model.graph import Graph
from tyre_lightning.model.metrics import InspectionMetrics, metrics_of
from tyre_lightning.model.outliers import add_outliers, not_good, outliers_in
from tyre_lightning.parts import ADAMW, TARGET, Loss, Spec, make_loss, make_optimizer

REFERENCE = "novelty"  # a checkpoint's keys
PROGRESS = "progress"
OPTIMIZER = "optimizer"
MADE_AS = "tyre_lightning_format"
FORMAT = 6  # of a checkpoint; those of format 1 have no number, and what they lack is what it was then
_SINGLE = 2  # of one whose images show one class each, which older versions read too

log = logging.getLogger(__name__)


class TyreClassifier(L.LightningModule):
    """Classifies tyre images.

    All arguments are plain values, so that a checkpoint holds no pickled objects and loads with ``weights_only=True``.

    Args:
        name: the backbone, as :class:`Network` takes it.
        classes: class names in index order.
        preprocessing: of evaluation, as :meth:`Preprocessing.to_dict` gives it.
        good_class: the class of tyres without a defect, if one is known.
        dropout: before the head; None for the backbone's own.
        label_smoothing: share of the target spread over all classes (Szegedy et al., arXiv:1512.00567).
        class_weights: weight of each class in the loss, in index order; None for equal weights.
        freeze_epochs: epochs in which only the head learns and BatchNorm keeps its statistics.
        freeze_stages: of the backbone, the stem included, that never learn; their BatchNorm keeps its statistics too.
        channels_last: memory layout.
        optimizer: :meth:`tyre_lightning.config.OptimizerConfig.rates`.
        multi_label: whether an image may show several defects, see :class:`tyre_lightning.decision.outputs.Outputs`.
        log_priors: what cross-entropy adds to each class's logit, see
            :func:`tyre_lightning.model.imbalance.adjustment`; None for nothing.
        outliers: pictures of no tyre that a training batch gets beside its own, as a share of these, see
            :mod:`tyre_lightning.model.outliers`; without a known good class, or with a loss of one's own, none.

    Raises:
        UserError: the backbone cannot be built, or has too few stages to freeze so many.
    """

    def __init__(
        self,
        name: str,
        classes: list[str],
        preprocessing: dict[str, Any],
        good_class: str | None = None,
        dropout: float | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        freeze_epochs: int = 0,
        freeze_stages: int = 0,
        channels_last: bool = True,
        optimizer: dict[str, float] | None = None,
        multi_label: bool = False,
        log_priors: list[float] | None = None,
        outliers: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.preprocessing = Preprocessing.from_dict(preprocessing)
        mean, std, views = self.preprocessing.mean, self.preprocessing.std, self.preprocessing.views
        self.network = Network(name, len(classes), mean, std, dropout, channels_last, views, self.preprocessing.size)
        if freeze_stages >= (stages := len(self.network.stages())):
            raise UserError(f"model.freeze_stages={freeze_stages} leaves nothing of {name} to learn, of {stages} "
                            f"stages: give at most {stages - 1}")  # fmt: skip
        self._freeze()
        for name, values in (("class_weights", class_weights), ("log_priors", log_priors)):
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)
        self.metrics = nn.ModuleDict({usage: metrics_of(classes, good_class, multi_label) for usage in ("val",)})
        self._unreadable: dict[str, int] = {"train": 0, "val": 0}
        # Of this epoch so far: the sum over images, and how many they are.
        self._loss: tuple[Tensor | float, int] = (0.0, 0)
        self._latest: Tensor | None = None  # the loss of the last batch
        self._due: tuple[Tensor, torch.cuda.Event | None] | None = None  # one that is to be looked at when it is there
        self._graph: Graph | None = None
        self.batch_size: int | None = None  # of full batches, where that is known
        self._warned: set[str] = set()
        self.judgement: dict[str, Any] = {}  # that a finished training adds to its best checkpoint
        self.reference: dict[str, Tensor] = {}  # likewise: what good tyres look like to it
        self.examples: dict[str, Tensor] = {}  # likewise: training pictures to show
        self._own_loss: Spec = {}
        self._own_optimizer: Spec = {}
        self._criterion: Loss | None = None

    def use(self, loss: Spec, optimizer: Spec) -> None:
        """Train with a loss and an optimiser of the user's own, where the config names them and not nothing.

        They are no hyperparameters: a checkpoint says what the optimiser was called, and builds neither.

        Raises:
            UserError: the loss cannot be used for these classes.
        """
        self._own_loss, self._own_optimizer = loss, optimizer
        if loss:
            make_loss(loss, len(self.hparams["classes"]), multi_label=self.hparams["multi_label"])

    @property
    def optimizer_name(self) -> str:
        """What the optimiser is called in the config."""
        return str(self._own_optimizer.get(TARGET, ADAMW))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the judgement with the weights, and go on within an epoch.

        Raises:
            UserError: a newer version made it.
        """
        if (made := checkpoint.get(MADE_AS, 1)) > FORMAT:
            raise UserError(f"the checkpoint has format {made}, and this version knows up to {FORMAT}: update")
        self.judgement = checkpoint.get(JUDGEMENT, {})
        self.reference = checkpoint.get(REFERENCE, {})
        self.examples = checkpoint.get(EXAMPLES, {})
        progress = checkpoint.get(PROGRESS, {})
        self._loss = progress.get("loss", 0.0), progress.get("images", 0)
        self._unreadable["train"] = progress.get("unreadable", 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what this epoch's metrics are made of so far.

        Raises:
            Diverged: the loss is no number, and what was saved before is worth more.
        """
        if self._latest is not None:
            self._check(self._latest)
        loss, images = self._loss
        checkpoint[MADE_AS] = FORMAT if self.hparams["multi_label"] else _SINGLE
        checkpoint[OPTIMIZER] = self.optimizer_name
        checkpoint[PROGRESS] = {"loss": float(loss), "images": images, "unreadable": self._unreadable["train"]}

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W] with values from 0 to 255."""
        logits: Tensor = self.network(image)
        return logits

    @property
    def frozen(self) -> bool:
        """Whether only the head learns at present."""
        return self._trainer is not None and self.current_epoch < self.hparams["freeze_epochs"]

    def train(self, mode: bool = True) -> TyreClassifier:
        """As in PyTorch, but what is frozen stays in evaluation mode, so that BatchNorm keeps its statistics."""
        super().train(mode)
        frozen = {*self.network.backbone.parameters()} if self.frozen else self._frozen_stages()
        for module in self.network.backbone.modules():
            if (own := {*module.parameters()}) and own <= frozen:
                module.eval()
        return self

    def _frozen_stages(self) -> set[nn.Parameter]:
        return {*chain(*self.network.stages()[: self.hparams["freeze_stages"]])}

    def _freeze(self) -> None:
        self.network.backbone.requires_grad_(not self.frozen)
        for parameter in self._frozen_stages():
            parameter.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Give each process metrics of its own: spawned ones share the memory of what they were sent."""
        for usage in self.metrics:
            self.metric(usage).reset()

    def on_fit_start(self) -> None:
        """Set up each training process."""
        if self.device.type == "cpu":
            keep_freed_memory()
        # In deterministic mode PyTorch would fill every new tensor before use: a quarter of a step, and no need here.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (mypy does not know it)
        self._seed = torch.initial_seed()
        if self._own_loss:
            loss = make_loss(self._own_loss)
            # Its method, since of a module that were this one's checkpoints would hold the tensors.
            self._criterion = loss.to(self.device).__call__ if isinstance(loss, nn.Module) else loss
        if self._can_be_graphed:
            self._make_graph()

    @property
    def _can_be_graphed(self) -> bool:
        """Whether one GPU learns all of a network that is known to make a graph, from one batch at a time.

        Of several batches the gradients would overwrite each other.
        """
        if self.device.type != "cuda" or self.batch_size is None:
            return False
        known = not is_timm(self.hparams["name"]) and not self.hparams["freeze_epochs"]
        return known and self.trainer.world_size == self.trainer.accumulate_grad_batches == 1

    def _make_graph(self) -> None:
        self._freeze()
        self.train()
        side = self.preprocessing.train_size
        with self.trainer.precision_plugin.forward_context():
            count = (self.batch_size or 1) + outliers_in(self.batch_size or 1, self._outliers)
            self._graph = Graph(self.network, torch.zeros(count, 3, side, side, device=self.device))
        super().train()  # Lightning would warn of what is frozen

    def on_train_start(self) -> None:
        """A training that goes on within an epoch does not start one."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the backbone."""
        self._freeze()
        self.train()

    def on_train_end(self) -> None:
        """Give back what lies on the GPU."""
        self._graph = self._latest = self._due = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the batch and the process, so that a resumed training goes on as if it had not stopped."""
        place = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        self._count_unreadable("train", batch)
        if not len(batch.label):
            # Every process must still take part in the step, so a batch that nobody could read gives a zero gradient.
            return sum((p.sum() for p in self.network.parameters() if p.requires_grad), torch.zeros(())) * 0.0
        usual = self._binary_cross_entropy if self.hparams["multi_label"] else self._cross_entropy
        labels, count = batch.label.float() if self.hparams["multi_label"] else batch.label, len(batch.label)
        logits = self._learn(add_outliers(recolour(batch.image, batch.colour), self._outliers))
        loss: Tensor = (self._criterion or usual)(logits[:count], labels)
        self._loss = self._loss[0] + loss.detach().double() * count, self._loss[1] + count
        self.log("train/loss_step", loss)
        if len(logits) > count:
            loss = loss + self._outlier_loss(logits[count:]).sum() / count
        self._watch(loss.detach())
        return loss

    @property
    def _outliers(self) -> float:
        return 0.0 if self._own_loss or self.hparams["good_class"] is None else self.hparams["outliers"]

    def _outlier_loss(self, logits: Tensor) -> Tensor:
        """Of each outlier, shape (N,)."""
        good = self.hparams["classes"].index(self.hparams["good_class"])
        return not_good(self._adjusted(logits), good, multi_label=self.hparams["multi_label"])

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights: Any = self.class_weights
        smoothing = self.hparams["label_smoothing"]
        return cross_entropy(self._adjusted(logits), labels, weight=weights, label_smoothing=smoothing)

    def _adjusted(self, logits: Tensor) -> Tensor:
        priors: Any = self.log_priors
        return logits if priors is None else logits + priors

    def _binary_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over outputs; with class weights an image weighs as the heaviest of its classes does."""
        weights: Any = self.class_weights
        smoothing = self.hparams["label_smoothing"]
        smooth = labels * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(1)
        if weights is None:
            return losses.mean()
        each: Tensor = (labels * weights).amax(1)
        return (each * losses).sum() / each.sum()

    def _learn(self, images: Tensor) -> Tensor:
        """Logits of training images."""
        try:
            return (self._graph or self.forward)(images).float()
        except ValueError as error:
            if len(images) > 1:
                raise
            raise UserError(
                f"BatchNorm cannot learn from a batch of one image of {images.shape[-1]} pixels: give another "
                "data.batch_size, so that no image is left over, or a larger data.image_size"
            ) from error

    def _watch(self, loss: Tensor) -> None:
        """Look at losses, one at a time, when a GPU has them: no step waits for it."""
        self._latest = loss
        if self._due is not None:
            value, there = self._due
            if there is not None and not there.query():  # type: ignore[no-untyped-call]
                return
            self._check(value)
        there = None if loss.device.type == "cpu" else torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._due = loss.to("cpu", non_blocking=True), there
        if there is not None:
            there.record()

    def _check(self, loss: Tensor | float) -> None:
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {float(loss)} in epoch {self.current_epoch + 1}, so that training cannot go on: give "
                "smaller model.optimizer.backbone_lr and model.optimizer.head_lr, or trainer.precision=32-true"
            )

    def on_train_epoch_end(self) -> None:
        """Log the mean loss and how many images were left out."""
        total, images = self._loss
        self._check(total)
        self.log("train/loss_epoch", torch.as_tensor(total / max(1, images)), sync_dist=True)
        self._loss = 0.0, 0
        self._log_unreadable("train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self._count_unreadable("val", batch)
        if len(batch.label):
            self.metric("val").update(self(batch.image), batch.label)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (Loshchilov and Hutter, arXiv:1711.05101) or one's own: two learning rates, a warm-up and a cosine."""
        options = self.hparams["optimizer"]
        groups = [
            *_decayed(self.network.backbone, options["backbone_lr"], options["weight_decay"], "backbone"),
            *_decayed(self.network.head, options["head_lr"], options["weight_decay"], "head"),
        ]
        own = self._own_optimizer
        optimizer = make_optimizer(own, groups) if own else torch.optim.AdamW(groups, fused=self._fused or None)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = warmup_cosine(steps, options["warmup_fraction"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def _fused(self) -> bool:
        """Whether a GPU makes each of AdamW's steps in a few kernels; not where float16's gradients are scaled."""
        return self.device.type == "cuda" and self.trainer.precision != "16-mixed"

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all gradients; Lightning itself would not where the optimiser is fused."""
        if gradient_clip_val and self._fused:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def metric(self, usage: str) -> InspectionMetrics:
        """The metrics of a usage: val, the only one that training looks at."""
        metric = self.metrics[usage]
        assert isinstance(metric, InspectionMetrics)
        return metric

    def _log_metrics(self, usage: str) -> None:
        metric = self.metric(usage)
        values = metric.compute()
        if values["images"]:
            self._check(values["loss"])
        for name, value in values.items():
            self.log(f"{usage}/{name}", value.float())
        self._log_unreadable(usage)
        metric.reset()

    def _count_unreadable(self, usage: str, batch: Batch) -> None:
        self._unreadable[usage] += len(batch.unreadable)
        for text in (*(f"{error}; it is left out" for error in batch.unreadable), *batch.notes):
            if text not in self._warned:
                self._warned.add(text)
                log.warning("%s", text)

    def _log_unreadable(self, usage: str) -> None:
        count = float(self._unreadable[usage])
        self.log(f"{usage}/unreadable", count, sync_dist=True, reduce_fx="sum")
        self._unreadable[usage] = 0


def warmup_cosine(steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Factor on the learning rate: linear from near 0 to 1, then a half cosine to 0 (arXiv:1608.03983, no restarts).

    A plain function of the 0-based optimiser step: of a callable object LambdaLR would put the attributes into
    checkpoints, and a training that goes on for more epochs would get its old length back.
    """
    steps = max(1, steps)
    warmup = int(steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def _decayed(module: nn.Module, lr: float, weight_decay: float, name: str) -> list[dict[str, Any]]:
    """Two parameter groups: weights with decay; biases and normalisation, which it would only harm, without."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": lr, "weight_decay": weight_decay, "name": name},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": lr, "weight_decay": 0.0, "name": f"{name}-no-decay"},
    ]
