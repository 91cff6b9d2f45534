// Dynamic temporal blending (Kim et al. 2017, equations 2 and 3) as the end of its own convolution,
// one kernel on the tensor cores of Hopper (wgmma):
//
//   a = conv(cat(previous, h)) + bias,            5x5, 128 to 64 channels, zeros around the image
//   w = min(1, |tanh(a)| + beta),    out = w h + (1 - w) previous
//
// Neither the concatenation nor a is ever in memory. A block computes a tile of 16 x 16 pixels, all
// 64 channels, from 20 x 20 pixels of each source. The convolution is a product of matrices,
// channels by pixels: a is the weights (rows: output channels), b a region in shared memory
// (columns: pixels), and the sum runs over 2 sources x 25 taps x 64 inputs. One warpgroup takes the
// columns 0 to 7 of the tile, another 8 to 15, each as high as the tile, so that each eight columns
// of its product are a line of the image.
//
// The regions of the sources lie one after the other, each in planes of 8 channels, 16 bytes a
// pixel, line after line, which is how resblock_wgmma.cu stores its own; what is said there of
// descriptors, of weights and why the loop over taps is not unrolled, and of banks, holds here:
//
//   channel c of pixel (line, column):   c / 8 * PLANE + line * LINE + column * 16 + c % 8 * 2
//
// The sources are brought in by two groups of asynchronous copies; the first is multiplied while
// the second arrives. Products stay under way from the one to the other.
//
// In the end a lane holds sums of channels c and c + 8 of two neighbouring pixels a line, and
// ldmatrix, transposing, gives it the same numbers of both sources: they are blended in float, and
// stmatrix puts the result where previous was, from where it is copied out, 16 bytes a thread,
// whole pixels by neighbouring threads.
//
//   two warpgroups, 256 threads; two blocks a multiprocessor; shared memory 100 KiB; 64 sums a
//   thread, at most 128 registers. Reads 1.56 of each source (from memory once, the rest from L2),
//   writes out once: bound by the tensor cores. By count, a product of 64 x 128 x 16 takes 64
//   cycles of them, 32 of shared memory for pixels and 16 of L1 for weights; a tile is 400 of them,
//   25,600 cycles, beside which the blend is some 3,000 of arithmetic that the other block's
//   products hide. A tile also reads all weights, 400 KiB, from L2: 16 bytes a cycle, as long as
//   its warpgroups are close enough for the second to find in L1 what the first has read.
//
// Defined at compile time: VALUE, the type of the tensors (float16 or bfloat16), and BETA, that of
// beta (float, float16 or bfloat16). Compute capability 9.0 only, compiled for sm_90a.
#include "blend.cuh"

constexpr int CHANNELS = 64, WIDTH = 5, TAPS = WIDTH * WIDTH;
constexpr int THREADS = 256;
constexpr int TILE_H = 16, TILE_W = 16;
constexpr int IN_H = TILE_H + WIDTH - 1, IN_W = TILE_W + WIDTH - 1;

constexpr int PIXEL = 16;  // bytes of a pixel in a plane
constexpr int LINE = IN_W * PIXEL;
constexpr int PLANE = IN_H * LINE + 16;
constexpr int PLANES = CHANNELS / 8;
constexpr int REGION = PLANES * PLANE;  // of one source
static_assert(THREADS == 128 * TILE_W / 8 && PLANE % 128 == 16, "");

constexpr int STEPS = 2;       // of 16 inputs: multiplied by one set of registers
constexpr int STEP = 128 * 8;  // weights of a step
constexpr int SOURCE = TAPS * CHANNELS / 16 * STEP;  // and of a source

struct Place {
  int lane, column, plane;  // of this warp: the first pixel, the first of two planes
  DEVICE Place() {
    lane = threadIdx.x % 32;
    column = threadIdx.x / 128 * 8;
    plane = threadIdx.x / 32 % 4 * 2;
  }
  // The first of this lane's two channels; the other one is eight further.
  DEVICE int channel() const { return 8 * plane + lane / 4; }
  // The row that this lane names of four 8x8 matrices: this warp's two planes of a line of the
  // tile, then of the next line.
  DEVICE unsigned char *row(unsigned char *region, int line) const {
    return region + (plane + lane / 8 % 2) * PLANE + (line + WIDTH / 2 + lane / 16) * LINE +
           (column + WIDTH / 2 + lane % 8) * PIXEL;
  }
};

// Two neighbouring pixels of a channel, as a lane holds them.
DEVICE uint32 pair(float left, float right) {
  VALUE l, r;
  from_float(left, l);
  from_float(right, r);
  return l.bits | uint32(r.bits) << 16;
}
DEVICE float left_of(uint32 pair) { return to_float(VALUE{uint16(pair & 0xffff)}); }
DEVICE float right_of(uint32 pair) { return to_float(VALUE{uint16(pair >> 16)}); }

