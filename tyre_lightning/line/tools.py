"""Label Studio and FiftyOne in place of the page: a queue's pictures as their tasks, and their labels as answers.

Both label pictures, and a queue asks of tyres: every picture names its tyre, and a tyre is answered once a person has
labelled all its pictures. Label Studio's tasks and annotations are as its "task format" has them, FiftyOne's file is
what ``Dataset.from_json`` reads and ``Dataset.write_json`` writes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from tyre_lightning.config import ReviewConfig, Tool
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.files import write_whole
from tyre_lightning.lake.store import Store
from tyre_lightning.line.answers import CANNOT_TELL, NO_TYRE, latest, moment, new_line, open_sink
from tyre_lightning.line.desk import Said, Tyre, classes_of, tyres_of
from tyre_lightning.line.queue import Queue
from tyre_lightning.names import one_form

_FIELD = "answer"  # of a FiftyOne sample; the name of Label Studio's choices
_FIFTYONE = "fiftyone.core"


class Label(NamedTuple):
    """What a person said of one picture."""

    key: str
    who: str
    time: str
    names: tuple[str, ...]


def export_tasks(queue: Queue, store: Store, path: str, tool: Tool) -> str:
    """Write a queue's pictures for another tool; gives what to do with the file.

    Raises:
        UserError: it cannot be written.
    """
    names = [*classes_of(queue), NO_TYRE, CANNOT_TELL]
    pictures = [(tyre.name, key) for tyre in tyres_of(queue) for key in tyre.keys]
    if tool is Tool.fiftyone:
        content: Any = _fiftyone_file(queue, [_sample(tyre, key, store) for tyre, key in pictures])
        more = f"load it with fiftyone.Dataset.from_json({path!r}), and label the field {_FIELD}"
    else:
        content = [_task(tyre, key, store) for tyre, key in pictures]
        config = Path(path).with_suffix(".xml")
        write_whole(config, _interface(names, several=queue.multi_label))
        more = f"in Label Studio, set up the labelling interface with {config} and import the file"
        if not store.remote:
            more += f" (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={os.path.dirname(store.root)})"
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return f"{path}: {len(pictures)} pictures of {queue.pictures['tyre'].nunique()} tyres; {more}"


def import_answers(queue: Queue, config: ReviewConfig) -> str:
    """Add what was labelled with another tool to the answers, but for what they hold already; gives what was found.

    Raises:
        UserError: the file is not that tool's, or labels what the queue does not have.
    """
    path = str(config.import_from)
    read = _fiftyone_labels if config.tool is Tool.fiftyone else _studio_labels
    tyres, classes = {one_form(tyre.name): tyre for tyre in tyres_of(queue)}, classes_of(queue)
    labels: dict[tuple[str, str], dict[str, Label]] = defaultdict(dict)
    try:
        for name, label in read(json.loads(Path(path).read_text(encoding="utf-8")), path, config.who):
            _check(label, tyres.get(one_form(name)), classes, path)
            labels[one_form(name), label.who][label.key] = label
    except OSError as error:
        raise UserError(f"import_from={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"import_from={path} is not what {config.tool.value} writes ({first_line(error)}): export it as JSON"
        ) from error
    before = {(one.tyre, one.who): one for one in latest(config.answers, config.s3, needed=False)}
    sink, counts = open_sink(config.answers, config.s3), dict.fromkeys(("new", "known", "partly"), 0)
    for (name, who), found in labels.items():
        tyre, time, known = tyres[name], max(label.time for label in found.values()), before.get((name, who))
        if (said := _together(tyre, found, queue)) is None:
            counts["partly"] += 1
        elif known is not None and (moment(known.time) >= time or known.answer == said):
            counts["known"] += 1
        else:
            counts["new"] += 1
            shows = _shows(tyre, said, found)
            sink.add(new_line(tyre.name, who, time, said, tyre.keys, config.queue, shows=shows))
    return (
        f"{config.answers}: {counts['new']} answers are new, {counts['known']} were known, and {counts['partly']} wait "
        "for labels of further pictures of their tyres"
    )


def _check(label: Label, tyre: Tyre | None, classes: list[str], path: str) -> None:
    if tyre is None or label.key not in tyre.keys:
        raise UserError(
            f"import_from={path} has the picture {label.key}, which is not in the queue: give its own queue"
        )
    for name in label.names:
        if name not in (*classes, NO_TYRE, CANNOT_TELL):
            raise UserError(f"import_from={path} has the label {name}, and the queue knows {', '.join(classes)}")


def _together(tyre: Tyre, found: Mapping[str, Label], queue: Queue) -> Said | None:
    """What labels of pictures say of the tyre: its defects, if any; else nothing before all pictures are labelled."""
    names = {name for label in found.values() for name in label.names}
    if defects := sorted(names - {one_form(queue.good_class), NO_TYRE, CANNOT_TELL}):
        return defects if queue.multi_label or len(defects) > 1 else defects[0]
    if {*found} != {*tyre.keys}:
        return None
    return CANNOT_TELL if CANNOT_TELL in names else NO_TYRE if names == {NO_TYRE} else one_form(queue.good_class)


def _shows(tyre: Tyre, said: Said, found: Mapping[str, Label]) -> list[str]:
    """The keys of the pictures that show what is said, where not all do."""
    defects = {said} if isinstance(said, str) else {*said}
    shows = [key for key in tyre.keys if key in found and defects & {*found[key].names}]
    return shows if len(shows) < len(tyre.keys) else []


def _task(tyre: str, key: str, store: Store) -> dict[str, Any]:
    """A task of Label Studio; a folder's pictures are served by its own local file server."""
    image = store.uri(key) if store.remote else f"/data/local-files/?d={quote(key)}"
    return {"data": {"image": image, "tyre": tyre, "key": key}}


