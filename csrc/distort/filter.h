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
SHAMISA_OP void pad_rows(Team& team, float* padded, int H, int W, int radius) {
  const int stride = W + 2 * radius;
  team.grid(H, radius, [=](int y, int k) {
    float* row = padded + y * stride;
    row[k] = row[radius];
    row[radius + W + k] = row[radius + W - 1];
  });
}
template <class Team>
SHAMISA_OP void pad_plane(Team& team, const float* plane, float* padded, int H, int W, int radius) {
  const int stride = W + 2 * radius;
  team.grid(H, W, [=](int y, int x) { padded[y * stride + radius + x] = plane[y * W + x]; });
  pad_rows(team, padded, H, W, radius);
}

// ---- Gaussian --------------------------------------------------------------------------------------------------------
// taps at distance 0..radius, normalised
template <class Team>
SHAMISA_HD const float* gaussian_taps(Team& team, double sigma, int radius) {
  double* raw = team.template small<double>(radius + 1);
  float* taps = team.template small<float>(radius + 1);
  const double scale = -0.5 / (sigma * sigma);
  team.each(radius + 1, [=](int k) { raw[k] = exp_of(max_of(k * k * scale, -690.)); });
  double total = 0;
  for (int k = radius; k > 0; --k) total += raw[k];
  total = 1 + 2 * total;
  team.each(radius + 1, [=](int k) { taps[k] = (float)(raw[k] / total); });
  return taps;
}

// Gaussian filter of a plane, down the columns, then along the rows; out may be in. unit: the plane is in [0, 1], and so is
// the result.
template <bool unit, class Team>
SHAMISA_OP void gaussian(Team& team, const float* in, float* out, float* padded, int H, int W, const float* taps, int radius) {
  const int stride = W + 2 * radius;
  team.template tiles<32>(H, W, [=](int y, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    P sum = taps[0] * P::load(in + y * W + x);
    for (int k = 1; k <= radius; ++k)
      sum = sum + taps[k] * (P::load(in + max_of(y - k, 0) * W + x) + P::load(in + min_of(y + k, H - 1) * W + x));
    sum.store(padded + y * stride + radius + x);
  });
  pad_rows(team, padded, H, W, radius);
  team.template tiles<32>(H, W, [=](int y, int x, auto lanes) {
    using P = Pack<decltype(lanes)::width>;
    const float* row = padded + y * stride + radius + x;
    P sum = taps[0] * P::load(row);
    for (int k = 1; k <= radius; ++k) sum = sum + taps[k] * (P::load(row - k) + P::load(row + k));
    if (unit) sum = lower(higher(sum, P::fill(0.f)), P::fill(1.f));
    sum.store(out + y * W + x);
  });
}

