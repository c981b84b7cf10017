"""Photographs that need no download: those packaged in scikit-image and scikit-learn, and dead leaves by procedure.

Dead leaves (Matheron 1968; Lee, Mumford and Huang 2001; Baradad et al. 2021) are opaque shapes with radii of density
r^-3 that hide one another: the model has the scale invariance, the edges and the 1/f^2 power spectrum of natural
photographs.
"""

from __future__ import annotations

import importlib.util
import math
import os

import torch
from torch import Tensor

from .. import checks
from ..randomness import derive_key, words
from ..reference.philox import DOMAIN_PHOTO
from .photos import read_photo

# colour photographs in the wheels (not the medical, astronomical and drawn ones): split -> (name, package, file)
PACKAGED = {
    "train": (
        ("astronaut", "skimage", "data/astronaut.png"),
        ("chelsea", "skimage", "data/chelsea.png"),
        ("motorcycle", "skimage", "data/motorcycle_left.png"),
        ("rocket", "skimage", "data/rocket.jpg"),
    ),
    "test": (
        ("coffee", "skimage", "data/coffee.png"),
        ("china", "sklearn", "datasets/images/china.jpg"),
        ("flower", "sklearn", "datasets/images/flower.jpg"),
    ),
}
LEAVES = {"train": 28, "test": 9}  # dead leaves beside them, by default
_FIRST_LEAVES = {"train": 0, "test": 1 << 30}  # disjoint indices


