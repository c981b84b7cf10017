// Statistics of the coding passes of JPEG 2000: the words of shamisa/reference/jpeg2000_passes.py (its docstring explains the
// idea), in units of rows (see jpeg2000_units.h; the scan goes in stripes of four rows).
#pragma once

#include "jpeg2000_units.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

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
  count_zero = 0,                   // 9 pairs, contexts 0..8
  count_sign = 18,                  // 5 pairs, contexts 9..13
  count_fraction = 28,              // 6, of the samples found
  count_run = 28 + fraction_count,  // 1 pair, context 17
  count_found = 36,                 // counters of a significance (34) or cleanup pass
  count_up = 6,                     // refinement: 3 pairs, contexts 14..16, then samples whose error grows less
  count_down = 7,                   //
  count_fraction_up = 8,
  count_fraction_down = 14,  // 6 each
  count_refined = 20
};

struct BlockWords {
  uint64_t* words;  // [stripes, slot_count, 4]
  int stripes, orient;

  template <class U>
  SHAMISA_HD int units() const {
    return stripes * (4 / U::rows);
  }
  SHAMISA_HD uint64_t* row(int r, int slot) const { return words + (r / 4 * slot_count + slot) * 4 + r % 4; }
  template <class U>
  SHAMISA_HD U at(int u, int slot) const {
    return U::load(row(u * U::rows, slot));
  }
  template <class U>
  SHAMISA_HD void put(int u, int slot, U value) const {
    value.store(row(u * U::rows, slot));
  }
  // one row, nothing outside the block: significant before the plane; after its significance pass; after the plane
  SHAMISA_HD bool outside(int r) const { return r < 0 || r >= 4 * stripes; }
  SHAMISA_HD uint64_t word(int r, int slot) const { return outside(r) ? 0 : *row(r, slot); }
  SHAMISA_HD uint64_t known(int r, int p) const {
    return outside(r) ? 0 : *row(r, slot_significant) | (*row(r, slot_members) & *row(r, p));
  }
  SHAMISA_HD uint64_t final(int r, int p) const { return outside(r) ? 0 : *row(r, slot_significant) | *row(r, p); }
};

// The rows before and after a unit as the scan sees them: a row of its own stripe is visited before the unit in the columns on
// the left, and after it in those on the right.
struct Around {
  uint64_t previous, previous_right, next, next_left;
};
template <class U>
SHAMISA_HD Around around_significance(const BlockWords& block, int u, int p) {
  const int first = u * U::rows - 1, last = (u + 1) * U::rows;
  const uint64_t previous = block.known(first, p), next = block.word(last, slot_significant);
  return {previous, last % 4 == U::rows % 4 ? previous : block.word(first, slot_significant), next,
          last % 4 == 0 ? next : block.known(last, p)};
}
template <class U>
SHAMISA_HD Around around_cleanup(const BlockWords& block, int u, int p) {
  const int first = u * U::rows - 1, last = (u + 1) * U::rows;
  const uint64_t previous = block.final(first, p), next = block.known(last, p);
  return {previous, last % 4 == U::rows % 4 ? previous : block.known(first, p), next,
          last % 4 == 0 ? next : block.final(last, p)};
}

// The eight neighbours of every sample of a unit: significance known when the scan arrives. `before` is significant since
// earlier passes, `found` becomes so in this one.
template <class U>
struct Neighbours {
  U left, right, up, down, up_left, up_right, down_left, down_right;

  SHAMISA_HD Neighbours(U before, U found, const Around& around) {
    const U known = before | found;
    left = known.left();
    right = before.right();
    up = known.above(around.previous);
    down = before.below(around.next);
    up_left = up.left();
    up_right = before.above(around.previous_right).right();
    down_left = known.below(around.next_left).left();
    down_right = down.right();
  }
  SHAMISA_HD U any() const { return left | right | up | down | up_left | up_right | down_left | down_right; }
};

// Members of the significance pass in one unit: the least solution of "near a significant sample, or after a found member".
template <class U>
SHAMISA_HD U propagate(U significant, U bit, U free, const Around& around) {
  U members = Neighbours<U>(significant, U::zero(), around).any() & free, found = members & bit;
  while (found.any()) {
    const U above = found.above(0);
    const U more = (((found | above | found.below(0)).left() | above) & free) | members, fresh = more & bit & ~found;
    members = more;
    if (!fresh.any()) break;
    found = found | fresh;
  }
  return members;
}
template <class U>
SHAMISA_HD U propagate(const BlockWords& block, int u, int p) {
  const U significant = block.at<U>(u, slot_significant), free = block.at<U>(u, slot_inside) & ~significant;
  return propagate(significant, block.at<U>(u, p), free, around_significance<U>(block, u, p));
}