template <class Team>
SHAMISA_OP void gaussian_blur(Team& team, Image image, Scratch scratch, float value) {
  const int radius = ceil_int(2. * value);
  if (radius == 0) return;
  float* padded = scratch.take<float>((int64_t)image.H * (image.W + 2 * radius));
  const float* taps = gaussian_taps(team, value, radius);
  for (int c = 0; c < 3; ++c) gaussian<true>(team, image.plane(c), image.plane(c), padded, image.H, image.W, taps, radius);
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

// Taps of the disk in one quadrant. In column j the pixels 0..full[j] from the centre are inside, and full[j] + 1..last[j]
// are cut by the rim.
struct LensTaps {
  const float* weight;  // [(R + 1) (R + 1)], row i, column j: area / (pi r^2)
  const int* full;      // [R + 1], -1: none
  const int* last;      // [R + 1]
};

template <class Team>
SHAMISA_HD LensTaps lens_taps(Team& team, double r, int radius) {
  const int n = radius + 1;
  double* corner = team.template small<double>(n * n);  // up to the far corner of every pixel
  float* weight = team.template small<float>(n * n);
  int* full = team.template small<int>(n);
  int* last = team.template small<int>(n);
  team.each(n * n, [=](int k) { corner[k] = quarter_area(k / n + 0.5, k % n + 0.5, r); });
  const double scale = 1 / (3.14159265358979323846 * r * r);
  team.each(n * n, [=](int k) {
    const int i = k / n, j = k % n;
    // the area is odd in both coordinates, and the near corners of pixel 0 lie at -1/2
    const double above = i ? corner[k - n] : -corner[k], left = j ? corner[k - 1] : -corner[k];
    const double both = i && j ? corner[k - n - 1] : i ? -above : j ? -left : corner[k];
    weight[k] = (float)(max_of(corner[k] - above - left + both, 0.) * scale);
  });
  team.each(n, [=](int j) {
    const double far = (j + 0.5) * (j + 0.5), near = j ? (j - 0.5) * (j - 0.5) : 0.;
    int f = -1, l = -1;
    for (int i = 0; i < n; ++i) {
      if ((i + 0.5) * (i + 0.5) + far <= r * r) f = i;
      if ((i ? (i - 0.5) * (i - 0.5) : 0.) + near < r * r) l = i;
    }
    full[j] = f;
    last[j] = l;
  });
  return {weight, full, last};
}

// For some rows at a time: pair[i] = pixels i above and i below, run[i] = the sum of 0..i; then, along the rows, whole columns
// from run and the rim from pair. (17 + 32 loads per pixel for radius 8, where the square has 289 taps.)
template <class Team>
SHAMISA_OP void disk(Team& team, const float* padded, float* out, float* pair, float* run, int H, int W, LensTaps taps,
                     int radius) {
  const int stride = W + 2 * radius, n = radius + 1, step = lens_rows * stride;
  const float inside = taps.weight[0];  // used only if pixel 0, and so any, is inside
  const float* weight = taps.weight;
  const int *full = taps.full, *last = taps.last;
  for (int top = 0; top < H; top += lens_rows) {
    const int rows = min_of(lens_rows, H - top);
    team.template tiles<32>(rows, stride, [=](int b, int x, auto lanes) {
      using P = Pack<decltype(lanes)::width>;
      const int y = top + b, at = b * stride + x;
      P sum = P::load(padded + y * stride + x);
      sum.store(pair + at);
      sum.store(run + at);
      for (int i = 1; i < n; ++i) {
        const P two = P::load(padded + max_of(y - i, 0) * stride + x) + P::load(padded + min_of(y + i, H - 1) * stride + x);
        two.store(pair + i * step + at);
        sum = sum + two;
        sum.store(run + i * step + at);
      }
    });
    team.template tiles<32>(rows, W, [=](int b, int x, auto lanes) {
      using P = Pack<decltype(lanes)::width>;
      const int at = b * stride + radius + x;
      P whole = full[0] >= 0 ? P::load(run + full[0] * step + at) : P::fill(0.f), rim = P::fill(0.f);
      for (int i = full[0] + 1; i <= last[0]; ++i) rim = rim + weight[i * n] * P::load(pair + i * step + at);
      for (int j = 1; j < n; ++j) {
        const int f = full[j], l = last[j];
        if (f >= 0) {
          const float* p = run + f * step + at;
          whole = whole + (P::load(p - j) + P::load(p + j));
        }
        for (int i = f + 1; i <= l; ++i) {
          const float* p = pair + i * step + at;
          rim = rim + weight[i * n + j] * (P::load(p - j) + P::load(p + j));
        }
      }
      const P sum = inside * whole + rim;
      lower(higher(sum, P::fill(0.f)), P::fill(1.f)).store(out + (top + b) * W + x);
    });
  }
}

template <class Team>
SHAMISA_OP void lens_blur(Team& team, Image image, Scratch scratch, float value) {
  const int radius = ceil_int(value + 0.5) - 1;  // the outermost pixel whose near edge lies inside
  if (radius <= 0) return;
  const int H = image.H, W = image.W, stride = W + 2 * radius;
  float* padded = scratch.take<float>((int64_t)H * stride);
  float* pair = scratch.take<float>((int64_t)(radius + 1) * lens_rows * stride);
  float* run = scratch.take<float>((int64_t)(radius + 1) * lens_rows * stride);
  const LensTaps taps = lens_taps(team, value, radius);
  for (int c = 0; c < 3; ++c) {
    pad_plane(team, image.plane(c), padded, H, W, radius);
    disk(team, padded, image.plane(c), pair, run, H, W, taps, radius);
  }
}
SHAMISA_HD int64_t lens_blur_scratch(int H, int W) {
  return padded_bytes(H, W, lens_radius) + 2 * padded_bytes((lens_radius + 1) * lens_rows, W, lens_radius);
}

// ---- motion ----------------------------------------------------------------------------------------------------------
// max(0, 1 - distance to the segment of length v); pixels opposite each other have the same weight, so only the rows at and
// below the centre are kept, of row 0 only the right half; in row i the taps lie between columns first[i] and last[i]
template <class Team>
SHAMISA_OP void motion_blur(Team& team, Image image, Scratch scratch, float value, Key key) {
  const double half = 0.5 * ((double)value - 1);
  const int radius = ceil_int(half), n = radius + 1, width = 2 * radius + 1;
  if (radius == 0) return;
  double sine, cosine;
  sincos_turn(0.5 * (double)uniform(philox(key, 0).x), sine, cosine);  // half a turn for u = 1
  double* row_sum = team.template small<double>(n);
  float* weight = team.template small<float>(n * width);  // not yet normalised
  int* first = team.template small<int>(n);
  int* last = team.template small<int>(n);
  team.each(n, [=](int i) {
    double sum = 0;
    int from = radius + 1, to = -radius;
    for (int j = -radius; j <= radius; ++j) {
      const double along = clamp(j * cosine + i * sine, -half, half), dx = j - along * cosine, dy = i - along * sine;
      const double w = (i == 0 && j < 0) ? 0. : 1 - square_root(dx * dx + dy * dy);
      if (!(w > 0)) continue;
      weight[i * width + radius + j] = (float)w;
      sum += (i == 0 && j == 0 ? 1 : 2) * w;
      from = min_of(from, j);
      to = max_of(to, j);
    }
    row_sum[i] = sum;
    first[i] = from;
    last[i] = to;
  });
  double total = 0;
  for (int i = 0; i < n; ++i) total += row_sum[i];
  const float scale = (float)(1 / total);
  const int H = image.H, W = image.W, stride = W + 2 * radius;
  float* padded = scratch.take<float>((int64_t)H * stride);
  for (int c = 0; c < 3; ++c) {
    float* plane = image.plane(c);
    pad_plane(team, plane, padded, H, W, radius);
    team.template tiles<32>(H, W, [=](int y, int x, auto lanes) {
      using P = Pack<decltype(lanes)::width>;
      const float* centre = padded + y * stride + radius + x;
      P sum = weight[radius] * P::load(centre);
      for (int j = 1; j <= last[0]; ++j) sum = sum + weight[radius + j] * (P::load(centre - j) + P::load(centre + j));
      for (int i = 1; i < n; ++i) {
        const float* above = padded + max_of(y - i, 0) * stride + radius + x;
        const float* below = padded + min_of(y + i, H - 1) * stride + radius + x;
        for (int j = first[i]; j <= last[i]; ++j)
          sum = sum + weight[i * width + radius + j] * (P::load(above - j) + P::load(below + j));
      }
      lower(higher(scale * sum, P::fill(0.f)), P::fill(1.f)).store(plane + y * W + x);
    });
  }
}
SHAMISA_HD int64_t motion_blur_scratch(int H, int W) { return padded_bytes(H, W, motion_radius); }

// ---- Lab -------------------------------------------------------------------------------------------------------------
template <class Team>
SHAMISA_OP void lab_planes(Team& team, Image image) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(image.pixels(), [=](int i) {
    const Lab lab = lab_of_rgb(r[i], g[i], b[i]);
    r[i] = lab.l;
    g[i] = lab.a;
    b[i] = lab.b;
  });
}

