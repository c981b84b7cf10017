// JPEG 2000 at a compression ratio without its arithmetic coder: bit for bit the result of shamisa/reference/jpeg2000.py, whose
// docstrings explain the steps. Integers throughout; slopes and their bisection in double, in the order of the reference.
#pragma once

#include "../core/image.h"
#include "jpeg2000_passes.h"
#include "log_gamma.h"
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

// ---- samples <-> bit planes ------------------------------------------------------------------------------------------
// one row of n samples into word `row` of the magnitude and sign slots of a stripe
SHAMISA_HD void pack_row(const int16_t* x, int n, uint64_t* row) {
  uint64_t plane[plane_count] = {}, negative = 0;
#if defined(__SSE2__) && !defined(__CUDACC__)
  alignas(32) int16_t padded[block_size];
  if (n < block_size) {
    for (int c = 0; c < block_size; ++c) padded[c] = 0;
    for (int c = 0; c < n; ++c) padded[c] = x[c];
    x = padded;
  }
  for (int c = 0; c < block_size; c += 16) {
    const __m128i a = _mm_loadu_si128((const __m128i*)(x + c)), b = _mm_loadu_si128((const __m128i*)(x + c + 8));
    const __m128i zero = _mm_setzero_si128(), byte = _mm_set1_epi16(255);
    const __m128i p = _mm_max_epi16(a, _mm_sub_epi16(zero, a)), q = _mm_max_epi16(b, _mm_sub_epi16(zero, b));
    __m128i low = _mm_packus_epi16(_mm_and_si128(p, byte), _mm_and_si128(q, byte));
    __m128i high = _mm_slli_epi16(_mm_packus_epi16(_mm_srli_epi16(p, 8), _mm_srli_epi16(q, 8)), 16 - plane_count);
    negative |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_packs_epi16(a, b)) << c;
    for (int i = plane_count - 1; i >= 8; --i, high = _mm_add_epi8(high, high))
      plane[i] |= (uint64_t)(unsigned)_mm_movemask_epi8(high) << c;
    for (int i = 7; i >= 0; --i, low = _mm_add_epi8(low, low)) plane[i] |= (uint64_t)(unsigned)_mm_movemask_epi8(low) << c;
  }
#else
  for (int c = 0; c < n; ++c) {
    const int size = x[c] < 0 ? -x[c] : x[c];
    negative |= (uint64_t)(x[c] < 0) << c;
    for (int i = 0; i < plane_count; ++i) plane[i] |= (uint64_t)((size >> i) & 1) << c;
  }
#endif
  for (int i = 0; i < plane_count; ++i) row[4 * i] = plane[i];
  row[4 * slot_negative] = negative;
}

template <class Group>
SHAMISA_OP void cut_block(Group& group) {
  const int b = group.item();
  State& state = group.template kept<op_place, State>();
  CodeBlock& block = state.block[b];
  const BlockWords words = state.words_of(block);
  const int rows = block.rows, columns = block.columns, W = state.planes.W;
  const int16_t* const from = state.first_of(block);
  const uint64_t full = columns == 64 ? ~(uint64_t)0 : ((uint64_t)1 << columns) - 1;
  group.each(4 * words.stripes, [=](int r) {
    uint64_t* const row = words.row(r, 0);
    pack_row(from + (r < rows ? r : 0) * W, r < rows ? columns : 0, row);
    row[4 * slot_inside] = r < rows ? full : 0;
    row[4 * slot_significant] = row[4 * slot_refined] = row[4 * slot_members] = 0;
  });
  typedef Unit<Group> U;
  const int depth = group.template max<int>(words.units<U>(), [=](int u) {
    int p = plane_count;
    while (p > 0 && !words.at<U>(u, p - 1).any()) --p;
    return p;
  });
  group.serial([&] { block.depth = depth; });
}

