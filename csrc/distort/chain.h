// The interpreter: one image through its chain of distortions, written once for every team.
#pragma once

#include "batch.h"
#include "catalogue.h"
#include "filter.h"
#include "jpeg.h"
#include "jpeg2000.h"
#include "noise.h"
#include "point.h"
#include "spatial.h"

SHAMISA_BEGIN

// ---- the op codes: two switches, in the order of the table -----------------------------------------------------------
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

// One stage: image is changed in place, or written to other and the two exchanged.
template <class Team>
SHAMISA_OP void apply(Team& team, int opcode, Image& image, Image& other, Scratch scratch, float value, Key key) {
  switch (opcode) {
    case op_gaussian_blur: gaussian_blur(team, image, scratch, value); break;
    case op_lens_blur: lens_blur(team, image, scratch, value); break;
    case op_motion_blur: motion_blur(team, image, scratch, value, key); break;
    case op_color_diffusion: color_diffusion(team, image, scratch, value); break;
    case op_color_shift: color_shift(team, image, scratch, value, key); break;
    case op_color_saturation_hsv: color_saturation_hsv(team, image, value); break;
    case op_color_saturation_lab: color_saturation_lab(team, image, value); break;
    case op_jpeg2000: jpeg2000(team, image, scratch, value); break;
    case op_jpeg: jpeg(team, image, scratch, value); break;
    case op_white_noise: white_noise(team, image, value, key); break;
    case op_color_noise: color_noise(team, image, value, key); break;
    case op_impulse_noise: impulse_noise(team, image, value, key); break;
    case op_multiplicative_noise: multiplicative_noise(team, image, value, key); break;
    case op_brighten: brighten(team, image, value); break;
    case op_darken: darken(team, image, value); break;
    case op_mean_shift_down:
    case op_mean_shift_up: mean_shift(team, image, value); break;
    case op_jitter: jitter(team, image, scratch, value, key); break;
    case op_non_eccentricity_patch: non_eccentricity_patch(team, image, value, key); break;
    case op_pixelate:
      pixelate(team, image, other, scratch, value);
      swap(image, other);
      break;
    case op_quantization: quantization(team, image, value); break;
    case op_color_block: color_block(team, image, value, key); break;
    case op_high_sharpen: high_sharpen(team, image, scratch, value); break;
    case op_linear_contrast_down:
    case op_linear_contrast_up: linear_contrast(team, image, value); break;
    case op_nonlinear_contrast: nonlinear_contrast(team, image, value); break;
  }
  team.used = 0;
}

// f(tag) with the tag of core/image.h
template <class F>
SHAMISA_HD void with_type(DType type, F f) {
  switch (type) {
    case DType::u8: return f(U8{});
    case DType::f16: return f(F16{});
    case DType::bf16: return f(BF16{});
    case DType::f32: return f(F32{});
    case DType::f64: return f(F64{});
  }
}

// ---- entry, stages, exit ---------------------------------------------------------------------------------------------
template <class Team>
SHAMISA_OP void load(Team& team, const Batch& batch, int64_t s, Image image) {
  with_type(batch.source_type, [&](auto type) {
    typedef typename decltype(type)::Storage T;
    const int64_t* stride = batch.source_stride;
    for (int c = 0; c < 3; ++c) {
      const T* from = (const T*)batch.source + s * stride[0] + c * stride[1];
      float* to = image.plane(c);
      const int W = image.W;
      const int64_t down = stride[2], right = stride[3];
      if (right == 1 && down == W)
        team.each(image.pixels(), [=](int i) { to[i] = clamp01(type.read(from[i])); });
      else
        team.grid(image.H, W, [=](int y, int x) { to[y * W + x] = clamp01(type.read(from[y * down + x * right])); });
    }
  });
}

template <class Team>
SHAMISA_OP void store(Team& team, const Batch& batch, int64_t n, Image image) {
  with_type(batch.out_type, [&](auto type) {
    typedef typename decltype(type)::Storage T;
    const int pixels = image.pixels();
    T* out = (T*)batch.out + n * 3 * pixels;
    for (int c = 0; c < 3; ++c) {
      const float* from = image.plane(c);
      T* to = batch.channels_last ? out + c : out + (int64_t)c * pixels;
      const int step = batch.channels_last ? 3 : 1;
      const float mean = batch.mean[c], std = batch.std[c];
      if (batch.normalize && step == 1)
        team.each(pixels, [=](int i) { to[i] = type.write((from[i] - mean) / std); });
      else if (batch.normalize)
        team.each(pixels, [=](int i) { to[(int64_t)i * 3] = type.write((from[i] - mean) / std); });
      else if (step == 1)
        team.each(pixels, [=](int i) { to[i] = type.write(from[i]); });
      else
        team.each(pixels, [=](int i) { to[(int64_t)i * 3] = type.write(from[i]); });
    }
  });
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
template <class Team>
SHAMISA_OP void run_chain(Team& team, const Batch& batch, int64_t n, unsigned char* memory) {
  const int H = batch.H, W = batch.W, D = batch.D;
  Scratch scratch{memory};
  Image image{scratch.take<float>(3 * (int64_t)H * W), H, W};
  Image other{scratch.take<float>(3 * (int64_t)H * W), H, W};
  const int64_t s = batch.index[n];
  if (s >= 0 && s < batch.S)
    load(team, batch, s, image);
  else
    team.each(image.samples(), [=](int i) { image.data[i] = 0.f; });
  for (int d = 0; d < D; ++d) {
    const int64_t code = batch.opcode[n * D + d];
    if (code < 0 || code >= opcode_count) continue;
    const Row row = row_of((int)code);
    if (min_of(H, W) < row.min_size) continue;
    apply(team, (int)code, image, other, scratch, parameter(row, batch.value[n * D + d]), (Key)batch.key[n * D + d]);
  }
  store(team, batch, n, image);
}

SHAMISA_END