// Members of the significance pass of plane p into slot_members, which holds zeros or members of another plane.
#if !defined(__CUDACC__)
SHAMISA_HD void find_members(ThreadTeam&, BlockWords block, int p) {
  // a stripe depends on the one before it, and on none after
  for (int u = 0; u < block.stripes; ++u) block.put(u, slot_members, propagate<Quad>(block, u, p));
}
#endif
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)
SHAMISA_DEVICE void find_members(WarpTeam& warp, BlockWords block, int p) {
  const int units = block.units<Word>();
  Word members[2] = {Word::zero(), Word::zero()};
  warp.each(units, [=](int u) { block.put(u, slot_members, Word::zero()); });
  for (int changed = 1; changed;) {  // all rows at once, until nothing changes
    changed = 0;
    for (int i = 0; i < 2; ++i) {
      const int u = warp.lane() + 32 * i;
      if (u >= units) break;
      const Word grown = propagate<Word>(block, u, p);
      changed |= grown.v != members[i].v;
      members[i] = grown;
    }
    changed = __any_sync(0xffffffffu, changed);
    __syncwarp();
    for (int i = 0; i < 2; ++i)
      if (warp.lane() + 32 * i < units) block.put(warp.lane() + 32 * i, slot_members, members[i]);
    __syncwarp();
  }
}
#endif

// ---- what a pass counts in one unit ----------------------------------------------------------------------------------
template <class U, class T>
SHAMISA_HD void add_fraction(T& tally, int first, const BlockWords& block, int u, int p, U members) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 1; j <= fraction_count; ++j)
    if (p >= j) tally.add(first + j - 1, members & block.at<U>(u, p - j));
}

// contexts 0..8 by the numbers of significant neighbours beside (h), above and below (v), diagonally (d)
template <class U, class T>
SHAMISA_HD void add_zero_coding(T& tally, int orient, const Neighbours<U>& near, U members, U bit) {
  const U h1 = near.left ^ near.right, h2 = near.left & near.right, v1 = near.up ^ near.down, v2 = near.up & near.down;
  const U top1 = near.up_left ^ near.up_right, top2 = near.up_left & near.up_right;
  const U low1 = near.down_left ^ near.down_right, low2 = near.down_left & near.down_right;
  const U some = top1 | top2 | low1 | low2, many = top2 | low2 | (top1 & low1);
  const U h0 = ~(h1 | h2), v0 = ~(v1 | v2), straight = h0 & v0 & members;
  if (orient == HH) {
    const U d3 = (top2 & (low1 | low2)) | (low2 & (top1 | top2)), d2 = many & ~d3, d1 = some & ~many;
    const U one = ((h1 & v0) | (h0 & v1)) & members, more = members & ~straight & ~one;
    tally.add_pair(count_zero, straight & ~some, bit);
    tally.add_pair(count_zero + 2, one & ~some, bit);
    tally.add_pair(count_zero + 4, more & ~some, bit);
    tally.add_pair(count_zero + 6, straight & d1, bit);
    tally.add_pair(count_zero + 8, one & d1, bit);
    tally.add_pair(count_zero + 10, more & d1, bit);
    tally.add_pair(count_zero + 12, straight & d2, bit);
    tally.add_pair(count_zero + 14, d2 & members & ~straight, bit);
    tally.add_pair(count_zero + 16, d3 & members, bit);
  } else {
    const bool swap = orient == HL;
    const U a0 = swap ? v0 : h0, a1 = swap ? v1 : h1, a2 = swap ? v2 : h2;
    const U b0 = swap ? h0 : v0, b1 = swap ? h1 : v1, b2 = swap ? h2 : v2;
    const U only = a1 & b0 & members, beside = a0 & members;
    tally.add_pair(count_zero, straight & ~some, bit);
    tally.add_pair(count_zero + 2, straight & some & ~many, bit);
    tally.add_pair(count_zero + 4, straight & many, bit);
    tally.add_pair(count_zero + 6, beside & b1, bit);
    tally.add_pair(count_zero + 8, beside & b2, bit);
    tally.add_pair(count_zero + 10, only & ~some, bit);
    tally.add_pair(count_zero + 12, only & some, bit);
    tally.add_pair(count_zero + 14, a1 & ~b0 & members, bit);
    tally.add_pair(count_zero + 16, a2 & members, bit);
  }
}

