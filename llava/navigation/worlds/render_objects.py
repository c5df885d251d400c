"""Landmark objects on top of a background: exact ray intersections inside the rectangle each object can cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llava.navigation.worlds import tables
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.tables import (
    BALL,
    BOX,
    CEILING_M,
    CONE,
    CYLINDER,
    DOOR_TOP_M,
    FRAME_BASE,
    LINTEL,
    NUM_SHADES,
    OBJECT_BASE,
    ROW,
)

if TYPE_CHECKING:
    from llava.navigation.worlds.renderer import Pose, Rays

NEAR = np.float32(0.01)  # nothing is drawn nearer than this


class Views(NamedTuple):
    """V (view, thing) pairs that may be visible; positions relative to the camera in the frame of the heading."""

    view: np.ndarray  # row of the frame in this chunk
    identity: np.ndarray  # instance id, 0 = background
    shape: np.ndarray
    material: np.ndarray  # first entry in the colour table
    side: np.ndarray  # to the right
    ahead: np.ndarray
    bottom: np.ndarray  # height of the foot relative to the camera
    height: np.ndarray
    radius: np.ndarray
    half_x: np.ndarray  # of boxes, along the axes of the house
    half_z: np.ndarray
    half_side: np.ndarray  # of the surrounding box in the frame of the heading
    half_ahead: np.ndarray

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
            some, box, nearest = _pixel_rectangles(some, rays)
            pixels = _expand(some, box, rays, nearest, depth.reshape(-1) if houses.wall_boxes.shape[1] else None)
            hits.append(_hit_pixels(some, pixels, pose, intersect))
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


def _hit_pixels(views: Views, pixels: Candidates, pose: Pose, intersect: Intersection) -> tuple[np.ndarray, ...]:
    """Flat index, distance, colour row and instance id of the candidate pixels that show the object."""
    kept, distance, tone = intersect(views, pixels, pose)
    pair = pixels.pair[kept]
    return pixels.flat[kept], distance, views.material[pair] + tone * NUM_SHADES, views.identity[pair]


def _views(houses: HouseBatch, index: np.ndarray, pose: Pose, rays: Rays) -> Views:
    """Pairs of views and objects (or lintels) that reach into the field of view."""
    view, slot, side, ahead = _in_view(
        houses.has_object, houses.object_x, houses.object_z, houses.radius + houses.height, index, pose, rays
    )
    house = index[view]
    radius, shape = houses.radius[house, slot].astype(np.float32), houses.shape[house, slot]
    half_side, half_ahead = _turned(radius, radius, pose.heading[view])
    objects = Views(
        view=view,
        identity=(slot + 1).astype(np.uint8),
        shape=shape,
        material=(OBJECT_BASE + houses.colour[house, slot].astype(np.int32)) * ROW,
        side=side,
        ahead=ahead,
        bottom=np.full(len(view), -rays.camera.height_m, dtype=np.float32),
        height=houses.height[house, slot].astype(np.float32),
        radius=radius,
        half_x=radius,
        half_z=radius,
        half_side=np.where(shape == BOX, half_side, radius),
        half_ahead=np.where(shape == BOX, half_ahead, radius),
    )
    if houses.lintels.shape[1] == 0:
        return objects
    both = zip(objects, _lintels(houses, index, pose, rays), strict=True)
    return Views(*(np.concatenate(columns) for columns in both))


def _lintels(houses: HouseBatch, index: np.ndarray, pose: Pose, rays: Rays) -> Views:
    x0, z0, x1, z1 = (houses.lintels[..., i] for i in range(4))
    middle_x, middle_z, half_x, half_z = (x0 + x1) / 2, (z0 + z1) / 2, (x1 - x0) / 2, (z1 - z0) / 2
    present = ~np.isnan(x0)
    view, slot, side, ahead = _in_view(present, middle_x, middle_z, half_x + half_z, index, pose, rays)
    house, count = index[view], len(view)
    half_x, half_z = (half[house, slot].astype(np.float32) for half in (half_x, half_z))
    half_side, half_ahead = _turned(half_x, half_z, pose.heading[view])
    return Views(
        view=view,
        identity=np.zeros(count, dtype=np.uint8),
        shape=np.full(count, LINTEL, dtype=np.uint8),
        material=np.full(count, FRAME_BASE * ROW, dtype=np.int32),
        side=side,
        ahead=ahead,
        bottom=np.full(count, DOOR_TOP_M - rays.camera.height_m, dtype=np.float32),
        height=np.full(count, CEILING_M - DOOR_TOP_M, dtype=np.float32),
        radius=np.maximum(half_x, half_z),
        half_x=half_x,
        half_z=half_z,
        half_side=half_side,
        half_ahead=half_ahead,
    )


def _turned(half_x: np.ndarray, half_z: np.ndarray, heading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half extents to the side and ahead of a box along the axes of the house."""
    x, z = abs(tables.RIGHT_X[heading]).astype(np.float32), abs(tables.RIGHT_Z[heading]).astype(np.float32)
    return half_x * x + half_z * z, half_x * z + half_z * x


