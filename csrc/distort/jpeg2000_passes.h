// Statistics of the coding passes of JPEG 2000: the words of shamisa/reference/jpeg2000_passes.py (its docstring explains the
// idea), four rows at a time, because the scan goes in stripes of four rows. A code block has at most 16 stripes.
#pragma once

#include "../core/team.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

// ---- four words of 64 samples ----------------------------------------------------------------------------------------
struct Quad {
#if defined(__CUDACC__) || !defined(__GNUC__)
  static constexpr int parts = 4;
  typedef uint64_t V;
#else
  static constexpr int parts = SHAMISA_VECTOR == 8 ? 1 : 2;
  typedef uint64_t V __attribute__((vector_size(32 / parts)));
#endif
  V v[parts];

  SHAMISA_HD static Quad load(const uint64_t* p) {  // aligned to 32
    Quad q;
    for (int i = 0; i < parts; ++i) q.v[i] = ((const V*)p)[i];
    return q;
  }
  SHAMISA_HD void store(uint64_t* p) const {
    for (int i = 0; i < parts; ++i) ((V*)p)[i] = v[i];
  }
  SHAMISA_HD static Quad zero() {
    Quad q;
    for (int i = 0; i < parts; ++i) q.v[i] = V{};
    return q;
  }
  SHAMISA_HD friend Quad operator&(Quad a, Quad b) {
    for (int i = 0; i < parts; ++i) a.v[i] &= b.v[i];
    return a;
  }
  SHAMISA_HD friend Quad operator|(Quad a, Quad b) {
    for (int i = 0; i < parts; ++i) a.v[i] |= b.v[i];
    return a;
  }
  SHAMISA_HD friend Quad operator^(Quad a, Quad b) {
    for (int i = 0; i < parts; ++i) a.v[i] ^= b.v[i];
    return a;
  }
  SHAMISA_HD friend Quad operator~(Quad a) {
    for (int i = 0; i < parts; ++i) a.v[i] = ~a.v[i];
    return a;
  }
  // what every sample sees on its left, on its right
  SHAMISA_HD Quad left() const {
    Quad q = *this;
    for (int i = 0; i < parts; ++i) q.v[i] = q.v[i] << 1;
    return q;
  }
  SHAMISA_HD Quad right() const {
    Quad q = *this;
    for (int i = 0; i < parts; ++i) q.v[i] = q.v[i] >> 1;
    return q;
  }
#if defined(__CUDACC__) || !defined(__GNUC__)
  SHAMISA_HD bool any() const { return (v[0] | v[1] | v[2] | v[3]) != 0; }
  // what every sample sees above, below; the word comes from the neighbouring stripe
  SHAMISA_HD Quad above(uint64_t word) const { return {{word, v[0], v[1], v[2]}}; }
  SHAMISA_HD Quad below(uint64_t word) const { return {{v[1], v[2], v[3], word}}; }
#elif SHAMISA_VECTOR == 8
  SHAMISA_HD bool any() const { return !_mm256_testz_si256((__m256i)v[0], (__m256i)v[0]); }
  SHAMISA_HD Quad above(uint64_t word) const {
    const __m256i moved = _mm256_permute4x64_epi64((__m256i)v[0], 0x90);
    return {{(V)_mm256_blend_epi32(moved, _mm256_castsi128_si256(_mm_cvtsi64_si128((long long)word)), 0x03)}};
  }
  SHAMISA_HD Quad below(uint64_t word) const {
    const __m256i moved = _mm256_permute4x64_epi64((__m256i)v[0], 0xF9);
    return {{(V)_mm256_blend_epi32(moved, _mm256_set1_epi64x((long long)word), 0xC0)}};
  }
#else
  SHAMISA_HD bool any() const { return ((v[0] | v[1])[0] | (v[0] | v[1])[1]) != 0; }
  SHAMISA_HD Quad above(uint64_t word) const { return {{V{word, v[0][0]}, V{v[0][1], v[1][0]}}}; }
  SHAMISA_HD Quad below(uint64_t word) const { return {{V{v[0][1], v[1][0]}, V{v[1][1], word}}}; }
#endif
};

