// Frames in their own format to what a network sees (`stack`), and what the network changed back
// into that format (`add`).
//
//   seen = clamp(M^-1 (D planes)),       D: chroma to the luma's size, M: RGB to the planes' family
//   out  = round(planes + R M ((clamp(sharp) - seen) strength)),       R: chroma to its own size
//
// A frame is one piece of memory: its planes one after another (Y, U, V; R, G, B; or grey), rows
// without padding. D and R take samples beyond the ends from within, mirrored, the end repeated.
//
// stack: a thread a pixel of the padded frame, for all FRAMES of a window; 256 pixels in a row are
// a block. Values gather in shared memory in the order of the result, (row, column, frame, colour),
// and leave it 16 bytes at a time; the last block's last values one by one.
//   reads FRAMES frames (chroma TAPS^2 times, from the caches), writes 3 FRAMES values a pixel:
//   bound by memory, for 4:2:0 with 4 taps by the caches (32 loads a pixel and frame).
//   shared memory: 768 FRAMES values, at most 21.5 KB; registers: at most 64, with 4 taps 128.
//
// add: a block has a tile of 64 x 16 pixels and writes all their samples. For subsampled chroma it
// first puts the change of U and V into shared memory, for the pixels of the tile and those around
// it that R reaches, then weighs them, a thread a chroma sample:
//
//   64 + 2 TAPS - 2     +-----------+
//                       |  +-----+  |   TAPS - 1 rows above and below, columns left and right,
//                       |  |tile |  |   mirrored at the frame's ends
//                       |  +-----+  |
//                       +-----------+   16 + 2 TAPS - 2
//
// `seen` is computed anew, by the very same operations as in stack and rounded in the same way, so
// that a network that gives back what it saw changes nothing.
//   reads the frame and three floats a pixel (1.2 or 1.5 times, for what is around the tile),
//   writes the frame: bound by memory with 2 taps, by the caches with 4.
//   shared memory for 4:2:0: 9.5 KB with 2 taps, 12.3 with 4; registers: at most 64, or 80.
//
// Defined at compile time: SAMPLE, the type of the planes: uint8, uint16, float16 or float. VALUE,
// that of what the network sees: float16, bfloat16 or float. FAMILY: gray, rgb or yuv. SUB_X and
// SUB_Y, 0 or 1: whether chroma has half the columns, and half the rows. TAPS: how many samples the
// chroma filter interpolates between, 2 or 4. FRAMES: how many frames stack takes, 1 to 7; not
// defined for add.
#include "device.cuh"

enum class Family { gray, rgb, yuv };
constexpr Family FORMAT_FAMILY = Family::FAMILY;
constexpr bool IS_SUBSAMPLED = SUB_X || SUB_Y;
constexpr int THREADS = 256;

template <class T> constexpr bool IS_FLOAT = false;
template <> constexpr bool IS_FLOAT<float16> = true;
template <> constexpr bool IS_FLOAT<float> = true;

// Samples that a pixel's chroma is made of, and pixels that a chroma sample is made of.
constexpr int DOUBLING_X = SUB_X ? TAPS : 1, DOUBLING_Y = SUB_Y ? TAPS : 1;
constexpr int HALVING_X = SUB_X ? 2 * TAPS : 1, HALVING_Y = SUB_Y ? 2 * TAPS : 1;

// Numbers of a format, in the order of _numbers in planes.py.
struct Format {
  float luma_offset, luma_scale, luma_unit;        // unit: 1 / scale
  float chroma_offset, chroma_scale, chroma_unit;  // of U and V
  float peak;                                      // the largest integer
  float red_of_v, green_of_u, green_of_v, blue_of_u;
  float luma_of_red, luma_of_green, luma_of_blue;
  float u_of_difference, v_of_difference;  // (blue - luma) to U, (red - luma) to V
  float double_x[2][TAPS], double_y[2][TAPS];  // weights for even and odd positions
  float halve_x[2 * TAPS], halve_y[2 * TAPS];
};

struct Size {
  int height, width;
  DEVICE int chroma_height() const { return (height + SUB_Y) >> SUB_Y; }
  DEVICE int chroma_width() const { return (width + SUB_X) >> SUB_X; }
  // Where the planes begin.
  DEVICE int second() const { return height * width; }
  DEVICE int third() const { return second() + chroma_height() * chroma_width(); }
};

DEVICE float clamped(float x) { return fminf(fmaxf(x, 0.f), 1.f); }
DEVICE bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// The sample within that stands for one beyond the ends.
DEVICE int mirrored(int i, int count) {
  if (i < 0) i = -1 - i;
  if (i >= count) i = 2 * count - 1 - i;
  return max(i, 0);
}

// A sample as a finite number.
DEVICE float sample(SAMPLE s, bool &bad) {
  const float x = to_float(s);
  if constexpr (IS_FLOAT<SAMPLE>) {
    if (!is_finite(x)) {
      bad = true;
      return x > 0.f ? 1.f : 0.f;
    }
  }
  return x;
}

DEVICE VALUE rounded(float x) {
  VALUE value;
  from_float(x, value);
  return value;
}

