// The interpreter: one image through its chain of distortions, written once for every team.
#pragma once

#include "filter.h"
#include "jpeg.h"
#include "jpeg2000.h"
#include "pointwise.h"
#include "spatial.h"

SHAMISA_BEGIN

// ---- the distortions that are not of single pixels (those: pointwise.h): NAME(team), NAME_scratch(H, W) ----------------
// Bytes of Scratch that an op uses, for the launcher, which allocates the largest of the ops it may meet.
SHAMISA_HD int64_t op_scratch(int opcode, int H, int W) {
  switch (opcode) {
#define SHAMISA_CASE(name) \
  case op_##name: return name##_scratch(H, W);
    SHAMISA_IMAGE_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
    default: return 0;
  }
}

// One stage that is not pointwise: of the kept image, the result is there too.
template <class Team>
SHAMISA_STEP void apply(Team& team, int opcode) {
  switch (opcode) {
#define SHAMISA_CASE(name) \
  case op_##name: name(team); break;
    SHAMISA_IMAGE_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
  }
}

// Bytes that one team needs: two images and the scratch of the op that wants most. present(opcode): whether it may occur.
template <class Present>
SHAMISA_HD int64_t team_bytes(int H, int W, Present present) {
  int64_t most = 0;
  for (int code = 0; code < opcode_count; ++code)
    if (present(code)) most = max_of(most, op_scratch(code, H, W));
  return 2 * taken<float>(3 * (int64_t)H * W) + most;
}

SHAMISA_HD bool is_absent(const Batch& batch, int64_t opcode) {  // not a stage
  return opcode < 0 || opcode >= opcode_count || min_of(batch.H, batch.W) < row_of((int)opcode).min_size;
}

// the run from stage chain.first on, which may be empty, and what follows; stages that are none do not begin or end it
SHAMISA_HD void find_run(const Batch& batch, Chain& chain) {
  const int64_t start = chain.run.n * batch.D;
  const int64_t* const opcode = batch.opcode + start;
  chain.run.enter = chain.first == 0;
  while (chain.first < batch.D && is_absent(batch, opcode[chain.first])) ++chain.first;
  const auto pointwise = [=, &batch](int d) { return is_absent(batch, opcode[d]) || is_pointwise((int)opcode[d]); };
  int d = chain.first;
  while (d < batch.D && d - chain.first < longest_run && pointwise(d)) ++d;
  chain.last = d;
  chain.run.image = chain.stage.image;
  chain.run.leave = d == batch.D;
  chain.run.count = d - chain.first;
  while (chain.run.count > 0 && is_absent(batch, opcode[chain.first + chain.run.count - 1])) --chain.run.count;
  chain.opcode = d == batch.D || pointwise(d) ? -1 : (int)opcode[d];
  if (chain.opcode < 0) return;
  chain.stage.value = parameter(row_of(chain.opcode), batch.value[start + d]);
  chain.stage.key = (Key)batch.key[start + d];
}

// Image n of the batch; memory [team_bytes], aligned to 64. A bad index, an unknown op code and an image too small for a
// distortion are errors on the CPU; where they are found too late for that (CUDA) the image is black, the stage left out.
//
// The chain is taken as runs of pointwise stages (which may be empty) with one other stage between two runs.
template <class Team>
SHAMISA_STEP void run_chain(Team& team, const Batch& batch, int64_t n, unsigned char* memory) {
  Chain& chain = team.template kept<chain_place, Chain>();
  PointStage* const stages = team.template small<PointStage>(longest_run);
  const int kept = team.used;
  team.serial([&] {
    const int64_t samples = 3 * (int64_t)batch.H * batch.W;
    Scratch scratch{memory};
    chain.stage.image = {scratch.take<float>(samples), batch.H, batch.W};
    chain.stage.other = {scratch.take<float>(samples), batch.H, batch.W};
    chain.stage.scratch = scratch;
    chain.run.stages = stages;
    chain.run.source = batch.index[n];
    chain.run.n = n;
    chain.first = 0;
    find_run(batch, chain);
  });
  for (;;) {
    if (chain.run.count > 0 || chain.run.enter || chain.run.leave) {
      team.each(chain.run.count, [&](int k) {
        const int64_t i = chain.run.n * batch.D + chain.first + k;
        const int code = is_absent(batch, batch.opcode[i]) ? -1 : (int)batch.opcode[i];
        chain.run.stages[k] = point_stage(code, parameter(row_of(code), batch.value[i]), (Key)batch.key[i]);
      });
      run_points(team, batch);
    }
    if (chain.run.leave) return;
    if (chain.opcode >= 0) apply(team, chain.opcode);
    team.used = kept;
    team.sync();  // everyone has read the chain
    team.serial([&] {
      chain.first = chain.last + (chain.opcode >= 0);
      find_run(batch, chain);
    });
  }
}

SHAMISA_END