class EmbeddedPhotos:
    """The packaged photographs of one split, then its dead leaves. The splits share no photograph.

    Photographs are decoded or drawn when first asked for, and kept.

    Args:
        split: "train" or "test".
        leaves: number of dead-leaves images, default 28 for train and 9 for test.
        size: side of a dead-leaves image, pixels.
        seed: of the dead leaves.

    Raises:
        ValueError: an argument out of range, or a packaged photograph that is not installed.
    """

    def __init__(self, split: str = "train", *, leaves: int | None = None, size: int = 384, seed: int = 0) -> None:
        checks.choice("split", split, PACKAGED)
        leaves = LEAVES[split] if leaves is None else leaves
        checks.integer("leaves", leaves, 0, 1 << 30)
        checks.integer("size", size, *SIZES)
        self.split, self.size, self.seed = split, size, seed
        self._paths = [_packaged(package, file) for _, package, file in PACKAGED[split]]
        self._names = [name for name, _, _ in PACKAGED[split]]
        self._names += [f"dead_leaves_{_FIRST_LEAVES[split] + i}" for i in range(leaves)]
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Such as "astronaut" or "dead_leaves_7"."""
        return self._names[i]

    def __getitem__(self, i: int) -> Tensor:
        """Photograph i, uint8 [3, H, W]; raises PhotoError where a packaged file is damaged."""
        if not 0 <= i < len(self):
            raise IndexError(f"photograph must lie in 0..{len(self) - 1}, got {i}")
        if i not in self._cache:
            packaged = len(self._paths)
            self._cache[i] = (
                read_photo(self._paths[i])
                if i < packaged
                else dead_leaves(_FIRST_LEAVES[self.split] + i - packaged, self.size, seed=self.seed)
            )
        return self._cache[i]


def _packaged(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    folders = spec.submodule_search_locations if spec is not None else None
    path = os.path.join(folders[0], *file.split("/")) if folders else None
    if path is None or not os.path.isfile(path):
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise ValueError(f"embedded photographs must be installed with {wheel}, got none at {path or package!r}")
    return path


SIZES = (32, 4096)  # of an image, in pixels


# ---- dead leaves -----------------------------------------------------------------------------------------------------
_COVERAGE = 4.0  # mean number of leaves over a pixel
_TILE = 256  # side of the periodic texture fields
_COLOURS = torch.tensor(  # what landscapes, rooms and people are made of, sRGB
    [
        (0.30, 0.42, 0.18), (0.45, 0.55, 0.25), (0.62, 0.55, 0.33), (0.35, 0.26, 0.18), (0.76, 0.68, 0.52),
        (0.50, 0.66, 0.86), (0.16, 0.27, 0.45), (0.50, 0.49, 0.47), (0.90, 0.91, 0.93), (0.28, 0.22, 0.18),
        (0.80, 0.60, 0.48), (0.60, 0.28, 0.20), (0.80, 0.45, 0.12), (0.75, 0.12, 0.15), (0.45, 0.25, 0.55),
        (0.10, 0.10, 0.11), (0.15, 0.42, 0.45), (0.90, 0.78, 0.25), (0.68, 0.66, 0.63), (0.55, 0.40, 0.28),
        (0.62, 0.72, 0.80), (0.22, 0.34, 0.30), (0.35, 0.40, 0.48), (0.70, 0.75, 0.72), (0.30, 0.50, 0.68),
    ]
)  # fmt: skip


def dead_leaves(index: int, size: int = 384, *, seed: int = 0) -> Tensor:
    """One dead-leaves image, uint8 [3, size, size]; a pure function of (seed, index, size).

    Textured, shaded ellipses, boxes and leaf shapes in natural colours, radii of density r^-3, front to back, each
    casting a shadow; power spectrum close to 1/f^2. Randomness: Philox, domain ``DOMAIN_PHOTO``; (seed, index) make the
    key, element is the leaf or texture sample, extra says which (0 leaves, 1 textures, 2 the image).

    Raises:
        ValueError: index out of 0..2^32-1, size out of 32..4096, or seed not an integer of 64 bits.
    """
    checks.integer("index", index, 0, 2**32 - 1)
    checks.integer("size", size, *SIZES)
    checks.seed("seed", seed)
    key = derive_key(torch.tensor(seed), index, domain=DOMAIN_PHOTO)
    scene = _uniforms(key, torch.zeros(1, dtype=torch.int64), 16, 2)[0]  # [16]
    leaves = _Leaves(key, size, scene)
    label = leaves.visible()
    light = leaves.shade(label, _textures(key), scene)  # [3, size, size], linear
    return _develop(light, scene)


def _uniforms(key: Tensor, element: Tensor, n: int, extra: int) -> Tensor:
    """n uniforms (a multiple of 4) of 24 bits per element -> [len(element), n] float32."""
    draws = torch.arange(n // 4)
    w = words(key, element[:, None], draws, extra, DOMAIN_PHOTO)  # 4 x [E, n/4]
    return (torch.stack(w, dim=-1).flatten(1) >> 8).to(torch.float32) * 2.0**-24


def _textures(key: Tensor) -> Tensor:
    """Periodic random fields of zero mean and unit variance, [4, TILE, TILE]: power 1/f^2.4, 1/f^1.8,
    1/f^1.2, 1/f^0.6."""
    # the two 16-bit halves of a word are two white samples
    count = 4 * _TILE * _TILE
    w = torch.stack(words(key, torch.arange(count // 8), 0, 1, DOMAIN_PHOTO))
    white = torch.stack((w & 0xFFFF, w >> 16)).to(torch.float32).view(4, _TILE, _TILE) - 32767.5
    f2 = torch.fft.fftfreq(_TILE)[:, None] ** 2 + torch.fft.rfftfreq(_TILE) ** 2
    f2[0, 0] = 1.0
    power = torch.tensor([2.4, 1.8, 1.2, 0.6])[:, None, None]
    gain = f2 ** (-power / 4)  # amplitude f^(-power / 2)
    gain[:, 0, 0] = 0.0
    field = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(_TILE, _TILE))
    return field / field.square().mean((1, 2), keepdim=True).sqrt()


class _Leaves:
    """Parameters of K leaves (leaf 0 in front, leaf K the ground behind all), pixels and radians."""

    def __init__(self, key: Tensor, size: int, scene: Tensor) -> None:
        self.size = size
        smallest = 1.2 * 4.0 ** float(scene[0])  # pixels: a scene of fine or of coarse things
        largest = 0.45 * size
        area = 2 * math.pi * math.log(largest / smallest) / (smallest**-2 - largest**-2)  # mean of pi r^2
        self.K = K = int(_COVERAGE * size * size / area)
        u = _uniforms(key, torch.arange(K + 1), 24, 0)  # [K+1, 24]
        radius = (smallest**-2 - u[:, 0] * (smallest**-2 - largest**-2)).rsqrt()
        radius[K] = size
        aspect = torch.exp2(0.6 * u[:, 1])  # half axes r * aspect and r / aspect: the area stays
        self.x, self.y = u[:, 2] * size, u[:, 3] * size
        angle = u[:, 4] * (2 * math.pi)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.a, self.b = radius * aspect, radius / aspect
        self.kind = (u[:, 5] * 4).long()  # 0, 1 ellipse, 2 box, 3 leaf
        self.reach = self.a * torch.where(self.kind == 2, 1.3, 1.0)  # the box's corners; clipped a little
        self._draw_surface(u, radius, scene)

    def _draw_surface(self, u: Tensor, radius: Tensor, scene: Tensor) -> None:
        """Table of what a pixel needs to know of its leaf, [K+1, 20]."""
        palette = _COLOURS[(scene[1:6] * len(_COLOURS)).long()] ** 2.2  # five colours of this scene, linear
        main = (u[:, 6] ** 1.6 * 5).long()
        other = (u[:, 7] * 5).long()
        mix = 0.35 * u[:, 8:9]
        colour = palette[main] * (1 - mix) + palette[other] * mix
        colour = colour * torch.exp((u[:, 9:10] - 0.5) * 2.4) * torch.exp((u[:, 10:13] - 0.5) * 0.35)
        grey = colour @ torch.tensor([0.2126, 0.7152, 0.0722])
        colour = torch.lerp(colour, grey[:, None], 0.05 + 0.4 * scene[10])
        turn = u[:, 13] * (2 * math.pi)
        grain = torch.exp2(2.0 * u[:, 14] - 1.0)  # texture samples per pixel, 1/2 to 2
        stretch = torch.exp2(2.5 * (u[:, 15] - 0.35).clamp_min(0))  # wood, grass, cloth
        amplitude = 0.07 * torch.exp2(3.2 * u[:, 16])
        style = u[:, 17]  # below .55 plain fractal, then ridged, then stripes
        ridged = ((style > 0.55) & (style < 0.8)).to(torch.float32)
        striped = (style >= 0.8).to(torch.float32)
        slope = 0.45 * u[:, 18]  # shading across the leaf, in the light's direction
        light = scene[6] * (2 * math.pi) + (u[:, 19] - 0.5) * 1.5
        columns = [
            self.x,
            self.y,
            turn.cos() * grain / stretch,
            turn.sin() * grain / stretch,
            turn.cos() * grain,
            turn.sin() * grain,
            u[:, 20] * _TILE,
            u[:, 21] * _TILE,
            (u[:, 22] * 4).floor(),  # which field
            amplitude * (1 - ridged - striped),
            amplitude * ridged,
            amplitude * striped,
            0.15 + 0.5 * u[:, 23],  # stripes: radians per texture sample
            slope * light.cos() / radius,
            slope * light.sin() / radius,
            0.3 * amplitude * torch.cos(6.28 * u[:, 11]),  # colour that follows the texture
            0.3 * amplitude * torch.sin(6.28 * u[:, 11]),
        ]
        self.surface = torch.cat((torch.stack(columns, 1), colour), 1)

    def visible(self) -> Tensor:
        """The foremost leaf of every pixel, [size, size] int64; K where there is none."""
        size, K = self.size, self.K
        label = torch.full((size * size,), K)
        octave = torch.log2(self.reach[:K]).ceil().long().clamp_min(1)
        for o in octave.unique().tolist():  # leaves of like reach share one grid of offsets
            leaf = (octave == o).nonzero()[:, 0]
            half = math.ceil(float(self.reach[leaf].max()))
            for part in leaf.split(max(1, (1 << 20) // (2 * half + 1) ** 2)):
                self._cover(label, part, half)
        return label.view(size, size)

    def _cover(self, label: Tensor, leaf: Tensor, half: int) -> None:
        offset = torch.arange(-half, half + 1)
        px = self.x[leaf].long()[:, None] + offset  # [n, S]
        py = self.y[leaf].long()[:, None] + offset
        dx = (px - self.x[leaf][:, None])[:, None, :]  # [n, 1, S]
        dy = (py - self.y[leaf][:, None])[:, :, None]
        cos, sin, a, b = (t[leaf][:, None, None] for t in (self.cos, self.sin, self.a, self.b))
        u = dx * (cos / a) + dy * (sin / a)  # [n, S, S]
        v = dy * (cos / b) - dx * (sin / b)
        kind = self.kind[leaf][:, None, None]
        u, v = u.square_(), v.square_()
        # ellipse u^2 + v^2 < 1; box |u|, |v| < .886 (the same area); leaf |v| < 1 - u^2
        inside = torch.where(kind == 2, torch.maximum(u, v) * 1.274, torch.where(kind == 3, v.sqrt() + u, u + v)) < 1
        inside &= ((px >= 0) & (px < self.size))[:, None, :] & ((py >= 0) & (py < self.size))[:, :, None]
        n, row, column = inside.nonzero(as_tuple=True)
        pixel = py[n, row] * self.size + px[n, column]
        label.scatter_reduce_(0, pixel, leaf[n], "amin")

    def shade(self, label: Tensor, fields: Tensor, scene: Tensor) -> Tensor:
        """Linear light of every pixel, [3, size, size]."""
        size = self.size
        s = self.surface[label.view(-1)].t().contiguous()  # [20, size^2]
        grid = torch.arange(size, dtype=torch.float32)
        x, y = grid.repeat(size), grid.repeat_interleave(size)
        dx, dy = x - s[0], y - s[1]
        tu = dx * s[2] + dy * s[3] + s[6]
        tv = dy * s[4] - dx * s[5] + s[7]
        t = _sample(fields, s[8].long(), tu, tv)
        pattern = s[9] * t + s[10] * (0.8 - t.abs()) * 1.6 + s[11] * torch.sin(tu * s[12] + 1.2 * t)
        tone = pattern + dx * s[13] + dy * s[14]
        sun = _sample(fields, torch.zeros_like(label.view(-1)), x * 0.3, y * 0.3)
        tone += (0.15 + 0.2 * scene[7]) * sun  # light over the whole scene
        tone += self._shadow(label, scene).view(-1)
        chroma = torch.stack((t * s[15], torch.zeros_like(t), t * s[16]))
        return (s[17:20] * torch.exp(tone + chroma)).view(3, size, size)

    def _shadow(self, label: Tensor, scene: Tensor) -> Tensor:
        """Log of the light that leaves in front keep from those behind, [size, size]: soft, on the side away
        from the light."""
        angle = float(scene[6]) * 2 * math.pi
        dark = torch.zeros(label.shape)
        steps = (1.0, 2.2, 3.6, 5.2)
        for step in steps:
            dx, dy = round(step * math.cos(angle)), round(step * math.sin(angle))
            dark += label.roll((-dy, -dx), (0, 1)) < label
        return dark * (-(0.3 + 0.7 * float(scene[8])) / len(steps))


def _sample(fields: Tensor, which: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Bilinear samples of periodic fields [F, T, T] at column u, row v -> like u."""
    T = fields.shape[-1]
    flat = fields.view(-1)
    u0, v0 = u.floor(), v.floor()
    fu, fv = u - u0, v - v0
    c0, r0 = u0.long() & (T - 1), v0.long() & (T - 1)
    c1, r1 = (c0 + 1) & (T - 1), (r0 + 1) & (T - 1)
    r0, r1 = (which * T + r0) * T, (which * T + r1) * T
    top = torch.lerp(flat[r0 + c0], flat[r0 + c1], fu)
    bottom = torch.lerp(flat[r1 + c0], flat[r1 + c1], fu)
    return torch.lerp(top, bottom, fv)


def _develop(light: Tensor, scene: Tensor) -> Tensor:
    """Linear light [3, H, W] -> uint8: the lens's slight blur, exposure, a shoulder for the highlights,
    sRGB's gamma."""
    kernel = torch.tensor([0.08, 0.84, 0.08])
    padded = torch.nn.functional.pad(light[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = padded[:, :-2] * kernel[0] + padded[:, 1:-1] * kernel[1] + padded[:, 2:] * kernel[2]
    light = rows[:, :, :-2] * kernel[0] + rows[:, :, 1:-1] * kernel[1] + rows[:, :, 2:] * kernel[2]
    light = light * ((0.17 + 0.16 * float(scene[9])) / light.mean())
    light = (light * (1 + light / 4) / (1 + light)).clamp(max=1)  # white from light = 2 on
    srgb = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (srgb * 255 + 0.5).to(torch.uint8)
