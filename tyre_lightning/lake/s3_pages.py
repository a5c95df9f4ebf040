"""The pages of an S3 listing, parsed in a tenth of the time that botocore takes, or not at all.

botocore parses a page twice (once to see whether it is an error) and makes a dictionary with a parsed date of every
key; a listing of 200,000 spends its time on that. Here the keys are taken out of the answer before botocore sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import xxhash

from tyre_lightning.lake.store import Entry

_RAW = "RawPage"
_BEGIN, _END = b"<Contents>", b"</Contents>"


class Page(NamedTuple):
    """What one answer lists."""

    contents: bytes  # its elements, one for each key, as they came
    encoded: bool  # whether keys are percent-encoded
    parsed: Sequence[Entry] = ()  # instead of contents, where the XML is not written as Amazon writes it

    def digest(self) -> bytes:
        """The same for pages that say the same of the same keys."""
        return xxhash.xxh3_128_digest(repr(self.parsed).encode() if self.parsed else self.contents)

    def entries(self) -> list[Entry]:
        """The keys, with sizes and tags, in the order of the server."""
        found = [*self.parsed]
        for item in ElementTree.fromstring(b"<page>%b</page>" % self.contents):
            key, size, tag = (item.findtext(name, "") for name in ("Key", "Size", "ETag"))
            if self.encoded and ("%" in key or "+" in key):
                key = unquote_plus(key)
            found.append(Entry(key, int(size or 0), tag.strip('"')))
        return found


def register(client: Any) -> None:
    """Have a boto3 client leave the keys of its listings to :func:`page_of`."""
    client.meta.events.register_first("before-parse.s3.ListObjectsV2", _take_contents)


def page_of(answer: dict[str, Any]) -> Page:
    """What an answer of ``list_objects_v2`` lists."""
    contents, encoded = answer[_RAW]
    parsed = [Entry(item["Key"], item["Size"], item.get("ETag", "").strip('"')) for item in answer.get("Contents", ())]
    return Page(contents, encoded, parsed)


def _take_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    body: bytes = response_dict["body"]
    start, end = body.find(_BEGIN), body.rfind(_END) + len(_END)
    contents = body[start:end] if start >= 0 and response_dict["status_code"] == 200 else b""
    if b"<CommonPrefixes>" in contents:  # a server that sorts folders among the keys
        contents = b""
    if contents:
        response_dict["body"] = body[:start] + body[end:]
    customized_response_dict[_RAW] = contents, b"<EncodingType>url</EncodingType>" in body[:start] + body[end:]