// What the decoder makes of the kept passes of a block, in place: the middle of what it knows.
template <class Group>
SHAMISA_OP void truncate_block(Group& group) {
  const int b = group.item();
  State& state = group.template kept<op_place, State>();
  CodeBlock& block = state.block[b];
  const BlockWords words = state.words_of(block);
  typedef Unit<Group> U;
  const int rows = block.rows, columns = block.columns, kept = block.kept, W = state.planes.W;
  int16_t* const to = state.first_of(block);
  if (kept == 0) {
    group.each(rows, [=](int r) {
      for (int c = 0; c < columns; ++c) to[r * W + c] = 0;
    });
    return;
  }
  const int kind = (kept + 1) % 3, p = block.depth - 1 - (kept + 1) / 3;
  if (kind != 2) {
    group.each(words.units<U>(), [=](int u) {
      U significant = U::zero();
      for (int i = p + 1; i < plane_count; ++i) significant = significant | words.at<U>(u, i);
      words.put(u, slot_significant, significant);
    });
    find_members(group, words, p);
  }
  const auto fresh = [=](int r) {  // samples decoded down to plane p, the others to p + 1
    if (kind == 2) return ~(uint64_t)0;
    return *words.row(r, slot_members) | (kind == 1 ? *words.row(r, slot_significant) : 0);
  };
  const auto decode = [=](int16_t* x, bool is_fresh) {
    const int value = *x, step = is_fresh ? 1 << p : 2 << p, size = (value < 0 ? -value : value) & -step;
    const int y = size ? size + step / 2 : 0;
    *x = (int16_t)(value < 0 ? -y : y);
  };
  if (U::rows == 1)
    group.each(rows * columns, [=](int i) {
      const int r = i / columns, c = i - r * columns;
      decode(to + r * W + c, fresh(r) >> c & 1);
    });
  else  // a byte for each bit, so that the loop over the row is one of vectors
    group.each(rows, [=](int r) {
      uint64_t flags[8];
      const uint64_t bits = fresh(r);
      for (int i = 0; i < 8; ++i) flags[i] = (bits >> (8 * i) & 255) * 0x0101010101010101u & 0x8040201008040201u;
      const uint8_t* const flag = (const uint8_t*)flags;
      int16_t* const SHAMISA_RESTRICT x = to + r * W;
      for (int c = 0; c < columns; ++c) decode(x + c, flag[c]);
    });
}

// ---- bytes and distortion of the passes --------------------------------------------------------------------------------
// Code length of k ones among n symbols in a context, in 1/256 bit; the context learns them.
SHAMISA_HD int code_length(uint8_t* context, int k, int n) {
  if (n == 0) return 0;
  const int a = context[0], b = context[1], ones = a + 4 * k, total = a + b + 4 * n, zeros = total - ones;
  const int bits = log_gamma(a) + log_gamma(b) - log_gamma(a + b) - log_gamma(ones) - log_gamma(zeros) + log_gamma(total);
  const int shrunk = clamp((memory * ones + (total >> 1)) / total, 1, memory - 1);
  context[0] = (uint8_t)(total > memory ? shrunk : ones);
  context[1] = (uint8_t)(total > memory ? memory - shrunk : zeros);
  return bits;
}

SHAMISA_HD int fraction_of(const int* count) {
  int sum = 0;
  for (int j = 0; j < fraction_count; ++j) sum += count[j] << (fraction_count - 1 - j);
  return sum;
}

// What opens a plane, and its passes (0: significance, 1: refinement, 2: cleanup) in the counters of the block.
template <class Group>
SHAMISA_OP void open_plane(Group& group) {
  const int b = group.item();
  const State& state = group.template kept<op_place, State>();
  find_members(group, state.words_of(state.block[b]), state.plane_of(state.block[b]));
}
template <int kind, class Group>
SHAMISA_OP void count_pass(Group& group) {
  const int b = group.item();
  const State& state = group.template kept<op_place, State>();
  CodeBlock& block = state.block[b];
  if (kind == 0) significance_pass(group, state.words_of(block), state.plane_of(block), block.count);
  if (kind == 1) refinement_pass(group, state.words_of(block), state.plane_of(block), block.count);
  if (kind == 2) cleanup_pass(group, state.words_of(block), state.plane_of(block), block.count);
}

