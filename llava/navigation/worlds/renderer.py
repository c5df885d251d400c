"""Batched ray caster: RGB, z-depth and instance ids of many first-person views in one pass.

Walls are found per ray of the horizon, floor and ceiling per row, landmark objects only inside the rectangle of pixels
that they can cover. float32 and integer arithmetic without sums or library functions: the same bits on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from llava.navigation.worlds import tables
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.house import HouseBatch
from llava.navigation.worlds.render_objects import draw_objects
from llava.navigation.worlds.tables import CEILING_M, ROW, TEXELS_PER_M_U, TEXELS_PER_M_V, TEXTURE_U, TEXTURE_V

CHUNK_PIXELS = 1 << 18  # objects: enough pixels to hide the cost of a call
MAX_GRID = 3  # rooms in a row or column
TILE_PIXELS = 1 << 16  # background and shading: small enough for the cache


@dataclass(frozen=True)
class Frames:
    """F rendered views; depth is z-depth in metres, instance id 0 = background, i + 1 = object i of the house."""

    rgb: UInt8[np.ndarray, "f h w 3"]
    depth: Float32[np.ndarray, "f h w"]
    instance_ids: UInt8[np.ndarray, "f h w"]


@dataclass(frozen=True)
class Rays:
    """Directions of the pixels relative to the heading; along the optical axis 1, so that a ray's parameter is depth.

    side [W] to the right, ahead [H] forwards, up [H] upwards; plane [H] is the depth at which floor or ceiling is met.
    """

    camera: CameraProfile
    side: Float32[np.ndarray, " w"]
    ahead: Float32[np.ndarray, " h"]
    up: Float32[np.ndarray, " h"]
    plane: Float32[np.ndarray, " h"]
    first_floor_row: int


@lru_cache(maxsize=64)
def camera_rays(camera: CameraProfile) -> Rays:
    width, height = camera.width, camera.height
    cos, sin = camera.pitch_cos_sin
    pixel = camera.tan_half_hfov / width  # half a pixel at depth 1
    side = (2 * np.arange(width) + 1 - width) * pixel
    v = (height - 1 - 2 * np.arange(height)) * pixel
    ahead, up = cos - v * sin, sin + v * cos
    steep = np.where(up < 0, np.minimum(up, -1e-6), np.maximum(up, 1e-6))  # a horizontal ray meets them very far away
    plane = np.where(up < 0, -camera.height_m, CEILING_M - camera.height_m) / steep
    single = (array.astype(np.float32) for array in (side, ahead, up, plane))
    return Rays(camera, *single, first_floor_row=int((up >= 0).sum()))


def render(
    houses: HouseBatch,
    house_index: Int[np.ndarray, " f"],
    x: Float[np.ndarray, " f"],
    z: Float[np.ndarray, " f"],
    heading: Int[np.ndarray, " f"],
    camera: CameraProfile,
) -> Frames:
    """Views of F poses; pose f stands in house `house_index[f]`. Any number of frames, in cache-sized chunks."""
    shape = (len(house_index), camera.height, camera.width)
    frames = Frames(np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32), np.empty(shape, np.uint8))
    rays = camera_rays(camera)
    size = max(1, CHUNK_PIXELS // (camera.height * camera.width))
    for begin in range(0, shape[0], size):
        part = slice(begin, begin + size)
        _render_chunk(houses, house_index[part], x[part], z[part], heading[part] % 24, rays, frames, part)
    return frames


def _render_chunk(
    houses: HouseBatch,
    index: np.ndarray,
    x: np.ndarray,
    z: np.ndarray,
    heading: np.ndarray,
    rays: Rays,
    frames: Frames,
    part: slice,
) -> None:
    depth, ids = frames.depth[part], frames.instance_ids[part]
    ids[:] = 0
    material = np.empty(depth.shape, np.int32)  # row of the colour table
    tile = max(1, TILE_PIXELS // (rays.camera.height * rays.camera.width))
    tiles = [slice(begin, begin + tile) for begin in range(0, len(index), tile)]
    for t in tiles:
        _background(houses, index[t], Pose.at(x[t], z[t], heading[t]), rays, depth[t], material[t])
    draw_objects(houses, index, Pose.at(x, z, heading), rays, depth, ids, material)
    for t in tiles:
        _shade(material[t], depth[t], frames.rgb[part][t])


def _shade(material: np.ndarray, depth: np.ndarray, rgb: np.ndarray) -> None:
    """Colour of the material at its distance."""
    shade = (depth * np.float32(tables.SHADES_PER_M)).astype(np.int32)
    np.minimum(shade, tables.NUM_SHADES - 1, out=shade)
    shade += material
    packed = tables.COLOUR_TABLE.take(shade, mode="clip")
    channels = packed.view(np.uint8).reshape(*packed.shape, 4)
    for channel in range(3):  # three strided copies are four times faster than one of 3-byte rows
        np.copyto(rgb[..., channel], channels[..., channel])


@dataclass(frozen=True)
class Pose:
    """Positions and axes of F views: float64 for object centres, float32 columns [F, 1, 1] for rays."""

    x: np.ndarray
    z: np.ndarray
    heading: np.ndarray
    ray_x: np.ndarray
    ray_z: np.ndarray
    forward_x: np.ndarray
    forward_z: np.ndarray
    right_x: np.ndarray
    right_z: np.ndarray

    @classmethod
    def at(cls, x: np.ndarray, z: np.ndarray, heading: np.ndarray) -> Pose:
        axes = (tables.FORWARD_X, tables.FORWARD_Z, tables.RIGHT_X, tables.RIGHT_Z)
        columns = [values.astype(np.float32)[:, None, None] for values in (x, z, *(axis[heading] for axis in axes))]
        return cls(x, z, heading, *columns)


def _background(
    houses: HouseBatch, index: np.ndarray, pose: Pose, rays: Rays, depth: np.ndarray, material: np.ndarray
) -> None:
    """Writes depth and colour-table row of walls, floor and ceiling, both [F, H, W]."""
    level_camera = rays.camera.pitch_deg == 0  # then all rows share the rays of the horizon
    ahead = rays.ahead[:1] if level_camera else rays.ahead
    ray_x = ahead[None, :, None] * pose.forward_x + rays.side * pose.right_x  # [F, 1 or H, W]
    ray_z = ahead[None, :, None] * pose.forward_z + rays.side * pose.right_z
    wall, face = _wall_distance(houses, index, pose, ray_x, ray_z)
    texel = _wall_texels(houses, index, pose, ray_x, ray_z, wall, face)
    plane = rays.plane[None, :, None]
    np.minimum(wall, plane, out=depth)
    above_floor = depth * (rays.up * np.float32(TEXELS_PER_M_V))[None, :, None]
    above_floor += np.float32(rays.camera.height_m * TEXELS_PER_M_V)
    cell = above_floor.astype(np.int32)
    cell += texel
    tables.WALL_ATLAS.take(cell, mode="clip", out=material)
    is_plane = wall > plane  # [F, H, W]
    split = rays.first_floor_row
    ceiling = ((tables.CEILING_BASE + houses.ceiling_tint[index]) * ROW + 5 * tables.NUM_SHADES).astype(np.int32)
    _select(material[:, :split], ceiling[:, None, None], is_plane[:, :split])
    floor = _floor_rows(houses, index, pose, rays, ray_x, ray_z)
    _select(material[:, split:], floor, is_plane[:, split:])


def _select(target: np.ndarray, other: np.ndarray, choose_other: np.ndarray) -> None:
    """target = other where chosen; arithmetic, because a masked copy costs ten times as much."""
    difference = other - target
    difference *= choose_other
    target += difference


def _wall_distance(
    houses: HouseBatch, index: np.ndarray, pose: Pose, ray_x: np.ndarray, ray_z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the nearest wall, and which side of a room it is (0 north, 1 east, 2 south, 3 west)."""
    tiny = np.float32(1e-7)
    inverse_x = 1 / (ray_x + (abs(ray_x) < tiny) * tiny * 2)
    inverse_z = 1 / (ray_z + (abs(ray_z) < tiny) * tiny * 2)
    boxes = np.concatenate([houses.bounds[index][:, None], houses.wall_boxes[index]], axis=1).astype(np.float32)
    x0, z0, x1, z1 = (boxes[:, :, i, None, None] for i in range(4))
    near_x = np.maximum((x0[:, 0] - pose.ray_x) * inverse_x, (x1[:, 0] - pose.ray_x) * inverse_x)
    near_z = np.maximum((z0[:, 0] - pose.ray_z) * inverse_z, (z1[:, 0] - pose.ray_z) * inverse_z)
    distance = np.minimum(near_x, near_z)
    across_x = near_x < near_z
    for k in range(1, boxes.shape[1]):
        ax, bx = (x0[:, k] - pose.ray_x) * inverse_x, (x1[:, k] - pose.ray_x) * inverse_x
        az, bz = (z0[:, k] - pose.ray_z) * inverse_z, (z1[:, k] - pose.ray_z) * inverse_z
        enter_x, enter_z = np.minimum(ax, bx), np.minimum(az, bz)
        enter = np.maximum(enter_x, enter_z)
        leave = np.minimum(np.maximum(ax, bx), np.maximum(az, bz))
        hit = (enter < leave) & (enter > 0) & (enter < distance)  # False for absent (NaN) boxes
        distance = np.where(hit, enter, distance)
        across_x = np.where(hit, enter_x > enter_z, across_x)
    face = np.where(across_x, np.where(ray_x > 0, 1, 3), np.where(ray_z > 0, 2, 0))
    return distance, face


