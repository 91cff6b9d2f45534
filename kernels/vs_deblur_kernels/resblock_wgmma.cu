// A residual block in one kernel, on the tensor cores of Hopper (wgmma): the block of resblock.cu,
//
//   out = x + conv2(relu(conv1(x) + bias1)) + bias2,      both convolutions 3x3, CHANNELS to
//                                                         CHANNELS, zeros around the image;
//                                                         or relu(out)
//
// A block computes a tile of 16 x 14 pixels, all channels. The middle never leaves the chip:
//
//   input  20 x 18   ---conv1--->   middle  18 x 16   ---conv2--->   result  16 x 16, of which 14
//
// Both convolutions are products of matrices, channels by pixels: a is the weights (rows: output
// channels), b the region in shared memory (columns: pixels), and the sum runs over 9 taps x
// CHANNELS inputs. A warpgroup takes 64 channels of a column of pixels that is 8 wide and as high
// as the region, so that each eight columns of its product are a line of the image:
//
//   middle:  lines 0 to 17,  pixels 0 to 7: one warpgroup,  8 to 15: another;  64 channels each
//   result:  lines 0 to 15,  the same;  pixels 14 and 15 lack neighbours and are not kept
//
// A region is stored in planes of 8 channels, 16 bytes a pixel, line after line:
//
//   channel c of pixel (line, column):   c / 8 * PLANE + line * LINE + column * 16 + c % 8 * 2
//
// Eight pixels of a line in one plane are 128 bytes in a row, which is what wgmma reads at once. It
// finds the next eight channels PLANE bytes on and the next line LINE bytes on, and may start at
// any multiple of 16 bytes: a tap is nothing but another start. The middle replaces the input in
// the same places when all sums of conv1 are complete; outside the image it is zero, as conv2 must
// see it. The pixels 16 and 17 that it does not have keep what they held and meet only what is not
// kept.
//
// Weights go from global memory (L1: all warpgroups of a multiprocessor read the same) to
// registers, stored such that a lane's part of 16 inputs is 16 bytes (resblock_wgmma.py). Two sets
// of registers take turns: 32 inputs are multiplied while the next 32 are brought in. The loop over
// taps is not unrolled: if it is, the assembler brings in more at once than there are registers
// for, and then runs one product at a time (it says so: "Potential Performance Loss").
//
// The sums of conv2 start as bias2 + x, read from the input before the middle replaces it, so that
// x is read once and added in float. A lane holds sums of channels c and c + 8 of two neighbouring
// pixels a line: the layout that ldmatrix and stmatrix, transposing, turn from and into rows of 16
// bytes in shared memory, eight channels of a pixel each. No other order of the channels is needed.
// The result takes the middle's place and is copied out from there, 16 bytes a thread, whole pixels
// by neighbouring threads.
//
// Banks: a plane is 16 bytes longer than its pixels, so that eight threads which access the planes
// of one pixel are 16 bytes apart modulo 128. The other accesses are 128 bytes in a row.
//
//   CHANNELS                                  64     128
//   warpgroups, threads                    2, 256  4, 512
//   blocks a multiprocessor                     2       1
//   shared memory, KiB                         45      90
//   sums a thread, conv1 and conv2         72, 64  72, 64
//   operations over the least needed         1.21    1.21
//
//   At most 128 registers. Reads (1 + halo) x, writes out once: bound by the tensor cores. By
//   count, a product of 64 x 144 x 16 takes 72 cycles of them, 36 cycles of shared memory for
//   pixels and 16 of L1 (the same 128 bytes a cycle) for weights. At 64 channels one block loads
//   and stores while the other multiplies, which is why tiles are not larger: three columns would
//   need 1.16 times the least operations, and leave room for one block only.
//
// Defined at compile time: VALUE (float16 or bfloat16), CHANNELS (64 or 128), RELU_AFTER (0 or 1).
// Compute capability 9.0 only, compiled for sm_90a.
#include "device.cuh"