def _sample(tyre: str, key: str, store: Store) -> dict[str, Any]:
    """A sample of FiftyOne."""
    return {"filepath": store.uri(key), "tags": [], "tyre": tyre, "key": key, _FIELD: None}


def _interface(names: list[str], *, several: bool) -> str:
    """The labelling interface of the tasks."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    kind = "multiple" if several else "single"
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <Choices name="{_FIELD}" toName="image" choice="{kind}" required="true">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def _studio_labels(tasks: Any, path: str, who: str | None) -> Iterator[tuple[str, Label]]:
    """What annotations of Label Studio's JSON export say, with the names of the tyres."""
    for task in tasks:
        data = task["data"]
        for annotation in task["annotations"]:
            names = [
                one_form(name)
                for result in annotation["result"]
                if result["type"] == "choices" and result["from_name"] == _FIELD
                for name in result["value"]["choices"]
            ]
            if names and not annotation.get("was_cancelled"):
                time = _time(annotation.get("updated_at") or annotation["created_at"])
                yield data["tyre"], Label(data["key"], _person(annotation["completed_by"]), time, tuple(names))


def _person(found: Any) -> str:
    """Who made an annotation: an address, or where there is only a number, that."""
    if isinstance(found, dict):
        return str(found["email"])
    return f"Label Studio user {found}"


def _fiftyone_file(queue: Queue, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A data set as ``Dataset.to_dict`` writes it."""
    label = "Classifications" if queue.multi_label else "Classification"
    text = f"{_FIFTYONE}.fields.StringField"
    return {
        "name": "tyres to review",
        "media_type": "image",
        "num_samples": len(samples),
        "sample_fields": {
            "filepath": text,
            "tags": f"{_FIFTYONE}.fields.ListField({text})",
            "tyre": text,
            "key": text,
            _FIELD: f"{_FIFTYONE}.fields.EmbeddedDocumentField({_FIFTYONE}.labels.{label})",
        },
        "info": {},
        "samples": samples,
    }


def _fiftyone_labels(data: Any, path: str, who: str | None) -> Iterator[tuple[str, Label]]:
    """What the samples of a FiftyOne data set say, with the names of the tyres; nobody signs them there.

    Raises:
        UserError: it is not said who labelled.
    """
    if not who:
        raise UserError("FiftyOne does not say who labelled: give who=NAME")
    written = datetime.fromtimestamp(os.path.getmtime(path), UTC).isoformat()
    for sample in data["samples"]:
        found = sample.get(_FIELD) or {}
        one = [found] if found.get("label") else found.get("classifications") or []
        if names := tuple(one_form(label["label"]) for label in one):
            time = _time(sample.get("last_modified_at") or written)
            yield sample["tyre"], Label(sample["key"], who, time, names)


def _time(found: Any) -> str:
    """A time as answers have it, of a text, or of MongoDB's milliseconds in JSON."""
    value = found["$date"] if isinstance(found, dict) else found
    return moment(datetime.fromtimestamp(value / 1000, UTC).isoformat() if isinstance(value, int) else value)
