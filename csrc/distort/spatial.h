// Distortions that move pixels: jitter, patches, pixelation, blocks, color shift. Addresses of random numbers as in
// shamisa/reference/spatial.py.
#pragma once

#include "filter.h"

SHAMISA_BEGIN

// ---- jitter ----------------------------------------------------------------------------------------------------------
// a pixel R, G, B, 0: one 16-byte load
#if defined(__GNUC__) && !defined(__CUDACC__)
typedef float Quad __attribute__((vector_size(16)));
SHAMISA_HD Quad quad(float r, float g, float b) { return Quad{r, g, b, 0.f}; }
SHAMISA_HD float quad_part(Quad q, int c) { return q[c]; }
SHAMISA_HD Quad mix(Quad a, Quad b, float t) { return a + (b - a) * t; }
#else
struct alignas(16) Quad {
  float r, g, b, unused;
};
SHAMISA_HD Quad quad(float r, float g, float b) { return {r, g, b, 0.f}; }
SHAMISA_HD float quad_part(Quad q, int c) { return c == 0 ? q.r : c == 1 ? q.g : q.b; }
SHAMISA_HD Quad mix(Quad a, Quad b, float t) {
  return {a.r + (b.r - a.r) * t, a.g + (b.g - a.g) * t, a.b + (b.b - a.b) * t, 0.f};
}
#endif

constexpr int jitter_passes = 5;

// five times: sample at (row + v n1, column + v n2), bilinear, coordinates clamped to the image
template <class Team>
SHAMISA_OP void jitter(Team& team, Image image, Scratch scratch, float value, Key key) {
  const int H = image.H, W = image.W, n = image.pixels(), half = (n + 1) / 2;
  // Behind the image lie W + 1 pixels of zeros: a pixel of the last row or column is mixed with weight 0 with what follows.
  Quad* from = scratch.take<Quad>(n + W + 1);
  Quad* to = scratch.take<Quad>(n + W + 1);
  int* at = scratch.take<int>(n + 1);
  float* down = scratch.take<float>(n + 1);
  float* right = scratch.take<float>(n + 1);
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each(n, [=](int i) { from[i] = quad(r[i], g[i], b[i]); });
  team.each(W + 1, [=](int i) { from[n + i] = to[n + i] = quad(0.f, 0.f, 0.f); });
  const float width = (float)W, bottom = (float)(H - 1), edge = (float)(W - 1);
  for (int pass = 0; pass < jitter_passes; ++pass) {
    // 1. where every pixel reads: index of the upper left neighbour and the two weights
    team.each_words(half, (uint32_t)pass, key, [=](int i, Words w) {
      float n0, n1, n2, n3;
      normal_pair(w.x, w.y, n0, n1);
      normal_pair(w.z, w.w, n2, n3);
      const auto place = [=](int p, float dy, float dx) {
        // p / W by a float division (vectorises), corrected where that rounded across an integer
        int row = (int)((float)p / width);
        row -= row * W > p ? 1 : 0;
        row += (row + 1) * W <= p ? 1 : 0;
        const float y = clamp((float)row + value * dy, 0.f, bottom);
        const float x = clamp((float)(p - row * W) + value * dx, 0.f, edge);
        const int top = (int)y, left = (int)x;
        at[p] = top * W + left;
        down[p] = y - (float)top;
        right[p] = x - (float)left;
      };
      place(i, n0, n1);
      place(i + half, n2, n3);  // one past the end if n is odd
    });
    // 2. read
    const bool done = pass == jitter_passes - 1;
    const auto sample = [=](int i) {
      const Quad* p = from + at[i];
      return mix(mix(p[0], p[1], right[i]), mix(p[W], p[W + 1], right[i]), down[i]);
    };
    if (done)
      team.each(n, [=](int i) {
        const Quad q = sample(i);
        r[i] = clamp01(quad_part(q, 0));
        g[i] = clamp01(quad_part(q, 1));
        b[i] = clamp01(quad_part(q, 2));
      });
    else
      team.each(n, [=](int i) { to[i] = sample(i); });
    Quad* t = from;
    from = to;
    to = t;
  }
}
SHAMISA_HD int64_t jitter_scratch(int H, int W) {
  const int64_t n = (int64_t)H * W;
  return 2 * taken<Quad>(n + W + 1) + taken<int>(n + 1) + 2 * taken<float>(n + 1);
}

// ---- patches and blocks ----------------------------------------------------------------------------------------------
constexpr int patch_size = 16, block_size = 32;

// v times, in order: copy a 16x16 patch up to 8 pixels away; read whole, then written
template <class Team>
SHAMISA_OP void non_eccentricity_patch(Team& team, Image image, float value, Key key) {
  constexpr int size = patch_size;
  const int H = image.H, W = image.W;
  float* patch = team.template small<float>(3 * size * size);
  for (int i = 0; i < (int)value; ++i) {
    const Words w = philox(key, (uint32_t)i);
    const int y = size + index_below(w.x, H - 3 * size + 1), x = size + index_below(w.y, W - 3 * size + 1);
    const int to_y = y + (int)round_even((float)size * (uniform(w.z) - 0.5f));
    const int to_x = x + (int)round_even((float)size * (uniform(w.w) - 0.5f));
    float *from = image.data + y * W + x, *to = image.data + to_y * W + to_x;
    team.grid(3 * size, size, [=](int k, int j) { patch[k * size + j] = from[((k / size) * H + k % size) * W + j]; });
    team.grid(3 * size, size, [=](int k, int j) { to[((k / size) * H + k % size) * W + j] = patch[k * size + j]; });
  }
}