// The end of a pass: its bytes and what it gains, appended to rate and gain.
template <class Group>
SHAMISA_OP void close_pass(Group& group, int kind) {
  const int b = group.item();
  State& state = group.template kept<op_place, State>();
  CodeBlock& block = state.block[b];
  const int p = state.plane_of(block);
  const int* const count = block.count;
  const int contexts = kind == 0 ? 14 : kind == 1 ? 3 : 15;
  const int bits = group.template sum<int>(contexts, [=, &block](int c) {
    const int pair = c == 14 ? (int)count_run : 2 * c, context = kind == 1 ? 14 + c : c == 14 ? 17 : c;
    const int length = code_length(block.state[context], count[pair], count[pair + 1]);
    return c == 14 ? length + 512 * count[count_run] : length;  // the place in the run: two bits
  });
  group.serial([&] {
    const int constant = p > 0 ? 48 : 64;
    int error;
    if (kind == 1) {
      error = fraction_of(count + count_fraction_up) - 16 * count[count_up] + constant * count[count_down] -
              fraction_of(count + count_fraction_down);
    } else {
      int found = 0;
      for (int c = 0; c < 5; ++c) found += count[count_sign + 2 * c + 1];
      error = constant * found + 3 * fraction_of(count + count_fraction);
    }
    block.bits += bits;
    block.gained += block.weight * (double)((int64_t)1 << (2 * p)) * (double)error;
    block.spent = max_of(1, (int)((253 * block.bits + 870400) / 512000));  // bytes: 1.012 bits / 8 + 1.7
    const int64_t at = (&block - state.block) * (int64_t)pass_count + block.passes;
    state.rate[at] = block.spent;
    state.gain[at] = block.gained;
    ++block.passes;
  });
}

// The samples found in plane p are significant from now on.
template <class Group>
SHAMISA_OP void close_plane(Group& group) {
  const int b = group.item();
  const State& state = group.template kept<op_place, State>();
  const BlockWords words = state.words_of(state.block[b]);
  const int p = state.plane_of(state.block[b]);
  typedef Unit<Group> U;
  group.each(words.units<U>(), [=](int u) {
    const U significant = words.at<U>(u, slot_significant);
    words.put(u, slot_refined, significant);
    words.put(u, slot_significant, significant | words.at<U>(u, p));
  });
}

// One bit plane of a block: three passes (the first plane: cleanup only).
template <class Group>
SHAMISA_STEP void code_plane(Group& group) {
  if (!group.template kept<op_place, State>().is_first(group.item())) {
    open_plane(group);
    count_pass<0>(group);
    close_pass(group, 0);
    count_pass<1>(group);
    close_pass(group, 1);
  }
  count_pass<2>(group);
  close_pass(group, 2);
  close_plane(group);
}

// Planes of equal weight together, the heaviest first, until one level after the budget is exceeded.
template <class Team>
SHAMISA_STEP void code_passes(Team& team) {
  State& state = team.template kept<op_place, State>();
  const int top = team.template max<int>(state.blocks, [=](int b) { return state.block[b].depth + state.block[b].shift; }) - 1;
  team.serial([&] { state.level = top, state.over = false; });
  while (state.level >= -1) {
    team.split(state.blocks, [&](int b, auto& group) {
      const int p = state.plane_of(state.block[b]);
      if (p >= 0 && p < state.block[b].depth) code_plane(group);
    });
    if (state.over) return;
    const int spent = team.template sum<int>(state.blocks, [=](int b) { return state.block[b].spent; });
    team.serial([&] { state.over = spent > state.limit, --state.level; });
  }
}

// ---- rate control ----------------------------------------------------------------------------------------------------
// OpenJPEG's greedy rule: keep up to a pass whenever the slope since the last kept one reaches the threshold.
SHAMISA_HD int choose(const int32_t* rate, const double* gain, int passes, double threshold) {
  int kept = 0, kept_rate = 0;
  double kept_gain = 0.;
  for (int i = 0; i < passes; ++i) {
    const int more_rate = rate[i] - kept_rate;
    const double more_gain = gain[i] - kept_gain, needed = threshold * (double)more_rate;
    bool take;
    if (more_rate == 0)
      take = more_gain != 0.;
    else if (more_gain > needed * (1. + 1e-9))  // clear without the division
      take = true;
    else if (more_gain < needed * (1. - 1e-9) && threshold > 1e-6)
      take = false;
    else
      take = threshold - more_gain / (double)more_rate < 2.220446049250313e-16;
    if (take) kept = i + 1, kept_rate = rate[i], kept_gain = gain[i];
  }
  return kept;
}

// f(level's first node, rows, columns, first node of the level above) from the leaves to below the root
template <class F>
SHAMISA_HD void climb(const Grid& grid, F f) {
  int first = grid.first_node, rows = grid.rows, columns = grid.columns;
  while (rows * columns > 1) {
    const int above = first + rows * columns;
    f(first, rows, columns, above);
    first = above, rows = (rows + 1) / 2, columns = (columns + 1) / 2;
  }
}

