"""Answers become the next data version, top to bottom: read, judge, plan, copy, check.

A version is a lake like any other: its folders are the labels. So whatever the plan keeps is copied, by the service
itself where it can; nothing is moved or deleted. A file beside the usages says first that the version is unfinished,
and at the end that it is not, and where its labels came from (:mod:`tyre_lightning.lake.provenance`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig

from tyre_lightning.config import AcceptConfig, to_accept_config
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors, write_whole
from tyre_lightning.lake.listing import good_class
from tyre_lightning.lake.provenance import FILE, Provenance, finished, read_provenance
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Entry, Store
from tyre_lightning.lake.writing import Job, Target, in_turn, open_target, same_content
from tyre_lightning.line.answered import Answered, Left, by_content, find_answered
from tyre_lightning.line.answers import latest
from tyre_lightning.line.contents import Contents, to_table
from tyre_lightning.line.plan import Plan, Planner
from tyre_lightning.line.queue import Queue
from tyre_lightning.line.rates import read_queues
from tyre_lightning.line.verdicts import DISAGREE, verdicts_of
from tyre_lightning.names import as_override
from tyre_lightning.progress import progress_bar, say

_EXAMPLES = 3
_NAMED = 20  # tyres that people disagree on


@dataclass(frozen=True)
class Accepted:
    """What became of the answers.

    Args:
        plan: of the new version.
        answered: which pictures have labels, and which have none.
        provenance: what the new version says of itself.
        copied: objects, or that would be in a dry run.
        there: objects that were there already.
    """

    plan: Plan
    answered: Answered
    provenance: Provenance
    copied: int
    there: int

    def lines(self, config: AcceptConfig, to: str) -> Iterator[str]:
        """For people."""
        plan, answered = self.plan, self.answered
        yield f"{to}: {self.provenance}"
        by_usage: dict[str, list[str]] = {}
        for (usage, label), count in sorted(plan.added.items()):
            by_usage.setdefault(usage, []).append(f"{label} {count:,}")
        yield from (f"  new in {usage}: {', '.join(counts)}" for usage, counts in by_usage.items())
        yield from (f"  corrected from {old} to {now}: {n:,}" for (old, now), n in sorted(plan.corrected.items()))
        if plan.confirmed:
            yield f"  confirmed: {plan.confirmed:,} pictures have the label that people give them"
        for name in plan.new_classes:
            yield f"  NEW CLASS '{name}', which no version before had: is it spelt as it should be?"
        yield from self._left(config)
        if answered.waiting or answered.elsewhere:
            yield (
                f"  {answered.waiting:,} tyres of the queues wait for an answer; {answered.elsewhere:,} answered tyres "
                "are in none of the queues"
            )
        yield f"  {self.copied:,} objects {'to copy' if config.dry_run else 'copied'}, {self.there:,} there already"
        if not config.dry_run:
            yield f"next: python train.py {as_override('data.root', to)}"

    def _left(self, config: AcceptConfig) -> Iterator[str]:
        left = self.answered.left
        for reason, count in Counter(one.reason for one in left).most_common():
            mine = [*dict.fromkeys(one.tyre for one in left if one.reason == reason)]
            more = ", ..." if len(mine) > _EXAMPLES else ""
            yield f"  left out, {reason}: {count:,} ({', '.join(mine[:_EXAMPLES])}{more})"
        for one in [one for one in left if one.reason == DISAGREE][:_NAMED]:
            yield f"    {one.tyre}: {'; '.join(f'{who}: {said}' for who, said in one.said.items())}"
        if left and not config.dry_run:
            yield f"  all that was left out is in {config.left_out}"


@disk_errors()
def accept(cfg: DictConfig) -> tuple[Accepted, list[str]]:
    """Make the next version of a lake; gives what became of the answers, and the same for people.

    Raises:
        UserError: a queue, an answer or an address cannot be used, or the new version cannot be written.
    """
    config = to_accept_config(cfg)
    store, target = open_store(str(config.source), config.s3), open_target(str(config.to), config.s3)
    _check_apart(store, target)
    before = finished(store)
    contents = Contents.of(store, config.usage, FILE)
    answered, plan = _plan(config, contents, before, target)
    provenance = plan.provenance(before, target.root, _settings(config))
    copied, there = _carry_out(plan, target, provenance, dry_run=config.dry_run)
    found = Accepted(plan, answered, provenance, copied, there)
    if not config.dry_run and (answered.left or os.path.exists(config.left_out)):  # what an earlier one said
        write_whole(config.left_out, "".join(map(_line, answered.left)))
    return found, [*found.lines(config, target.root)]


def _check_apart(store: Store, target: Target) -> None:
    one, other = f"{store.root}/", f"{target.root}/"
    if one.startswith(other) or other.startswith(one):
        raise UserError(f"to={target.root} must be another place than from={store.root}, and neither lie in the other")


def _plan(config: AcceptConfig, contents: Contents, before: Provenance | None, target: Target) -> tuple[Answered, Plan]:
    queues = read_queues(config.queue)
    said, good = latest(config.answers, config.s3), _good(config, contents, queues)
    verdicts = verdicts_of(said, good, {one.good_class for one in queues})
    answered = find_answered(config, queues, verdicts)
    earlier: dict[str, list[str]] = {}
    for row in () if before is None else before.rows:
        earlier.setdefault(row["copied_from"], []).append(row["path"])
    found = by_content(answered, contents, earlier)
    return answered, Planner(config, contents, before, target.root, answered).make(found)


def _good(config: AcceptConfig, contents: Contents, queues: Sequence[Queue]) -> str:
    """The lake's class of good tyres.

    Raises:
        UserError: none is known, or the lake has no pictures.
    """
    classes = sorted({place.label for _, place in contents.pictures()})
    if not classes:
        raise UserError(f"from={contents.store.root} holds no pictures in <usage>/<class>/: give a version of a lake")
    if (found := good_class(classes, config.good_class)) is not None:
        return found
    if (named := {queue.good_class for queue in queues} & {*classes}) and len(named) == 1:
        return named.pop()
    raise UserError(
        f"which class of from={contents.store.root} is that of good tyres is not known: give good_class=..."
    )


def _settings(config: AcceptConfig) -> dict[str, object]:
    """What decides where pictures go."""
    names = ("seed", "val", "test", "group_pattern", "multi_label")
    return {name: getattr(config, name) for name in names}


def _carry_out(plan: Plan, target: Target, provenance: Provenance, *, dry_run: bool) -> tuple[int, int]:
    """Copy what is not there yet; gives how many objects were, and how many were there already.

    Raises:
        UserError: there is something else, or the version is finished and is not this one.
    """
    wanted = plan.table()
    place = target.store()
    kept = None if place is None else read_provenance(place)
    there = to_table(entry for entry in target.entries() if entry.key != FILE)
    _refuse_others(wanted, there, target)
    missing = len(wanted) - len(there)
    if kept is not None and kept.complete:
        if missing or kept != replace(provenance, complete=True):
            raise UserError(
                f"to={target.root} is finished, and a version never changes; with these answers it would be another: "
                "give to=... of the next"
            )
        return 0, len(there)
    if dry_run:
        return missing, len(there)
    if kept != provenance:
        target.put(FILE, provenance.to_bytes())
    copied = _copy(plan, wanted, there, target)
    _check(plan, wanted, target)
    target.put(FILE, replace(provenance, complete=True).to_bytes())
    return copied, len(wanted) - copied


def _refuse_others(wanted: pa.Table, there: pa.Table, target: Target) -> None:
    known = pc.is_in(there["path"], value_set=wanted["path"].combine_chunks())
    others = there.filter(pc.invert(known))["path"]
    if len(others):
        raise UserError(
            f"to={target.root} holds {len(others)} objects that the new version would not have, such as "
            f"'{others[0]}': give a place where nothing is"
        )


def _copy(plan: Plan, wanted: pa.Table, there: pa.Table, target: Target) -> int:
    """Copy what is not there with the same content; gives how many objects."""
    copied: list[None] = []
    place = target.store()

    def bring(pair: tuple[Job, Entry | None]) -> None:
        job, found = pair
        if found is None or place is None or not same_content(job, place, found):
            target.copy(job)
            copied.append(None)

    pairs = zip(plan.all_jobs(), _found(wanted, there, target), strict=True)
    try:
        with progress_bar() as progress:
            task = progress.add_task("copying", total=len(wanted))
            in_turn(bring, pairs, lambda: progress.advance(task))
    except KeyboardInterrupt:
        say(f"{len(copied):,} objects were copied, and stay; the same command goes on")
        raise
    return len(copied)


def _found(wanted: pa.Table, there: pa.Table, target: Target) -> Iterator[Entry | None]:
    """What lies at each wanted path."""
    place = target.store()
    for position in pc.index_in(wanted["path"], value_set=there["path"].combine_chunks()).combine_chunks():
        row = position.as_py()
        if row is None or place is None:
            yield None
        else:
            path = str(there["path"][row])
            yield Entry(place.key(path), there["size"][row].as_py(), str(there["etag"][row]))


def _check(plan: Plan, wanted: pa.Table, target: Target) -> None:
    """See that all is there before the version is called finished.

    Raises:
        UserError: something is missing, or is not what was copied.
    """
    there = to_table(entry for entry in target.entries() if entry.key != FILE)
    for job, found in zip(plan.all_jobs(), _found(wanted, there, target), strict=True):
        if found is None or found.size != job.entry.size:
            what = "is not there" if found is None else "is not what was copied: it changed meanwhile"
            raise UserError(f"'{job.path}' in to={target.root} {what}; run the same again")


def _line(left: Left) -> str:
    return json.dumps(asdict(left), ensure_ascii=False) + "\n"