def _in_view(
    present: np.ndarray,
    x: np.ndarray,
    z: np.ndarray,
    reach: np.ndarray,
    index: np.ndarray,
    pose: Pose,
    rays: Rays,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """View, slot, and position to the side and ahead of the things whose surroundings reach into the field of view."""
    to_x, to_z = x[index] - pose.x[:, None], z[index] - pose.z[:, None]  # [F, K]
    heading = pose.heading[:, None]
    side = to_x * tables.RIGHT_X[heading] + to_z * tables.RIGHT_Z[heading]
    ahead = to_x * tables.FORWARD_X[heading] + to_z * tables.FORWARD_Z[heading]
    cos, sin = rays.camera.pitch_cos_sin
    lift = CEILING_M * abs(sin)  # how much height can add to the depth along a tilted axis
    axial, reach = ahead * cos + lift, reach[index]
    with np.errstate(invalid="ignore"):  # absent lintels are NaN
        seen = (
            present[index] & (axial > -reach) & (abs(side) - 1.5 * reach < rays.camera.tan_half_hfov * (axial + reach))
        )
    view, slot = np.nonzero(seen)
    return view, slot, side[view, slot].astype(np.float32), ahead[view, slot].astype(np.float32)


def _pixel_rectangles(views: Views, rays: Rays) -> tuple[Views, np.ndarray, np.ndarray]:
    """Pairs that cover any pixel, the rectangle around each and the depth of its nearest corner.

    Rectangles [V, 4] are column0, column1, row0, row1 with the ends excluded, around the projected bounding box.
    """
    camera = rays.camera
    top = views.bottom + views.height
    cos, sin = (np.float32(value) for value in camera.pitch_cos_sin)
    near, far = views.ahead - views.half_ahead, views.ahead + views.half_ahead
    columns, rows, depths = [], [], []
    for ahead in (near, far):
        for up in (views.bottom, top):
            axial = ahead * cos + up * sin
            depths.append(axial)
            axial = np.maximum(axial, np.float32(0.05))
            rows.append((up * cos - ahead * sin) / axial)
            columns += [(views.side - views.half_side) / axial, (views.side + views.half_side) / axial]
    nearest = _least(depths)
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
    box = np.clip(np.where(nearest[:, None] < np.float32(0.05), whole, box), 0, limits)
    filled = np.flatnonzero((box[:, 1] > box[:, 0]) & (box[:, 3] > box[:, 2]))
    return views.take(filled), box[filled], nearest[filled]


def _least(arrays: list[np.ndarray]) -> np.ndarray:
    result = arrays[0]
    for other in arrays[1:]:
        result = np.minimum(result, other)
    return result


def _most(arrays: list[np.ndarray]) -> np.ndarray:
    return -_least([-values for values in arrays])


def _expand(views: Views, box: np.ndarray, rays: Rays, nearest: np.ndarray, depth: np.ndarray | None) -> Candidates:
    """All pixels of all rectangles: first repeat the pairs over rows, then the rows over columns.

    Args:
        depth: of the background; pixels where it is nearer than the whole object are left out. None = keep all.
    """
    heights, widths = box[:, 3] - box[:, 2], box[:, 1] - box[:, 0]
    line_pair = np.repeat(np.arange(len(box)), heights)
    line_row = _ranges(box[:, 2], heights)
    line = np.repeat(np.arange(len(line_pair)), widths[line_pair])
    column = _ranges(box[line_pair, 0], widths[line_pair])
    camera = rays.camera
    line_start = (views.view[line_pair] * camera.height + line_row) * camera.width
    flat = line_start[line] + column
    if depth is not None:
        open_sight = np.flatnonzero(depth[flat] > nearest[line_pair][line])
        line, column, flat = line[open_sight], column[open_sight], flat[open_sight]
    return Candidates(
        pair=line_pair[line],
        flat=flat,
        u=rays.side[column],
        f=rays.ahead[line_row][line],
        g=rays.up[line_row][line],
    )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of start .. start + length - 1."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _tone(light: np.ndarray) -> np.ndarray:
    """Brightness step 0..7 from a light value in [0, 1]."""
    return np.clip((light * np.float32(8)).astype(np.int32), 0, 7)


Intersection = Callable[[Views, Candidates, "Pose"], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(pairs, candidates, pose) -> which candidates are hit (indices), at what depth, how bright."""


def _ball(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    y = views.bottom + views.radius
    rest = views.side * views.side + y * y + views.ahead * views.ahead - views.radius * views.radius
    a, b = u * u + f * f + g * g, u * views.side[pair] + f * views.ahead[pair] + g * y[pair]
    inside = b * b - a * rest[pair]
    kept = np.flatnonzero(inside > 0)
    t = (b[kept] - np.sqrt(inside[kept])) / a[kept]
    pair = pair[kept]
    normal_y, normal_x = t * g[kept] - y[pair], t * u[kept] - views.side[pair]
    light = (normal_y * np.float32(0.4) - normal_x * np.float32(0.15)) / views.radius[pair]
    front = np.flatnonzero(t > NEAR)
    return kept[front], t[front], _tone(np.float32(0.62) + light[front])


def _cylinder(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    x, z = views.side[pair], views.ahead[pair]
    rest = views.side * views.side + views.ahead * views.ahead - views.radius * views.radius
    top = views.bottom + views.height
    a, b = u * u + f * f, u * x + f * z
    inside = b * b - a * rest[pair]
    t = (b - np.sqrt(np.maximum(inside, 0))) / a
    y = t * g
    on_side = (inside > 0) & (t > NEAR) & (y >= views.bottom[pair]) & (y <= top[pair])
    lid = top[pair] / np.where(g < 0, g, np.float32(-1e-6))
    off_x, off_z = lid * u - x, lid * f - z
    on_lid = (g < 0) & (lid > NEAR) & (off_x * off_x + off_z * off_z <= (views.radius * views.radius)[pair])
    kept = np.flatnonzero(on_side | on_lid)
    on_side, pair, t = on_side[kept], pair[kept], t[kept]
    light = np.float32(0.6) - (t * u[kept] - x[kept]) / views.radius[pair] * np.float32(0.35)
    return kept, np.where(on_side, t, lid[kept]), _tone(np.where(on_side, light, np.float32(0.99)))


def _cone(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points with x^2 + z^2 = s^2 (apex - y)^2, s = radius / height, between foot and apex."""
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    apex = views.bottom + views.height
    slope = views.radius / views.height
    s2 = slope * slope
    rest = views.side * views.side + views.ahead * views.ahead - s2 * apex * apex
    s2g = s2[pair] * g
    a = u * u + f * f - s2g * g
    b = u * views.side[pair] + f * views.ahead[pair] - s2g * apex[pair]
    inside = b * b - a * rest[pair]
    possible = np.flatnonzero(inside > 0)
    a, b, root, g = a[possible], b[possible], np.sqrt(inside[possible]), g[possible]
    a = np.where(abs(a) < np.float32(1e-6), np.float32(1e-6), a)
    foot, apex_of = views.bottom[pair[possible]], apex[pair[possible]]
    best = np.full(a.shape, np.inf, dtype=np.float32)
    steep = bool((a < 0).any())  # only then can the second crossing be the first one below the apex
    for t in ((b - root) / a, (b + root) / a) if steep else ((b - root) / a,):
        y = t * g
        hit = (t > NEAR) & (y >= foot) & (y <= apex_of)
        best = np.where(hit & (t < best), t, best)
    some = np.flatnonzero(best < np.inf)
    kept, best = possible[some], best[some]
    pair = pair[kept]
    width = np.maximum(slope[pair] * (apex[pair] - best * g[some]), np.float32(1e-3))
    return kept, best, _tone(np.float32(0.68) - (best * u[kept] - views.side[pair]) / width * np.float32(0.35))


def _box(views: Views, pixels: Candidates, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes stand parallel to the walls, so rays are turned back into the frame of the house."""
    pair, u, f, g = pixels.pair, pixels.u, pixels.f, pixels.g
    heading, single = pose.heading[views.view], np.float32
    rx, rz = tables.RIGHT_X[heading].astype(single), tables.RIGHT_Z[heading].astype(single)
    fx, fz = tables.FORWARD_X[heading].astype(single), tables.FORWARD_Z[heading].astype(single)
    x, z = views.side * rx + views.ahead * fx, views.side * rz + views.ahead * fz
    enter_x, leave_x = _slab(u * rx[pair] + f * fx[pair], (x - views.half_x)[pair], (x + views.half_x)[pair])
    enter_z, leave_z = _slab(u * rz[pair] + f * fz[pair], (z - views.half_z)[pair], (z + views.half_z)[pair])
    enter_y, leave_y = _slab(g, views.bottom[pair], (views.bottom + views.height)[pair])
    enter = np.maximum(np.maximum(enter_x, enter_z), enter_y)
    leave = np.minimum(np.minimum(leave_x, leave_z), leave_y)
    kept = np.flatnonzero((enter < leave) & (enter > NEAR))
    t = enter[kept]
    on_side = np.where(enter_x[kept] == t, single(0.7), single(0.42))
    return kept, t, _tone(np.where(enter_y[kept] == t, single(0.99), on_side))


def _slab(ray: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths at which rays enter and leave the slab low .. high."""
    inverse = 1 / np.where(abs(ray) < np.float32(1e-7), np.float32(1e-7), ray)
    one, other = low * inverse, high * inverse
    return np.minimum(one, other), np.maximum(one, other)


INTERSECTIONS: dict[int, Intersection] = {BALL: _ball, BOX: _box, CONE: _cone, CYLINDER: _cylinder, LINTEL: _box}
