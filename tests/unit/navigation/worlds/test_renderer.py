"""Pictures: right by an independent ray caster, the same bits everywhere, independent of what else is rendered."""

import hashlib
import math

import numpy as np
import pytest

from llava.navigation.worlds import renderer
from llava.navigation.worlds.base import CameraProfile
from llava.navigation.worlds.demonstrations import demonstrate
from llava.navigation.worlds.house import generate_houses
from llava.navigation.worlds.tables import BALL, BOX, CEILING_M, CONE, DOOR_TOP_M

CAMERAS = [
    CameraProfile(),
    CameraProfile(width=33, height=20, hfov_deg=69),
    CameraProfile(height_m=0.7, pitch_deg=-20, hfov_deg=75, width=48, height=32),
    CameraProfile(height_m=2.0, pitch_deg=30, hfov_deg=100, width=40, height=40),
]


def views(level, count, camera, seed=0):
    """Random poses on demonstrated walks."""
    walks = demonstrate(level, np.arange(seed, seed + 6), camera, noise=0.15)
    picked = np.random.default_rng(seed).integers(0, walks.num_frames, count)
    return walks, picked, walks.render(picked, camera)


def box_hit(origin, ray, low, high):
    enter, leave = 0.0, math.inf
    for o, d, a, b in zip(origin, ray, low, high, strict=True):
        if abs(d) < 1e-12:
            if not a < o < b:
                return math.inf
            continue
        first, second = sorted(((a - o) / d, (b - o) / d))
        enter, leave = max(enter, first), min(leave, second)
    return enter if 0 < enter < leave else math.inf


