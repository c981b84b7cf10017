// Units of rows of a JPEG 2000 code block and counters over them: on the CPU the four rows of a stripe, on CUDA single rows,
// two for each lane of a warp.
#pragma once

#include "../core/team.h"

SHAMISA_BEGIN

namespace jpeg2000_detail {

SHAMISA_HD int popcount(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// ---- units of rows, a word of 64 samples each ------------------------------------------------------------------------
// left(), right(), above(word), below(word): what every sample sees there; the word is the row beyond the unit.

// one row
struct Word {
  static constexpr int rows = 1;
  uint64_t v;
  SHAMISA_HD static Word load(const uint64_t* p) { return {*p}; }
  SHAMISA_HD void store(uint64_t* p) const { *p = v; }
  SHAMISA_HD static Word zero() { return {0}; }
  SHAMISA_HD friend Word operator&(Word a, Word b) { return {a.v & b.v}; }
  SHAMISA_HD friend Word operator|(Word a, Word b) { return {a.v | b.v}; }
  SHAMISA_HD friend Word operator^(Word a, Word b) { return {a.v ^ b.v}; }
  SHAMISA_HD friend Word operator~(Word a) { return {~a.v}; }
  SHAMISA_HD Word left() const { return {v << 1}; }
  SHAMISA_HD Word right() const { return {v >> 1}; }
  SHAMISA_HD Word above(uint64_t word) const { return {word}; }
  SHAMISA_HD Word below(uint64_t word) const { return {word}; }
  SHAMISA_HD bool any() const { return v != 0; }
  SHAMISA_HD unsigned count() const { return (unsigned)popcount(v); }
};

#if !defined(__CUDACC__)
// four rows
struct Quad {
  static constexpr int rows = 4;
#if defined(__GNUC__)
  static constexpr int parts = SHAMISA_VECTOR == 8 ? 1 : 2;
  typedef uint64_t V __attribute__((vector_size(32 / parts)));
#else
  static constexpr int parts = 4;
  typedef uint64_t V;
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
  SHAMISA_HD unsigned count() const {
    alignas(32) uint64_t word[4];
    store(word);
    return (unsigned)(popcount(word[0]) + popcount(word[1]) + popcount(word[2]) + popcount(word[3]));
  }
#if !defined(__GNUC__)
  SHAMISA_HD bool any() const { return (v[0] | v[1] | v[2] | v[3]) != 0; }
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
#endif

template <class Group>
struct UnitOf {
  typedef Word type;
};
#if !defined(__CUDACC__)
template <>
struct UnitOf<ThreadTeam> {
  typedef Quad type;
};
#endif
template <class Group>
using Unit = typename UnitOf<Group>::type;

// ---- counters over a block -------------------------------------------------------------------------------------------
// n counters (even) of set bits
template <class U, int n>
struct Tally;
// of a lane of a warp, which has at most two rows: at most 128 each, four to a word
template <int n>
struct Tally<Word, n> {
  static constexpr int words = (n + 3) / 4;
  unsigned cell[words];
  SHAMISA_HD Tally() {
    for (int i = 0; i < words; ++i) cell[i] = 0;
  }
  SHAMISA_HD void add(int i, Word members) { cell[i / 4] += members.count() << (i % 4 * 8); }
  SHAMISA_HD void add_pair(int i, Word members, Word ones) {
    cell[i / 4] += ((members & ones).count() + (members.count() << 8)) << (i % 4 * 8);
  }
  SHAMISA_HD unsigned even(int k) const { return cell[k] & 0x00ff00ffu; }  // counters 4 k and 4 k + 2 with room for sums
  SHAMISA_HD unsigned odd(int k) const { return cell[k] >> 8 & 0x00ff00ffu; }
};
#if defined(__CUDACC__)
#elif !defined(__AVX2__)
// of a block, at most 4096 each: two to a word, so that a pair (ones, visited) is summed at once
template <int n>
struct Tally<Quad, n> {
  unsigned cell[n / 2];
  SHAMISA_HD Tally() {
    for (int i = 0; i < n / 2; ++i) cell[i] = 0;
  }
  SHAMISA_HD void add(int i, Quad members) { cell[i / 2] += members.count() << (i % 2 * 16); }
  SHAMISA_HD void add_pair(int i, Quad members, Quad ones) {
    cell[i / 2] += (members & ones).count() + (members.count() << 16);
  }
  SHAMISA_HD int total(int i) const { return (int)(cell[i / 2] >> (i % 2 * 16) & 0xffff); }
};
#else
// of a block as bytes (at most 8 bits of 16 stripes in each), summed at the end
template <int n>
struct Tally<Quad, n> {
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
  SHAMISA_HD void add_pair(int i, Quad members, Quad ones) {
    add(i, members & ones);
    add(i + 1, members);
  }
  SHAMISA_HD int total(int i) const {
    const __m256i four = _mm256_sad_epu8(cell[i], _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2);
  }
};
#endif

// f(unit, tally) for every unit; then count[0..n) holds the totals
#if !defined(__CUDACC__)
template <int n, class F>
SHAMISA_HD void tally_units(ThreadTeam&, int units, int* count, F f) {
  Tally<Quad, n> tally;
  for (int u = 0; u < units; ++u) f(u, tally);
  for (int i = 0; i < n; ++i) count[i] = tally.total(i);
}
#endif
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)
template <int n>
SHAMISA_DEVICE void put_totals(WarpTeam& warp, const Tally<Word, n>& tally, int* count) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int k = 0; k < tally.words; ++k) {
    const unsigned even = warp.total(tally.even(k)), odd = warp.total(tally.odd(k));
    const unsigned total[4] = {even & 0xffffu, odd & 0xffffu, even >> 16, odd >> 16};
    for (int i = 0; i < 4; ++i)
      if (4 * k + i < n && warp.lane() == 0) count[4 * k + i] = (int)total[i];
  }
  __syncwarp();
}
template <int n, class F>
SHAMISA_DEVICE void tally_units(WarpTeam& warp, int units, int* count, F f) {
  Tally<Word, n> tally;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int u = warp.lane(); u < units; u += 32) f(u, tally);
  put_totals(warp, tally, count);
}
#endif

// The same for a Pass of two parts that look at one view: first(unit, view, tally) where visits(unit), and
// second(unit, view, tally) where finds(unit). A warp takes the parts one after the other, because both at once need more
// registers than there are.
#if !defined(__CUDACC__)
template <int n, class Pass>
SHAMISA_HD void tally_parts(ThreadTeam& team, int units, int* count, Pass pass) {
  tally_units<n>(team, units, count, [=](int u, auto& tally) {
    if (!pass.visits(u)) return;
    const auto view = pass.view(u);
    pass.first(u, view, tally);
    if (view.found.any()) pass.second(u, view, tally);
  });
}
#endif
#if defined(__CUDACC__) || defined(SHAMISA_EMULATE)
template <int n, class Pass>
SHAMISA_DEVICE void tally_parts(WarpTeam& warp, int units, int* count, Pass pass) {
  Tally<Word, n> tally;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int u = warp.lane(); u < units; u += 32)
    if (pass.visits(u)) pass.first(u, pass.view(u), tally);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int u = warp.lane(); u < units; u += 32)
    if (pass.finds(u)) pass.second(u, pass.view(u), tally);
  put_totals(warp, tally, count);
}
#endif

}  // namespace jpeg2000_detail

SHAMISA_END
