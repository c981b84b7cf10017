// Runs of distortions of single pixels: between two stages of a run a pixel does not leave its registers (CUDA) or a piece of
// the image its place in the first-level cache (CPU). The first run of a chain reads the source, the last one writes the
// output; on the CPU its first and last stage do, where that needs no conversion.
#pragma once

#include "batch.h"
#include "noise.h"
#include "point.h"

SHAMISA_BEGIN

constexpr int longest_run = 64;     // stages; a longer run is cut, which changes no bit
constexpr int piece_pixels = 1024;  // 12 KiB

SHAMISA_HD bool is_pointwise(int opcode) {
  switch (opcode) {
#define SHAMISA_CASE(name) case op_##name:
    SHAMISA_PIXEL_DISTORTIONS(SHAMISA_CASE)
    SHAMISA_RANDOM_PIXEL_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
    return true;
    default: return false;
  }
}

// a stage as its pixels need it
struct PointStage {
  int opcode;  // pointwise, or -1: nothing
  Constants constants;
  Key key;
};

SHAMISA_HD PointStage point_stage(int opcode, float value, Key key) {
  switch (opcode) {
#define SHAMISA_CASE(name) \
  case op_##name: return {opcode, constants_of<op_##name>(value), key};
    SHAMISA_PIXEL_DISTORTIONS(SHAMISA_CASE)
    SHAMISA_RANDOM_PIXEL_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
    default: return {opcode, {value, 0.f}, key};
  }
}

// Pixels on their way through a run. On CUDA one, in registers (an array that a loop could index would live in memory); on the
// CPU some neighbours, each distortion a loop over them from one place to another.
struct Planes {
  float *r, *g, *b;
};
template <bool raw>  // raw: samples of a float source, not yet clamped
struct PixelLoop {
  Planes from, to;   // [count]; the same, or apart
  int first, count;  // number of the first pixel

  template <class F>
  SHAMISA_HD void each(F f) {
    const PixelLoop p = *this;
    SHAMISA_INDEPENDENT
    for (int i = 0; i < p.count; ++i) p.put(i, f(p.pixel(i)));
  }
  template <class F>
  SHAMISA_HD void each_words(Key key, F f) {
    const PixelLoop p = *this;
    words_from((uint32_t)first, count, 0, key, [=](int i, Words w) { p.put(i, f(p.pixel(i), w)); });
  }

 private:
  SHAMISA_HD Rgb pixel(int i) const {
    const Rgb x = {from.r[i], from.g[i], from.b[i]};
    return raw ? Rgb{clamp01(x.r), clamp01(x.g), clamp01(x.b)} : x;
  }
  SHAMISA_HD void put(int i, Rgb x) const {
    to.r[i] = x.r;
    to.g[i] = x.g;
    to.b[i] = x.b;
  }
};
struct PixelRow {
  Planes place;      // of the piece between two stages
  int first, count;  // number of the first pixel
  Planes from, to;   // of the next stage
  bool raw;          // `from` is the source, in which nothing was clamped
};
struct OnePixel {
  Rgb x;
  int first;

  template <class F>
  SHAMISA_HD void each(F f) {
    x = f(x);
  }
  template <class F>
  SHAMISA_HD void each_words(Key key, F f) {
    x = f(x, philox(key, (uint32_t)first));
  }
};

template <class Piece>
SHAMISA_STEP void apply_point(Piece& piece, const PointStage& stage) {
  const Constants c = stage.constants;
  const Key key = stage.key;
  switch (stage.opcode) {
#define SHAMISA_CASE(name) \
  case op_##name: piece.each([=](Rgb x) { return name(x, c); }); break;
    SHAMISA_PIXEL_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
#define SHAMISA_CASE(name) \
  case op_##name: piece.each_words(key, [=](Rgb x, Words w) { return name(x, w, c); }); break;
    SHAMISA_RANDOM_PIXEL_DISTORTIONS(SHAMISA_CASE)
#undef SHAMISA_CASE
    default: piece.each([](Rgb x) { return x; });
  }
}

SHAMISA_STEP void apply_next(PixelRow& piece, const PointStage& stage) {
  if (piece.raw) {
    PixelLoop<true> loop = {piece.from, piece.to, piece.first, piece.count};
    apply_point(loop, stage);
  } else {
    PixelLoop<false> loop = {piece.from, piece.to, piece.first, piece.count};
    apply_point(loop, stage);
  }
  piece.from = piece.to;
  piece.raw = false;
}
SHAMISA_STEP void apply_next(OnePixel& piece, const PointStage& stage) { apply_point(piece, stage); }