// Which chroma samples a pixel is made of.
struct Reach {
  int row[DOUBLING_Y], column[DOUBLING_X];  // row: index of its first sample
  float down[DOUBLING_Y], across[DOUBLING_X];
};

DEVICE Reach reach(const Format &format, const Size &size, int y, int x) {
  Reach r;
  const int width = size.chroma_width();
#pragma unroll
  for (int j = 0; j < DOUBLING_Y; ++j) {
    const int row = SUB_Y ? mirrored(y / 2 + y % 2 - TAPS / 2 + j, size.chroma_height()) : y;
    r.row[j] = row * width;
    r.down[j] = SUB_Y ? format.double_y[y % 2][j] : 1.f;
  }
#pragma unroll
  for (int k = 0; k < DOUBLING_X; ++k) {
    r.column[k] = SUB_X ? mirrored(x / 2 + x % 2 - TAPS / 2 + k, width) : x;
    r.across[k] = SUB_X ? format.double_x[x % 2][k] : 1.f;
  }
  return r;
}

DEVICE float chroma(const SAMPLE *plane, const Format &format, const Reach &r, bool &bad) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < DOUBLING_Y; ++j) {
    float line = 0.f;
#pragma unroll
    for (int k = 0; k < DOUBLING_X; ++k)
      line = fmaf(r.across[k], sample(plane[r.row[j] + r.column[k]], bad), line);
    sum = fmaf(r.down[j], line, sum);
  }
  return (sum - format.chroma_offset) * format.chroma_unit;
}

// What a network sees of a pixel, clamped, not yet rounded to VALUE. No product is the summand of
// anything but an fmaf, so that no compiler can join the two in one kernel and not in the other.
DEVICE void see(const SAMPLE *frame, const Format &format, const Size &size, const Reach &r, int y,
                int x, float (&rgb)[3], bool &bad) {
  const int at = y * size.width + x;
  const float first = (sample(frame[at], bad) - format.luma_offset) * format.luma_unit;
  if constexpr (FORMAT_FAMILY == Family::yuv) {
    const float u = chroma(frame + size.second(), format, r, bad);
    const float v = chroma(frame + size.third(), format, r, bad);
    rgb[0] = fmaf(format.red_of_v, v, first);
    rgb[1] = fmaf(format.green_of_v, v, fmaf(format.green_of_u, u, first));
    rgb[2] = fmaf(format.blue_of_u, u, first);
  } else {
    rgb[0] = rgb[1] = rgb[2] = first;
    if constexpr (FORMAT_FAMILY == Family::rgb) {
      const int area = size.second();
      rgb[1] = (sample(frame[area + at], bad) - format.luma_offset) * format.luma_unit;
      rgb[2] = (sample(frame[2 * area + at], bad) - format.luma_offset) * format.luma_unit;
    }
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) rgb[c] = clamped(rgb[c]);
}

#ifdef FRAMES

// out: (padded_height, padded_width, FRAMES, 3), at a multiple of 16 bytes; pixels beyond the frame
// repeat its last row and column. flags: FRAMES numbers, 0 before; 1 where a frame has a sample
// that is NaN or infinite. Frames beyond FRAMES are not looked at.
KERNEL(THREADS)
stack(const SAMPLE *frame0, const SAMPLE *frame1, const SAMPLE *frame2, const SAMPLE *frame3,
      const SAMPLE *frame4, const SAMPLE *frame5, const SAMPLE *frame6,
      const Format *__restrict__ format, int height, int width, int padded_height, int padded_width,
      VALUE *__restrict__ out, int *flags) {
  constexpr int CHANNELS = 3 * FRAMES;
  constexpr int VALUES = 16 / sizeof(VALUE);
  const SAMPLE *const frames[7] = {frame0, frame1, frame2, frame3, frame4, frame5, frame6};
  VALUE *const gathered = reinterpret_cast<VALUE *>(shared_memory());

  // Threads beyond the last pixel repeat one, for nobody.
  const uint32 first = blockIdx.x * THREADS, pixel = first + threadIdx.x;
  const Size size{height, width};
  const int y = min(int(pixel / padded_width), height - 1);
  const int x = min(int(pixel % padded_width), width - 1);
  const Reach r = reach(*format, size, y, x);
#pragma unroll
  for (int n = 0; n < FRAMES; ++n) {
    float rgb[3];
    bool bad = false;
    see(frames[n], *format, size, r, y, x, rgb, bad);
    if (bad) flags[n] = 1;
#pragma unroll
    for (int c = 0; c < 3; ++c) gathered[threadIdx.x * CHANNELS + 3 * n + c] = rounded(rgb[c]);
  }
  __syncthreads();  // all values of the block are gathered

  const int count = min(padded_height * padded_width - int(first), THREADS) * CHANNELS;
  VALUE *const to = out + (long long)first * CHANNELS;
  for (int i = threadIdx.x * VALUES; i < count; i += THREADS * VALUES) {
    if (i + VALUES <= count)
      store(to + i, load<Bytes16>(gathered + i));
    else
      for (int j = i; j < count; ++j) to[j] = gathered[j];
  }
}

#else