SHAMISA_HD int popcount(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// ---- counters over the stripes of a block ----------------------------------------------------------------------------
// n counters of set bits. On AVX2 they are kept as bytes (at most 8 bits of 16 stripes in each), summed at the end.
template <int n>
struct Tally {
#if defined(__AVX2__) && !defined(__CUDACC__)
  __m256i cell[n];
  SHAMISA_HD Tally() {
    for (int i = 0; i < n; ++i) cell[i] = _mm256_setzero_si256();
  }
  SHAMISA_HD void add(int i, Quad members) {
    const __m256i nibbles = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                             0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15), x = (__m256i)members.v[0];
    const __m256i a = _mm256_shuffle_epi8(nibbles, _mm256_and_si256(x, low));
    const __m256i b = _mm256_shuffle_epi8(nibbles, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    cell[i] = _mm256_add_epi8(cell[i], _mm256_add_epi8(a, b));
  }
  SHAMISA_HD int total(int i) const {
    const __m256i four = _mm256_sad_epu8(cell[i], _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2);
  }
#else
  int cell[n];
  SHAMISA_HD Tally() {
    for (int i = 0; i < n; ++i) cell[i] = 0;
  }
  SHAMISA_HD void add(int i, Quad members) {
    alignas(32) uint64_t word[4];
    members.store(word);
    cell[i] += popcount(word[0]) + popcount(word[1]) + popcount(word[2]) + popcount(word[3]);
  }
  SHAMISA_HD int total(int i) const { return cell[i]; }
#endif
};

// f(stripe, tally) for every stripe; then count[0..n) holds the totals
template <int n, class F>
SHAMISA_HD void tally_stripes(ThreadTeam&, int stripes, int* count, F f) {
  Tally<n> tally;
  for (int s = 0; s < stripes; ++s) f(s, tally);
  for (int i = 0; i < n; ++i) count[i] = tally.total(i);
}
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)
template <int n, class F>
SHAMISA_DEVICE void tally_stripes(WarpTeam& warp, int stripes, int* count, F f) {
  Tally<n> tally;
  if (warp.lane < stripes) f(warp.lane, tally);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int i = 0; i < n; ++i) {
    const int total = warp.join(tally.total(i), [](int a, int b) { return a + b; });
    if (warp.lane == 0) count[i] = total;
  }
  __syncwarp();
}
#endif

// ---- a code block as bit planes --------------------------------------------------------------------------------------
enum : int { LL, HL, LH, HH };

enum : int {
  plane_count = 11,    // most magnitude bits: 8 and a gain of 2 in HH, with a bit to spare
  fraction_count = 6,  // planes below the current one that the distortion estimate looks at
  // what a stripe keeps, four words each: the magnitude planes, and
  slot_negative = plane_count,
  slot_inside,       // the sample exists
  slot_significant,  // any bit in a plane above the current one
  slot_refined,      // any bit in a plane above that
  slot_members,      // visited by the significance pass of the current plane
  slot_count
};

// Counters of a pass: pairs (ones, visited) of its contexts, and sums for the distortion.
enum : int {
  count_zero = 0,                                // 9 pairs, contexts 0..8
  count_sign = 18,                               // 5 pairs, contexts 9..13
  count_fraction = 28,                           // 6, of the samples found
  count_run = 28 + fraction_count,               // 1 pair, context 17
  count_found = 36,                              // counters of a significance (34) or cleanup pass
  count_up = 6,                                  // refinement: 3 pairs, contexts 14..16, then samples whose error grows less
  count_down = 7,                                //
  count_fraction_up = 8, count_fraction_down = 14,  // 6 each
  count_refined = 20
};

struct BlockWords {
  uint64_t* words;  // [stripes, slot_count, 4]
  int stripes, orient;