constexpr int COLUMNS = 2, HALVES = CHANNELS / 64;
constexpr int THREADS = 128 * COLUMNS * HALVES;
constexpr int BLOCKS = 2 / HALVES;  // a multiprocessor: 128 registers a thread

constexpr int TILE_H = 16, TILE_W = 8 * COLUMNS - 2;
constexpr int MID_H = TILE_H + 2;
constexpr int IN_H = TILE_H + 4, IN_W = TILE_W + 4;

constexpr int PIXEL = 16;  // bytes of a pixel in a plane
constexpr int LINE = IN_W * PIXEL;
constexpr int PLANE = IN_H * LINE + 16;
constexpr int PLANES = CHANNELS / 8;

constexpr int STEPS = 2;                // of 16 inputs: multiplied by one set of registers
constexpr int STEP = HALVES * 128 * 8;  // weights of a step
constexpr int SLICE = 8 * PLANE;        // bytes from 64 inputs to the next 64
static_assert(CHANNELS % 64 == 0 && HALVES <= 2 && PLANE % 128 == 16, "");

struct Place {
  int lane, column, plane;  // of this warp: the first pixel, the first of two planes
  DEVICE Place() {
    const int warpgroup = threadIdx.x / 128;
    lane = threadIdx.x % 32;
    column = warpgroup % COLUMNS * 8;
    plane = warpgroup / COLUMNS * 8 + threadIdx.x / 32 % 4 * 2;
  }
  // The first of this lane's two channels; the other one is eight further.
  DEVICE int channel() const { return 8 * plane + lane / 4; }
  // The row that this lane names of four 8x8 matrices: this warp's two planes of a line, then of
  // the next line.
  DEVICE unsigned char *row(unsigned char *region, int line, int shift) const {
    return region + (plane + lane / 8 % 2) * PLANE + (line + lane / 16) * LINE +
           (column + shift + lane % 8) * PIXEL;
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

// Starts bringing in the input of the tile, zeros where it lies outside of the image.
DEVICE void fetch_input(unsigned char *region, const VALUE *image, int top, int left, int height,
                        int width) {
  for (int i = threadIdx.x; i < IN_H * IN_W * PLANES; i += THREADS) {
    const int pixel = i / PLANES, plane = i % PLANES;
    const int y = top - 2 + pixel / IN_W, x = left - 2 + pixel % IN_W;
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

// sums += a convolution of the region. `start` is the address of the first pixel's first tap,
// `weights` where this thread's begin; a[0] holds the first of them.
template <int LINES>
DEVICE void convolve(float (&sums)[4 * LINES], uint32 start, const VALUE *weights,
                     Bytes16 (&a)[2][STEPS]) {
#pragma unroll 1
  for (int tap = 0; tap < 9; ++tap) {
#pragma unroll 1
    for (int slice = 0; slice < CHANNELS / 64; ++slice) {
      const uint32 here = start + tap / 3 * LINE + tap % 3 * PIXEL + slice * SLICE;
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        multiply_async_fence(sums);
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
          multiply_add_async<VALUE, 8 * LINES>(sums, a[set][s].word,
                                               matrix(here + (set * STEPS + s) * 2 * PLANE));
        multiply_async_commit();
        multiply_async_wait<1>();  // the other set is free
        weights += STEPS * STEP;
        if (set == 0 || slice < CHANNELS / 64 - 1 || tap < 8) fetch_weights(a[1 - set], weights);
      }
    }
  }
  multiply_async_wait_all(sums);
}

// weights: (2, 9, CHANNELS / 16, HALVES, 128, 8), in the order of resblock_wgmma.py; biases:
// (2, CHANNELS). x and out: (images, height, width, CHANNELS). All begin at multiples of 16 bytes.
// Grid: tiles across, tiles down, images.
KERNEL(THREADS, BLOCKS)
resblock_wgmma(const VALUE *x, const VALUE *weights, const float *biases, VALUE *out, int height,
               int width) {
  const Place place;
  unsigned char *region = shared_memory();  // the input, the middle, the result
  const uint32 start = warp_uniform(shared_address(region + place.column * PIXEL));
  const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
  const long long image = (long long)blockIdx.z * height * width * CHANNELS;

  fetch_input(region, x + image, top, left, height, width);
  Bytes16 a[2][STEPS];
  weights += (threadIdx.x / 128 / COLUMNS * 128 + threadIdx.x % 128) * 8;
  fetch_weights(a[0], weights);
  copy_async_wait<0>();
  shared_to_products();
  __syncthreads();  // the input is there

  uint32 middle[MID_H][2];
  {
    const float bias[2] = {biases[place.channel()], biases[place.channel() + 8]};
    float sums[4 * MID_H];
#pragma unroll
    for (int i = 0; i < 4 * MID_H; ++i) sums[i] = bias[i / 2 % 2];
    convolve<MID_H>(sums, start, weights, a);
    const int column = left - 1 + place.column + place.lane % 4 * 2;
    const uint32 inside = (column >= 0 && column < width ? 0x0000ffff : 0) |
                          (column + 1 < width ? 0xffff0000 : 0);
#pragma unroll
    for (int line = 0; line < MID_H; ++line)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float *two = sums + 4 * line + 2 * c;
        const int row = top - 1 + line;
        middle[line][c] = pair(positive(two[0]), positive(two[1])) &
                          (row >= 0 && row < height ? inside : 0);
      }
  }

  uint32 skip[TILE_H / 2][4];
#pragma unroll
  for (int line = 0; line < TILE_H; line += 2)
    load_matrices_transposed(skip[line / 2], place.row(region, line + 2, 2));
  __syncthreads();  // all have read the input
#pragma unroll
  for (int line = 0; line < MID_H; line += 2) {
    const uint32 four[4] = {middle[line][0], middle[line][1], middle[line + 1][0],
                            middle[line + 1][1]};
    store_matrices_transposed(place.row(region, line, 0), four);
  }
  weights += 9 * CHANNELS * CHANNELS;
  fetch_weights(a[0], weights);
  shared_to_products();
  __syncthreads();  // the middle is there

  const float bias[2] = {biases[CHANNELS + place.channel()],
                         biases[CHANNELS + place.channel() + 8]};
  float sums[4 * TILE_H];
#pragma unroll
  for (int i = 0; i < 4 * TILE_H; i += 2) {
    sums[i] = left_of(skip[i / 8][i / 2 % 4]) + bias[i / 2 % 2];
    sums[i + 1] = right_of(skip[i / 8][i / 2 % 4]) + bias[i / 2 % 2];
  }
  convolve<TILE_H>(sums, start, weights, a);
#if RELU_AFTER
#pragma unroll
  for (int i = 0; i < 4 * TILE_H; ++i) sums[i] = positive(sums[i]);
#endif
  __syncthreads();  // all have read the middle
#pragma unroll
  for (int line = 0; line < TILE_H; line += 2) {
    uint32 four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = pair(sums[4 * line + 2 * i], sums[4 * line + 2 * i + 1]);
    store_matrices_transposed(place.row(region, line, 0), four);
  }
  __syncthreads();  // the result is there

  for (int i = threadIdx.x; i < TILE_H * TILE_W * PLANES; i += THREADS) {
    const int plane = i % PLANES, line = i / PLANES / TILE_W, column = i / PLANES % TILE_W;
    if (top + line >= height || left + column >= width) continue;
    const long long at =
        image + (long long)((top + line) * width + left + column) * CHANNELS + plane * 8;
    store_global(out + at,
                 load<Bytes16>(region + plane * PLANE + line * LINE + column * PIXEL));
  }
}
