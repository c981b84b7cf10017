// The four noises. Element = pixel, draw 0; see the table of addresses in shamisa/reference/philox.py.
#pragma once

#include "color.h"

SHAMISA_BEGIN

struct Normals {
  float r, g, b;
};
SHAMISA_HD Normals normals(Words w) {
  Normals n;
  float unused;
  normal_pair(w.x, w.y, n.r, n.g);
  normal_pair(w.z, w.w, n.b, unused);
  return n;
}

// x + sqrt(v) n
template <class Team>
SHAMISA_OP void white_noise(Team& team, Image image, float value, Key key) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  const float deviation = square_root(value);
  team.each_words(image.pixels(), 0, key, [=](int i, Words w) {
    const Normals n = normals(w);
    r[i] = clamp01(r[i] + deviation * n.r);
    g[i] = clamp01(g[i] + deviation * n.g);
    b[i] = clamp01(b[i] + deviation * n.b);
  });
}

// the same in YCbCr
template <class Team>
SHAMISA_OP void color_noise(Team& team, Image image, float value, Key key) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  const float deviation = square_root(value);
  team.each_words(image.pixels(), 0, key, [=](int i, Words w) {
    const Normals n = normals(w);
    float y = luma(r[i], g[i], b[i]);
    const float cb = 0.564f * (b[i] - y) + deviation * n.g;
    const float cr = 0.713f * (r[i] - y) + deviation * n.b;
    y += deviation * n.r;
    r[i] = clamp01(y + 1.403f * cr);
    g[i] = clamp01(y - 0.714f * cr - 0.344f * cb);
    b[i] = clamp01(y + 1.773f * cb);
  });
}

// a sample is hit with probability v; a hit is 1 or 0 with equal chance
template <class Team>
SHAMISA_OP void impulse_noise(Team& team, Image image, float value, Key key) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  team.each_words(image.pixels(), 0, key, [=](int i, Words w) {
    r[i] = uniform(w.x) < value ? (float)(int)(w.w & 1) : r[i];
    g[i] = uniform(w.y) < value ? (float)(int)(w.w >> 1 & 1) : g[i];
    b[i] = uniform(w.z) < value ? (float)(int)(w.w >> 2 & 1) : b[i];
  });
}

// x (1 + sqrt(v) n)
template <class Team>
SHAMISA_OP void multiplicative_noise(Team& team, Image image, float value, Key key) {
  float *r = image.plane(0), *g = image.plane(1), *b = image.plane(2);
  const float deviation = square_root(value);
  team.each_words(image.pixels(), 0, key, [=](int i, Words w) {
    const Normals n = normals(w);
    r[i] = clamp01(r[i] * (1.f + deviation * n.r));
    g[i] = clamp01(g[i] * (1.f + deviation * n.g));
    b[i] = clamp01(b[i] * (1.f + deviation * n.b));
  });
}

SHAMISA_END
