"""Seeded drawings of tyres as an inspection station's camera would see them.

A picture is made of two independent draws. The scene (view, pose, light, rubber, rim, background, dirt,
lettering, sensor) comes from random streams that never look at the class; the defect comes from a stream of
its own and only changes the tyre. The same seed therefore shows the same scene under every label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CLASSES: tuple[str, ...] = ("good", "crack", "bulge", "flat_spot")
NEW = "scuff"  # a defect that no lake has, until a line brings it

Field = NDArray[np.floating[Any]]

_SHOULDER = 0.87  # where the sidewall ends and the tread blocks begin, as a fraction of the tyre's radius
# A rim is open where a wave around the axle exceeds a level, between two radii: spokes, holes, all, none.
_RIMS = ((0.0, 0.3, 0.84), (0.35, 0.56, 0.74), (-2.0, -1.0, 0.86), (2.0, 0.0, 0.0))
_JPEG_QUALITY = (72, 95)
_SEVERITY = 1.6  # of the defects in clear pictures
_CALM = 0.4  # of the noise and of what is behind the tyre


@dataclass(frozen=True, eq=False)
class _Scene:
    """Where the tyre is on the canvas, with its surface coordinates.

    Sidewall view: ``u`` is the angle and ``v`` the radius (1 at the outline). Tread view: ``u`` is the angle
    around the axle and ``v`` the position across the tread (-1 and 1 at the outlines). Both are px x px.
    """

    tread: bool
    px: int
    centre: tuple[float, float]
    scale: tuple[float, float]
    turn: float
    rim: float
    u: Field
    v: Field
    clear: bool

    @property
    def severity(self) -> float:
        """How large defects are."""
        return _SEVERITY if self.clear else 1.0

    @property
    def rough(self) -> float:
        """How much noise the picture has, and how restless it is behind the tyre."""
        return _CALM if self.clear else 1.0

    def canvas(self, u: Field, v: Field) -> tuple[Field, Field]:
        """Surface coordinates to canvas coordinates (fractions of the canvas, 0 in the middle)."""
        a, b = (v, np.sin(u)) if self.tread else (v * np.cos(u), v * np.sin(u))
        a, b = a * self.scale[0], b * self.scale[1]
        c, s = np.cos(self.turn), np.sin(self.turn)
        return self.centre[0] + a * c - b * s, self.centre[1] + a * s + b * c

    def angle_at(self, rng: Generator, v: float) -> float:
        """A random angle at which the surface line ``v`` lies well inside the frame."""
        span = 0.9 if self.tread else np.pi
        u = rng.uniform(-span, span, 400).astype(np.float32)
        x, y = self.canvas(u, np.full_like(u, v))
        reach = np.maximum(np.abs(x), np.abs(y))
        return float(u[np.argmax(reach < 0.38)] if reach.min() < 0.38 else u[reach.argmin()])


@dataclass
class _Defect:
    """What a defect does to the tyre; every field is px x px, or 0 for no effect."""

    swell: Field | float = 0.0  # how far the outline moves outwards, in units of v
    bump: Field | float = 0.0  # added height, in canvas fractions
    gap: Field | float = 0.0  # share of the light that openings swallow
    worn: Field | float = 0.0  # 1 where the pattern is rubbed away
    cut: Field | float = 0.0  # 1 where the rubber is gone
    mask: Field | float = 0.0  # share of each pixel that belongs to the defect

    def with_another(self, other: _Defect) -> _Defect:
        """Both on one tyre: heights add up, and of what is worn, open or gone the greater counts."""
        added = {name: getattr(self, name) + getattr(other, name) for name in ("swell", "bump")}
        greater = {
            name: np.maximum(getattr(self, name), getattr(other, name)) for name in ("gap", "worn", "cut", "mask")
        }
        return _Defect(**added, **greater)


def _local(px: int, centre: tuple[float, float], scale: tuple[float, float], turn: float) -> tuple[Field, Field]:
    axis = (np.arange(px, dtype=np.float32) + 0.5) / px - 0.5
    x, y = axis[None, :] - np.float32(centre[0]), axis[:, None] - np.float32(centre[1])
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return (x * c + y * s) / np.float32(scale[0]), (y * c - x * s) / np.float32(scale[1])


def _pose(rng: Generator, px: int, clear: bool) -> _Scene:
    """Draw the view and the camera's distance, offset and rotation; a clear view is the whole tyre from the side."""
    tread, rim = bool(rng.random() < 0.3) and not clear, rng.uniform(0.46, 0.58)
    shift_x, shift_y = (float(shift) for shift in rng.uniform(-0.06, 0.06, 2))
    if tread:
        turn = float(rng.choice([0.0, np.pi / 2])) + rng.normal(0, 0.15)
        scale = (rng.uniform(0.25, 0.34), rng.uniform(0.55, 0.9))
        a, b = _local(px, (shift_x, shift_y), scale, turn)
        return _Scene(tread, px, (shift_x, shift_y), scale, turn, rim, np.arcsin(np.clip(b, -1, 1)), a, clear)
    radius, focus, turn = rng.uniform(0.42, 0.44 if clear else 0.85), *rng.uniform(-np.pi, np.pi, 2)
    # A near camera sees only a part of the tyre: keep a stretch of sidewall and outline in the frame.
    away = 0.8 * radius * min((radius - 0.42) / 0.2, 1.0)
    centre = (shift_x - away * float(np.cos(focus)), shift_y - away * float(np.sin(focus)))
    scale = (radius, radius * rng.uniform(0.9, 1.0))
    a, b = _local(px, centre, scale, float(turn))
    return _Scene(tread, px, centre, scale, float(turn), rim, np.arctan2(b, a), np.hypot(a, b), clear)


