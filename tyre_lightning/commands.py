"""The verbs of the command line, each a Hydra entry over a function of this package.

``tyre VERB key=value ...`` starts any of them; ``python train.py``, ``python predict.py`` and, of the others,
``python -m tyre_lightning.VERB`` are the same. A task imports what is heavy only when its config has been found good.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hydra
from omegaconf import DictConfig

from tyre_lightning.command_line import USER_ERROR, end, guard, run
from tyre_lightning.config import config_folder, register_schemas, to_train_config
from tyre_lightning.errors import UserError
from tyre_lightning.loading import loading
from tyre_lightning.ranks import check_apart, check_ranks, check_sweep, here, leave_signals_to_first
from tyre_lightning.telling import tell_start
from tyre_lightning.tracking.sweeps import in_sweep
from tyre_lightning.usage import Usage

SOME_UNREADABLE = 3
UNUSABLE, NOT_PROMOTED = 2, 4
ALARM = 5


@dataclass(frozen=True)
class Command:
    """A verb.

    Args:
        task: runs on the composed config, which has been checked.
        usage: what ``--help`` says.
        failure: the exit code of a user's mistake.
        words: what may stand for an override on the command line, or, with ``=`` at its end, for the key of one.
    """

    task: Callable[[DictConfig], Any]
    usage: Usage
    failure: int = USER_ERROR
    words: Mapping[str, str] = field(default_factory=dict)

    def spelt(self, argument: str) -> str:
        """An argument of the command line as Hydra is to read it."""
        key, mark, value = argument.partition("=")
        return self.words.get(key + mark, key + mark) + value

    def check_words(self, arguments: Sequence[str]) -> None:
        """Raise a :class:`UserError` for an argument that is nearly one of the words."""
        for argument in arguments:
            near = difflib.get_close_matches(argument, self.words, n=1, cutoff=0.75)
            if near and "=" not in argument:
                raise UserError(f"there is no {argument}: did you mean {near[0]}?")


def start(name: str) -> int:
    """Run a verb of :data:`COMMANDS` on the command line's overrides; gives the exit code."""
    rank = here() if name == "train" else None
    if rank is None:
        return _start(name)
    if not rank.first:
        return _take_part()
    code = USER_ERROR
    try:
        code = _start(name)
    finally:
        _part(code)
    return code


def _start(name: str) -> int:
    command, task = COMMANDS[name], _task(name)
    sys.argv[1:] = [*map(command.spelt, sys.argv[1:])]
    register_schemas()
    if {"--help", "-h"} & {*sys.argv[1:]}:
        return run(lambda: print(command.usage.text(name, command.words)))

    @hydra.main(version_base="1.3", config_path=str(config_folder(name)), config_name=name)
    def main(cfg: DictConfig) -> Any:
        return guard(task, cfg, command.failure)

    def begin() -> None:
        command.check_words(sys.argv[1:])
        check_sweep(here(), sweep=bool({"-m", "--multirun"} & {*sys.argv[1:]}))  # before it has a folder
        main()

    return run(begin, command.failure)


def _task(name: str) -> Callable[[DictConfig], Any]:
    task = COMMANDS[name].task

    def alone(cfg: DictConfig) -> Any:
        check_apart(here(), cfg.get("shard"))
        return task(cfg)

    return task if name == "train" else alone


def _take_part() -> int:
    """What each process does that torchrun or srun has started for a training beside the first."""
    leave_signals_to_first()
    with loading():
        from tyre_lightning.joined import take_part

    return take_part()


def _part(code: int) -> None:
    """Let those end that still wait for a training which did not begin."""
    with loading():
        from tyre_lightning.joined import part

    part(code)


def _train(cfg: DictConfig) -> dict[str, float]:
    """Its result is what a sweep compares."""
    options = to_train_config(cfg).trainer
    check_ranks(options.num_nodes, options.devices, sweep=in_sweep())
    tell_start(cfg)
    with loading():
        from tyre_lightning.training import train

    return train(cfg).metrics