constexpr int TILE_X = 64, TILE_Y = 16;
// The tile and what is around it, and where the tile begins therein.
constexpr int AREA_X = TILE_X + HALVING_X - 1 - SUB_X, AREA_Y = TILE_Y + HALVING_Y - 1 - SUB_Y;
constexpr int BEFORE_X = SUB_X * (TAPS - 1), BEFORE_Y = SUB_Y * (TAPS - 1);

// A sample and its change, in the format's type.
DEVICE SAMPLE changed(SAMPLE s, float change, float scale, float peak) {
  SAMPLE out;
  bool bad;
  const float sum = fmaf(change, scale, sample(s, bad));
  if constexpr (IS_FLOAT<SAMPLE>)
    from_float(sum, out);
  else
    from_float(fminf(sum, peak), out);
  return out;
}

// sharp: the network's result, 3 x at least height x at least width, with strides in floats. out:
// as the frame. flag: one number, 0 before; 1 if sharp has a value within the frame that is NaN
// (taken for 0) or infinite (for 0 or 1, by its sign).
KERNEL(THREADS)
add(const SAMPLE *__restrict__ frame, const Format *__restrict__ format,
    const float *__restrict__ sharp, long long colour_stride, long long row_stride,
    long long column_stride, float strength, int height, int width, SAMPLE *__restrict__ out,
    int *flag) {
  float *const changes_u = reinterpret_cast<float *>(shared_memory());
  float *const changes_v = changes_u + AREA_X * AREA_Y;
  const Size size{height, width};
  const int top = blockIdx.y * TILE_Y, left = blockIdx.x * TILE_X;
  const int second = size.second(), third = size.third();
  bool bad = false, ignored = false;

  for (int i = threadIdx.x; i < AREA_X * AREA_Y; i += THREADS) {
    const int row = i / AREA_X - BEFORE_Y, column = i % AREA_X - BEFORE_X;  // in the tile
    const int y = mirrored(top + row, height), x = mirrored(left + column, width);
    float change[3];
    see(frame, *format, size, reach(*format, size, y, x), y, x, change, ignored);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float value = sharp[c * colour_stride + y * row_stride + x * column_stride];
      bad |= !is_finite(value);
      change[c] = (clamped(value) - to_float(rounded(change[c]))) * strength;
    }
    float luma = format->luma_of_blue * change[2];
    luma = fmaf(format->luma_of_green, change[1], luma);
    luma = fmaf(format->luma_of_red, change[0], luma);
    const float u = (change[2] - luma) * format->u_of_difference;
    const float v = (change[0] - luma) * format->v_of_difference;
    if constexpr (IS_SUBSAMPLED) {
      changes_u[i] = u;
      changes_v[i] = v;
    }
    const bool is_inside = row >= 0 && row < min(TILE_Y, height - top) && column >= 0 &&
                           column < min(TILE_X, width - left);
    if (is_inside) {
      const int at = y * width + x;
      const float scale = format->luma_scale, peak = format->peak;
      if constexpr (FORMAT_FAMILY == Family::rgb) {
#pragma unroll
        for (int c = 0; c < 3; ++c)
          out[c * second + at] = changed(frame[c * second + at], change[c], scale, peak);
      } else {
        out[at] = changed(frame[at], luma, scale, peak);
      }
      if constexpr (FORMAT_FAMILY == Family::yuv && !IS_SUBSAMPLED) {
        out[second + at] = changed(frame[second + at], u, format->chroma_scale, peak);
        out[third + at] = changed(frame[third + at], v, format->chroma_scale, peak);
      }
    }
  }
  if (bad) *flag = 1;

  if constexpr (IS_SUBSAMPLED) {
    __syncthreads();  // all changes of the tile are there
    constexpr int CHROMA_X = TILE_X >> SUB_X, CHROMA_Y = TILE_Y >> SUB_Y;
    for (int i = threadIdx.x; i < CHROMA_X * CHROMA_Y; i += THREADS) {
      const int row = i / CHROMA_X, column = i % CHROMA_X;
      const int y = (top >> SUB_Y) + row, x = (left >> SUB_X) + column;
      if (y >= size.chroma_height() || x >= size.chroma_width()) continue;
      float u = 0.f, v = 0.f;
#pragma unroll
      for (int j = 0; j < HALVING_Y; ++j) {
        float line_u = 0.f, line_v = 0.f;
#pragma unroll
        for (int k = 0; k < HALVING_X; ++k) {
          const int from = ((row << SUB_Y) + j) * AREA_X + (column << SUB_X) + k;
          const float weight = SUB_X ? format->halve_x[k] : 1.f;
          line_u = fmaf(weight, changes_u[from], line_u);
          line_v = fmaf(weight, changes_v[from], line_v);
        }
        const float weight = SUB_Y ? format->halve_y[j] : 1.f;
        u = fmaf(weight, line_u, u);
        v = fmaf(weight, line_v, v);
      }
      const int at = y * size.chroma_width() + x;
      const float scale = format->chroma_scale, peak = format->peak;
      out[second + at] = changed(frame[second + at], u, scale, peak);
      out[third + at] = changed(frame[third + at], v, scale, peak);
    }
  }
}

#endif