  SHAMISA_HD uint64_t* slot(int s, int i) const { return words + (s * slot_count + i) * 4; }
  SHAMISA_HD Quad at(int s, int i) const { return Quad::load(slot(s, i)); }
  // significant samples of the last row of the stripe before s, once the significance pass has been there
  SHAMISA_HD uint64_t last_known(int s, int p) const {
    if (s == 0) return 0;
    return slot(s - 1, slot_significant)[3] | (slot(s - 1, slot_members)[3] & slot(s - 1, p)[3]);
  }
  SHAMISA_HD uint64_t first_significant(int s) const { return s + 1 < stripes ? slot(s + 1, slot_significant)[0] : 0; }
  // the first row of the stripe after s, once its significance pass is over
  SHAMISA_HD uint64_t first_known(int s, int p) const {
    if (s + 1 >= stripes) return 0;
    return slot(s + 1, slot_significant)[0] | (slot(s + 1, slot_members)[0] & slot(s + 1, p)[0]);
  }
};

// The eight neighbours of every sample of a stripe: significance known when the scan arrives. `before` is significant since
// earlier passes, `found` becomes so in this one; previous, next: the rows around the stripe.
struct Neighbours {
  Quad left, right, up, down, up_left, up_right, down_left, down_right;

  SHAMISA_HD Neighbours(Quad before, Quad found, uint64_t previous, uint64_t next) {
    const Quad known = before | found;
    left = known.left();
    right = before.right();
    up = known.above(previous);
    down = before.below(next);
    up_left = up.left();
    up_right = before.above(previous).right();
    down_left = known.below(next).left();
    down_right = down.right();
  }
};

// Members of the significance pass in one stripe: the least solution of "near a significant sample, or after a found member".
SHAMISA_HD Quad propagate(Quad significant, Quad bit, Quad free, uint64_t previous, uint64_t next) {
  const Quad up = significant.above(previous), down = significant.below(next), column = significant | up | down;
  Quad members = (column.left() | column.right() | up | down) & free;
  Quad found = members & bit;
  while (found.any()) {
    const Quad above = found.above(0);
    const Quad more = (((found | above | found.below(0)).left() | above) & free) | members;
    const Quad fresh = more & bit & ~found;
    members = more;
    if (!fresh.any()) break;
    found = found | fresh;
  }
  return members;
}

// Members of every stripe of plane p into slot_members. A stripe depends on the one before it.
SHAMISA_HD void find_members(ThreadTeam&, const BlockWords& block, int p) {
  for (int s = 0; s < block.stripes; ++s) {
    const Quad significant = block.at(s, slot_significant), free = block.at(s, slot_inside) & ~significant;
    propagate(significant, block.at(s, p), free, block.last_known(s, p), block.first_significant(s))
        .store(block.slot(s, slot_members));
  }
}
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)
SHAMISA_DEVICE void find_members(WarpTeam& warp, const BlockWords& block, int p) {
  const int s = warp.lane;
  const bool mine = s < block.stripes;
  Quad members = Quad::zero();
  if (mine) members.store(block.slot(s, slot_members));
  __syncwarp();
  for (int changed = 1; changed;) {
    changed = 0;
    if (mine) {
      const Quad significant = block.at(s, slot_significant), free = block.at(s, slot_inside) & ~significant;
      const Quad grown =
          propagate(significant, block.at(s, p), free, block.last_known(s, p), block.first_significant(s));
      changed = (grown ^ members).any();
      members = grown;
    }
    changed = warp.join(changed, [](int a, int b) { return a | b; });
    if (mine) members.store(block.slot(s, slot_members));
    __syncwarp();
  }
}
#endif

// ---- what a pass counts in one stripe --------------------------------------------------------------------------------
template <class T>
SHAMISA_HD void add_pair(T& tally, int i, Quad members, Quad ones) {
  tally.add(i, members & ones);
  tally.add(i + 1, members);
}

template <class T>
SHAMISA_HD void add_fraction(T& tally, int first, const BlockWords& block, int s, int p, Quad members) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 1; j <= fraction_count; ++j)
    if (p >= j) tally.add(first + j - 1, members & block.at(s, p - j));
}