def _predict(cfg: DictConfig) -> None:
    # Decoding and the network share the cores: threads that spin while they wait would take them from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with loading():
        from tyre_lightning.prediction import predict

    unreadable = predict(cfg).unreadable
    if unreadable and cfg.shard is None:  # who starts a shard again if it fails would do so for ever
        end(SOME_UNREADABLE)


def _audit(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.audit.audit import audit, look_ahead
        from tyre_lightning.audit.page import show
        from tyre_lightning.progress import say

    if cfg.shard is None:
        show(audit(cfg), cfg.output)
    else:
        say(f"shard {cfg.shard} of {cfg.shards}: {look_ahead(cfg):,} images are looked at; {cfg.data.looks} keeps it")


def _promote(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.promote.promote import move_anchor, promote, roll_back

    if cfg.rollback:
        gone, back = roll_back(cfg)
        print(f"version {back} of {cfg.model} is the champion again, in the place of version {gone}")
    elif cfg.anchor:
        before, now = move_anchor(cfg)
        print(f"version {now} of {cfg.model} is the anchor" + (f", in the place of version {before}" if before else ""))
    else:
        found = promote(cfg)
        print("\n".join(found.lines(cfg.model, dry_run=cfg.dry_run)))
        if not found.promoted:
            sys.exit(NOT_PROMOTED)


def _export(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.export import export

    print(f"wrote {export(cfg)}")


def _resend(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.resend import resend

    found, errors = resend(cfg)
    if not found:
        print(f"nothing below {cfg.folder} waits to be sent")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(USER_ERROR)


def _recalibrate(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.recalibration import recalibrate

    recalibrate(cfg)


def _select(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.line.select import select
        from tyre_lightning.progress import say

    _, lines = select(cfg)
    say("\n".join(lines))


def _review(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.line.review import review

    review(cfg)


def _rates(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.line.rates import measure
        from tyre_lightning.progress import say

    found = measure(cfg)
    say("\n".join(found.lines()))
    if found.broken:
        sys.exit(ALARM)


def _accept(cfg: DictConfig) -> None:
    with loading():
        from tyre_lightning.line.accept import accept
        from tyre_lightning.progress import say

    _, lines = accept(cfg)
    say("\n".join(lines))


def _watch(cfg: DictConfig) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see _predict
    with loading():
        from tyre_lightning.line.watch import watch

    if watch(cfg).shifted:
        sys.exit(ALARM)


def _serve(cfg: DictConfig) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see _predict
    with loading():
        from tyre_lightning.serving.serve import serve

    serve(cfg)


def _inbox(cfg: DictConfig) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see _predict
    with loading():
        from tyre_lightning.serving.inbox import inbox

    inbox(cfg)


COMMANDS = {
    "train": Command(
        _train,
        Usage(
            "train, test and register a classifier",
            (
                "train data.root=s3://plant/tyres/v1",
                "train data.root=lake/v1 model=efficientnet_b2 trainer.max_epochs=40",
                "train -m data.root=lake/v1 model=efficientnet_b0,efficientnet_b2 seed=0,1,2",
            ),
            (
                *("data.root", "data.classes", "data.good_class", "data.group_pattern", "data.image_size"),
                *(
                    "data.batch_size",
                    "data.sampling",
                    "data.folds",
                    "data.cache",
                    "model.weights",
                    "trainer.max_epochs",
                ),
                *("trainer.devices", "callbacks.early_stopping.patience", "operating_point.max_escape_rate"),
                *("operating_point.max_overkill_rate", "logger.tracking_uri", "logger.experiment"),
                *("logger.registered_model", "paths.output_dir", "seed", "ckpt_path"),
            ),
        ),
    ),
    "predict": Command(
        _predict,
        Usage(
            "write a row for each image: class, decision, probabilities",
            (
                "predict model=models:/tyre-defects@champion input=s3://plant/new output=predictions.csv",
                "predict model=models:/tyre-defects/1 input='new/*.jpg' operating_point.max_escape_rate=0.02",
                "predict -m model=models:/tyre-defects/1 input=s3://plant/new output=s3://plant/all shards=2 shard=0,1",
            ),
        ),
    ),
    "audit": Command(
        _audit,
        Usage(
            "find copies, wrong labels and damaged files, before training on them",
            (
                "audit data.root=s3://plant/tyres/v1",
                "audit -m data.root=s3://plant/tyres/v1 data.looks=s3://plant/looks shards=2 shard=0,1",
            ),
            (
                *("data.root", "data.classes", "data.good_class", "data.group_pattern", "data.num_workers"),
                *("data.cache", "data.cache_dir", "s3.endpoint_url", "output"),
            ),
        ),
    ),
    "promote": Command(
        _promote,
        Usage(
            "let the challenger take the champion's place if it is better",
            ("promote", "promote --dry-run", "promote rollback model=tyre-defects"),
        ),
        UNUSABLE,
        {"rollback": "rollback=true", "anchor": "anchor=true", "--dry-run": "dry_run=true"},
    ),
    "export": Command(
        _export,
        Usage("write a model as an ONNX file, for other runtimes", ("export model=models:/tyre-defects/1",)),
    ),
    "resend": Command(
        _resend,
        Usage("send what runs could not send to MLflow when its server was away", ("resend folder=outputs",)),
    ),
    "recalibrate": Command(
        _recalibrate,
        Usage(
            "give a network a new threshold by tyres that are new to it",
            ("recalibrate model=models:/tyre-defects@champion root=s3://plant/tyres/v2",),
        ),
    ),
    "select": Command(
        _select,
        Usage(
            "draw from a window's predictions the tyres that a person should see",
            ("select predictions=predictions.parquet budget=300 output=queue.parquet",),
        ),
    ),
    "review": Command(
        _review,
        Usage(
            "serve the page on which people say what they see on a queue's tyres",
            (
                "review queue=queue.parquet answers=answers",
                "review queue=queue.parquet answers=s3://plant/answers host=0.0.0.0 overlap=0.1",
                "review queue=queue.parquet export_to=tasks.json tool=label_studio",
                "review queue=queue.parquet import_from=labelled.json tool=label_studio",
            ),
        ),
    ),
    "rates": Command(
        _rates,
        Usage(
            "say from people's answers whether the line keeps its promise",
            ("rates queue=queue.parquet answers=answers", "rates queue='queues/*.parquet' answers=answers"),
        ),
    ),
    "accept": Command(
        _accept,
        Usage(
            "make the next data version from people's answers",
            (
                "accept answers=answers queue='queues/*.parquet' from=s3://plant/tyres/v1 to=s3://plant/tyres/v2",
                "accept from=lake/v1 to=lake/v2 --dry-run",
            ),
        ),
        words={"from=": "source=", "--dry-run": "dry_run=true"},
    ),
    "watch": Command(
        _watch,
        Usage(
            "say whether pictures of the line have changed",
            (
                "watch model=models:/tyre-defects@champion input=s3://line/2026-11-25",
                "watch accept model=models:/tyre-defects@champion input=s3://line/2026-11-24 name='new lamp'",
                "watch model=models:/tyre-defects@champion input=predictions.parquet",
            ),
        ),
        words={"accept": "accept=true"},
    ),
    "serve": Command(
        _serve,
        Usage(
            "answer requests by HTTP, under load, and follow the champion",
            (
                "serve model=models:/tyre-defects@champion",
                "serve model=models:/tyre-defects@champion host=0.0.0.0 port=8080",
            ),
        ),
    ),
    "inbox": Command(
        _inbox,
        Usage(
            "give each picture that a camera puts into a folder its verdict",
            (
                "inbox model=models:/tyre-defects@champion input=/line/camera",
                "inbox model=models:/tyre-defects@champion input=s3://line/camera pictures=4 wait=5",
            ),
        ),
    ),
}
