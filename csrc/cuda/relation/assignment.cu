// transport_logits with its backward, and transport_codes, for CUDA tensors. Nothing waits for the device.
#include "assignment.cuh"

#include "../scratch.cuh"

namespace shamisa {
namespace {

using Launch = AssignmentLaunch;

void check_anchors(const Tensor& h, const Tensor& anchors) {
  STD_TORCH_CHECK(h.dim() == 2 && h.size(1) > 0, "h must be [N, F] with F >= 1, got ", shape_of(h));
  STD_TORCH_CHECK(anchors.dim() == 2 && anchors.size(1) == h.size(1), "anchors must be [K, F] with F = ", h.size(1), ", got ",
                  shape_of(anchors));
  check_device(h, {&anchors});
}

// h [N, F], anchors [K, F] -> logits [N, K], norm [N]
std::tuple<Tensor, Tensor> transport_logits(Tensor h, Tensor anchors) {
  check_anchors(h, anchors);
  const int64_t N = h.size(0), F = h.size(1), K = anchors.size(0);
  const OnDevice device(h);
  const ScalarType type = compute_type(h);
  // In double, rounded once: the logits decide which edges the transport graph has, and every backend shall decide alike.
  const ScalarType wide = ScalarType::Double;
  const Tensor x = dense(h, wide), w = dense(anchors, wide), logits = make({N, K}, wide, x), norm = make({N}, wide, x);
  // K = 0 still has norms
  const int64_t blocks = blocks_for(N, Launch::rows) * std::max<int64_t>(blocks_for(K, Launch::anchors), 1);
  SHAMISA_RUN(assignment_logits<double>, blocks, Launch::threads, device.stream(), read<double>(x), read<double>(w), N, F, K,
              data<double>(logits), data<double>(norm));
  return {dense(logits, type), dense(norm, type)};
}

// grad [N, K], h [N, F], anchors [K, F], logits [N, K], norm [N] -> [N, F], [K, F]
std::tuple<Tensor, Tensor> transport_logits_backward(Tensor grad, Tensor h, Tensor anchors, Tensor logits, Tensor norm) {
  check_anchors(h, anchors);
  const int64_t N = h.size(0), F = h.size(1), K = anchors.size(0);
  check_shape(grad, {N, K}, "grad");
  check_shape(logits, {N, K}, "logits");
  check_shape(norm, {N}, "norm");
  check_device(h, {&grad, &logits, &norm});
  const OnDevice device(h);
  const ScalarType type = compute_type(norm);
  const Tensor g = dense(grad, type), x = dense(h, type), w = dense(anchors, type), u = dense(logits, type);
  const Tensor length = dense(norm, type), dx = make({N, F}, type, x), dw = make({K, F}, type, x);
  const int64_t parts =
      std::min<int64_t>(std::max<int64_t>(blocks_for(N, 2 * Launch::gradient_rows), 1), Launch::gradient_parts);
  const Tensor partial = make({parts, K, F}, type, x);
  // without anchors no turn of the kernel would write it
  if (K == 0) clear(dx.mutable_data_ptr(), N * F * (type == ScalarType::Double ? 8 : 4), device.stream());
  with_type(type, [&](auto t) {
    using T = decltype(t);
    SHAMISA_RUN(assignment_gradient<T>, parts * blocks_for(F, Launch::threads), Launch::threads, device.stream(), read<T>(g),
                read<T>(x), read<T>(w), read<T>(u), read<T>(length), N, F, K, parts, data<T>(dx), data<T>(partial));
    SHAMISA_RUN(assignment_join<T>, blocks_for(K * F, Launch::threads), Launch::threads, device.stream(), read<T>(partial),
                parts, K * F, data<T>(dw));
    return 0;
  });
  return {back(dx, h.scalar_type()), back(dw, anchors.scalar_type())};
}

// u [N, K] -> [N, K]
Tensor transport_codes(Tensor u, double temperature, int64_t rounds) {
  STD_TORCH_CHECK(u.dim() == 2, "u must be [N, K], got ", shape_of(u));
  STD_TORCH_CHECK(rounds >= 1, "rounds must be at least 1, got ", rounds);
  const OnDevice device(u);
  const ScalarType type = compute_type(u);
  const Tensor x = dense(u, type), out = make({u.size(0), u.size(1)}, type, x);
  Codes c = {u.size(0), u.size(1), 1 / temperature, nullptr, nullptr, nullptr};
  const int64_t blocks = blocks_for(c.N, Launch::code_rows);
  Scratch scratch;
  scratch.add(&c.a, c.K), scratch.add(&c.partial, blocks * c.K), scratch.add(&c.finished, 1);
  scratch.make_on(x);
  clear(c.finished, sizeof(unsigned), device.stream());
  with_type(type, [&](auto t) {
    using T = decltype(t);
    for (int64_t round = 0; round <= rounds; ++round)
      SHAMISA_RUN(codes_round<T>, blocks, Launch::threads, device.stream(), c, read<T>(x), round == 0,
                  round == rounds ? data<T>(out) : nullptr);
    return 0;
  });
  return out;
}

}  // namespace
}  // namespace shamisa

SHAMISA_DEVICE_OPS(m) {
  m.impl("transport_logits", TORCH_BOX(&shamisa::transport_logits));
  m.impl("transport_logits_backward", TORCH_BOX(&shamisa::transport_logits_backward));
  m.impl("transport_codes", TORCH_BOX(&shamisa::transport_codes));
}