// ---- entry and exit --------------------------------------------------------------------------------------------------
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

// n samples, `right` elements apart
template <class Type>
SHAMISA_HD void read_row(Type type, const typename Type::Storage* from, int64_t right, float* to, int n) {
  if (right == 1) {
    SHAMISA_INDEPENDENT
    for (int i = 0; i < n; ++i) to[i] = clamp01(type.read(from[i]));
  } else {
    SHAMISA_INDEPENDENT
    for (int i = 0; i < n; ++i) to[i] = clamp01(type.read(from[i * right]));
  }
}

// three planes of floats, from element `first` on, `next` elements apart
SHAMISA_HD Planes planes_at(float* image, int64_t next, int first) {
  return {image + first, image + next + first, image + 2 * next + first};
}

// From source s of the batch; a source that is not there is black. stages: of the run; the first one reads for itself what is
// float32 without gaps.
SHAMISA_STEP void read_source(PixelRow& piece, const Batch& batch, int64_t s, int stages) {
  const int64_t down = batch.source_stride[2], right = batch.source_stride[3];
  const bool one_row = right == 1 && down == batch.W;  // the rows follow each other
  const bool there = s >= 0 && s < batch.S;
  if (stages > 0 && there && one_row && batch.source_type == DType::f32) {
    piece.from = planes_at((float*)batch.source + s * batch.source_stride[0], batch.source_stride[1], piece.first);
    piece.raw = true;
    return;
  }
  with_type(batch.source_type, [&](auto type) {
    typedef typename decltype(type)::Storage T;
    const T* source = (const T*)batch.source + (there ? s : 0) * batch.source_stride[0];
    int y = one_row ? 0 : piece.first / batch.W, x = one_row ? piece.first : piece.first % batch.W;
    for (int done = 0, n; done < piece.count; done += n, x = 0, ++y) {
      n = one_row ? piece.count : min_of(piece.count - done, batch.W - x);
      const T* from = source + y * down + x * right;
      read_row(type, from, right, piece.place.r + done, n);
      read_row(type, from + batch.source_stride[1], right, piece.place.g + done, n);
      read_row(type, from + 2 * batch.source_stride[1], right, piece.place.b + done, n);
    }
  });
  if (!there) PixelLoop<false>{piece.place, piece.place, 0, piece.count}.each([](Rgb) { return Rgb{0.f, 0.f, 0.f}; });
}
SHAMISA_STEP void read_source(OnePixel& piece, const Batch& batch, int64_t s, int) {
  const int64_t y = piece.first / batch.W, x = piece.first % batch.W, plane = batch.source_stride[1];
  piece.x = {0.f, 0.f, 0.f};
  if (s < 0 || s >= batch.S) return;
  const int64_t at = s * batch.source_stride[0] + y * batch.source_stride[2] + x * batch.source_stride[3];
  with_type(batch.source_type, [&](auto type) {
    const auto* from = (const typename decltype(type)::Storage*)batch.source + at;
    piece.x = {clamp01(type.read(from[0])), clamp01(type.read(from[plane])), clamp01(type.read(from[2 * plane]))};
  });
}

// whether the output is what pixels are between two stages, so that the last stage can write it
SHAMISA_HD bool plain_output(const Batch& batch) {
  return batch.out_type == DType::f32 && !batch.normalize && !batch.channels_last;
}
SHAMISA_HD void aim_at_output(PixelRow& piece, const Batch& batch, int64_t n) {
  const int64_t pixels = (int64_t)batch.H * batch.W;
  if (plain_output(batch)) piece.to = planes_at((float*)batch.out + n * 3 * pixels, pixels, piece.first);
}
SHAMISA_HD void aim_at_output(OnePixel&, const Batch&, int64_t) {}