// v squares of 32x32 of a uniform random color at uniform positions, in order
template <class Team>
SHAMISA_OP void color_block(Team& team, Image image, float value, Key key) {
  constexpr int size = block_size;
  const int H = image.H, W = image.W;
  for (int i = 0; i < (int)value; ++i) {
    const Words place = philox(key, (uint32_t)i, 0), paint = philox(key, (uint32_t)i, 1);
    float* to = image.data + index_below(place.x, H - size + 1) * W + index_below(place.y, W - size + 1);
    const float red = uniform(paint.x), green = uniform(paint.y), blue = uniform(paint.z);
    team.grid(3 * size, size, [=](int k, int j) {
      to[((k / size) * H + k % size) * W + j] = k < size ? red : k < 2 * size ? green : blue;
    });
  }
}

// ---- pixelation ------------------------------------------------------------------------------------------------------
// nearest neighbour: where output i of n_out reads among n_in
SHAMISA_HD int nearest(int i, int n_in, int n_out) { return min_of((int)((float)i * ((float)n_in / (float)n_out)), n_in - 1); }

// nearest neighbour down to (int(H z), int(W z)), at least 1, and back up, z = .95 - v^.6
template <class Team>
SHAMISA_OP void pixelate(Team& team, Image image, Image out, Scratch scratch, float value) {
  const int H = image.H, W = image.W;
  const double z = 0.95 - power((double)value, 0.6);
  const int h = max_of((int)(H * z), 1), w = max_of((int)(W * z), 1);
  int *row = scratch.take<int>(H), *column = scratch.take<int>(W);
  team.each(H, [=](int y) { row[y] = nearest(nearest(y, h, H), H, h) * W; });
  team.each(W, [=](int x) { column[x] = nearest(nearest(x, w, W), W, w); });
  for (int c = 0; c < 3; ++c) {
    const float* from = image.plane(c);
    float* to = out.plane(c);
    team.grid(H, W, [=](int y, int x) { to[y * W + x] = from[row[y] + column[x]]; });
  }
}
SHAMISA_HD int64_t pixelate_scratch(int H, int W) { return taken<int>(H) + taken<int>(W); }

// ---- color shift -----------------------------------------------------------------------------------------------------
constexpr int mask_radius = 8, shift_limit = 64, mask_bins = 4096;

SHAMISA_HD int mask_bin(float e) { return min_of((int)(e * (float)mask_bins), mask_bins - 1); }

// centre of the first bin at which 100 * (count up to it) >= percent * n, by bisection
template <class Team>
SHAMISA_HD float percentile(Team& team, const int* cells, int n, int percent) {
  int low = 0, high = mask_bins - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    const int64_t count = team.template sum<int>(middle + 1, [=](int k) { return cells[k]; });
    if (100 * count >= (int64_t)percent * n)
      high = middle;
    else
      low = middle + 1;
  }
  return ((float)low + 0.5f) * (1.f / (float)mask_bins);
}

// G <- e moved + (1 - e) G: the green channel moved by v in a random direction. The mask e is the gradient magnitude of luma,
// Gaussian (radius 8, sigma 4), min-max normalised, clipped to its 1st and 99th percentile; without range it is 0.
template <class Team>
SHAMISA_OP void color_shift(Team& team, Image image, Scratch scratch, float value, Key key) {
  const int H = image.H, W = image.W, n = image.pixels();
  float* padded = scratch.take<float>((int64_t)H * (W + 2 * shift_limit));
  float* e = scratch.take<float>(n);
  const float *r = image.plane(0), *b = image.plane(2);
  float* g = image.plane(1);
  // 1. gradient magnitude
  const int beside = W + 2;
  team.grid(H, W, [=](int y, int x) {
    const int i = y * W + x;
    padded[y * beside + 1 + x] = 0.299f * r[i] + 0.587f * g[i] + 0.114f * b[i];
  });
  pad_rows(team, padded, H, W, 1);
  team.grid(H, W, [=](int y, int x) {
    const float* p = padded + 1 + x;
    const float dy = (p[min_of(y + 1, H - 1) * beside] - p[max_of(y - 1, 0) * beside]) * 0.5f;
    const float dx = (p[y * beside + 1] - p[y * beside - 1]) * 0.5f;
    e[y * W + x] = square_root(dy * dy + dx * dx);
  });
  // 2. smoothed, normalised, clipped
  const float* taps = gaussian_taps(team, 4, mask_radius);
  gaussian<false>(team, e, e, padded, H, W, taps, mask_radius);
  const float low = team.template min<float>(n, [=](int i) { return e[i]; });
  const float high = team.template max<float>(n, [=](int i) { return e[i]; });
  if (!(low < high)) return;
  const float span = high - low;
  int* cells = team.template small<int>(mask_bins);
  team.each(n, [=](int i) { e[i] = (e[i] - low) / span; });
  team.histogram(cells, mask_bins, n, [=](int i) { return mask_bin(e[i]); });
  const float least = percentile(team, cells, n, 1), most = percentile(team, cells, n, 99);
  // 3. the green channel moved by whole pixels
  double sine, cosine;
  sincos_turn((double)uniform(philox(key, 0).x), sine, cosine);
  const int dy = round_even_int(value * sine), dx = round_even_int(value * cosine);
  const int reach = absolute_int(dx), stride = W + 2 * reach;
  pad_plane(team, g, padded, H, W, reach);
  team.grid(H, W, [=](int y, int x) {
    const float* still = padded + y * stride + reach + x;
    const float* moved = padded + clamp(y - dy, 0, H - 1) * stride + reach + x - dx;
    const float mask = clamp(e[y * W + x], least, most);
    g[y * W + x] = clamp01(mask * *moved + (1.f - mask) * *still);
  });
}
SHAMISA_HD int64_t color_shift_scratch(int H, int W) { return padded_bytes(H, W, shift_limit) + taken<float>((int64_t)H * W); }

SHAMISA_END