// contexts 9..13 by the signs beside and above; the symbol is whether the sign differs from the predicted one
template <class U, class T>
SHAMISA_HD void add_signs(T& tally, const BlockWords& block, int u, const Neighbours<U>& near, U found) {
  const U negative = block.at<U>(u, slot_negative);
  const U left = negative.left(), right = negative.right();
  const U up = negative.above(block.word(u * U::rows - 1, slot_negative));
  const U down = negative.below(block.word((u + 1) * U::rows, slot_negative));
  const U h_plus = (near.left & ~left) | (near.right & ~right), h_minus = (near.left & left) | (near.right & right);
  const U v_plus = (near.up & ~up) | (near.down & ~down), v_minus = (near.up & up) | (near.down & down);
  const U h = h_plus ^ h_minus, v = v_plus ^ v_minus, h_less = h_minus & h, v_less = v_minus & v;
  const U symbol = negative ^ (h_less | (~h & v_less)), differ = h_less ^ v_less, both = h & v & found;
  tally.add_pair(count_sign, found & ~h & ~v, symbol);
  tally.add_pair(count_sign + 2, found & ~h & v, symbol);
  tally.add_pair(count_sign + 4, both & differ, symbol);
  tally.add_pair(count_sign + 6, found & h & ~v, symbol);
  tally.add_pair(count_sign + 8, both & ~differ, symbol);
}

// What the zero and sign coding of a unit look at. Known: significant when the pass begins.
template <class U>
struct View {
  U bit, known, members, found;
  Around around;
  Neighbours<U> near;
  SHAMISA_HD View(U bit_, U known_, U members_, const Around& around_)
      : bit(bit_),
        known(known_),
        members(members_),
        found(members_ & bit_),
        around(around_),
        near(known_, members_ & bit_, around_) {}
};

template <class U>
struct FindingPass {  // significance and cleanup
  BlockWords block;
  int p;
  template <class T>
  SHAMISA_HD void second(int u, const View<U>& v, T& tally) const {
    add_signs(tally, block, u, v.near, v.found);
    add_fraction(tally, count_fraction, block, u, p, v.found);
  }
};

template <class U>
struct SignificancePass : FindingPass<U> {
  using FindingPass<U>::block;
  using FindingPass<U>::p;
  SHAMISA_HD SignificancePass(BlockWords block_, int p_) : FindingPass<U>{block_, p_} {}
  SHAMISA_HD U members(int u) const { return block.template at<U>(u, slot_members); }
  SHAMISA_HD bool visits(int u) const { return members(u).any(); }
  SHAMISA_HD bool finds(int u) const { return (members(u) & block.template at<U>(u, p)).any(); }
  SHAMISA_HD View<U> view(int u) const {
    return {block.template at<U>(u, p), block.template at<U>(u, slot_significant), members(u),
            around_significance<U>(block, u, p)};
  }
  template <class T>
  SHAMISA_HD void first(int, const View<U>& v, T& tally) const {
    add_zero_coding(tally, block.orient, v.near, v.members, v.bit);
  }
};

template <class Group>
SHAMISA_STEP void significance_pass(Group& group, BlockWords block, int p, int* count) {
  typedef Unit<Group> U;
  tally_parts<count_run>(group, block.units<U>(), count, SignificancePass<U>(block, p));
}

template <class Group>
SHAMISA_STEP void refinement_pass(Group& group, BlockWords block, int p, int* count) {
  typedef Unit<Group> U;
  tally_units<count_refined>(group, block.units<U>(), count, [=](int u, auto& tally) {
    const U significant = block.at<U>(u, slot_significant);
    if (!significant.any()) return;
    const U refined = block.at<U>(u, slot_refined), bit = block.at<U>(u, p);
    const U known = significant | (block.at<U>(u, slot_members) & bit);
    const U up = known.above(block.known(u * U::rows - 1, p)), down = known.below(block.known((u + 1) * U::rows, p));
    const U column = known | up | down, near = column.left() | column.right() | up | down;
    tally.add_pair(0, significant & ~refined & ~near, bit);
    tally.add_pair(2, significant & ~refined & near, bit);
    tally.add_pair(4, refined, bit);
    const U half = p >= 1 ? block.at<U>(u, p - 1) : U::zero(), quarter = p >= 2 ? block.at<U>(u, p - 2) : U::zero();
    const U more = significant & bit & (half | quarter), less = significant & ~bit & ~(half & quarter);
    tally.add(count_up, more);
    tally.add(count_down, less);
    add_fraction(tally, count_fraction_up, block, u, p, more);
    add_fraction(tally, count_fraction_down, block, u, p, less);
  });
}

