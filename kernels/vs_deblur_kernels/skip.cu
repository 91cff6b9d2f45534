// What follows a convolution of a residual block, one pass over memory, in place:
//
//   y <- y + bias[channel] + x,      WITH_SKIP: at the end of the block
//   y <- y + bias[channel],          else: within it
//
// and with RELU its positive part; y is a convolution without its bias. torch takes a pass for the bias
// and one for each of the others. Tensors are channels_last and have a multiple of VALUES channels,
// so that the 16 bytes which a thread takes lie within a pixel and begin at a multiple of VALUES.
//
//   reads n or 2 n, writes n values: bound by memory. No shared memory; at most 30 registers.
//
// Defined at compile time: VALUE (float, float16 or bfloat16), WITH_SKIP and RELU (0 or 1).
#include "device.cuh"

constexpr int VALUES = 16 / sizeof(VALUE);

union Vector {
  Bytes16 bytes;
  VALUE value[VALUES];
};

// x, y: `vectors` times 16 bytes; bias: `period` times 16 bytes, one number for each channel. All begin
// at multiples of 16 bytes. x is not looked at without WITH_SKIP.
KERNEL(256)
skip(const VALUE *x, const VALUE *bias, VALUE *y, uint32 vectors, uint32 period) {
  const uint32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= vectors) return;
  const long long first = (long long)vector * VALUES;
  Vector vx, vy, vb;
  vy.bytes = load<Bytes16>(y + first);
  vb.bytes = load<Bytes16>(bias + vector % period * VALUES);
#if WITH_SKIP
  vx.bytes = load<Bytes16>(x + first);
#endif
#pragma unroll
  for (int i = 0; i < VALUES; ++i) {
    float sum = to_float(vy.value[i]) + to_float(vb.value[i]);
#if WITH_SKIP
    sum += to_float(vx.value[i]);
#endif
#if RELU
    sum = positive(sum);
#endif
    from_float(sum, vy.value[i]);
  }
  store(y + first, vy.bytes);
}