// a, b <- v Gaussian(a, b; sigma = 1.5 v + 2); 8-bit
template <class Team>
SHAMISA_OP void color_diffusion(Team& team, Image image, Scratch scratch, float value) {
  const int H = image.H, W = image.W;
  const double sigma = 1.5 * value + 2;
  const int radius = ceil_int(2 * sigma);
  float* padded = scratch.take<float>((int64_t)H * (W + 2 * radius));
  const float* taps = gaussian_taps(team, sigma, radius);
  lab_planes(team, image);
  for (int c = 1; c < 3; ++c) gaussian<false>(team, image.plane(c), image.plane(c), padded, H, W, taps, radius);
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(image.pixels(), [=](int i) {
    const Rgb rgb = rgb_of_lab(r[i], value * g[i], value * b[i]);
    r[i] = round_8bit(rgb.r);
    g[i] = round_8bit(rgb.g);
    b[i] = round_8bit(rgb.b);
  });
}
SHAMISA_HD int64_t color_diffusion_scratch(int H, int W) { return padded_bytes(H, W, diffusion_radius); }

// L <- L + v (L - Gaussian(L; radius 6, sigma 3))
template <class Team>
SHAMISA_OP void high_sharpen(Team& team, Image image, Scratch scratch, float value) {
  const int H = image.H, W = image.W, radius = sharpen_radius;
  float* padded = scratch.take<float>((int64_t)H * (W + 2 * radius));
  float* blurred = scratch.take<float>((int64_t)H * W);
  const float* taps = gaussian_taps(team, 3, radius);
  lab_planes(team, image);
  gaussian<false>(team, image.plane(0), blurred, padded, H, W, taps, radius);
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(image.pixels(), [=](int i) {
    const Rgb rgb = rgb_of_lab(r[i] + value * (r[i] - blurred[i]), g[i], b[i]);
    r[i] = clamp01(rgb.r);
    g[i] = clamp01(rgb.g);
    b[i] = clamp01(rgb.b);
  });
}
SHAMISA_HD int64_t high_sharpen_scratch(int H, int W) {
  return padded_bytes(H, W, sharpen_radius) + taken<float>((int64_t)H * W);
}

SHAMISA_END