// Zero planes of every node of a band's tag tree: the least below it; and what they cost.
SHAMISA_HD void plant_tree(const State& state, const Grid& grid) {
  const int leaves = grid.rows * grid.columns, count = leaves + nodes_above(grid.rows, grid.columns);
  const int promised = grid.orient == LL ? 9 : grid.orient == HH ? 11 : 10;
  Node* const node = state.node;
  for (int i = 0; i < count; ++i)
    node[grid.first_node + i].zero_planes = (uint8_t)(i < leaves ? promised - state.block[grid.first_block + i].depth : 99);
  climb(grid, [=](int first, int rows, int columns, int above) {
    for (int i = 0; i < rows * columns; ++i) {
      Node& parent = node[above + i / columns / 2 * ((columns + 1) / 2) + i % columns / 2];
      parent.zero_planes = min_of(parent.zero_planes, node[first + i].zero_planes);
    }
  });
  node[grid.first_node + count - 1].bits = (uint8_t)(node[grid.first_node + count - 1].zero_planes + 1);
  climb(grid, [=](int first, int rows, int columns, int above) {
    for (int i = 0; i < rows * columns; ++i) {
      const Node& parent = node[above + i / columns / 2 * ((columns + 1) / 2) + i % columns / 2];
      node[first + i].bits = (uint8_t)(node[first + i].zero_planes - parent.zero_planes + 1);
    }
  });
}

// Header bits of one band (inclusion, zero planes, passes and lengths), and the bytes of its blocks.
SHAMISA_HD int band_bits(const State& state, const Grid& grid, int& bytes) {
  const int leaves = grid.rows * grid.columns;
  Node* const node = state.node;
  int bits = 1;  // the root's inclusion
  for (int i = 0; i < leaves; ++i) {
    const int b = grid.first_block + i, kept = state.block[b].kept;
    node[grid.first_node + i].used = kept > 0;
    if (kept == 0) continue;
    const int data = state.rate[(int64_t)b * pass_count + kept - 1];
    const int code = kept == 1 ? 1 : kept == 2 ? 2 : kept <= 5 ? 4 : 9;
    const int base = 3 + floor_log2((unsigned)kept), width = max_of(base, floor_log2((unsigned)data) + 1);
    bits += node[grid.first_node + i].bits + code + width - base + 1 + width;
    bytes += data;
  }
  climb(grid, [&](int first, int rows, int columns, int above) {
    const int up_columns = (columns + 1) / 2, parents = (rows + 1) / 2 * up_columns;
    for (int i = 0; i < parents; ++i) node[above + i].used = 0;
    for (int i = 0; i < rows * columns; ++i)
      node[above + i / columns / 2 * up_columns + i % columns / 2].used |= node[first + i].used;
    for (int i = 0; i < parents; ++i) bits += node[above + i].used ? node[above + i].bits : 0;
    for (int i = 0; i < rows * columns; ++i) bits += node[above + i / columns / 2 * up_columns + i % columns / 2].used;
  });
  return bits;
}

SHAMISA_HD int packet_bytes(const State& state, int packet) {
  const int first = packet < 3 ? packet : 3 * packet - 6, bands = packet < 3 ? 1 : 3;
  int bits = 1, bytes = 0;
  for (int i = 0; i < bands; ++i) bits += band_bits(state, state.grid[first + i], bytes);
  return bytes + (bits + 7) / 8;
}

struct Search {
  double low, high, threshold, best;
};

// Bisection for the least slope threshold whose packets fit the budget; leaves the passes kept in the blocks.
template <class Team>
SHAMISA_OP void allocate(Team& team) {
  const State& state = team.template kept<op_place, State>();
  CodeBlock* const block = state.block;
  const auto slopes = [=](int b, bool greatest) {
    const int32_t* const rate = state.rate + (int64_t)b * pass_count;
    const double* const gain = state.gain + (int64_t)b * pass_count;
    double extreme = greatest ? 0. : 1e300;
    for (int i = 0; i < block[b].passes; ++i) {
      const int more = rate[i] - (i > 0 ? rate[i - 1] : 0);
      if (more == 0) continue;
      const double slope = (gain[i] - (i > 0 ? gain[i - 1] : 0.)) / (double)more;
      extreme = greatest ? max_of(extreme, slope) : min_of(extreme, slope);
    }
    return extreme;
  };
  const auto keep = [&](double threshold) {
    team.each(state.blocks, [=](int b) {
      const int64_t row = (int64_t)b * pass_count;
      block[b].kept = choose(state.rate + row, state.gain + row, block[b].passes, threshold);
    });
  };
  team.each(band_count(state.levels), [=](int i) { plant_tree(state, state.grid[i]); });
  const double high = team.template max<double>(state.blocks, [=](int b) { return slopes(b, true); });
  const double low = min_of(high, team.template min<double>(state.blocks, [=](int b) { return slopes(b, false); }));
  Search& search = team.template keep<filter_place>(Search{low, high, 0., 0.});
  for (int step = 0; step < 128; ++step) {
    const double middle = (search.low + search.high) / 2;
    const double change = middle < search.threshold ? search.threshold - middle : middle - search.threshold;
    if (!(change > 0.5e-5 * search.threshold)) break;
    keep(middle);
    const int bytes = team.template sum<int>(state.packets, [=](int i) { return packet_bytes(state, i); });
    team.serial([&] {
      search.threshold = (search.low + search.high) / 2;
      (bytes <= state.limit ? search.high : search.low) = search.threshold;
      if (bytes <= state.limit) search.best = search.threshold;
    });
  }
  keep(search.best == 0. ? search.threshold : search.best);
}