// Members of the cleanup pass that see nothing significant when the scan arrives at their column.
template <class U>
SHAMISA_HD U blank_members(U members, U known, U found, const Around& around) {
  // columns on the left have been visited, in this stripe to the bottom; the sample's own column has not
  const U all = known | found, beside = all | all.above(around.previous) | all.below(around.next_left);
  const U up = known.above(around.previous_right), down = known.below(around.next);
  return members & ~(beside.left() | (known | up | down).right() | up | down);
}

// Four blank members in a column of a stripe are coded as a run: "any bit?" and the place of the first one. The samples up to
// that one are skipped by the zero coding.
template <class U>
struct Runs;
#if !defined(__CUDACC__)
template <>
struct Runs<Quad> {
  Quad visited, ones, skipped;  // visited, ones: in the first row
  SHAMISA_HD Runs(const BlockWords&, int, int, Quad blank, Quad found) {
    alignas(32) uint64_t b[4], f[4];
    blank.store(b);
    found.store(f);
    const uint64_t run = b[0] & b[1] & b[2] & b[3], seen2 = f[0] | f[1], seen3 = seen2 | f[2];
    alignas(32) const uint64_t v[4] = {run, 0, 0, 0}, o[4] = {run & (seen3 | f[3]), 0, 0, 0};
    alignas(32) const uint64_t s[4] = {run, run & ~f[0], run & ~seen2, run & ~seen3};
    visited = Quad::load(v), ones = Quad::load(o), skipped = Quad::load(s);
  }
};
#endif
template <>
struct Runs<Word> {
  Word visited, ones, skipped;
  SHAMISA_HD Runs(const BlockWords& block, int r, int p, Word, Word) {  // slot_refined holds the blank members
    uint64_t run = ~(uint64_t)0, before = 0, all = 0;
    for (int i = r / 4 * 4; i < r / 4 * 4 + 4; ++i) {
      run &= *block.row(i, slot_refined);
      if (i == r) before = all;
      all |= block.final(i, p) & ~block.known(i, p);
    }
    visited = {r % 4 == 0 ? run : 0}, ones = {visited.v & all}, skipped = {run & ~before};
  }
};

template <class U>
struct CleanupPass : FindingPass<U> {
  using FindingPass<U>::block;
  using FindingPass<U>::p;
  SHAMISA_HD CleanupPass(BlockWords block_, int p_) : FindingPass<U>{block_, p_} {}
  SHAMISA_HD U members(int u) const {
    return block.template at<U>(u, slot_inside) & ~block.template at<U>(u, slot_significant) &
           ~block.template at<U>(u, slot_members);
  }
  SHAMISA_HD bool visits(int u) const { return members(u).any(); }
  SHAMISA_HD bool finds(int u) const { return (members(u) & block.template at<U>(u, p)).any(); }
  SHAMISA_HD View<U> view(int u) const {
    const U bit = block.template at<U>(u, p);
    return {bit, block.template at<U>(u, slot_significant) | (block.template at<U>(u, slot_members) & bit), members(u),
            around_cleanup<U>(block, u, p)};
  }
  SHAMISA_HD U blank(const View<U>& v) const { return blank_members(v.members, v.known, v.found, v.around); }
  template <class T>
  SHAMISA_HD void first(int u, const View<U>& v, T& tally) const {
    const Runs<U> runs(block, u, p, U::rows == 1 ? U::zero() : blank(v), v.found);
    tally.add_pair(count_run, runs.visited, runs.ones);
    const U coded = v.members & ~runs.skipped;
    if (coded.any()) add_zero_coding(tally, block.orient, v.near, coded, v.bit);
  }
};

template <class Group>
SHAMISA_STEP void cleanup_pass(Group& group, BlockWords block, int p, int* count) {
  typedef Unit<Group> U;
  const CleanupPass<U> pass(block, p);
  if (U::rows == 1)  // the rows of a stripe must know of each other; nobody needs slot_refined any more
    group.each(block.units<U>(), [=](int u) { block.put(u, slot_refined, pass.blank(pass.view(u))); });
  tally_parts<count_found>(group, block.units<U>(), count, pass);
}

}  // namespace jpeg2000_detail

SHAMISA_END
