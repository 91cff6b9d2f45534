// A residual block in one kernel, on tensor cores:
//
//   out = x + conv2(relu(conv1(x) + bias1)) + bias2,        both convolutions 3x3, CHANNELS to CHANNELS,
//                                                            zeros around the image; or relu(out)
//
// A block computes a tile of TILE_H x 16 pixels, all channels. The middle never leaves the chip:
//
//   input   TILE_H + 4 x 20   ---conv1--->   middle   TILE_H + 2 x 18   ---conv2--->   TILE_H x 16
//
// Both convolutions are products of matrices: rows are the pixels of the region, columns the output
// channels, and the sum runs over 9 taps x CHANNELS inputs. A tap is a shift of the address in
// shared memory. Each of the 8 warps holds M x N tiles of 16 pixels x 8 channels in registers, from
// the first tap to the last, so that every weight is brought in once a convolution:
//
//   warp (i, j):  pixels 16 (m WARPS_M + i) ...,  channels j CHANNELS / WARPS_N ...
//
// When all sums of conv1 are complete, the middle replaces the input in shared memory. Outside the
// image it is zero, as conv2 must see it.
//
// Weights come in stages of one tap and SLICE input channels, STAGES of them in flight (cp.async),
// one barrier a stage. Pixels and rows of weights are 16 bytes longer in shared memory than their
// numbers, so that the eight rows that ldmatrix reads at once lie in different banks (but where a
// row of the image ends among them, in a third of the cases: twice the time then).
//
// A product's columns 2 t and 2 t + 1 of two neighbouring tiles belong to lane t. The weights' rows
// are stored in another order (resblock.py), so that these four are neighbouring channels: 8 bytes,
// and four lanes fill a sector of 32.
//
//   CHANNELS                            32     48     64     80    128
//   TILE_H, WARPS_N, SLICE           16,1,32 16,1,48 16,2,64 8,1,80 8,2,32
//   shared memory, KiB                  39     60     83     83     94
//   sums a thread (registers)           48     72     96     80     96
//   operations over the least needed  1.25   1.25   1.25   1.50   1.25
//
//   "Over the least needed": products that are computed over those that a single pass over the image
//   would take; the rest are the middle's border and rows of tiles that nobody keeps.
//   Reads (1 + halo) x, writes out once: bound by the tensor cores from 64 channels on. 256 threads;
//   90 registers a thread at 32 channels, 125 at 48, 130 to 170 at the others.
//
// Defined at compile time: VALUE (float16 or bfloat16), CHANNELS, TILE_H, WARPS_N, SLICE, STAGES,
// RELU_AFTER (0 or 1). Compute capability 8.0 or more.
#include "device.cuh"

constexpr int THREADS = 256, WARPS_M = THREADS / 32 / WARPS_N;
constexpr int TILE_W = 16;
constexpr int MID_H = TILE_H + 2, MID_W = TILE_W + 2;
constexpr int IN_H = TILE_H + 4, IN_W = TILE_W + 4;

constexpr int PITCH = CHANNELS + 8;     // of a pixel in shared memory
constexpr int ROW = SLICE + 8;          // of an output channel's weights in a stage
constexpr int STAGE = CHANNELS * ROW;   // weights of a stage in shared memory
constexpr int SLICES = CHANNELS / SLICE;
constexpr int STEPS = 9 * SLICES;       // stages of a convolution

constexpr int N = CHANNELS / 8 / WARPS_N;  // tiles of a warp: of 8 channels,
constexpr int M_MID = (MID_H * MID_W + 16 * WARPS_M - 1) / (16 * WARPS_M);     // of 16 pixels
constexpr int M_OUT = (TILE_H * TILE_W + 16 * WARPS_M - 1) / (16 * WARPS_M);
static_assert(CHANNELS % 16 == 0 && SLICE % 16 == 0 && CHANNELS % SLICE == 0 && N % 2 == 0, "");

union Four {
  Bytes8 bytes;
  VALUE value[4];
};

struct Place {
  int lane, warp_m, first_channel;  // of this warp
  DEVICE Place() {
    const int warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    warp_m = warp / WARPS_N;
    first_channel = warp % WARPS_N * (8 * N);
  }
  // Pixel of row `row` of this warp's m-th tile.
  DEVICE int pixel(int m, int row) const { return 16 * (m * WARPS_M + warp_m) + row; }
  // The first of the four channels that this lane holds of the n-th pair of tiles.
  DEVICE int channel(int pair) const { return first_channel + 16 * pair + 4 * (lane % 4); }
};

// Starts bringing in the weights of a stage; stages run through both convolutions.
DEVICE void fetch_weights(VALUE *shared, const VALUE *weights, int step) {
  constexpr int PIECES = SLICE / 8;
  const VALUE *from = weights + step * (CHANNELS * SLICE);
  VALUE *to = shared + step % STAGES * STAGE;
  for (int i = threadIdx.x; i < CHANNELS * PIECES; i += THREADS)
    copy_async(to + i / PIECES * ROW + i % PIECES * 8, from + i * 8, true);
}