// bytes for the packets, in float as OpenJPEG computes it
SHAMISA_HD int budget(int H, int W, int levels, float ratio) {
  const float share = (float)(24. * ((double)H * (double)W) / (8. * (double)ratio));
  const float rest = max_of(share - (float)(header_bytes - 3 * (most_levels - levels)), (float)min_budget);
  return (int)rest + ((float)(int)rest < rest);
}

}  // namespace jpeg2000_detail

SHAMISA_HD int64_t jpeg2000_scratch(int H, int W) {
  using namespace jpeg2000_detail;
  const Sizes sizes = sizes_of(H, W);
  return 2 * taken<int16_t>(3 * (int64_t)H * W) + taken<CodeBlock>(sizes.blocks) + taken<Grid>(band_count(levels_of(H, W))) +
         taken<Node>(sizes.nodes) + taken<int32_t>((int64_t)sizes.blocks * pass_count) +
         taken<double>((int64_t)sizes.blocks * pass_count) + taken<uint64_t>((int64_t)sizes.stripes * slot_count * 4);
}

// The memory and the sizes of an image's codec.
SHAMISA_HD void fill_state(jpeg2000_detail::State& state, const Stage& stage) {
  using namespace jpeg2000_detail;
  const int H = stage.image.H, W = stage.image.W, samples = stage.image.samples();
  const Sizes sizes = sizes_of(H, W);
  Scratch scratch = stage.scratch;
  state.planes = {scratch.take<int16_t>(samples), scratch.take<int16_t>(samples), H, W, 0};
  state.levels = levels_of(H, W);
  state.blocks = sizes.blocks;
  state.packets = 3 * (state.levels + 1);
  state.block = scratch.take<CodeBlock>(sizes.blocks);
  state.grid = scratch.take<Grid>(band_count(state.levels));
  state.node = scratch.take<Node>(sizes.nodes);
  state.rate = scratch.take<int32_t>((int64_t)sizes.blocks * pass_count);
  state.gain = scratch.take<double>((int64_t)sizes.blocks * pass_count);
  state.words = scratch.take<uint64_t>((int64_t)sizes.stripes * slot_count * 4);
  state.limit = stage.value > 1.f ? budget(H, W, state.levels, stage.value) : 0;
}

// image <- decode(encode(trunc(255 image))) / 255 in place; value: the compression ratio, at least 1 (1: lossless).
template <class Team>
SHAMISA_STEP void jpeg2000(Team& team) {
  const Stage& stage = team.template kept<chain_place, Stage>();
  using namespace jpeg2000_detail;
  const Image& image = stage.image;
  State& state = team.template kept<op_place, State>();
  team.serial([&] { fill_state(state, stage); });
  team.each(image.samples(), [=](int i) { state.planes.x[i] = (int16_t)((int)(255.f * image.data[i]) - 128); });
  if (stage.value > 1.f) {
    team.serial([&] { lay_out(state); });
    while (state.planes.level < state.levels) {
      wavelet_forward(team);
      team.serial([&] { ++state.planes.level; });
    }
    team.split(state.blocks, [](int, auto& group) { cut_block(group); });
    code_passes(team);
    allocate(team);
    team.split(state.blocks, [](int, auto& group) { truncate_block(group); });
    while (state.planes.level > 0) {
      team.sync();  // everyone has read the level
      team.serial([&] { --state.planes.level; });
      wavelet_inverse(team);
    }
  }
  team.each(image.samples(), [=](int i) { image.data[i] = (float)clamp(state.planes.x[i] + 128, 0, 255) / 255.f; });
}

SHAMISA_END
