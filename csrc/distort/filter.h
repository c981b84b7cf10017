// Distortions that filter: Gaussian, lens and motion blur, color diffusion, sharpening. Borders are replicated.
//
// All work on planes whose rows are padded by the radius, [H, W + 2 R], so that a tile loads its neighbours without clamping;
// rows above and below the image are reached by clamping the row's number.
#pragma once

#include "color.h"

SHAMISA_BEGIN

// largest radius of each op at the upper limit of its parameter
constexpr int gaussian_radius = 32, lens_radius = 16, motion_radius = 16, diffusion_radius = 52, sharpen_radius = 6;
constexpr int lens_rows = 8;  // rows whose column sums are held at a time: few enough for a core's cache

SHAMISA_HD int64_t padded_bytes(int H, int W, int radius) { return taken<float>((int64_t)H * (W + 2 * radius)); }

// the borders of padded rows from their first and last pixel
template <class Team>
SHAMISA_STEP void pad_rows(Team& team, float* padded, int H, int W, int radius) {
  const int stride = W + 2 * radius;
  team.grid(H, radius, [=](int y, int k) {
    float* row = padded + y * stride;
    row[k] = row[radius];
    row[radius + W + k] = row[radius + W - 1];
  });
}
template <class Team>
SHAMISA_STEP void pad_plane(Team& team, const float* plane, float* padded, int H, int W, int radius) {
  const int stride = W + 2 * radius;
  team.grid(H, W, [=](int y, int x) { padded[y * stride + radius + x] = plane[y * W + x]; });
  pad_rows(team, padded, H, W, radius);
}

// ---- Gaussian --------------------------------------------------------------------------------------------------------
struct Gaussian {
  double* raw;  // [radius + 1]
  float* taps;  // [radius + 1], at distance 0..radius, normalised
  float* padded;
  int H, W, radius;
};

template <class Team>
SHAMISA_OP void gaussian_taps(Team& team, double sigma) {
  const Gaussian& g = team.template kept<filter_place, Gaussian>();
  const double scale = -0.5 / (sigma * sigma);
  team.each(g.radius + 1, [=](int k) { g.raw[k] = exp_of(max_of(k * k * scale, -690.)); });
  double total = 0;
  for (int k = g.radius; k > 0; --k) total += g.raw[k];
  total = 1 + 2 * total;
  team.each(g.radius + 1, [=](int k) { g.taps[k] = (float)(g.raw[k] / total); });
}
// padded: for images as wide as W + 2 radius
template <class Team>
SHAMISA_STEP void keep_gaussian(Team& team, Image image, float* padded, double sigma, int radius) {
  double* raw = team.template small<double>(radius + 1);
  float* taps = team.template small<float>(radius + 1);
  team.template keep<filter_place>(Gaussian{raw, taps, padded, image.H, image.W, radius});
  gaussian_taps(team, sigma);
}

// Gaussian filter of a plane, down the columns, then along the rows; out may be in. unit: the plane is in [0, 1], and so is
// the result.
template <bool unit, class Team>
SHAMISA_OP void gaussian(Team& team, const float* in, float* out) {
  const Gaussian& g = team.template kept<filter_place, Gaussian>();
  team.template tiles<32>(g.H, g.W, [=](int y, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const float* const column = in + x;
    P sum = g.taps[0] * P::load(column + y * g.W);
    for (int k = 1; k <= g.radius; ++k)
      sum = sum + g.taps[k] * (P::load(column + max_of(y - k, 0) * g.W) + P::load(column + min_of(y + k, g.H - 1) * g.W));
    sum.store(g.padded + y * (g.W + 2 * g.radius) + g.radius + x);
  });
  pad_rows(team, g.padded, g.H, g.W, g.radius);
  team.template tiles<32>(g.H, g.W, [=](int y, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const float* row = g.padded + y * (g.W + 2 * g.radius) + g.radius + x;
    P sum = g.taps[0] * P::load(row);
    for (int k = 1; k <= g.radius; ++k) sum = sum + g.taps[k] * (P::load(row - k) + P::load(row + k));
    if (unit) sum = lower(higher(sum, P::fill(0.f)), P::fill(1.f));
    sum.store(out + y * g.W + x);
  });
}

template <class Team>
SHAMISA_STEP void gaussian_blur(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  const int radius = ceil_int(2. * stage.value);
  if (radius == 0) return;
  Scratch scratch = stage.scratch;
  float* padded = scratch.take<float>((int64_t)stage.image.H * (stage.image.W + 2 * radius));
  keep_gaussian(team, stage.image, padded, stage.value, radius);
  for (int c = 0; c < 3; ++c) gaussian<true>(team, stage.image.plane(c), stage.image.plane(c));
}
SHAMISA_HD int64_t gaussian_blur_scratch(int H, int W) { return padded_bytes(H, W, gaussian_radius); }