// Starts bringing in the tile's input; beyond the image there are zeros.
DEVICE void fetch_input(VALUE *shared, const VALUE *image, int top, int left, int height,
                        int width) {
  constexpr int PIECES = CHANNELS / 8;
  for (int i = threadIdx.x; i < IN_H * IN_W * PIECES; i += THREADS) {
    const int pixel = i / PIECES, piece = i % PIECES * 8;
    const int y = top - 2 + pixel / IN_W, x = left - 2 + pixel % IN_W;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    const VALUE *from = inside ? image + (long long)(y * width + x) * CHANNELS + piece : image;
    copy_async(shared + pixel * PITCH + piece, from, inside);
  }
}

// sums += a convolution of the source, a region of shared memory 2 pixels wider and higher than the
// result, of which `WIDTH` is the width and `PIXELS` the size. `step` is its first stage.
template <int M, int WIDTH, int PIXELS>
DEVICE void convolve(float (&sums)[M][N][4], const VALUE *source, VALUE *stages,
                     const VALUE *weights, int step) {
  const Place place;
  const int lane = place.lane;

  // Where this lane's row of each tile of pixels starts (first eight rows, last eight, the same with
  // the next eight channels), and its row of a pair of tiles of channels.
  const VALUE *pixels[M];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const int row = lane % 16;
    const int pixel = min(place.pixel(m, row), PIXELS - 1);  // what is too much is not kept
    pixels[m] = source + (pixel / WIDTH * (WIDTH + 2) + pixel % WIDTH) * PITCH + lane / 16 * 8;
  }
  const int channels =
      (place.first_channel + lane % 8 + lane / 16 * 8) * ROW + lane / 8 % 2 * 8;

  for (int s = 0; s < STEPS; ++s, ++step) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();  // the stage is there for all, and all are done with the one before
    if (step + STAGES - 1 < 2 * STEPS) fetch_weights(stages, weights, step + STAGES - 1);
    copy_async_commit();  // empty at the end, so that the count of groups stays right

    const int tap = s / SLICES;
    const int shift = (tap / 3 * (WIDTH + 2) + tap % 3) * PITCH + s % SLICES * SLICE;
    const VALUE *stage = stages + step % STAGES * STAGE + channels;
#pragma unroll
    for (int k = 0; k < SLICE; k += 16) {
      uint32 b[N / 2][4];
#pragma unroll
      for (int n = 0; n < N / 2; ++n) load_matrices(b[n], stage + n * 16 * ROW + k);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32 a[4];
        load_matrices(a, pixels[m] + shift + k);
#pragma unroll
        for (int n = 0; n < N; ++n) multiply_add<VALUE>(sums[m][n], a, b[n / 2] + n % 2 * 2);
      }
    }
  }
}

// Sums start as the bias: float, one a channel.
template <int M> DEVICE void start(float (&sums)[M][N][4], const float *bias) {
  const Place place;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int channel = place.channel(n / 2) + n % 2 * 2;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = bias[channel + i % 2];
  }
}

// weights: (2, 9, SLICES, CHANNELS, SLICE), rows in the order of resblock.py; biases: (2, CHANNELS).
// x and out: (images, height, width, CHANNELS) at multiples of 16 bytes. Grid: tiles across, tiles
// down, images.
KERNEL(256)
resblock(const VALUE *x, const VALUE *weights, const float *biases, VALUE *out, int height,
         int width) {
  const Place place;
  VALUE *region = reinterpret_cast<VALUE *>(shared_memory());  // the input, then the middle
  VALUE *stages = region + IN_H * IN_W * PITCH;
  const int top = blockIdx.y * TILE_H, left = blockIdx.x * TILE_W;
  const long long image = (long long)blockIdx.z * height * width * CHANNELS;

  fetch_input(region, x + image, top, left, height, width);
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    fetch_weights(stages, weights, step);
    copy_async_commit();
  }

  {
    float sums[M_MID][N][4];
    start(sums, biases);
    convolve<M_MID, MID_W, MID_H * MID_W>(sums, region, stages, weights, 0);
    __syncthreads();  // all have read the input
#pragma unroll
    for (int m = 0; m < M_MID; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = place.pixel(m, place.lane / 4 + 8 * half);
        if (pixel >= MID_H * MID_W) continue;
        const int row = top - 1 + pixel / MID_W, column = left - 1 + pixel % MID_W;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
#pragma unroll
        for (int n = 0; n < N; n += 2) {
          Four four;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float sum = sums[m][n + i / 2][2 * half + i % 2];
            from_float(inside ? positive(sum) : 0.f, four.value[i]);
          }
          store(region + pixel * PITCH + place.channel(n / 2), four.bytes);
        }
      }
  }

  float sums[M_OUT][N][4];
  start(sums, biases + CHANNELS);
  convolve<M_OUT, TILE_W, TILE_H * TILE_W>(sums, region, stages, weights, STEPS);
#pragma unroll
  for (int m = 0; m < M_OUT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = place.pixel(m, place.lane / 4 + 8 * half);
      const int row = top + pixel / TILE_W, column = left + pixel % TILE_W;
      if (pixel >= TILE_H * TILE_W || row >= height || column >= width) continue;
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        const long long at =
            image + (long long)(row * width + column) * CHANNELS + place.channel(n / 2);
        Four skip, four;
        skip.bytes = load<Bytes8>(x + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = sums[m][n + i / 2][2 * half + i % 2] + to_float(skip.value[i]);
#if RELU_AFTER
          sum = positive(sum);
#endif
          from_float(sum, four.value[i]);
        }
        store_global(out + at, four.bytes);
      }
    }
}
