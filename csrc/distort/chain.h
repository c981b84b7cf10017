// The interpreter: one image through its chain of distortions, written once for every team.
#pragma once

#include "filter.h"
#include "jpeg.h"
#include "jpeg2000.h"
#include "pointwise.h"
#include "spatial.h"

SHAMISA_BEGIN

// ---- the op codes: two switches, in the order of the table (the pointwise ones: pointwise.h) -------------------------
// Bytes of Scratch that an op uses, for the launcher, which allocates the largest of the ops it may meet.
SHAMISA_HD int64_t op_scratch(int opcode, int H, int W) {
  switch (opcode) {
    case op_gaussian_blur: return gaussian_blur_scratch(H, W);
    case op_lens_blur: return lens_blur_scratch(H, W);
    case op_motion_blur: return motion_blur_scratch(H, W);
    case op_color_diffusion: return color_diffusion_scratch(H, W);
    case op_color_shift: return color_shift_scratch(H, W);
    case op_jpeg2000: return jpeg2000_scratch(H, W);
    case op_jpeg: return jpeg_scratch(H, W);
    case op_jitter: return jitter_scratch(H, W);
    case op_pixelate: return pixelate_scratch(H, W);
    case op_high_sharpen: return high_sharpen_scratch(H, W);
    default: return 0;
  }
}

SHAMISA_HD void swap(Image& a, Image& b) {
  const Image t = a;
  a = b;
  b = t;
}

// One stage that is not pointwise: image is changed in place, or written to other and the two exchanged.
template <class Team>
SHAMISA_OP void apply(Team& team, int opcode, Image& image, Image& other, Scratch scratch, float value, Key key) {
  switch (opcode) {
    case op_gaussian_blur: gaussian_blur(team, image, scratch, value); break;
    case op_lens_blur: lens_blur(team, image, scratch, value); break;
    case op_motion_blur: motion_blur(team, image, scratch, value, key); break;
    case op_color_diffusion: color_diffusion(team, image, scratch, value); break;
    case op_color_shift: color_shift(team, image, scratch, value, key); break;
    case op_jpeg2000: jpeg2000(team, image, scratch, value); break;
    case op_jpeg: jpeg(team, image, scratch, value); break;
    case op_jitter: jitter(team, image, scratch, value, key); break;
    case op_non_eccentricity_patch: non_eccentricity_patch(team, image, value, key); break;
    case op_pixelate:
      pixelate(team, image, other, scratch, value);
      swap(image, other);
      break;
    case op_quantization: quantization(team, image, value); break;
    case op_color_block: color_block(team, image, value, key); break;
    case op_high_sharpen: high_sharpen(team, image, scratch, value); break;
  }
  team.used = 0;
}

// Bytes that one team needs: two images and the scratch of the op that wants most. present(opcode): whether it may occur.
template <class Present>
SHAMISA_HD int64_t team_bytes(int H, int W, Present present) {
  int64_t most = 0;
  for (int code = 0; code < opcode_count; ++code)
    if (present(code)) most = max_of(most, op_scratch(code, H, W));
  return 2 * taken<float>(3 * (int64_t)H * W) + most;
}

// Image n of the batch; memory [team_bytes], aligned to 64. A bad index, an unknown op code and an image too small for a
// distortion are errors on the CPU; where they are found too late for that (CUDA) the image is black, the stage left out.
//
// The chain is taken as runs of pointwise stages (which may be empty) with one other stage between two runs.
template <class Team>
SHAMISA_OP void run_chain(Team& team, const Batch& batch, int64_t n, unsigned char* memory) {
  const int H = batch.H, W = batch.W, D = batch.D;
  Scratch scratch{memory};
  Image image{scratch.take<float>(3 * (int64_t)H * W), H, W};
  Image other{scratch.take<float>(3 * (int64_t)H * W), H, W};
  const int64_t* opcode = batch.opcode + n * D;
  const float* value = batch.value + n * D;
  const int64_t* key = batch.key + n * D;
  const auto absent = [=](int d) {  // not a stage
    return opcode[d] < 0 || opcode[d] >= opcode_count || min_of(H, W) < row_of((int)opcode[d]).min_size;
  };
  const auto pointwise = [=](int d) { return absent(d) || is_pointwise((int)opcode[d]); };
  for (int d = 0, first = 0;; first = d) {
    while (d < D && d - first < longest_run && pointwise(d)) ++d;
    const int count = d - first;
    if (count > 0 || first == 0 || d == D) {
      PointStage* stages = team.template small<PointStage>(longest_run);
      team.each(count, [=](int k) {
        const int i = first + k, code = absent(i) ? -1 : (int)opcode[i];
        stages[k] = point_stage(code, parameter(row_of(code), value[i]), (Key)key[i]);
      });
      run_points(team, image, stages, count, first == 0 ? &batch : nullptr, batch.index[n], d == D ? &batch : nullptr, n);
      team.used = 0;
    }
    if (d == D) return;
    if (pointwise(d)) continue;  // a run that was cut
    apply(team, (int)opcode[d], image, other, scratch, parameter(row_of((int)opcode[d]), value[d]), (Key)key[d]);
    ++d;
  }
}

SHAMISA_END