// contexts 0..8 by the numbers of significant neighbours beside (h), above and below (v), diagonally (d)
template <class T>
SHAMISA_HD void add_zero_coding(T& tally, int orient, const Neighbours& near, Quad members, Quad bit) {
  Quad h1 = near.left ^ near.right, h2 = near.left & near.right, v1 = near.up ^ near.down, v2 = near.up & near.down;
  const Quad top1 = near.up_left ^ near.up_right, top2 = near.up_left & near.up_right;
  const Quad low1 = near.down_left ^ near.down_right, low2 = near.down_left & near.down_right;
  const Quad some = top1 | top2 | low1 | low2, many = top2 | low2 | (top1 & low1);
  const Quad h0 = ~(h1 | h2), v0 = ~(v1 | v2), straight = h0 & v0 & members;
  if (orient == HH) {
    const Quad d3 = (top2 & (low1 | low2)) | (low2 & (top1 | top2));
    const Quad d2 = many & ~d3, d1 = some & ~many, one = ((h1 & v0) | (h0 & v1)) & members, more = members & ~straight & ~one;
    add_pair(tally, count_zero, straight & ~some, bit);
    add_pair(tally, count_zero + 2, one & ~some, bit);
    add_pair(tally, count_zero + 4, more & ~some, bit);
    add_pair(tally, count_zero + 6, straight & d1, bit);
    add_pair(tally, count_zero + 8, one & d1, bit);
    add_pair(tally, count_zero + 10, more & d1, bit);
    add_pair(tally, count_zero + 12, straight & d2, bit);
    add_pair(tally, count_zero + 14, d2 & members & ~straight, bit);
    add_pair(tally, count_zero + 16, d3 & members, bit);
  } else {
    const bool swap = orient == HL;
    const Quad a0 = swap ? v0 : h0, a1 = swap ? v1 : h1, a2 = swap ? v2 : h2;
    const Quad b0 = swap ? h0 : v0, b1 = swap ? h1 : v1, b2 = swap ? h2 : v2;
    const Quad only = a1 & b0 & members, beside = a0 & members;
    add_pair(tally, count_zero, straight & ~some, bit);
    add_pair(tally, count_zero + 2, straight & some & ~many, bit);
    add_pair(tally, count_zero + 4, straight & many, bit);
    add_pair(tally, count_zero + 6, beside & b1, bit);
    add_pair(tally, count_zero + 8, beside & b2, bit);
    add_pair(tally, count_zero + 10, only & ~some, bit);
    add_pair(tally, count_zero + 12, only & some, bit);
    add_pair(tally, count_zero + 14, a1 & ~b0 & members, bit);
    add_pair(tally, count_zero + 16, a2 & members, bit);
  }
}

// contexts 9..13 by the signs beside and above; the symbol is whether the sign differs from the predicted one
template <class T>
SHAMISA_HD void add_signs(T& tally, const BlockWords& block, int s, const Neighbours& near, Quad found) {
  const Quad negative = block.at(s, slot_negative);
  const Quad left = negative.left(), right = negative.right();
  const Quad up = negative.above(s > 0 ? block.slot(s - 1, slot_negative)[3] : 0);
  const Quad down = negative.below(s + 1 < block.stripes ? block.slot(s + 1, slot_negative)[0] : 0);
  const Quad hp = (near.left & ~left) | (near.right & ~right), hn = (near.left & left) | (near.right & right);
  const Quad vp = (near.up & ~up) | (near.down & ~down), vn = (near.up & up) | (near.down & down);
  const Quad h = hp ^ hn, v = vp ^ vn, h_minus = hn & h, v_minus = vn & v;
  const Quad symbol = negative ^ (h_minus | (~h & v_minus));
  const Quad differ = h_minus ^ v_minus, both = h & v & found;
  add_pair(tally, count_sign, found & ~h & ~v, symbol);
  add_pair(tally, count_sign + 2, found & ~h & v, symbol);
  add_pair(tally, count_sign + 4, both & differ, symbol);
  add_pair(tally, count_sign + 6, found & h & ~v, symbol);
  add_pair(tally, count_sign + 8, both & ~differ, symbol);
}

