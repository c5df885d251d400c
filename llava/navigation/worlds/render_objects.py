"""Landmark objects on top of a rendered background: exact ray intersections inside the rectangle each object can cover."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llava.navigation.worlds import tables
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.tables import BALL, BOX, CONE, CYLINDER, NUM_SHADES, OBJECT_BASE, ROW

if TYPE_CHECKING:
    from llava.navigation.worlds.renderer import Pose, Rays


class Views(NamedTuple):
    """V (view, object) pairs that may be visible; positions relative to the camera in the frame of the heading."""

    view: np.ndarray  # row of the frame in this chunk
    slot: np.ndarray  # object index in the house
    shape: np.ndarray
    colour: np.ndarray
    side: np.ndarray  # to the right
    ahead: np.ndarray
    bottom: np.ndarray  # height of the object's foot relative to the camera (negative)
    radius: np.ndarray
    height: np.ndarray

    def take(self, rows: np.ndarray) -> Views:
        return Views(*(values[rows] for values in self))


class Candidates(NamedTuple):
    """C pixels to be tested, with the pair each belongs to."""

    pair: np.ndarray
    flat: np.ndarray  # index into the flattened [F, H, W] picture
    u: np.ndarray  # ray components in the frame of the heading
    f: np.ndarray
    g: np.ndarray


def draw_objects(
    houses: HouseBatch,
    index: np.ndarray,
    pose: Pose,
    rays: Rays,
    depth: np.ndarray,
    ids: np.ndarray,
    material: np.ndarray,
) -> None:
    """Writes depth, instance ids and colour rows of the objects that are nearer than what is there."""
    views = _views(houses, index, pose, rays)
    hits = []
    for shape, intersect in INTERSECTIONS.items():
        some = views.take(np.flatnonzero(views.shape == shape))
        if len(some.view):
            some, box = _pixel_rectangles(some, rays)
            pixels = _expand(some, box, rays)
            distance, tone = intersect(some, pixels, pose)
            row = (OBJECT_BASE + some.colour[pixels.pair]) * ROW + tone * NUM_SHADES
            keep = np.flatnonzero(distance < np.inf)
            hits.append((pixels.flat[keep], distance[keep], row[keep], some.slot[pixels.pair[keep]] + 1))
    if not hits:
        return
    flat, distance, row, identity = (np.concatenate(parts) for parts in zip(*hits, strict=True))
    flat_depth = depth.reshape(-1)
    nearer = np.flatnonzero(distance < flat_depth[flat])
    flat, distance = flat[nearer], distance[nearer]
    np.minimum.at(flat_depth, flat, distance)
    wins = np.flatnonzero(flat_depth[flat] == distance)
    ids.reshape(-1)[flat[wins]] = identity[nearer[wins]]
    material.reshape(-1)[flat[wins]] = row[nearer[wins]]


def _views(houses: HouseBatch, index: np.ndarray, pose: Pose, rays: Rays) -> Views:
    """Pairs whose bounding sphere reaches into the cone of view to the front."""
    to_x, to_z = houses.object_x[index] - pose.x[:, None], houses.object_z[index] - pose.z[:, None]  # [F, K]
    heading = pose.heading[:, None]
    side = to_x * tables.RIGHT_X[heading] + to_z * tables.RIGHT_Z[heading]
    ahead = to_x * tables.FORWARD_X[heading] + to_z * tables.FORWARD_Z[heading]
    reach = houses.radius[index] + houses.height[index]
    cos, sin = rays.camera.pitch_cos_sin
    axial = ahead * cos - rays.camera.height_m * sin  # z-depth of the object's foot
    tangent = rays.camera.tan_half_hfov
    seen = houses.has_object[index] & (axial > -reach) & (abs(side) - 1.5 * reach < tangent * (axial + reach))
    view, slot = np.nonzero(seen)
    house = index[view]
    single = np.float32
    return Views(
        view=view,
        slot=slot,
        shape=houses.shape[house, slot],
        colour=houses.colour[house, slot].astype(np.int32),
        side=side[view, slot].astype(single),
        ahead=ahead[view, slot].astype(single),
        bottom=np.full(len(view), -rays.camera.height_m, dtype=single),
        radius=houses.radius[house, slot].astype(single),
        height=houses.height[house, slot].astype(single),
    )


def _pixel_rectangles(views: Views, rays: Rays) -> tuple[Views, np.ndarray]:
    """Rectangle [V, 4] (column0, column1, row0, row1; ends excluded) around the projection of each bounding box."""
    camera = rays.camera
    half = views.radius * np.float32(1.42)  # the corner of a box turned by 45 degrees
    top = views.bottom + views.height
    cos, sin = (np.float32(value) for value in camera.pitch_cos_sin)
    near, far = views.ahead - half, views.ahead + half
    columns, rows, close = [], [], np.zeros(len(half), dtype=bool)
    for ahead in (near, far):
        for up in (views.bottom, top):
            axial = ahead * cos + up * sin
            close |= axial < np.float32(0.05)
            axial = np.maximum(axial, np.float32(0.05))
            rows.append((up * cos - ahead * sin) / axial)
            columns += [(views.side - half) / axial, (views.side + half) / axial]
    pixel = np.float32(2 * camera.tan_half_hfov / camera.width)
    middle = np.float32(camera.width / 2), np.float32(camera.height / 2)
    box = np.stack(
        [
            _least(columns) / pixel + middle[0] - 1,
            _most(columns) / pixel + middle[0] + 1,
            middle[1] - _most(rows) / pixel - 1,
            middle[1] - _least(rows) / pixel + 1,
        ],
        axis=1,
    )
    whole = np.array([0, camera.width, 0, camera.height])
    limits = np.array([camera.width, camera.width, camera.height, camera.height])
    box = np.clip(box, -1e6, 1e6).astype(np.int64)
    box = np.clip(np.where(close[:, None], whole, box), 0, limits)
    filled = np.flatnonzero((box[:, 1] > box[:, 0]) & (box[:, 3] > box[:, 2]))
    return views.take(filled), box[filled]


def _least(arrays: list[np.ndarray]) -> np.ndarray:
    result = arrays[0]
    for other in arrays[1:]:
        result = np.minimum(result, other)
    return result


def _most(arrays: list[np.ndarray]) -> np.ndarray:
    return -_least([-values for values in arrays])


def _expand(views: Views, box: np.ndarray, rays: Rays) -> Candidates:
    """All pixels of all rectangles: first repeat the pairs over rows, then the rows over columns."""
    heights, widths = box[:, 3] - box[:, 2], box[:, 1] - box[:, 0]
    line_pair = np.repeat(np.arange(len(box)), heights)
    line_row = _ranges(box[:, 2], heights)
    pixel_line = np.repeat(np.arange(len(line_pair)), widths[line_pair])
    column = _ranges(box[line_pair, 0], widths[line_pair])
    camera = rays.camera
    line_start = (views.view[line_pair] * camera.height + line_row) * camera.width
    return Candidates(
        pair=line_pair[pixel_line],
        flat=line_start[pixel_line] + column,
        u=rays.side[column],
        f=rays.ahead[line_row][pixel_line],
        g=rays.up[line_row][pixel_line],
    )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of start .. start + length - 1."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _tone(light: np.ndarray) -> np.ndarray:
    """Brightness step 0..7 from a light value in [0, 1]."""
    return np.clip((light * np.float32(8)).astype(np.int32), 0, 7)


def _ball(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    x, z, r = views.side[pair], views.ahead[pair], views.radius[pair]
    y = views.bottom[pair] + r
    a, b = u * u + f * f + g * g, u * x + f * z + g * y
    inside = b * b - a * (x * x + y * y + z * z - r * r)
    t = (b - np.sqrt(np.maximum(inside, 0))) / a
    normal_y, normal_x = (t * g - y) / r, (t * u - x) / r
    hit = (inside > 0) & (t > np.float32(0.01))
    return np.where(hit, t, np.float32(np.inf)), _tone(
        np.float32(0.62) + normal_y * np.float32(0.4) - normal_x * np.float32(0.15)
    )


def _cylinder(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    x, z, r = views.side[pair], views.ahead[pair], views.radius[pair]
    foot, top = views.bottom[pair], views.bottom[pair] + views.height[pair]
    a, b = u * u + f * f, u * x + f * z
    inside = b * b - a * (x * x + z * z - r * r)
    t = (b - np.sqrt(np.maximum(inside, 0))) / a
    y = t * g
    side_hit = (inside > 0) & (t > np.float32(0.01)) & (y >= foot) & (y <= top)
    lid = top / np.where(g < 0, g, np.float32(-1e-6))
    off_x, off_z = lid * u - x, lid * f - z
    lid_hit = (g < 0) & (lid > np.float32(0.01)) & (off_x * off_x + off_z * off_z <= r * r)
    light = np.where(side_hit, np.float32(0.6) - (t * u - x) / r * np.float32(0.35), np.float32(0.99))
    return np.where(side_hit, t, np.where(lid_hit, lid, np.float32(np.inf))), _tone(light)


def _cone(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Points with x^2 + z^2 = s^2 (apex - y)^2, s = radius / height, between foot and apex."""
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    x, z = views.side[pair], views.ahead[pair]
    foot, apex = views.bottom[pair], views.bottom[pair] + views.height[pair]
    slope = views.radius[pair] / views.height[pair]
    s2 = slope * slope
    a = u * u + f * f - s2 * g * g
    a = np.where(abs(a) < np.float32(1e-6), np.float32(1e-6), a)
    b = u * x + f * z - s2 * g * apex
    c = x * x + z * z - s2 * apex * apex
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    best = np.full(u.shape, np.inf, dtype=np.float32)
    for t in ((b - root) / a, (b + root) / a):
        y = t * g
        hit = (inside > 0) & (t > np.float32(0.01)) & (y >= foot) & (y <= apex)
        best = np.where(hit & (t < best), t, best)
    safe = np.where(best < np.inf, best, np.float32(1))
    width = np.maximum(slope * (apex - safe * g), np.float32(1e-3))
    return best, _tone(np.float32(0.68) - (safe * u - x) / width * np.float32(0.35))


