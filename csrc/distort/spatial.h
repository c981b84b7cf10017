// Distortions that move pixels: jitter, patches, pixelation, blocks, color shift. Addresses of random numbers as in
// shamisa/reference/spatial.py.
#pragma once

#include "filter.h"

SHAMISA_BEGIN

// ---- jitter ----------------------------------------------------------------------------------------------------------
// a pixel R, G, B, 0: one 16-byte load
#if defined(__GNUC__) && !defined(__CUDACC__)
typedef float Quad __attribute__((vector_size(16)));
typedef int QuadBits __attribute__((vector_size(16)));
SHAMISA_HD Quad quad(float r, float g, float b) { return Quad{r, g, b, 0.f}; }
SHAMISA_HD float quad_part(Quad q, int c) { return q[c]; }
SHAMISA_HD Quad mix(Quad a, Quad b, float t) { return a + (b - a) * t; }
SHAMISA_HD Quad clamp01(Quad q) {  // as for one float
  const QuadBits bits = (QuadBits)q, one = QuadBits{} + 0x3f800000;
  return (Quad)((bits < one ? bits : one) & (q > 0.f));
}
#else
struct alignas(16) Quad {
  float r, g, b, unused;
};
SHAMISA_HD Quad quad(float r, float g, float b) { return {r, g, b, 0.f}; }
SHAMISA_HD float quad_part(Quad q, int c) { return c == 0 ? q.r : c == 1 ? q.g : q.b; }
SHAMISA_HD Quad mix(Quad a, Quad b, float t) {
  return {a.r + (b.r - a.r) * t, a.g + (b.g - a.g) * t, a.b + (b.b - a.b) * t, 0.f};
}
SHAMISA_HD Quad clamp01(Quad q) { return {clamp01(q.r), clamp01(q.g), clamp01(q.b), 0.f}; }
#endif

constexpr int jitter_passes = 5;

struct Jitter {
  Quad* pixel[2];  // [n + W + 1]: behind the image zeros; a pixel of the last row or column is mixed with weight 0 with them
  int* at;         // [n + 1]: where every pixel reads: index of the upper left neighbour and the two weights
  float *down, *right;
  int H, W;
  float value;
  Key key;
};

template <class Team>
SHAMISA_OP void jitter_places(Team& team, int pass) {
  const Jitter& jitter = team.template kept<op_place, Jitter>();
  team.each_words((jitter.H * jitter.W + 1) / 2, (uint32_t)pass, jitter.key, [=](int i, Words w) {
    const int H = jitter.H, W = jitter.W, half = (H * W + 1) / 2;
    const float value = jitter.value, rows_per_pixel = 1.f / (float)W, bottom = (float)(H - 1), edge = (float)(W - 1);
    int* const at = jitter.at;
    float *const down = jitter.down, *const right = jitter.right;
    const auto place = [=](int p, float dy, float dx) {
      // p / W by a float product (vectorises), corrected where that rounded across an integer
      int row = (int)((float)p * rows_per_pixel);
      row -= row * W > p ? 1 : 0;
      row += (row + 1) * W <= p ? 1 : 0;
      const float y = clamp_below((float)row + value * dy, bottom);
      const float x = clamp_below((float)(p - row * W) + value * dx, edge);
      const int top = (int)y, left = (int)x;
      at[p] = top * W + left;
      down[p] = y - (float)top;
      right[p] = x - (float)left;
    };
    float n0, n1, n2, n3;
    normal_pair(w.x, w.y, n0, n1);
    normal_pair(w.z, w.w, n2, n3);
    place(i, n0, n1);
    place(i + half, n2, n3);  // one past the end if n is odd
  });
}

SHAMISA_HD Quad jitter_sample(const Jitter& jitter, const Quad* pixel, int i) {
  const Quad* const p = pixel + jitter.at[i];
  const float right = jitter.right[i];
  return mix(mix(p[0], p[1], right), mix(p[jitter.W], p[jitter.W + 1], right), jitter.down[i]);
}