def _angle_from(u: Field, u0: float) -> Field:
    """Signed angular distance, wrapped to -pi..pi."""
    return (u - np.float32(u0 - np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)


def _ramp(x: Field, low: float, high: float) -> Field:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = x * np.float32(1 / (high - low)) - np.float32(low / (high - low))
    np.clip(t, 0, 1, out=t)  # in place from here: this runs twenty times a picture
    square = t * t
    t *= -2
    t += 3
    t *= square
    return t


def _clouds(rng: Generator, px: int, cells: int) -> Field:
    """Smooth random texture around 0 with about ``cells`` features per side."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((px, px), Image.Resampling.BICUBIC), dtype=np.float32)


def _rgb(*levels: float) -> Field:
    """A colour that broadcasts over 3 x px x px; planes come first because numpy is far faster that way."""
    return np.array(levels, dtype=np.float32)[:, None, None]


def _tint(rng: Generator, spread: float) -> Field:
    return _rgb(*(1 + rng.normal(0, spread, 3)))


def _cover(base: Field, share: Field, top: Field) -> None:
    """Lay ``top`` over the first array in place, where ``share`` is 1 fully."""
    base *= 1 - share
    base += share * top


def _crack(scene: _Scene, rng: Generator) -> _Defect:
    """Thin dark cracks: a branching, wandering line, walked in surface coordinates to stay on the rubber."""
    low, high = (-0.75, 0.75) if scene.tread else (scene.rim + 0.08, 0.94)
    v0 = rng.uniform(0.7 * low + 0.3 * high, 0.3 * low + 0.7 * high)
    # Across a tread's own grooves only a wider crack stands out.
    width = rng.uniform(0.009, 0.014) * (1.45 if scene.tread else 1) * scene.severity
    heading = rng.uniform(0, 2 * np.pi)
    canvas, halo = (Image.new("L", (scene.px, scene.px)) for _ in range(2))
    todo = [(scene.angle_at(rng, v0), v0, heading, rng.uniform(0.2, 0.34), width)]
    todo.append((*todo[0][:2], heading + np.pi + rng.normal(0, 0.3), rng.uniform(0.12, 0.25), width))
    for u0, v0, angle, length, thick in todo:  # the list grows: the two main arms hand on their branches
        bends = angle + 0.17 * np.cumsum(rng.normal(0, 1, 14)) + rng.normal(0, 0.35, 14)
        v = np.clip(v0 + np.cumsum(np.sin(bends)) * (length / 14 / scene.scale[0]), low, high)
        u = u0 + np.cumsum(np.cos(bends) / (1 if scene.tread else v)) * (length / 14 / scene.scale[1])
        _stroke(canvas, scene, np.r_[u0, u], np.r_[v0, v], thick)
        _stroke(halo, scene, np.r_[u0, u], np.r_[v0, v], thick + 0.02)
        for k in rng.choice(np.arange(2, 12), rng.integers(1, 4), replace=False) if thick == width else ():
            fork = bends[k] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
            todo.append((u[k], v[k], fork, length * rng.uniform(0.3, 0.55), width * 0.75))
    gap, mask = (np.asarray(layer, dtype=np.float32) / 255 for layer in (canvas, halo))
    return _Defect(gap=gap * rng.uniform(0.78, 0.92), bump=-0.004 * gap, mask=mask)


def _stroke(canvas: Image.Image, scene: _Scene, u: Field, v: Field, thick: float) -> None:
    """Draw a line that thins out towards its end."""
    x, y = scene.canvas(u, v)
    points = list(zip(((x + 0.5) * scene.px).tolist(), ((y + 0.5) * scene.px).tolist(), strict=True))
    pen = ImageDraw.Draw(canvas)
    for k, pair in enumerate(pairwise(points)):
        wide = thick * scene.px * (1 - 0.6 * k / len(points))
        pen.line(pair, fill=255, width=max(1, round(wide)))


def _bulge(scene: _Scene, rng: Generator) -> _Defect:
    """A blister on the sidewall, or a contour that swells (always so when the camera faces the tread)."""
    high, wide = rng.uniform(0.045, 0.065) * scene.severity, rng.uniform(0.08, 0.12)
    if scene.tread or rng.random() < 0.4:
        side = float(rng.choice([-1, 1])) if scene.tread else 1.0
        u0, tall = scene.angle_at(rng, side), wide * 0.9 / scene.scale[1]
        hump = np.exp(-(np.abs(_angle_from(scene.u, u0) / np.float32(tall)) ** 3))
        grown = rng.uniform(0.045, 0.07) * scene.severity / scene.scale[0]
        out = side * scene.v
        swell = np.float32(grown) * hump * _ramp(out, 1 - 3 * grown, 1.0)
        bump = np.float32(high) * hump * np.exp(-(((out - 0.95) * scene.scale[0] / wide) ** 2))
        mask = ((bump > 0.08 * high) | (swell > 0.08 * grown)) & (out < 1 + swell)
        return _Defect(swell=swell, bump=bump, mask=mask.astype(np.float32))
    v0 = rng.uniform(scene.rim + 0.14, 0.84)
    u0 = scene.angle_at(rng, v0)
    x, y = (float(part[0]) for part in scene.canvas(np.array([u0]), np.array([v0])))
    a, b = _local(scene.px, (x, y), (wide, wide * rng.uniform(0.75, 1.0)), rng.uniform(0, np.pi))
    # A dome with a clear foot reads as a blister; a plain Gaussian fades into the sidewall's own curve.
    bump = np.float32(high) * np.clip(1 - (a * a + b * b), 0, 1) ** np.float32(0.8)
    mask = (a * a + b * b < 1.1) & (scene.v < 1) & (scene.v > scene.rim)
    return _Defect(bump=bump, mask=mask.astype(np.float32))


def _flat_spot(scene: _Scene, rng: Generator) -> _Defect:
    """A worn patch: the tread is rubbed smooth and, seen from the side, the outline is cut straight."""
    if scene.tread:
        u0, half = scene.angle_at(rng, 0.0), rng.uniform(0.13, 0.2) / scene.scale[1]
        edge = np.abs(_angle_from(scene.u, u0)) / np.float32(half) + 0.06 * _clouds(rng, scene.px, 9)
        worn = (1 - _ramp(edge, 0.85, 1.05)) * (np.abs(scene.v) < 0.93)
        return _Defect(worn=worn, mask=worn)
    depth = rng.uniform(0.04, 0.065) * scene.severity / scene.scale[0]
    u0 = scene.angle_at(rng, 1 - depth)
    along = scene.v * np.cos(_angle_from(scene.u, u0))
    cut = (along > 1 - depth).astype(np.float32)
    band = _ramp(along + 0.01 * _clouds(rng, scene.px, 12), 1 - depth - 0.13, 1 - depth - 0.09)
    half = np.arccos(1 - depth)
    worn = band * (1 - _ramp(np.abs(_angle_from(scene.u, u0)), half * 0.95, half * 1.1)) * (scene.v < 1)
    return _Defect(worn=worn, cut=cut, mask=np.maximum(worn, cut * (scene.v < 1)))


def _scuff(scene: _Scene, rng: Generator) -> _Defect:
    """A sidewall that has scraped along a kerb: a long patch is rubbed grey, and its lettering with it."""
    low, high = (-0.7, 0.7) if scene.tread else (scene.rim + 0.14, 0.8)
    v0, long = rng.uniform(low, high), rng.uniform(0.5, 0.8)
    along = np.abs(_angle_from(scene.u, scene.angle_at(rng, v0))) / np.float32(long)
    across = np.abs(scene.v - np.float32(v0)) / np.float32(rng.uniform(0.06, 0.09) * scene.severity)
    edge = np.maximum(along, across) + 0.12 * _clouds(rng, scene.px, 16)
    worn = (1 - _ramp(edge, 0.8, 1.05)) * (scene.v < 0.97) * (scene.v > (-0.97 if scene.tread else scene.rim + 0.02))
    return _Defect(worn=1.6 * worn, mask=worn)


_DEFECTS: dict[str, Callable[[_Scene, Generator], _Defect]] = {
    "good": lambda scene, rng: _Defect(),
    "crack": _crack,
    "bulge": _bulge,
    "flat_spot": _flat_spot,
    NEW: _scuff,
}


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(26)


def _lettering(scene: _Scene, rng: Generator, v: Field) -> Field:
    """Raised letters around the sidewall, 1 where they stand."""
    letters = "".join(rng.choice(list("ABCDEFGHKLMNOPRSTUVXZ0123456789"), 8))
    repeat, low = int(rng.integers(2, 4)), rng.uniform(scene.rim + 0.07, 0.66)
    strip = Image.new("L", (1024, 32))
    pen = ImageDraw.Draw(strip)
    for k in range(repeat):
        pen.text((20 + k * 1024 // repeat, 0), letters, fill=255, font=_font())
    row = ((low + 0.11 - v) * np.float32(32 / 0.11)).astype(np.int32)
    column = ((scene.u + np.float32(np.pi)) * np.float32(1023 / (2 * np.pi))).astype(np.int32)
    seen = (row >= 0) & (row < 32)
    return np.asarray(strip, dtype=np.float32)[np.clip(row, 0, 31), column] / 255 * seen


def _blocks(phase: Field, share: float) -> Field:
    """Grooves of a repeating pattern: 1 inside a groove that takes ``share`` of each period."""
    return 1 - _ramp(np.abs(phase - np.rint(phase)), share * 0.35, share * 0.65)


def _sidewall(scene: _Scene, rng: Generator, v: Field, worn: Field | float) -> tuple[Field, Field]:
    """Height and relative brightness of a tyre seen from the side."""
    t = np.clip((v - np.float32(scene.rim)) / np.float32(1 - scene.rim), 0, 1)
    height = rng.uniform(0.04, 0.09) * (4 * t * (1 - t)) ** np.float32(0.7) * np.float32(scene.scale[0])
    ring = rng.uniform(scene.rim + 0.03, 0.8, 2)
    height += 0.004 * (_ramp(v, ring[0], ring[0] + 0.012) + _ramp(v, ring[1], ring[1] + 0.012))
    count, slant = int(rng.integers(34, 60)), rng.uniform(-5, 5)
    phase = scene.u * np.float32(count / (2 * np.pi)) + np.float32(slant) * v
    groove = _blocks(phase, rng.uniform(0.3, 0.45)) * _ramp(v, _SHOULDER, _SHOULDER + 0.02) * (1 - worn)
    letters = _lettering(scene, rng, v) * (rng.random() < 0.75)
    height += 0.004 * letters - 0.012 * groove
    return height, (1 - rng.uniform(0.35, 0.7) * groove) * (1 + float(rng.choice([0.15, 0.3, 1.2])) * letters)


def _treadface(scene: _Scene, rng: Generator, v: Field, worn: Field | float) -> tuple[Field, Field]:
    """Height and relative brightness of a tyre whose tread faces the camera."""
    ribs, pitch = int(rng.integers(3, 6)), rng.uniform(9, 15)
    lean, chevron = rng.uniform(-1.2, 1.2), bool(rng.random() < 0.5)
    along = scene.u * np.float32(pitch) + np.float32(lean) * (np.abs(v) if chevron else v)
    lengthwise = _blocks(v * np.float32(ribs / 1.7) + np.float32(0.5 * (ribs % 2)), rng.uniform(0.18, 0.28))
    cross = _blocks(along + np.floor(v * 2) * np.float32(rng.uniform(0, 0.5)), rng.uniform(0.16, 0.3))
    face = 1 - _ramp(np.abs(v), 0.84, 0.88)
    groove = np.maximum(lengthwise, cross) * face * (1 - worn)
    height = 0.05 * np.sqrt(np.clip(1.02 - v * v, 0, 1)) - 0.012 * groove
    height += np.float32(0.3 * scene.scale[1]) * np.cos(scene.u)
    return height, 1 - rng.uniform(0.35, 0.6) * groove


def _light(height: Field, rng: Generator) -> tuple[Field, Field]:
    """Diffuse and specular light of a height map under one lamp."""
    dy, dx = np.gradient(height * np.float32(height.shape[0]))
    # Lamps hang above: light from below would make a blister read as a dent.
    side, lean = rng.uniform(-0.85, -0.15) * np.pi, rng.uniform(0.45, 0.75)
    lx, ly, lz = float(np.cos(side) * np.sin(lean)), float(np.sin(side) * np.sin(lean)), float(np.cos(lean))
    facing = np.clip((lz - dx * lx - dy * ly) / np.sqrt(1 + dx * dx + dy * dy), 0, 1)
    shine = rng.uniform(0.1, 0.35) * np.square(np.square(np.square(facing)))
    return 0.3 + rng.uniform(0.9, 1.15) * facing, shine


def _background(rng: Generator, px: int, rough: float) -> Field:
    """A station's wall: plain, wall and floor, stripes or plates, 3 x px x px."""
    turn = rng.uniform(-0.3, 0.3)
    x, y = _local(px, (rng.uniform(-0.3, 0.3), rng.uniform(-0.1, 0.4)), (1.0, 1.0), turn)
    period, kind = rng.uniform(6, 16), int(rng.integers(4))
    tone = rng.uniform(0.36, 0.8) + 0.12 * (x * rng.normal() + y * rng.normal())
    if kind == 1:
        tone -= rng.uniform(0.08, 0.24) * _ramp(y, 0, 0.02)
    elif kind == 2:
        tone -= rng.uniform(0.04, 0.12) * _blocks(x * period, rng.uniform(0.1, 0.5))
    elif kind == 3:
        tone -= rng.uniform(0.04, 0.12) * np.maximum(*(_blocks(axis * (period / 2), 0.08) for axis in (x, y)))
    tone += rough * (rng.uniform(0.0, 0.05) * _clouds(rng, px, 40) + rng.uniform(0.0, 0.06) * _clouds(rng, px, 6))
    return np.clip(tone, 0.1, 1) * _tint(rng, 0.03)


def _rim(scene: _Scene, rng: Generator, behind: Field) -> Field:
    """What is inside the tyre's inner circle: spokes, a steel disc with holes, or nothing."""
    count, metal = int(rng.integers(5, 11)), rng.uniform(0.3, 0.75)
    lamp, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    level, low, high = _RIMS[rng.integers(len(_RIMS))]
    v = scene.v / np.float32(scene.rim)
    wave = np.cos((scene.u - np.float32(start)) * count)
    hollow = _ramp(wave, level, level + 0.15) * _ramp(v, low, low + 0.04) * (1 - _ramp(v, high, high + 0.04))
    shade = (0.8 + 0.3 * np.cos(2 * (scene.u - np.float32(lamp)))) * (0.75 + 0.25 * np.cos(v * 9))
    shade *= metal * (1 - 0.6 * _ramp(v, 0.96, 1.0)) * (1 - hollow)
    lit: Field = behind * (0.45 * hollow)
    lit += shade
    return lit


def _chalk(scene: _Scene, rng: Generator) -> Field:
    """Up to two chalk marks or paint lines somewhere on the tyre."""
    canvas = Image.new("L", (scene.px, scene.px))
    for _ in range(int(rng.integers(0, 3))):
        v0 = rng.uniform(-0.6, 0.6) if scene.tread else rng.uniform(scene.rim + 0.1, 0.9)
        k = np.linspace(0, 1, 12)
        u = scene.angle_at(rng, v0) + rng.uniform(-0.5, 0.5) * k + rng.normal(0, 0.004, 12)
        v = v0 + rng.uniform(-0.25, 0.25) * np.sin(k * rng.uniform(1, 6))
        _stroke(canvas, scene, u, v, rng.uniform(0.01, 0.022))
    worn = np.clip(0.8 + 0.35 * _clouds(rng, scene.px, 60), 0, 1)
    marks: Field = np.asarray(canvas, dtype=np.float32) * worn
    return marks * (rng.uniform(0.5, 0.9) / 255)


def _render(scene: _Scene, defect: _Defect, rng: Generator) -> Field:
    """The lit scene, 3 x px x px in 0..1. Draws the same numbers whatever the defect is."""
    v = scene.v - np.sign(scene.v) * defect.swell
    surface = _treadface if scene.tread else _sidewall
    height, tone = surface(scene, rng, v, defect.worn)
    diffuse, shine = _light(height + defect.bump, rng)
    soiled = not scene.clear
    wet = _ramp(_clouds(rng, scene.px, 14), 0.6, 1.0) * (rng.random() < 0.35) * soiled
    dirt = _ramp(_clouds(rng, scene.px, 7), rng.uniform(0.2, 1.6), 2.2) * np.float32(rng.uniform(0, 0.7)) * soiled
    grain = _clouds(rng, scene.px, scene.px // 3)
    # Rubbed rubber is greyer, streaked and rough: as rich in detail as the tread that it replaces.
    streaks = np.sin(np.abs(scene.v) * np.float32(90)) + grain
    rubbed = defect.worn * (rng.uniform(0.12, 0.3) + 0.13 * streaks)
    tone *= rng.uniform(0.24, 0.36) * (1 + rng.uniform(0.02, 0.08) * grain) * (1 + rubbed) * (1 - 0.25 * wet)
    lit = tone * _tint(rng, 0.02)
    _cover(lit, 0.3 * dirt, _rgb(0.95, 0.8, 0.6))
    chalk = (_rgb(0.95, 0.95, 0.9), _rgb(0.95, 0.85, 0.3), _rgb(0.5, 0.7, 0.95))[rng.integers(3)]
    _cover(lit, _chalk(scene, rng), chalk)
    open_share = 1 - defect.gap
    lit *= diffuse * open_share
    lit += shine * (1 + 2 * wet) * open_share
    return _compose(scene, defect, v, lit, rng)


def _compose(scene: _Scene, defect: _Defect, v: Field, lit: Field, rng: Generator) -> Field:
    """Put the tyre before its background and the rim inside it."""
    behind = _background(rng, scene.px, scene.rough)
    soft = 1.2 / (scene.px * scene.scale[0])
    shadow = 1 - rng.uniform(0.1, 0.5) * (1 - _ramp(np.abs(scene.v), 0.98, rng.uniform(1.05, 1.25)))
    cover = (1 - _ramp(np.abs(v), 1 - soft, 1 + soft)) * (1 - defect.cut)
    if scene.tread:
        cover = cover * (np.abs(scene.u) < 1.5)
    else:
        hole = 1 - _ramp(v, scene.rim - soft, scene.rim + soft)
        _cover(lit, hole, _rim(scene, rng, behind))
    behind *= shadow
    _cover(behind, cover, lit)
    return behind


def _photograph(scene: Field, rng: Generator, rough: float) -> Image.Image:
    """The camera: falling-off light, colour cast, exposure, lens blur and sensor noise."""
    size = scene.shape[1]
    x, y = _local(size, (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)), (1.0, 1.0), 0.0)
    gain = rng.uniform(0.95, 1.45) * (1 - rng.uniform(0, 0.5) * (x * x + y * y))
    scene *= gain
    scene *= 255 * _tint(rng, 0.03)
    planes = np.clip(scene, 0, 255, out=scene).astype(np.uint8)
    picture = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    # Never quite sharp: the lens also takes the stairs off hard edges, for less than supersampling costs.
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.45, 1.15) * size / 224))
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rough * rng.uniform(1, 10))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def draw(label: str, seed: int, size: int = 224, *, clear: bool = False) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Draw one tyre; with ``clear`` whole, from the side and clean, with a larger defect.

    Returns the size x size RGB image and the defect's true extent, a size x size boolean mask (all False for
    ``good``). The same arguments give the same pixels; the same seed gives the same scene under every label.
    """
    picture, masks = draw_defects([label], seed, size, clear=clear)
    return picture, masks[label]


def draw_defects(
    labels: Sequence[str], seed: int, size: int = 224, *, clear: bool = False
) -> tuple[Image.Image, dict[str, NDArray[np.bool_]]]:
    """Draw one tyre with several defects; each lies where :func:`draw` puts it alone.

    Returns the image, and each defect's true extent by its label, as :func:`draw` does.
    """
    known = [*_DEFECTS]
    for label in labels:
        if label not in known:
            raise ValueError(f"unknown class {label!r}; known: {', '.join(known)}")
    scene_rng = np.random.default_rng([seed, 0])
    scene = _pose(scene_rng, size, clear)
    defects = [_DEFECTS[label](scene, np.random.default_rng([seed, 1, known.index(label)])) for label in labels]
    whole = reduce(_Defect.with_another, defects)
    picture = _photograph(_render(scene, whole, scene_rng), np.random.default_rng([seed, 2]), scene.rough)
    extents = (np.broadcast_to(np.asarray(defect.mask) > 0.3, (size, size)).copy() for defect in defects)
    return picture, dict(zip(labels, extents, strict=True))


def write_lake(
    root: Path,
    counts: Mapping[str, int],
    *,
    size: int = 224,
    seed: int = 0,
    clear: bool = False,
    progress: Callable[[], None] | None = None,
    pairs: Mapping[str, int] | None = None,
) -> int:
    """Write ``<root>/<usage>/<class>/<hex name>.jpg``, ``counts[usage]`` of every class.

    Each image's name and seed are a hash of its place in the set: names tell nothing, no two images share a
    scene, and a larger count keeps the images already there. ``clear`` is as for :func:`draw`. ``progress`` is called
    after every image. ``pairs[usage]`` tyres more have both defects of each two; their pictures lie in both classes,
    under one name. Returns the number of images written.
    """
    written = 0
    for usage, count in counts.items():
        sets: list[tuple[tuple[str, ...], int]] = [((label,), count) for label in CLASSES]
        sets += [(two, (pairs or {}).get(usage, 0)) for two in combinations(CLASSES[1:], 2)]
        for labels, number in sets:
            for label in labels:
                (root / usage / label).mkdir(parents=True, exist_ok=True)
            for index in range(number):
                digest = hashlib.sha256(f"{seed}/{usage}/{'+'.join(labels)}/{index}".encode()).digest()
                own = int.from_bytes(digest[8:16], "big")
                quality = int(np.random.default_rng([own, 3]).integers(*_JPEG_QUALITY))
                picture = draw_defects(labels, own, size, clear=clear)[0]
                for label in labels:
                    picture.save(root / usage / label / f"{digest[:8].hex()}.jpg", quality=quality)
                    written += 1
                if progress is not None:
                    progress()
    return written
