// Bands, code blocks and tag trees of JPEG 2000, and what a team keeps of them.
#pragma once

#include "../core/image.h"
#include "jpeg2000_passes.h"
#include "wavelet.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

enum : int {
  most_levels = 7,
  block_size = 64,
  pass_count = 3 * plane_count - 2,
  header_bytes = 216,  // of a JP2 file before its packets, at 8 resolutions; 3 fewer for each one less
  min_budget = 30,
  memory = 64,        // sum at which the adaptive model forgets
  context_count = 18  // 0..8 zero coding, 9..13 sign, 14..16 magnitude, 17 run
};

// L2 norms of the synthesis basis vectors, by band and level (LL: number of levels)
SHAMISA_HD double norm_of(int orient, int level) {
  static constexpr double ll[8] = {1.0, 1.5, 2.75, 5.375, 10.68, 21.34, 42.67, 85.33};
  static constexpr double hl[7] = {1.038, 1.592, 2.919, 5.703, 11.33, 22.64, 45.25};
  static constexpr double hh[7] = {0.7186, 0.9218, 1.586, 3.043, 6.019, 12.01, 24.0};
  return orient == LL ? ll[level] : orient == HH ? hh[level] : hl[level];
}
SHAMISA_HD int floor_log2(unsigned n) {  // n >= 1
  int log = 0;
  for (; n > 1; n >>= 1) ++log;
  return log;
}
SHAMISA_HD int levels_of(int H, int W) { return min_of((int)most_levels, floor_log2((unsigned)min_of(H, W))); }

// ---- geometry --------------------------------------------------------------------------------------------------------
struct Band {
  int channel, packet, orient, level;
  int y, x, h, w;     // place among the nested bands of the plane
  int rows, columns;  // of code blocks
};
SHAMISA_HD int nodes_above(int rows, int columns) {  // nodes of the tag tree above its leaves
  int n = 0;
  while (rows * columns > 1) {
    rows = (rows + 1) / 2, columns = (columns + 1) / 2;
    n += rows * columns;
  }
  return n;
}
SHAMISA_HD int band_count(int levels) { return 3 * (1 + 3 * levels); }
// packets are the resolutions, smallest first, and in each the three planes; bands in the order of the packets
SHAMISA_HD Band band_of(int i, int H, int W, int levels) {
  Band band;
  const int resolution = i < 3 ? 0 : 1 + (i - 3) / 9;
  band.channel = i < 3 ? i : (i - 3) % 9 / 3;
  band.packet = 3 * resolution + band.channel;
  band.orient = i < 3 ? (int)LL : HL + (i - 3) % 3;
  band.level = levels - resolution;
  const int above = i < 3 ? levels : band.level + 1, low_h = (H + (1 << above) - 1) >> above,
            low_w = (W + (1 << above) - 1) >> above;
  const int full_h = i < 3 ? low_h : (H + (1 << band.level) - 1) >> band.level;
  const int full_w = i < 3 ? low_w : (W + (1 << band.level) - 1) >> band.level;
  const bool right = band.orient == HL || band.orient == HH, down = band.orient == LH || band.orient == HH;
  band.y = down ? low_h : 0;
  band.x = right ? low_w : 0;
  band.h = down ? full_h - low_h : low_h;
  band.w = right ? full_w - low_w : low_w;
  band.rows = (band.h + block_size - 1) / block_size;
  band.columns = (band.w + block_size - 1) / block_size;
  return band;
}

struct CodeBlock {
  int64_t bits;                                    // code length so far, in 1/256
  double gained, weight;                           // decrease of the squared error so far; of one unit of it in plane 0
  int64_t place;                                   // of its first sample
  int rows, columns, first_stripe, orient, shift;  // shift: floor(log2(norm)), planes by which it outweighs
  int depth, passes, spent, kept;                  // bit planes; passes coded, their bytes; passes kept
  int count[count_found];
  uint8_t state[context_count][2];  // pseudo-counts of ones and zeros, in quarters
};
struct Grid {  // of a band: its blocks, then the nodes of its tag tree above them
  int first_block, first_node, rows, columns, orient;
};
struct Node {
  uint8_t used, zero_planes, bits;  // bits: what the zero planes cost when the node is used
};

struct Sizes {
  int blocks = 0, stripes = 0, nodes = 0;
};
SHAMISA_HD Sizes sizes_of(int H, int W) {
  const int levels = levels_of(H, W);
  Sizes sizes;
  for (int i = 0; i < band_count(levels); ++i) {
    const Band band = band_of(i, H, W, levels);
    sizes.blocks += band.rows * band.columns;
    sizes.nodes += band.rows * band.columns + nodes_above(band.rows, band.columns);
    sizes.stripes +=
        band.columns * (band.rows - 1) * (block_size / 4) + band.columns * ((band.h - (band.rows - 1) * block_size + 3) / 4);
  }
  return sizes;
}

struct State {
  WaveletPlanes planes;  // first: the wavelets know nothing else of the state
  CodeBlock* block;      // [blocks]
  Grid* grid;            // [bands]
  Node* node;            // [nodes]
  int32_t* rate;         // [blocks, pass_count] bytes, cumulative
  double* gain;          // [blocks, pass_count] decrease of the squared error, cumulative
  uint64_t* words;       // [stripes, slot_count, 4]
  int levels, blocks, packets;
  int limit;  // bytes
  // of the passes: planes p of blocks with p + shift = level are coded; whether the limit is exceeded
  int level;
  bool over;

  SHAMISA_HD int plane_of(const CodeBlock& b) const { return level - b.shift; }
  SHAMISA_HD bool is_first(int b) const { return plane_of(block[b]) == block[b].depth - 1; }
  SHAMISA_HD int16_t* first_of(const CodeBlock& b) const { return planes.x + b.place; }
  SHAMISA_HD BlockWords words_of(const CodeBlock& b) const {
    return {words + (int64_t)b.first_stripe * slot_count * 4, (b.rows + 3) / 4, b.orient};
  }
};

SHAMISA_HD void lay_out(const State& state) {
  const int H = state.planes.H, W = state.planes.W;
  int block = 0, node = 0, stripe = 0;
  for (int i = 0; i < band_count(state.levels); ++i) {
    const Band band = band_of(i, H, W, state.levels);
    state.grid[i] = {block, node, band.rows, band.columns, band.orient};
    const double norm = norm_of(band.orient, band.level);
    for (int y = 0; y < band.h; y += block_size)
      for (int x = 0; x < band.w; x += block_size, ++block) {
        CodeBlock& b = state.block[block];
        b.bits = 0, b.gained = 0., b.weight = norm * norm * (1. / 64);
        b.place = ((int64_t)band.channel * H + band.y + y) * W + band.x + x;
        b.rows = min_of((int)block_size, band.h - y), b.columns = min_of((int)block_size, band.w - x);
        b.first_stripe = stripe, b.orient = band.orient;
        b.shift = norm < 1. ? -1 : floor_log2((unsigned)norm);
        b.depth = b.passes = b.spent = b.kept = 0;
        for (int c = 0; c < context_count; ++c) {
          const bool rare = c == 0 || c == 17;
          b.state[c][0] = rare ? 1 : 3, b.state[c][1] = rare ? 5 : 3;
        }
        stripe += (b.rows + 3) / 4;
      }
    node += band.rows * band.columns + nodes_above(band.rows, band.columns);
  }
}

}  // namespace jpeg2000_detail

SHAMISA_END