def _box(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Boxes stand parallel to the walls, so rays are turned back into the frame of the house."""
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    heading = pose.heading[views.view]
    rx, rz = tables.RIGHT_X[heading].astype(np.float32)[pair], tables.RIGHT_Z[heading].astype(np.float32)[pair]
    fx, fz = tables.FORWARD_X[heading].astype(np.float32)[pair], tables.FORWARD_Z[heading].astype(np.float32)[pair]
    side, ahead, r = views.side[pair], views.ahead[pair], views.radius[pair]
    foot, top = views.bottom[pair], views.bottom[pair] + views.height[pair]
    enter_x, leave_x = _slab(u * rx + f * fx, side * rx + ahead * fx, -r, r)
    enter_z, leave_z = _slab(u * rz + f * fz, side * rz + ahead * fz, -r, r)
    enter_y, leave_y = _slab(g, np.float32(0) * g, foot, top)
    enter = np.maximum(np.maximum(enter_x, enter_z), enter_y)
    leave = np.minimum(np.minimum(leave_x, leave_z), leave_y)
    hit = (enter < leave) & (enter > np.float32(0.01))
    light = np.where(enter_y == enter, np.float32(0.99), np.where(enter_x == enter, np.float32(0.7), np.float32(0.42)))
    return np.where(hit, enter, np.float32(np.inf)), _tone(light)


def _slab(ray: np.ndarray, centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths at which rays enter and leave the slab centre + low .. centre + high."""
    ray = np.where(abs(ray) < np.float32(1e-7), np.float32(1e-7), ray)
    one, other = (centre + low) / ray, (centre + high) / ray
    return np.minimum(one, other), np.maximum(one, other)


INTERSECTIONS = {BALL: _ball, BOX: _box, CONE: _cone, CYLINDER: _cylinder}