def _wall_texels(
    houses: HouseBatch,
    index: np.ndarray,
    pose: Pose,
    ray_x: np.ndarray,
    ray_z: np.ndarray,
    distance: np.ndarray,
    face: np.ndarray,
) -> np.ndarray:
    """Index of the texture column (v = 0) in the wall atlas per horizontal ray, int32."""
    hit_x, hit_z = pose.ray_x + distance * ray_x, pose.ray_z + distance * ray_z
    along = np.where(face % 2 == 1, hit_z, hit_x)
    u = (along * np.float32(TEXELS_PER_M_U)).astype(np.int32) & (TEXTURE_U - 1)
    room = _room_at(houses, index, hit_x - np.float32(0.1) * ray_x, hit_z - np.float32(0.1) * ray_z)
    row = np.arange(len(index))[:, None, None]
    texture = houses.wall_texture[index][row, room, face].astype(np.int32)
    return texture * (TEXTURE_U * TEXTURE_V) + u * TEXTURE_V


def _room_at(houses: HouseBatch, index: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Room number of points [F, ...], clipped into the house."""
    if houses.wall_texture.shape[1] == 1:
        return np.zeros((1,) * x.ndim, dtype=np.int64)
    size = houses.room_size[index].astype(np.float32)[:, None, None]
    rows, columns = (houses.grid[index, axis][:, None, None] for axis in range(2))
    column = np.clip((x / size).astype(np.int64), 0, columns - 1)
    return np.clip((z / size).astype(np.int64), 0, rows - 1) * columns + column


def _floor_rows(
    houses: HouseBatch, index: np.ndarray, pose: Pose, rays: Rays, ray_x: np.ndarray, ray_z: np.ndarray
) -> np.ndarray:
    """Colour-table rows of the floor below the horizon, int32 [F, rows, W]: squares in two tones."""
    split = rays.first_floor_row
    plane = rays.plane[None, split:, None]
    if ray_x.shape[1] > 1:
        ray_x, ray_z = ray_x[:, split:], ray_z[:, split:]
    scale = np.float32(1 / tables.TILE_M)
    offset = np.float32(64)  # an even number of squares: keeps the cast a floor for points left of the house
    tile_x = (ray_x * (plane * scale) + (pose.ray_x * scale + offset)).astype(np.int32)
    tile_z = (ray_z * (plane * scale) + (pose.ray_z * scale + offset)).astype(np.int32)
    tone = ((tile_x ^ tile_z) & 1) * (2 * tables.NUM_SHADES) + 4 * tables.NUM_SHADES
    base = ((tables.FLOOR_BASE + houses.floor_tint) * ROW).astype(np.int32)
    if base.shape[1] == 1:
        tone += base[index][:, :, None]
        return tone
    column = _room_of_tile(houses).take(tile_x, mode="clip")
    row = (_room_of_tile(houses) * MAX_GRID).take(tile_z, mode="clip")
    row += column
    row += (np.arange(len(index), dtype=np.int32) * MAX_GRID**2)[:, None, None]
    tone += _floor_grid(houses, base)[index].reshape(-1).take(row, mode="clip")
    return tone


def _room_of_tile(houses: HouseBatch) -> np.ndarray:
    """Row or column of rooms that a floor square (number 64 is the first of the house) lies in."""
    tiles = round(float(houses.room_size[0]) / tables.TILE_M)
    return np.clip((np.arange(64 + MAX_GRID * tiles) - 64) // tiles, 0, MAX_GRID - 1).astype(np.int32)


def _floor_grid(houses: HouseBatch, base: np.ndarray) -> np.ndarray:
    """Colour-table rows of the floors as [N, 3 x 3] rooms, the last row and column repeated where a house has fewer."""
    row = np.minimum(np.arange(MAX_GRID)[None, :, None], houses.grid[:, 0, None, None] - 1)
    column = np.minimum(np.arange(MAX_GRID)[None, None, :], houses.grid[:, 1, None, None] - 1)
    room = row * houses.grid[:, 1, None, None] + column
    return np.take_along_axis(base, room.reshape(len(houses), -1), 1)
