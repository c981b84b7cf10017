// The chain of distortions on the CPU: a team is the calling thread. Compiled once per x86-64 level; see levels.h.
#include "../distort/chain.h"
#include "levels.h"

SHAMISA_BEGIN
namespace {

int64_t distort_bytes(int H, int W, const bool* present) {
  return team_bytes(H, W, [=](int code) { return present[code]; });
}

void distort(const Batch& batch, int64_t n, unsigned char* memory) {
  alignas(64) unsigned char fast[small_bytes];
  ThreadTeam team(fast);
  run_chain(team, batch, n, memory);
}

void apply_one(int opcode, float* data, int H, int W, float value, uint64_t key, unsigned char* memory) {
  const int64_t index = 0, code = opcode, stage_key = (int64_t)key;
  Batch batch{};
  batch.source = batch.out = data, batch.source_type = batch.out_type = DType::f32;
  batch.source_stride[1] = (int64_t)H * W, batch.source_stride[2] = W, batch.source_stride[3] = 1;
  batch.index = &index, batch.opcode = &code, batch.value = &value, batch.key = &stage_key;
  batch.S = batch.N = batch.D = 1, batch.H = H, batch.W = W;
  distort(batch, 0, memory);
}

void philox_words(uint64_t key, const uint32_t* counter, uint32_t* words) {
  const Words w = philox(key, counter[0], counter[1], counter[2], counter[3]);
  words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
}

}  // namespace
SHAMISA_END

namespace shamisa {
const DistortKernels SHAMISA_PART(distort) = {distort_bytes, distort, apply_one, philox_words};
}  // namespace shamisa