// ---- lens ------------------------------------------------------------------------------------------------------------
// Area of the disk of radius r inside [0, x] x [0, y]; x, y >= 0
SHAMISA_HD double quarter_area(double x, double y, double r) {
  x = min_of(x, r), y = min_of(y, r);
  if (x * x + y * y <= r * r) return x * y;
  const double edge = square_root(r * r - y * y);  // left of it the rectangle is inside the disk
  // difference of the integrals of the circle's height from 0 to x and to edge
  const double upper = x * square_root(max_of(r * r - x * x, 0.)) + r * r * arcsine(min_of(x / r, 1.));
  const double lower = edge * y + r * r * arcsine(min_of(edge / r, 1.));
  return edge * y + 0.5 * (upper - lower);
}

// Taps of the disk in one quadrant, n = radius + 1. In column j the pixels 0..full[j] from the centre are inside, and
// full[j] + 1..last[j] are cut by the rim.
struct Lens {
  double* corner;     // [n n]: area up to the far corner of every pixel
  float* weight;      // [n n], row i, column j: area / (pi r^2)
  int *full, *last;   // [n], -1: none
  float* padded;      // [H, W + 2 radius]
  float *pair, *run;  // [n, lens_rows, W + 2 radius]
  int H, W, radius;
};

template <class Team>
SHAMISA_OP void lens_taps(Team& team, double r) {
  const Lens& lens = team.template kept<op_place, Lens>();
  team.each((lens.radius + 1) * (lens.radius + 1), [=](int k) {
    const int n = lens.radius + 1;
    lens.corner[k] = quarter_area(k / n + 0.5, k % n + 0.5, r);
  });
  team.each((lens.radius + 1) * (lens.radius + 1), [=](int k) {
    const double* corner = lens.corner;
    const double scale = 1 / (3.14159265358979323846 * r * r);
    const int n = lens.radius + 1, i = k / n, j = k % n;
    // the area is odd in both coordinates, and the near corners of pixel 0 lie at -1/2
    const double above = i ? corner[k - n] : -corner[k], left = j ? corner[k - 1] : -corner[k];
    const double both = i && j ? corner[k - n - 1] : i ? -above : j ? -left : corner[k];
    lens.weight[k] = (float)(max_of(corner[k] - above - left + both, 0.) * scale);
  });
  team.each(lens.radius + 1, [=](int j) {
    const double far = (j + 0.5) * (j + 0.5), near = j ? (j - 0.5) * (j - 0.5) : 0.;
    int f = -1, l = -1;
    for (int i = 0; i <= lens.radius; ++i) {
      if ((i + 0.5) * (i + 0.5) + far <= r * r) f = i;
      if ((i ? (i - 0.5) * (i - 0.5) : 0.) + near < r * r) l = i;
    }
    lens.full[j] = f;
    lens.last[j] = l;
  });
}

// Of some rows from `top` on: pair[i] = pixels i above and i below, run[i] = the sum of 0..i; then, along the rows, whole
// columns from run and the rim from pair. (17 + 32 loads per pixel for radius 8, where the square has 289 taps.)
template <class Team>
SHAMISA_OP void disk(Team& team, float* out, int top) {
  const Lens& lens = team.template kept<op_place, Lens>();
  team.template tiles<32>(min_of(lens_rows, lens.H - top), lens.W + 2 * lens.radius, [=](int b, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const int stride = lens.W + 2 * lens.radius, step = lens_rows * stride, y = top + b, at = b * stride + x;
    const float* const padded = lens.padded + x;
    float *pair = lens.pair + at, *run = lens.run + at;
    P sum = P::load(padded + y * stride);
    sum.store(pair);
    sum.store(run);
    for (int i = 1; i <= lens.radius; ++i) {
      const P two = P::load(padded + max_of(y - i, 0) * stride) + P::load(padded + min_of(y + i, lens.H - 1) * stride);
      two.store(pair + i * step);
      sum = sum + two;
      sum.store(run + i * step);
    }
  });
  team.template tiles<32>(min_of(lens_rows, lens.H - top), lens.W, [=](int b, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const int n = lens.radius + 1, stride = lens.W + 2 * lens.radius, step = lens_rows * stride;
    const int *const full = lens.full, *const last = lens.last, at = b * stride + lens.radius + x;
    const float *const weight = lens.weight, *const pair = lens.pair + at, *const run = lens.run + at;
    P whole = full[0] >= 0 ? P::load(run + full[0] * step) : P::fill(0.f), rim = P::fill(0.f);
    for (int i = full[0] + 1; i <= last[0]; ++i) rim = rim + weight[i * n] * P::load(pair + i * step);
    for (int j = 1; j < n; ++j) {
      const int f = full[j], l = last[j];
      if (f >= 0) {
        const float* p = run + f * step;
        whole = whole + (P::load(p - j) + P::load(p + j));
      }
      for (int i = f + 1; i <= l; ++i) {
        const float* p = pair + i * step;
        rim = rim + weight[i * n + j] * (P::load(p - j) + P::load(p + j));
      }
    }
    const P sum = weight[0] * whole + rim;  // weight[0] counts only if pixel 0, and so any, is inside
    lower(higher(sum, P::fill(0.f)), P::fill(1.f)).store(out + (top + b) * lens.W + x);
  });
}