// five times: sample at (row + v n1, column + v n2), bilinear, coordinates clamped to the image
template <class Team>
SHAMISA_STEP void jitter(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  const int n = stage.image.pixels(), zeros = stage.image.W + 1;
  Scratch scratch = stage.scratch;
  Jitter made;
  made.pixel[0] = scratch.take<Quad>(n + zeros);
  made.pixel[1] = scratch.take<Quad>(n + zeros);
  made.at = scratch.take<int>(n + 1);
  made.down = scratch.take<float>(n + 1);
  made.right = scratch.take<float>(n + 1);
  made.H = stage.image.H, made.W = stage.image.W, made.value = stage.value, made.key = stage.key;
  const Jitter& jitter = team.template keep<op_place>(made);
  const Image& image = stage.image;
  team.each(image.pixels(), [=](int i) { jitter.pixel[0][i] = quad(image.plane(0)[i], image.plane(1)[i], image.plane(2)[i]); });
  team.each(image.W + 1,
            [=](int i) { jitter.pixel[0][image.pixels() + i] = jitter.pixel[1][image.pixels() + i] = quad(0.f, 0.f, 0.f); });
  for (int pass = 0; pass < jitter_passes; ++pass) {
    jitter_places(team, pass);
    const bool odd = pass % 2 != 0;
    if (pass == jitter_passes - 1)
      team.each(image.pixels(), [=](int i) {
        const Quad q = clamp01(jitter_sample(jitter, odd ? jitter.pixel[1] : jitter.pixel[0], i));
        image.plane(0)[i] = quad_part(q, 0);
        image.plane(1)[i] = quad_part(q, 1);
        image.plane(2)[i] = quad_part(q, 2);
      });
    else
      team.each(image.pixels(), [=](int i) {
        (odd ? jitter.pixel[0] : jitter.pixel[1])[i] = jitter_sample(jitter, odd ? jitter.pixel[1] : jitter.pixel[0], i);
      });
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
SHAMISA_STEP void non_eccentricity_patch(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  constexpr int size = patch_size;
  const int H = stage.image.H, W = stage.image.W;
  float* patch = team.template small<float>(3 * size * size);
  for (int i = 0; i < (int)stage.value; ++i) {
    const Words w = philox(stage.key, (uint32_t)i);
    const int y = size + index_below(w.x, H - 3 * size + 1), x = size + index_below(w.y, W - 3 * size + 1);
    const int to_y = y + (int)round_even((float)size * (uniform(w.z) - 0.5f));
    const int to_x = x + (int)round_even((float)size * (uniform(w.w) - 0.5f));
    float *from = stage.image.data + y * W + x, *to = stage.image.data + to_y * W + to_x;
    team.grid(3 * size, size, [=](int k, int j) { patch[k * size + j] = from[((k / size) * H + k % size) * W + j]; });
    team.grid(3 * size, size, [=](int k, int j) { to[((k / size) * H + k % size) * W + j] = patch[k * size + j]; });
  }
}
SHAMISA_HD int64_t non_eccentricity_patch_scratch(int, int) { return 0; }

// v squares of 32x32 of a uniform random color at uniform positions, in order
template <class Team>
SHAMISA_OP void color_block(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  constexpr int size = block_size;
  const int H = stage.image.H, W = stage.image.W;
  for (int i = 0; i < (int)stage.value; ++i) {
    const Words place = philox(stage.key, (uint32_t)i, 0), paint = philox(stage.key, (uint32_t)i, 1);
    float* to = stage.image.data + index_below(place.x, H - size + 1) * W + index_below(place.y, W - size + 1);
    const float red = uniform(paint.x), green = uniform(paint.y), blue = uniform(paint.z);
    team.grid(3 * size, size, [=](int k, int j) {
      to[((k / size) * H + k % size) * W + j] = k < size ? red : k < 2 * size ? green : blue;
    });
  }
}
SHAMISA_HD int64_t color_block_scratch(int, int) { return 0; }

// ---- pixelation ------------------------------------------------------------------------------------------------------
// nearest neighbour: where output i of n_out reads among n_in
SHAMISA_HD int nearest(int i, int n_in, int n_out) { return min_of((int)((float)i * ((float)n_in / (float)n_out)), n_in - 1); }

// nearest neighbour down to (int(H z), int(W z)), at least 1, and back up, z = .95 - v^.6
template <class Team>
SHAMISA_OP void pixelate(Team& team) {
  Stage& stage = team.template kept<chain_place, Stage>();
  const int H = stage.image.H, W = stage.image.W;
  const double z = 0.95 - power((double)stage.value, 0.6);
  const int h = max_of((int)(H * z), 1), w = max_of((int)(W * z), 1);
  Scratch scratch = stage.scratch;
  int *row = scratch.take<int>(H), *column = scratch.take<int>(W);
  team.each(H, [=](int y) { row[y] = nearest(nearest(y, h, H), H, h) * W; });
  team.each(W, [=](int x) { column[x] = nearest(nearest(x, w, W), W, w); });
  for (int c = 0; c < 3; ++c) {
    const float* from = stage.image.plane(c);
    float* to = stage.other.plane(c);
    team.grid(H, W, [=](int y, int x) { to[y * W + x] = from[row[y] + column[x]]; });
  }
  team.serial([&] {
    const Image written = stage.other;
    stage.other = stage.image;
    stage.image = written;
  });
}
SHAMISA_HD int64_t pixelate_scratch(int H, int W) { return taken<int>(H) + taken<int>(W); }

// ---- color shift -----------------------------------------------------------------------------------------------------
constexpr int mask_radius = 8, shift_limit = 64, mask_bins = 4096;

SHAMISA_HD int mask_bin(float e) { return min_of((int)(e * (float)mask_bins), mask_bins - 1); }

// centre of the first bin at which 100 * (count up to it) >= percent * n, by bisection
template <class Team>
SHAMISA_OP float percentile(Team& team, const int* cells, int n, int percent) {
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

struct Shift {
  float *padded, *e;  // the mask e [H, W]
  float low, high;    // its range
  int dy, dx;         // whole pixels
};

// G <- e moved + (1 - e) G: the green channel moved by v in a random direction. The mask e is the gradient magnitude of luma,
// Gaussian (radius 8, sigma 4), min-max normalised, clipped to its 1st and 99th percentile; without range it is 0.
template <class Team>
SHAMISA_STEP void color_shift(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  const Image& image = stage.image;
  Scratch scratch = stage.scratch;
  Shift made{};
  made.padded = scratch.take<float>((int64_t)image.H * (image.W + 2 * shift_limit));
  made.e = scratch.take<float>(image.pixels());
  double sine, cosine;
  sincos_turn((double)uniform(philox(stage.key, 0).x), sine, cosine);
  made.dy = round_even_int(stage.value * sine), made.dx = round_even_int(stage.value * cosine);
  Shift& shift = team.template keep<op_place>(made);
  // 1. gradient magnitude
  team.grid(image.H, image.W, [=](int y, int x) {
    const int i = y * image.W + x;
    shift.padded[y * (image.W + 2) + 1 + x] =
        0.299f * image.plane(0)[i] + 0.587f * image.plane(1)[i] + 0.114f * image.plane(2)[i];
  });
  pad_rows(team, shift.padded, image.H, image.W, 1);
  team.grid(image.H, image.W, [=](int y, int x) {
    const int beside = image.W + 2;
    const float* p = shift.padded + 1 + x;
    const float dy = (p[min_of(y + 1, image.H - 1) * beside] - p[max_of(y - 1, 0) * beside]) * 0.5f;
    const float dx = (p[y * beside + 1] - p[y * beside - 1]) * 0.5f;
    shift.e[y * image.W + x] = square_root(dy * dy + dx * dx);
  });
  // 2. smoothed, normalised, clipped
  keep_gaussian(team, image, shift.padded, 4, mask_radius);
  gaussian<false>(team, shift.e, shift.e);
  {
    const float* const e = shift.e;
    const float low = team.template min<float>(image.pixels(), [=](int i) { return e[i]; });
    const float high = team.template max<float>(image.pixels(), [=](int i) { return e[i]; });
    if (!(low < high)) return;
    team.serial([&] { shift.low = low, shift.high = high; });
  }
  int* const cells = team.template small<int>(mask_bins);
  team.each(image.pixels(), [=](int i) { shift.e[i] = (shift.e[i] - shift.low) / (shift.high - shift.low); });
  team.histogram(cells, mask_bins, image.pixels(), [=](int i) { return mask_bin(shift.e[i]); });
  {
    const float least = percentile(team, cells, image.pixels(), 1), most = percentile(team, cells, image.pixels(), 99);
    team.serial([&] { shift.low = least, shift.high = most; });
  }
  // 3. the green channel moved by whole pixels
  pad_plane(team, image.plane(1), shift.padded, image.H, image.W, absolute_int(shift.dx));
  team.grid(image.H, image.W, [=](int y, int x) {
    const int reach = absolute_int(shift.dx), stride = image.W + 2 * reach;
    float* const green = image.plane(1) + y * image.W + x;
    const float* still = shift.padded + y * stride + reach + x;
    const float* moved = shift.padded + clamp(y - shift.dy, 0, image.H - 1) * stride + reach + x - shift.dx;
    const float mask = clamp(shift.e[y * image.W + x], shift.low, shift.high);
    *green = clamp01(mask * *moved + (1.f - mask) * *still);
  });
}
SHAMISA_HD int64_t color_shift_scratch(int H, int W) { return padded_bytes(H, W, shift_limit) + taken<float>((int64_t)H * W); }

SHAMISA_END
