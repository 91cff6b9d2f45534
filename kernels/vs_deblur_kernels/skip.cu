// The end of a residual block, one pass over memory, in place:
//
//   y <- y + bias[channel] + x,      or relu of it
//
// where y is a convolution without its bias. torch takes a pass for the bias and one for the sum.
// Both tensors are channels_last and have a multiple of VALUES channels, so that the 16 bytes which a
// thread takes lie within a pixel and begin at a multiple of VALUES channels.
//
//   reads 2 n, writes n values: bound by memory. No shared memory; some 40 registers.
//
// Defined at compile time: VALUE (float, float16 or bfloat16), RELU_AFTER (0 or 1).
#include "device.cuh"

constexpr int VALUES = 16 / sizeof(VALUE);

union Vector {
  Bytes16 bytes;
  VALUE value[VALUES];
};

// x, y: `count` values, a multiple of `channels`; bias: one for each channel. All begin at multiples of
// 16 bytes.
KERNEL(256)
skip(const VALUE *x, const VALUE *bias, VALUE *y, long long count, int channels) {
  const long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * VALUES;
  if (first >= count) return;
  Vector vx, vy, vb;
  vx.bytes = load<Bytes16>(x + first);
  vy.bytes = load<Bytes16>(y + first);
  vb.bytes = load<Bytes16>(bias + first % channels);
#pragma unroll
  for (int i = 0; i < VALUES; ++i) {
    float sum = to_float(vy.value[i]) + to_float(vb.value[i]) + to_float(vx.value[i]);
#if RELU_AFTER
    sum = fmaxf(sum, 0.f);
#endif
    from_float(sum, vy.value[i]);
  }
  store(y + first, vy.bytes);
}