template <class Team>
SHAMISA_STEP void lens_blur(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  const int radius = ceil_int(stage.value + 0.5) - 1;  // the outermost pixel whose near edge lies inside
  if (radius <= 0) return;
  const int n = radius + 1, H = stage.image.H, W = stage.image.W, stride = W + 2 * radius;
  Scratch scratch = stage.scratch;
  Lens made;
  made.corner = team.template small<double>(n * n);
  made.weight = team.template small<float>(n * n);
  made.full = team.template small<int>(n);
  made.last = team.template small<int>(n);
  made.padded = scratch.take<float>((int64_t)H * stride);
  made.pair = scratch.take<float>((int64_t)n * lens_rows * stride);
  made.run = scratch.take<float>((int64_t)n * lens_rows * stride);
  made.H = H, made.W = W, made.radius = radius;
  const Lens& lens = team.template keep<op_place>(made);
  lens_taps(team, stage.value);
  for (int c = 0; c < 3; ++c) {
    pad_plane(team, stage.image.plane(c), lens.padded, lens.H, lens.W, lens.radius);
    for (int top = 0; top < lens.H; top += lens_rows) disk(team, stage.image.plane(c), top);
  }
}
SHAMISA_HD int64_t lens_blur_scratch(int H, int W) {
  return padded_bytes(H, W, lens_radius) + 2 * padded_bytes((lens_radius + 1) * lens_rows, W, lens_radius);
}

// ---- motion ----------------------------------------------------------------------------------------------------------
// max(0, 1 - distance to the segment of length v); pixels opposite each other have the same weight, so only the rows at and
// below the centre are kept, of row 0 only the right half; in row i the taps lie between columns first[i] and last[i]
struct Motion {
  double sine, cosine, half;
  double* row_sum;    // [radius + 1]
  float* weight;      // [radius + 1, 2 radius + 1], not yet normalised
  int *first, *last;  // [radius + 1]
  float* padded;
  int H, W, radius;
  float scale;  // of the sum over the weights
};

template <class Team>
SHAMISA_OP void motion_taps(Team& team) {
  Motion& m = team.template kept<op_place, Motion>();
  team.each(m.radius + 1, [&](int i) {
    const double half = m.half, cosine = m.cosine, sine = m.sine;
    const int radius = m.radius;
    float* const weight = m.weight + i * (2 * radius + 1) + radius;
    double sum = 0;
    int from = radius + 1, to = -radius;
    for (int j = -radius; j <= radius; ++j) {
      const double along = clamp(j * cosine + i * sine, -half, half), dx = j - along * cosine, dy = i - along * sine;
      const double w = (i == 0 && j < 0) ? 0. : 1 - square_root(dx * dx + dy * dy);
      if (!(w > 0)) continue;
      weight[j] = (float)w;
      sum += (i == 0 && j == 0 ? 1 : 2) * w;
      from = min_of(from, j);
      to = max_of(to, j);
    }
    m.row_sum[i] = sum;
    m.first[i] = from;
    m.last[i] = to;
  });
  team.serial([&] {
    double total = 0;
    for (int i = 0; i <= m.radius; ++i) total += m.row_sum[i];
    m.scale = (float)(1 / total);
  });
}

template <class Team>
SHAMISA_OP void motion_plane(Team& team, float* plane) {
  const Motion& m = team.template kept<op_place, Motion>();
  team.template tiles<32>(m.H, m.W, [=](int y, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const int radius = m.radius, width = 2 * radius + 1, stride = m.W + 2 * radius;
    const int *const first = m.first, *const last = m.last;
    const float *const weight = m.weight + radius, *const padded = m.padded + radius + x, *const centre = padded + y * stride;
    P sum = weight[0] * P::load(centre);
    for (int j = 1; j <= last[0]; ++j) sum = sum + weight[j] * (P::load(centre - j) + P::load(centre + j));
    for (int i = 1; i <= radius; ++i) {
      const float* above = padded + max_of(y - i, 0) * stride;
      const float* below = padded + min_of(y + i, m.H - 1) * stride;
      for (int j = first[i]; j <= last[i]; ++j) sum = sum + weight[i * width + j] * (P::load(above - j) + P::load(below + j));
    }
    lower(higher(m.scale * sum, P::fill(0.f)), P::fill(1.f)).store(plane + y * m.W + x);
  });
}

