"""How planned scenes become pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visattn.data.scene_plans import ScenePlan, colors, reaches

_palette = np.array(list(colors.values()), dtype=np.float32)  # (colors, 3)
_in_caches = 65_536  # pixels that are worked on together


def paint(plan: ScenePlan, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 3, S, S) uint8 and the slot that each pixel belongs to (N, S, S), -1 for the background."""
    number = len(plan.label)
    images = np.empty((number, 3, image_size, image_size), dtype=np.uint8)
    owner = np.full((number, image_size, image_size), -1, dtype=np.int8)
    field = np.random.Generator(np.random.Philox(key=0)).standard_normal((2 * image_size, 2 * image_size), np.float32)
    grain = np.lib.stride_tricks.sliding_window_view(10 * field, (image_size, image_size))
    step = max(1, _in_caches // image_size**2)
    for start in range(0, number, step):
        scenes = slice(start, start + step)
        part = plan.part(scenes)
        pixels = background(part, image_size)  # (3, n, S, S)
        for slot in (2, 3, 0, 1):  # the pair in front
            for large in (False, True):
                where = np.flatnonzero(part.present[:, slot] & (part.large[:, slot] == large))
                if len(where):
                    places, shade = shape(part, where, slot, image_size)
                    scene = places // image_size**2
                    for channel in range(3):
                        pixels[channel].reshape(-1)[places] = _palette[part.color[scene, slot], channel] * shade
                    owner[scenes].reshape(-1)[places] = slot
        top, left = (part.grain * image_size).astype(int).T
        pixels += grain[top, left]
        images[scenes] = pixels.clip(0, 255, out=pixels).swapaxes(0, 1)
    return images, owner


def background(plan: ScenePlan, image_size: int) -> np.ndarray:
    """A ramp between two colours: (3, n, S, S) float32."""
    side = ((np.arange(image_size) + 0.5) / image_size - 0.5)[:, None]  # (S, 1)
    first, second = plan.background.transpose(1, 2, 0)  # (3, n)
    across = 0.7 * np.cos(plan.slope) * (second - first) * side[..., None]  # (S, 3, n)
    down = 0.7 * np.sin(plan.slope) * (second - first) * side[..., None] + 0.5 * (first + second)
    across, down = across.transpose(1, 2, 0).astype(np.float32), down.transpose(1, 2, 0).astype(np.float32)
    return np.ascontiguousarray(down)[..., :, None] + np.ascontiguousarray(across)[..., None, :]


class Window(NamedTuple):
    """The squares of pixels, all of one size, that hold the shapes of n scenes.

    Attributes:
        rows, columns: of the picture, (n, W).
        u, v: positions along the shape's own axes, in radii: (n, W, W).
    """

    rows: np.ndarray
    columns: np.ndarray
    u: np.ndarray
    v: np.ndarray


def window(plan: ScenePlan, where: np.ndarray, slot: int, image_size: int) -> Window:
    reach = (reaches[plan.kind[where, slot]] * plan.radius[where, slot]).max()
    width = min(image_size, int(2 * reach * image_size) + 2)
    center, radius, angle = plan.center[where, slot], plan.radius[where, slot], plan.angle[where, slot]
    corner = np.clip(((center - reach) * image_size).astype(int), 0, image_size - width)  # (n, 2)
    places = corner[:, :, None] + np.arange(width)  # (n, 2, W)
    x, y = (((places + 0.5) / image_size - center[:, :, None]) / radius[:, None, None]).swapaxes(0, 1)  # (n, W)
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    along = [part.astype(np.float32) for part in (cosine * x, sine * y, cosine * y, -sine * x)]  # (n, W) each
    u = along[0][:, None, :] + along[1][:, :, None]
    v = along[2][:, :, None] + along[3][:, None, :]
    return Window(places[:, 1], places[:, 0], u, v)


def shape(plan: ScenePlan, where: np.ndarray, slot: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of one slot's shapes, as K places in (n, S, S), and the brightness of the texture there (K,)."""
    rows, columns, u, v = window(plan, where, slot, image_size)
    kind = plan.kind[where, slot]
    inside = np.empty(u.shape, dtype=bool)
    for number, rule in enumerate((circle, square, triangle, cross)):
        if (members := kind == number).any():
            inside[members] = rule(u[members], v[members])
    scene, row, column = inside.nonzero()  # (K,) each
    places = (where[scene] * image_size + rows[scene, row]) * image_size + columns[scene, column]
    texture, u, v = plan.texture[where, slot][scene], u[inside], v[inside]
    dark = ((texture == 1) & (np.sin(9 * u) > 0)) | ((texture == 2) & (np.sin(7 * u) * np.sin(7 * v) > 0))
    return places, np.where(dark, np.float32(0.55), np.float32(1.0))


def circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v < 1


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) < 0.86


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (v < 0.6) & (1.732 * abs(u) < v + 1.05)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wide, narrow = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    return (wide < 1) & (narrow < 0.36)
