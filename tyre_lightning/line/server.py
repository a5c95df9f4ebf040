"""The page on which people answer, and who may have it: requests of strangers and of other pages are refused."""

from __future__ import annotations

import hmac
import secrets
import socket
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import isnan
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tyre_lightning.errors import UserError
from tyre_lightning.line.desk import Desk, Refused, Seat
from tyre_lightning.line.listening import Message, Receive, Send, is_here, is_ip
from tyre_lightning.line.looks import Looks, Shown
from tyre_lightning.names import one_form
from tyre_lightning.templates import template

LONGEST_NAME = 60  # characters of a person's name
LARGEST_BODY = 64 * 1024  # bytes
_TEXT = 1000  # characters of what else a request says
_MOST = 10_000  # pictures of a tyre
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = {"Content-Security-Policy": "default-src 'none'"}  # of all but the page


@dataclass(frozen=True)
class Door:
    """Who may come in.

    Args:
        token: what a browser must have been given once; None: nothing, since only this machine can ask.
        names: by which browsers may call this machine.
        anywhere: whether they may call it by any IP address too, which no page can have had resolved to it.
        port: at which it listens; cookies do not tell ports from each other.
    """

    token: str | None
    names: frozenset[str]
    anywhere: bool
    port: int

    @classmethod
    def at(cls, address: str, port: int, name: str | None, token: str | None) -> Door:
        """The door of a server that listens at an address."""
        names = {"localhost", "127.0.0.1", "::1"} | ({name.lower()} if name else set())
        if is_here(address):
            return cls(token, frozenset(names), False, port)
        own = socket.gethostname().lower()
        return cls(token, frozenset(names | {own, f"{own}.local"}), True, port)

    @property
    def cookie(self) -> str:
        """The name of the cookie that shows the token."""
        return f"tyre-review-{self.port}"

    @property
    def key(self) -> str:
        """The cookie's value, of which nobody learns the token."""
        return sha256((self.token or "").encode()).hexdigest()

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine, and not what another's name was made to lead here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.anywhere and is_ip(name))

    def fault(self, request: Request) -> tuple[int, str] | None:
        """Why a request is refused: a status and a sentence; None where it is not."""
        host = request.headers.get("host", "")
        if not self.knows(host):
            return 421, "this server is not called so: start it with name=... of this machine"
        if request.method not in ("GET", "POST"):
            return 405, "there is no such thing here"
        if not self._is_own(request, host):
            return 403, "another page asked for this"
        if request.method == "POST" and (fault := _body_fault(request)):
            return fault
        if self.token is None or hmac.compare_digest(request.cookies.get(self.cookie, "").encode(), self.key.encode()):
            return None
        if request.url.path == "/" and self.opens(request.query_params.get("token", "")):
            return None
        return 401, "open the whole address that the terminal shows where the review was started"

    def opens(self, token: str) -> bool:
        """Whether a token is the right one."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def _is_own(self, request: Request, host: str) -> bool:
        """Whether this server's own page asks, or a person who opens it."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if origin is not None and origin.lower() not in {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}:
            return False
        if request.method == "POST":
            return (site or "same-origin") == "same-origin" and (site or origin) is not None
        return site in (None, "same-origin", "none") or request.url.path == "/"


