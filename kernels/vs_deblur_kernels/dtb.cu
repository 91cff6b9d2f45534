// Dynamic temporal blending (Kim et al. 2017, equations 2 and 3), one pass over memory:
//
//   w = min(1, |tanh(a)| + beta),    out = w h + (1 - w) previous,    beta clamped to 0..1
//
// All four tensors have the same layout, whatever it is: element i of one meets element i of the
// others. Each thread takes 16 bytes of each tensor, VALUES numbers; the last `count % VALUES`
// numbers are taken one by one by the first threads of the grid.
//
//   reads 3 n, writes n values; about 30 operations a value (tanhf) in float: bound by memory.
//   No shared memory; some 40 registers; any block size.
//
// Defined at compile time: VALUE, the type of the tensors, and BETA, that of beta: float, float16 or
// bfloat16.
#include "blend.cuh"

constexpr int VALUES = 16 / sizeof(VALUE);

union Vector {
  Bytes16 bytes;
  VALUE value[VALUES];
};

DEVICE VALUE blend(VALUE a, VALUE h, VALUE previous, float beta) {
  VALUE out;
  from_float(blended(to_float(a), to_float(h), to_float(previous), beta), out);
  return out;
}

// beta: one number on the device, clamped to 0..1 here. The tensors begin at multiples of 16 bytes.
KERNEL(256)
dtb(const VALUE *a, const VALUE *h, const VALUE *previous, const BETA *beta, VALUE *out, long long count) {
  const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  const float b = clamped(to_float(*beta));

  const long long first = thread * VALUES;
  if (first + VALUES <= count) {
    Vector va, vh, vp, result;
    va.bytes = load<Bytes16>(a + first);
    vh.bytes = load<Bytes16>(h + first);
    vp.bytes = load<Bytes16>(previous + first);
#pragma unroll
    for (int i = 0; i < VALUES; ++i)
      result.value[i] = blend(va.value[i], vh.value[i], vp.value[i], b);
    store(out + first, result.bytes);
  }

  const long long rest = count - count % VALUES + thread;
  if (rest < count) out[rest] = blend(a[rest], h[rest], previous[rest], b);
}
