// JPEG 2000 at a compression ratio without its arithmetic coder: bit for bit the result of shamisa/reference/jpeg2000.py, whose
// docstrings explain the steps. Integers throughout; slopes and their bisection in double, in the order of the reference.
#pragma once

#include "jpeg2000_rate.h"
#include "log_gamma.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

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
  team.each(image.samples(), [=](int i) { image.data[i] = unit_of_byte(clamp(state.planes.x[i] + 128, 0, 255)); });
}

SHAMISA_END