class Guard:
    """Refuses requests before anything reads them, and says in each answer what browsers may do with it."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Take a request, as ASGI has it."""
        if scope["type"] != "http":  # nothing else is spoken here
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                policy = {} if b"content-security-policy" in given else _POLICY
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in (_HEADERS | policy).items()),
                ]
            await send(message)

        if fault := self._door.fault(Request(scope)):
            await PlainTextResponse(fault[1], fault[0])(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


def _person(text: str) -> str:
    name = one_form(text).strip()
    if not name or not name.isprintable():
        raise ValueError("a name is needed, of characters that can be seen")
    return name


class _Asked(BaseModel):
    """What every request says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    who: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_person)]
    screen: Annotated[str, Field(max_length=40)] = ""

    @property
    def seat(self) -> Seat:
        return Seat(self.who, self.screen)


class _Next(_Asked):
    skip: int | None = None


class _Answer(_Asked):
    tyre: int
    answer: (
        Annotated[str, Field(max_length=_TEXT)]
        | Annotated[list[Annotated[str, Field(max_length=_TEXT)]], Field(max_length=_TEXT)]
    )
    shows: Annotated[list[int], Field(default_factory=list, max_length=_MOST)]
    tags: Annotated[list[Annotated[str, Field(max_length=_TEXT)] | None], Field(default_factory=list, max_length=_MOST)]


class _NotHere(UserError):
    """There is no such tyre or picture in the queue."""


def make_app(desk: Desk, looks: Looks, door: Door, title: str) -> Guard:
    """The application: the page, its pictures, and what it asks for.

    Args:
        desk: the state.
        looks: the pictures.
        door: who may come in.
        title: of the page.
    """
    app = FastAPI(openapi_url=None)
    page = template(Path(__file__).parent, "review.html")
    about = {"classes": desk.classes, "good": desk.good, "several": desk.multi_label, "longest": LONGEST_NAME}

    @app.get("/")
    def home(token: str = "") -> Response:
        nonce = secrets.token_urlsafe(16)
        answer = HTMLResponse(page.render(nonce=nonce, title=title, about=about))
        answer.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        if door.opens(token):
            answer.set_cookie(door.cookie, door.key, httponly=True, samesite="strict")
        return answer

    @app.post("/next")
    def more(asked: _Next) -> dict[str, Any]:
        if asked.skip is not None:
            _tyre(desk, asked.skip)
            desk.skip(asked.seat, asked.skip)
        return _state(desk, looks, asked.seat)

    @app.post("/answer")
    def answer(asked: _Answer) -> dict[str, Any]:
        keys = _tyre(desk, asked.tyre)
        given = asked.tags if len(asked.tags) == len(keys) else [None] * len(keys)
        said = one_form(asked.answer) if isinstance(asked.answer, str) else [*map(one_form, asked.answer)]
        desk.answer(asked.seat, asked.tyre, said, asked.shows, looks.tags(keys, given))
        return _state(desk, looks, asked.seat)

    @app.post("/undo")
    def undo(asked: _Asked) -> dict[str, Any]:
        undone = desk.undo(asked.seat)
        return _state(desk, looks, asked.seat) | {"undone": undone}

    @app.get("/picture/{tyre}/{place}")
    def picture(tyre: int, place: int) -> Response:
        return _file(looks.picture(_key(desk, tyre, place)))

    @app.get("/overlay/{tyre}/{place}")
    def overlay(tyre: int, place: int) -> Response:
        return Response(looks.overlay(_key(desk, tyre, place)), media_type="image/jpeg")

    @app.get("/nearest/{tyre}/{place}")
    def nearest(tyre: int, place: int) -> list[dict[str, str]]:
        return [
            {
                "name": one.class_name,
                "key": one.key,
                "picture": f"data:image/jpeg;base64,{b64encode(one.thumbnail).decode()}",
            }
            for one in looks.nearest(_key(desk, tyre, place))
        ]

    @app.exception_handler(UserError)
    def explain(_: Request, error: UserError) -> Response:
        status = 404 if isinstance(error, _NotHere) else 409 if isinstance(error, Refused) else 503
        return JSONResponse({"detail": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def refuse(_: Request, error: RequestValidationError) -> Response:  # without what was sent
        said = (str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        return JSONResponse({"detail": "; ".join(said)}, 422)

    return Guard(app, door)


def _tyre(desk: Desk, index: int) -> Sequence[str]:
    """The keys of a tyre's pictures.

    Raises:
        _NotHere: the queue has no such tyre.
    """
    if not 0 <= index < len(desk.tyres):
        raise _NotHere("the queue has no such tyre")
    return desk.tyres[index].keys


def _key(desk: Desk, tyre: int, place: int) -> str:
    keys = _tyre(desk, tyre)
    if not 0 <= place < len(keys):
        raise _NotHere("the tyre has no such picture")
    return keys[place]


def _state(desk: Desk, looks: Looks, seat: Seat) -> dict[str, Any]:
    """What the page shows next."""
    tyres = [
        {"index": index, "name": tyre.name, "keys": tyre.keys, "probabilities": tyre.probabilities}
        for index in desk.next(seat)
        for tyre in (desk.tyres[index],)
    ]
    progress = asdict(desk.progress(seat.who))
    if isnan(progress["agreement"]["kappa"]):
        progress["agreement"] = None
    return {"tyres": tyres, "progress": progress, "others": desk.others(), "trouble": looks.trouble}


def _file(shown: Shown) -> Response:
    tag = {"ETag": f'"{shown.tag}"'} if shown.tag.isascii() and shown.tag.isprintable() else {}
    return Response(shown.data, media_type=shown.kind, headers=tag)


def _body_fault(request: Request) -> tuple[int, str] | None:
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        return 411, "the length of the body must be said"
    if int(length) > LARGEST_BODY:
        return 413, "the body is too large"
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return 415, "the body must be application/json"
    return None
