// What the kernels take from the device: 16-bit numbers, vector accesses, asynchronous copies and
// tensor-core products, one small function each.
//
// No header of the CUDA toolkit is included, so that NVRTC needs nothing but itself. Compiled by
// g++ with VS_DEBLUR_SHIM, everything here comes from an emulation instead (tests/shim/shim.h): the
// text of the kernels is the same.
#pragma once

#ifdef VS_DEBLUR_SHIM
#include "shim.h"
#else

#define DEVICE __device__ __forceinline__
// KERNEL(threads of a block), or KERNEL(threads, blocks that a multiprocessor is to hold).
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)

using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;

// IEEE binary16 and the upper half of binary32, as bits: arithmetic is done in float.
struct float16 {
  uint16 bits;
};
struct bfloat16 {
  uint16 bits;
};

DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
DEVICE float to_float(bfloat16 x) { return __uint_as_float(uint32(x.bits) << 16); }

// Rounded to nearest, ties to even.
DEVICE void from_float(float x, float16 &y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
DEVICE void from_float(float x, bfloat16 &y) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const uint32 bits = __float_as_uint(x);
  y.bits = x != x ? 0x7fff : uint16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

// 16 bytes, or 8, moved by one instruction; the address must be a multiple of the size.
struct alignas(16) Bytes16 {
  uint32 word[4];
};
struct alignas(8) Bytes8 {
  uint32 word[2];
};
template <class Bytes> DEVICE Bytes load(const void *address) {
  return *static_cast<const Bytes *>(address);
}
template <class Bytes> DEVICE void store(void *address, const Bytes &bytes) {
  *static_cast<Bytes *>(address) = bytes;
}
// store() to global memory, in places where the compiler makes an instruction a word of that.
DEVICE void store_global(void *address, const Bytes16 &bytes) {
  const uint32(&w)[4] = bytes.word;
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(address)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}
DEVICE void store_global(void *address, const Bytes8 &bytes) {
  const uint32(&w)[2] = bytes.word;
  asm volatile("st.global.v2.b32 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(address)), "r"(w[0]), "r"(w[1])
               : "memory");
}

// The dynamic shared memory of the block.
DEVICE unsigned char *shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

#if __CUDA_ARCH__ >= 800

DEVICE uint32 shared_address(const void *p) { return uint32(__cvta_generic_to_shared(p)); }

// Starts a copy of 16 bytes from global to shared memory; writes zeros if not `valid` (then the
// source is not read).
DEVICE void copy_async(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Closes the group of the copies that this thread has started.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but this thread's last `open` groups are done. Other threads see them after the
// next barrier.
template <int open> DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
}

// The same number in all lanes of the warp, which the compiler then knows.
DEVICE uint32 warp_uniform(uint32 x) { return __shfl_sync(0xffffffff, x, 0); }

// Four 8x8 matrices of 16-bit numbers. Lane i names row i % 8 of matrix i / 8 (16 bytes, aligned);
// it gets elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of each.
DEVICE void load_matrices(uint32 (&m)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b on tensor cores: a 16 x 16, b 16 x 8 (two registers), d 16 x 8 in float. Lane i holds
// rows i / 4 and i / 4 + 8 and columns 2 (i % 4) and 2 (i % 4) + 1 of d: d[0], d[1] of the first row,
// d[2], d[3] of the second.
template <class T> DEVICE void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 *b);
#define VS_DEBLUR_MMA(TYPE, NAME)                                                                   \
  template <>                                                                                      \
  DEVICE void multiply_add<TYPE>(float (&d)[4], const uint32 (&a)[4], const uint32 *b) {           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                    \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
  }
VS_DEBLUR_MMA(float16, "f16")
VS_DEBLUR_MMA(bfloat16, "bf16")
#undef VS_DEBLUR_MMA

#endif  // __CUDA_ARCH__ >= 800

#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // sm_90a

// load_matrices with each matrix transposed: lane i gets elements 2 (i % 4) and 2 (i % 4) + 1 of
// column i / 4. The rows are those in memory.
DEVICE void load_matrices_transposed(uint32 (&m)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
// Stores what load_matrices_transposed would load.
DEVICE void store_matrices_transposed(void *row, const uint32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(shared_address(row)), "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

// Products by a warpgroup (four warps, the first of them a multiple of four) that run while its
// threads go on. Registers belong to them until a wait. They read shared memory on a way of their
// own (the asynchronous proxy).

// What this thread wrote to shared memory is seen by products that start after the next barrier.
DEVICE void shared_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Keeps what is computed with d from being moved past this place. Emits nothing.
template <int COUNT> DEVICE void pin(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// What was written to d and to the registers of a is seen by products that start after this.
template <int COUNT> DEVICE void multiply_async_fence(float (&d)[COUNT]) {
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of the products started.
DEVICE void multiply_async_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until all but the last `open` groups are done: registers of a may be written again.
template <int open> DEVICE void multiply_async_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
}
// Waits until all groups are done: d may be read.
template <int COUNT> DEVICE void multiply_async_wait_all(float (&d)[COUNT]) {
  multiply_async_wait<0>();
  pin(d);
}

// Starts d += a b: a 64 x 16, b 16 x N in shared memory, d 64 x N in float. Warp w of the warpgroup
// holds rows 16 w to 16 w + 15 of a and d: a as for multiply_add, and each 8 columns of d as there.
// `b` is a matrix descriptor (PTX ISA, "Matrix Descriptor Format"), the same for all threads.
template <class T, int N>
DEVICE void multiply_add_async(float (&d)[N / 2], const uint32 (&a)[4], uint64 b);
#define VS_DEBLUR_TEN(t)                                                                           \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, "                                             \
  "%" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define VS_DEBLUR_SIXTY                                                                            \
  VS_DEBLUR_TEN()                                                                                  \
  VS_DEBLUR_TEN(1) VS_DEBLUR_TEN(2) VS_DEBLUR_TEN(3) VS_DEBLUR_TEN(4) VS_DEBLUR_TEN(5)
#define VS_DEBLUR_D8(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),      \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define VS_DEBLUR_D64                                                                              \
  VS_DEBLUR_D8(0), VS_DEBLUR_D8(8), VS_DEBLUR_D8(16), VS_DEBLUR_D8(24), VS_DEBLUR_D8(32),          \
      VS_DEBLUR_D8(40), VS_DEBLUR_D8(48), VS_DEBLUR_D8(56)
#define VS_DEBLUR_WGMMA(TYPE, NAME, N, OPERANDS, ...)                                              \
  template <>                                                                                      \
  DEVICE void multiply_add_async<TYPE, N>(float (&d)[N / 2], const uint32 (&a)[4], uint64 b) {     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " " OPERANDS      \
                 ", 1, 1, 1, 0;" /* d is added to, no sign changes, b has k along its rows */      \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                              \
                 : "memory");                                                                      \
  }
#define VS_DEBLUR_WGMMA_128(TYPE, NAME)                                                            \
  VS_DEBLUR_WGMMA(TYPE, NAME, 128,                                                                 \
                  "{" VS_DEBLUR_SIXTY "%60, %61, %62, %63}, {%64, %65, %66, %67}, %68",            \
                  VS_DEBLUR_D64)
#define VS_DEBLUR_WGMMA_144(TYPE, NAME)                                                            \
  VS_DEBLUR_WGMMA(TYPE, NAME, 144,                                                                 \
                  "{" VS_DEBLUR_SIXTY VS_DEBLUR_TEN(6) "%70, %71}, {%72, %73, %74, %75}, %76",     \
                  VS_DEBLUR_D64, VS_DEBLUR_D8(64))
VS_DEBLUR_WGMMA_128(float16, "f16")
VS_DEBLUR_WGMMA_128(bfloat16, "bf16")
VS_DEBLUR_WGMMA_144(float16, "f16")
VS_DEBLUR_WGMMA_144(bfloat16, "bf16")
#undef VS_DEBLUR_WGMMA_144
#undef VS_DEBLUR_WGMMA_128
#undef VS_DEBLUR_WGMMA
#undef VS_DEBLUR_D64
#undef VS_DEBLUR_D8
#undef VS_DEBLUR_SIXTY
#undef VS_DEBLUR_TEN

#endif  // sm_90a
#endif  // VS_DEBLUR_SHIM

// What is the same on a device and in the emulation.

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(uint8 x) { return float(x); }
DEVICE float to_float(uint16 x) { return float(x); }
DEVICE void from_float(float x, float &y) { y = x; }
// Integers: rounded to nearest, clamped to the type.
DEVICE void from_float(float x, uint8 &y) { y = uint8(fminf(fmaxf(rintf(x), 0.f), 255.f)); }
DEVICE void from_float(float x, uint16 &y) { y = uint16(fminf(fmaxf(rintf(x), 0.f), 65535.f)); }

// ReLU that keeps NaN, as torch's does: fmaxf would give the other number.
DEVICE float positive(float x) { return x < 0.f ? 0.f : x; }