// to image n of the output: optional (x - mean) / std, cast, layout
SHAMISA_STEP void write_out(const PixelRow& piece, const Batch& batch, int64_t n) {
  if (piece.from.r != piece.place.r) return;  // the last stage did it
  const int count = piece.count;
  const int64_t pixels = (int64_t)batch.H * batch.W;
  with_type(batch.out_type, [&](auto type) {
    typedef typename decltype(type)::Storage T;
    T* out = (T*)batch.out + n * 3 * pixels;
    for (int c = 0; c < 3; ++c) {
      const float* from = c == 0 ? piece.place.r : c == 1 ? piece.place.g : piece.place.b;
      const float mean = batch.mean[c], std = batch.std[c];
      T* to = batch.channels_last ? out + 3 * (int64_t)piece.first + c : out + c * pixels + piece.first;
      if (batch.normalize && !batch.channels_last) {
        SHAMISA_INDEPENDENT
        for (int i = 0; i < count; ++i) to[i] = type.write((from[i] - mean) / std);
      } else if (batch.normalize) {
        SHAMISA_INDEPENDENT
        for (int i = 0; i < count; ++i) to[3 * i] = type.write((from[i] - mean) / std);
      } else if (!batch.channels_last) {
        SHAMISA_INDEPENDENT
        for (int i = 0; i < count; ++i) to[i] = type.write(from[i]);
      } else {
        SHAMISA_INDEPENDENT
        for (int i = 0; i < count; ++i) to[3 * i] = type.write(from[i]);
      }
    }
  });
}
SHAMISA_STEP void write_out(const OnePixel& piece, const Batch& batch, int64_t n) {
  const int64_t pixels = (int64_t)batch.H * batch.W;
  const int64_t next = batch.channels_last ? 1 : pixels,
                at = n * 3 * pixels + (batch.channels_last ? 3 : 1) * (int64_t)piece.first;
  const auto final = [&](float x, int c) { return batch.normalize ? (x - batch.mean[c]) / batch.std[c] : x; };
  const Rgb x = {final(piece.x.r, 0), final(piece.x.g, 1), final(piece.x.b, 2)};
  with_type(batch.out_type, [&](auto type) {
    auto* out = (typename decltype(type)::Storage*)batch.out + at;
    out[0] = type.write(x.r);
    out[next] = type.write(x.g);
    out[2 * next] = type.write(x.b);
  });
}

// ---- a run -----------------------------------------------------------------------------------------------------------
// the image's own pixels, where a run does not begin or end elsewhere
SHAMISA_HD void read_image(PixelRow&, Image) {}
SHAMISA_HD void write_image(const PixelRow&, Image) {}
SHAMISA_HD void read_image(OnePixel& piece, Image image) {
  piece.x = {image.plane(0)[piece.first], image.plane(1)[piece.first], image.plane(2)[piece.first]};
}
SHAMISA_HD void write_image(const OnePixel& piece, Image image) {
  image.plane(0)[piece.first] = piece.x.r;
  image.plane(1)[piece.first] = piece.x.g;
  image.plane(2)[piece.first] = piece.x.b;
}
// a run from source to output needs no image: its pieces take turns in one place
template <int Width>
SHAMISA_HD PixelRow piece_of(Image image, int first, int count, bool passing, Lanes<Width>) {
  const Planes place = planes_at(image.data, image.pixels(), passing ? 0 : first);
  return {place, first, count, place, place, false};
}
SHAMISA_HD OnePixel piece_of(Image, int first, int, bool, Lanes<1>) { return {{0.f, 0.f, 0.f}, first}; }

struct Run {
  Image image;
  PointStage* stages;  // [count] in small memory, any number
  int64_t source, n;   // numbers of the source and of the output
  int count;
  bool enter, leave;  // read the source, else the image; write the output, else the image
};

// Where an image is in its chain: a run of pointwise stages, and the stage after it.
struct Chain {
  Stage stage;
  Run run;
  int first, last;  // the run's stages are first .. last - 1
  int opcode;       // of the stage after it; -1: the chain ends, or the run was cut
};

template <class Team>
SHAMISA_OP void run_points(Team& team, const Batch& batch) {
  const Run& run = team.template kept<chain_place, Chain>().run;
  team.template pieces<piece_pixels>(run.image.pixels(), [=, &batch](int first, int pixels, auto lanes) {
    auto piece = piece_of(run.image, first, pixels, run.enter && run.leave, lanes);
    if (run.enter)
      read_source(piece, batch, run.source, run.count);
    else
      read_image(piece, run.image);
    for (int k = 0; k < run.count; ++k) {
      if (run.leave && k == run.count - 1) aim_at_output(piece, batch, run.n);
      apply_next(piece, run.stages[k]);
    }
    if (run.leave)
      write_out(piece, batch, run.n);
    else
      write_image(piece, run.image);
  });
}

SHAMISA_END