template <class Group>
SHAMISA_OP void significance_pass(Group& group, const BlockWords& block, int p, int* count) {
  tally_stripes<count_run>(group, block.stripes, count, [=](int s, auto& tally) {
    const Quad members = block.at(s, slot_members);
    if (!members.any()) return;
    const Quad significant = block.at(s, slot_significant), bit = block.at(s, p), found = members & bit;
    const Neighbours near(significant, found, block.last_known(s, p), block.first_significant(s));
    add_zero_coding(tally, block.orient, near, members, bit);
    if (!found.any()) return;
    add_signs(tally, block, s, near, found);
    add_fraction(tally, count_fraction, block, s, p, found);
  });
}

template <class Group>
SHAMISA_OP void refinement_pass(Group& group, const BlockWords& block, int p, int* count) {
  tally_stripes<count_refined>(group, block.stripes, count, [=](int s, auto& tally) {
    const Quad significant = block.at(s, slot_significant);
    if (!significant.any()) return;
    const Quad refined = block.at(s, slot_refined), bit = block.at(s, p);
    const Quad known = significant | (block.at(s, slot_members) & bit);
    const Quad up = known.above(block.last_known(s, p)), down = known.below(block.first_known(s, p));
    const Quad column = known | up | down, near = column.left() | column.right() | up | down;
    add_pair(tally, 0, significant & ~refined & ~near, bit);
    add_pair(tally, 2, significant & ~refined & near, bit);
    add_pair(tally, 4, refined, bit);
    const Quad half = p >= 1 ? block.at(s, p - 1) : Quad::zero(), quarter = p >= 2 ? block.at(s, p - 2) : Quad::zero();
    const Quad more = significant & bit & (half | quarter), less = significant & ~bit & ~(half & quarter);
    tally.add(count_up, more);
    tally.add(count_down, less);
    add_fraction(tally, count_fraction_up, block, s, p, more);
    add_fraction(tally, count_fraction_down, block, s, p, less);
  });
}

template <class Group>
SHAMISA_OP void cleanup_pass(Group& group, const BlockWords& block, int p, int* count) {
  tally_stripes<count_found>(group, block.stripes, count, [=](int s, auto& tally) {
    const Quad significant = block.at(s, slot_significant), visited = block.at(s, slot_members), bit = block.at(s, p);
    const Quad members = block.at(s, slot_inside) & ~significant & ~visited;
    if (!members.any()) return;
    const Quad known = significant | (visited & bit), found = members & bit;
    // every sample of the stripe before has been visited: known there is all that is significant
    const uint64_t previous = s > 0 ? block.slot(s - 1, slot_significant)[3] | block.slot(s - 1, p)[3] : 0;
    const uint64_t next = block.first_known(s, p);
    const Neighbours near(known, found, previous, next);

    // a column of four members that see nothing significant codes "any bit?" and the place of the first one
    const Quad all = known | found, up = known.above(previous), down = known.below(next), beside = all | all.above(previous) | all.below(next);
    const Quad blank = members & ~(beside.left() | (known | up | down).right() | up | down);
    alignas(32) uint64_t b[4], f[4];
    blank.store(b);
    found.store(f);
    const uint64_t run = b[0] & b[1] & b[2] & b[3];
    Quad coded = members;
    if (run) {
      const uint64_t seen1 = f[0], seen2 = seen1 | f[1], seen3 = seen2 | f[2];
      alignas(32) const uint64_t one[4] = {run & (seen3 | f[3]), 0, 0, 0}, visit[4] = {run, 0, 0, 0};
      alignas(32) const uint64_t skipped[4] = {run, run & ~seen1, run & ~seen2, run & ~seen3};
      tally.add(count_run, Quad::load(one));
      tally.add(count_run + 1, Quad::load(visit));
      coded = members & ~Quad::load(skipped);
    }
    if (coded.any()) add_zero_coding(tally, block.orient, near, coded, bit);
    if (!found.any()) return;
    add_signs(tally, block, s, near, found);
    add_fraction(tally, count_fraction, block, s, p, found);
  });
}

}  // namespace jpeg2000_detail

SHAMISA_END
