// Rate control of JPEG 2000: which passes of the code blocks fit the bytes.
#pragma once

#include "jpeg2000_blocks.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

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

SHAMISA_END