// Starts bringing in a source of the tile, zeros where it lies outside of the image.
DEVICE void fetch_source(unsigned char *region, const VALUE *image, int top, int left, int height,
                         int width) {
  for (int i = threadIdx.x; i < IN_H * IN_W * PLANES; i += THREADS) {
    const int pixel = i / PLANES, plane = i % PLANES;
    const int y = top - WIDTH / 2 + pixel / IN_W, x = left - WIDTH / 2 + pixel % IN_W;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    const long long at = inside ? (long long)(y * width + x) * CHANNELS + plane * 8 : 0;
    copy_async(region + plane * PLANE + pixel * PIXEL, image + at, inside);
  }
  copy_async_commit();
}

// One set of this thread's weights.
DEVICE void fetch_weights(Bytes16 (&a)[STEPS], const VALUE *weights) {
#pragma unroll
  for (int s = 0; s < STEPS; ++s) a[s] = load<Bytes16>(weights + s * STEP);
}

// The matrix of 16 inputs by 8 pixels of each line whose first pixel is at `start`, as a
// descriptor: bits 0 to 13 its address, 16 to 29 the way to the next eight inputs ("leading
// dimension"), 32 to 45 that to the next eight pixels ("stride dimension"), all in units of 16
// bytes; the rest is zero: no swizzling.
DEVICE uint64 matrix(uint32 start) {
  return uint64(LINE >> 4) << 32 | uint32(PLANE >> 4) << 16 | start >> 4;
}

// sums += a source's part of the convolution; the last products are still under way then. `start`
// is the address of the first pixel's first tap, `weights` where this thread's begin; a[0] holds
// the first of them, and unless IS_LAST those of the next source afterwards.
template <bool IS_LAST>
DEVICE void convolve(float (&sums)[4 * TILE_H], uint32 start, const VALUE *weights,
                     Bytes16 (&a)[2][STEPS]) {
#pragma unroll 1
  for (int tap = 0; tap < TAPS; ++tap) {
    const uint32 here = start + tap / WIDTH * LINE + tap % WIDTH * PIXEL;
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      multiply_async_fence(sums);
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
        multiply_add_async<VALUE, 8 * TILE_H>(sums, a[set][s].word,
                                              matrix(here + (set * STEPS + s) * 2 * PLANE));
      multiply_async_commit();
      multiply_async_wait<1>();  // the other set is free
      weights += STEPS * STEP;
      if (set == 0 || !IS_LAST || tap < TAPS - 1) fetch_weights(a[1 - set], weights);
    }
  }
}

// previous, h and out: (images, height, width, CHANNELS). weights: (2, TAPS, CHANNELS / 16, 128,
// 8), previous's first, in the order of dtb_conv.py; bias: (CHANNELS). beta: one number. What is
// read by vectors begins at multiples of 16 bytes. Grid: tiles across, tiles down, images.
KERNEL(THREADS, 2)
dtb_conv(const VALUE *previous, const VALUE *h, const VALUE *weights, const float *bias,
         const BETA *beta, VALUE *out, int height, int width) {
  const Place place;
  unsigned char *past = shared_memory(), *now = past + REGION;
  const uint32 start = warp_uniform(shared_address(past + place.column * PIXEL));
  const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
  const long long image = (long long)blockIdx.z * height * width * CHANNELS;

  fetch_source(past, previous + image, top, left, height, width);
  fetch_source(now, h + image, top, left, height, width);
  Bytes16 a[2][STEPS];
  weights += threadIdx.x % 128 * 8;
  fetch_weights(a[0], weights);
  const float two[2] = {bias[place.channel()], bias[place.channel() + 8]};
  float sums[4 * TILE_H];
#pragma unroll
  for (int i = 0; i < 4 * TILE_H; ++i) sums[i] = two[i / 2 % 2];

  copy_async_wait<1>();
  shared_to_products();
  __syncthreads();  // previous is there
  convolve<false>(sums, start, weights, a);
  copy_async_wait<0>();
  shared_to_products();
  __syncthreads();  // h is there
  convolve<true>(sums, start + REGION, weights + SOURCE, a);
  multiply_async_wait_all(sums);
  __syncthreads();  // all have read the sources

  const float b = clamped(to_float(*beta));
#pragma unroll
  for (int line = 0; line < TILE_H; line += 2) {
    uint32 p[4], n[4];
    load_matrices_transposed(p, place.row(past, line));
    load_matrices_transposed(n, place.row(now, line));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float *of = sums + 4 * line + 2 * i;
      p[i] = pair(blended(of[0], left_of(n[i]), left_of(p[i]), b),
                  blended(of[1], right_of(n[i]), right_of(p[i]), b));
    }
    __syncwarp();  // all of the warp have read what it replaces
    store_matrices_transposed(place.row(past, line), p);
  }
  __syncthreads();  // the result is there

  for (int i = threadIdx.x; i < TILE_H * TILE_W * PLANES; i += THREADS) {
    const int plane = i % PLANES, line = i / PLANES / TILE_W, column = i / PLANES % TILE_W;
    if (top + line >= height || left + column >= width) continue;
    const long long at =
        image + (long long)((top + line) * width + left + column) * CHANNELS + plane * 8;
    store_global(out + at, load<Bytes16>(past + plane * PLANE + (line + WIDTH / 2) * LINE +
                                         (column + WIDTH / 2) * PIXEL));
  }
}