template <class Team>
SHAMISA_STEP void motion_blur(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  Motion made;
  made.half = 0.5 * ((double)stage.value - 1);
  made.H = stage.image.H, made.W = stage.image.W, made.radius = ceil_int(made.half);
  if (made.radius == 0) return;
  sincos_turn(0.5 * (double)uniform(philox(stage.key, 0).x), made.sine, made.cosine);  // half a turn for u = 1
  const int n = made.radius + 1;
  made.row_sum = team.template small<double>(n);
  made.weight = team.template small<float>(n * (2 * n - 1));
  made.first = team.template small<int>(n);
  made.last = team.template small<int>(n);
  Scratch scratch = stage.scratch;
  made.padded = scratch.take<float>((int64_t)made.H * (made.W + 2 * made.radius));
  const Motion& m = team.template keep<op_place>(made);
  motion_taps(team);
  for (int c = 0; c < 3; ++c) {
    pad_plane(team, stage.image.plane(c), m.padded, m.H, m.W, m.radius);
    motion_plane(team, stage.image.plane(c));
  }
}
SHAMISA_HD int64_t motion_blur_scratch(int H, int W) { return padded_bytes(H, W, motion_radius); }

// ---- Lab -------------------------------------------------------------------------------------------------------------
template <class Team>
SHAMISA_OP void lab_planes(Team& team) {
  const Image& image = team.template kept<chain_place, Stage>().image;
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(image.pixels(), [=](int i) {
    const Lab lab = lab_of_rgb(r[i], g[i], b[i]);
    r[i] = lab.l;
    g[i] = lab.a;
    b[i] = lab.b;
  });
}

template <class Team>
SHAMISA_OP void diffused_planes(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  float *r = stage.image.plane(0), *g = stage.image.plane(1), *b = stage.image.plane(2);
  const float value = stage.value;
  team.each(stage.image.pixels(), [=](int i) {
    const Rgb rgb = rgb_of_lab(r[i], value * g[i], value * b[i]);
    r[i] = round_8bit(rgb.r);
    g[i] = round_8bit(rgb.g);
    b[i] = round_8bit(rgb.b);
  });
}
// a, b <- v Gaussian(a, b; sigma = 1.5 v + 2); 8-bit
template <class Team>
SHAMISA_STEP void color_diffusion(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  const double sigma = 1.5 * stage.value + 2;
  const int radius = ceil_int(2 * sigma);
  Scratch scratch = stage.scratch;
  float* padded = scratch.take<float>((int64_t)stage.image.H * (stage.image.W + 2 * radius));
  keep_gaussian(team, stage.image, padded, sigma, radius);
  lab_planes(team);
  for (int c = 1; c < 3; ++c) gaussian<false>(team, stage.image.plane(c), stage.image.plane(c));
  diffused_planes(team);
}
SHAMISA_HD int64_t color_diffusion_scratch(int H, int W) { return padded_bytes(H, W, diffusion_radius); }

template <class Team>
SHAMISA_OP void sharpened_planes(Team& team, const float* blurred) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  float *r = stage.image.plane(0), *g = stage.image.plane(1), *b = stage.image.plane(2);
  const float value = stage.value;
  team.each(stage.image.pixels(), [=](int i) {
    const Rgb rgb = rgb_of_lab(r[i] + value * (r[i] - blurred[i]), g[i], b[i]);
    r[i] = clamp01(rgb.r);
    g[i] = clamp01(rgb.g);
    b[i] = clamp01(rgb.b);
  });
}
// L <- L + v (L - Gaussian(L; radius 6, sigma 3))
template <class Team>
SHAMISA_STEP void high_sharpen(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  Scratch scratch = stage.scratch;
  scratch.take<float>(stage.image.pixels());  // the blurred plane
  float* padded = scratch.take<float>((int64_t)stage.image.H * (stage.image.W + 2 * sharpen_radius));
  keep_gaussian(team, stage.image, padded, 3, sharpen_radius);
  lab_planes(team);
  gaussian<false>(team, stage.image.plane(0), (float*)stage.scratch.data);
  sharpened_planes(team, (const float*)stage.scratch.data);
}
SHAMISA_HD int64_t high_sharpen_scratch(int H, int W) {
  return padded_bytes(H, W, sharpen_radius) + taken<float>((int64_t)H * W);
}

SHAMISA_END