def round_hit(shape, origin, ray, x, z, r, h):
    """Smallest t at which the ray is on the surface of a ball, cone or cylinder on the floor."""
    ox, oy, oz, dx, dy, dz = origin[0] - x, origin[1], origin[2] - z, *ray
    if shape == BALL:
        coefficients = (
            dx * dx + dy * dy + dz * dz,
            ox * dx + (oy - r) * dy + oz * dz,
            ox * ox + (oy - r) ** 2 + oz * oz - r * r,
        )
    elif shape == CONE:
        s = (r / h) ** 2
        coefficients = (
            dx * dx + dz * dz - s * dy * dy,
            ox * dx + oz * dz + s * (h - oy) * dy,
            ox * ox + oz * oz - s * (h - oy) ** 2,
        )
    else:
        coefficients = (dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - r * r)
    a, b, c = coefficients
    hits = []
    if abs(a) > 1e-12 and b * b - a * c >= 0:
        root = math.sqrt(b * b - a * c)
        hits += [t for t in ((-b - root) / a, (-b + root) / a) if t > 0 and (shape == BALL or 0 <= oy + t * dy <= h)]
    if shape not in (BALL, CONE) and abs(dy) > 1e-12:
        t = (h - oy) / dy
        if t > 0 and (ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= r * r:
            hits.append(t)
    return min(hits, default=math.inf)


def reference_pixel(houses, i, x, z, heading, camera, row, column):
    """Depth and instance id of one pixel by plain trigonometry in double precision."""
    tangent = math.tan(math.radians(camera.hfov_deg) / 2)
    u = (2 * column + 1 - camera.width) / camera.width * tangent
    v = (camera.height - 1 - 2 * row) / camera.width * tangent
    pitch, yaw = math.radians(camera.pitch_deg), math.radians(15 * heading)
    ahead, up = math.cos(pitch) - v * math.sin(pitch), math.sin(pitch) + v * math.cos(pitch)
    ray = (-math.sin(yaw) * ahead + math.cos(yaw) * u, up, -math.cos(yaw) * ahead - math.sin(yaw) * u)
    origin = (x, camera.height_m, z)
    x0, z0, x1, z1 = houses.bounds[i]
    found = [(t, 0) for t in ((x0 - x) / ray[0], (x1 - x) / ray[0], (z0 - z) / ray[2], (z1 - z) / ray[2]) if t > 0]
    found += [(t, 0) for t in (-camera.height_m / ray[1], (CEILING_M - camera.height_m) / ray[1]) if t > 0]
    for box, low, high in [
        *((b, 0.0, CEILING_M) for b in houses.wall_boxes[i]),
        *((b, DOOR_TOP_M, CEILING_M) for b in houses.lintels[i]),
    ]:
        if not np.isnan(box[0]):
            found.append((box_hit(origin, ray, (box[0], low, box[1]), (box[2], high, box[3])), 0))
    for k in range(houses.num_objects[i]):
        ox, oz, r, h = (a[i, k] for a in (houses.object_x, houses.object_z, houses.radius, houses.height))
        if houses.shape[i, k] == BOX:
            t = box_hit(origin, ray, (ox - r, 0.0, oz - r), (ox + r, h, oz + r))
        else:
            t = round_hit(houses.shape[i, k], origin, ray, ox, oz, r, h)
        found.append((t, k + 1))
    return min(found)


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
@pytest.mark.parametrize("camera", CAMERAS, ids=["plain", "wide", "low and down", "high and up"])
def test_depth_and_ids_agree_with_an_independent_ray_caster(level, camera):
    walks, picked, frames = views(level, 40, camera)
    chance, wrong, total, worst = np.random.default_rng(1), 0, 0, 0.0
    for frame, pose in enumerate(picked):
        house = int(walks.episode_of_frame[pose])
        spots = [
            (int(r), int(c))
            for r, c in zip(chance.integers(0, camera.height, 6), chance.integers(0, camera.width, 6), strict=True)
        ]
        on_objects = np.argwhere(frames.instance_ids[frame])
        spots += (
            [tuple(map(int, on_objects[i])) for i in chance.integers(0, len(on_objects), 6)] if len(on_objects) else []
        )
        for row, column in spots:
            depth, identity = reference_pixel(
                walks.houses, house, walks.x[pose], walks.z[pose], walks.heading[pose], camera, row, column
            )
            total += 1
            error = abs(frames.depth[frame, row, column] - depth)
            if identity != frames.instance_ids[frame, row, column] or error > 1e-3 * max(1.0, depth):
                wrong += 1
            else:
                worst = max(worst, error)
    assert total > 300
    assert wrong <= total * 0.005, f"{wrong} of {total} pixels differ"  # float32 at silhouettes


HASHES = {
    ("one_room", 0): "f853159392c94962",
    ("one_room", 2): "8ebfee4467e3a148",
    ("multi_room", 0): "69f786f4a9956ece",
    ("multi_room", 2): "e20c4f3c018a7652",
}


@pytest.mark.parametrize(("level", "camera"), list(HASHES))
def test_frames_have_the_same_bits_on_every_machine(level, camera):
    walks = demonstrate(level, np.arange(4), CAMERAS[camera], noise=0.15)
    frames = walks.render(np.arange(walks.num_frames), CAMERAS[camera])
    digest = hashlib.sha256()
    for part in (walks.action.astype("<i8"), frames.rgb, frames.depth.astype("<f4"), frames.instance_ids):
        digest.update(np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest()[:16] == HASHES[level, camera]


@pytest.mark.parametrize("level", ["one_room", "multi_room"])
def test_a_frame_does_not_depend_on_its_neighbours_or_on_the_chunk(level, monkeypatch):
    walks, picked, frames = views(level, 50, CAMERAS[0])
    alone = walks.render(picked[[31]], CAMERAS[0])
    np.testing.assert_array_equal(alone.rgb[0], frames.rgb[31])
    np.testing.assert_array_equal(alone.depth[0], frames.depth[31])
    monkeypatch.setattr(renderer, "CHUNK_PIXELS", 3 * 4096)
    monkeypatch.setattr(renderer, "TILE_PIXELS", 4096)
    np.testing.assert_array_equal(walks.render(picked, CAMERAS[0]).instance_ids, frames.instance_ids)


def test_a_wall_straight_ahead_is_as_far_as_it_is():
    houses = generate_houses("one_room", [0]).select(np.array([0]))
    houses.num_objects[:] = 0
    camera = CameraProfile(width=65, height=65)
    frame = renderer.render(houses, np.array([0]), np.array([4.0]), np.array([3.0]), np.array([0]), camera)
    assert frame.depth[0, 32, 32] == pytest.approx(3.0, abs=1e-5)
    assert frame.depth[0, 32, 0] == pytest.approx(3.0, abs=1e-5)  # z-depth: the same in every column of a flat wall
    assert not frame.instance_ids.any()


def test_objects_keep_their_colour_apart_from_everything_else():
    """A pixel of an object is far more saturated (or brighter, for white) than any pixel of the background."""
    _, _, frames = views("multi_room", 60, CAMERAS[0])
    rgb, ids = frames.rgb.astype(int), frames.instance_ids > 0
    saturation = (rgb.max(-1) - rgb.min(-1)) / np.maximum(rgb.max(-1), 1)
    assert saturation[~ids].max() < 0.45
    white = rgb.min(-1) > 120
    assert np.quantile(saturation[ids & ~white], 0.01) > 0.6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height_m": 3.0}, "height_m is 3.0"),
        ({"pitch_deg": 60}, "pitch_deg is 60"),
        ({"hfov_deg": 180}, "hfov_deg is 180"),
        ({"width": 0}, "camera width is 0 pixels"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CameraProfile(**wrong)


def test_a_camera_profile_survives_its_dictionary_and_unknown_keys_are_named():
    camera = CameraProfile(pitch_deg=-10, width=224, height=224)
    assert CameraProfile.from_dict(camera.to_dict()) == camera
    with pytest.raises(ValueError, match=r"unknown keys \['fov'\]"):
        CameraProfile.from_dict({"fov": 90})


def test_tangents_of_the_camera_are_exact_where_they_can_be():
    assert CameraProfile(hfov_deg=90).tan_half_hfov == 1.0
    assert CameraProfile(pitch_deg=0).pitch_cos_sin == (1.0, 0.0)
    cos, sin = CameraProfile(pitch_deg=-37).pitch_cos_sin
    assert cos * cos + sin * sin == pytest.approx(1, abs=1e-15)
    assert math.degrees(math.atan2(sin, cos)) == pytest.approx(-37, abs=1e-4)
