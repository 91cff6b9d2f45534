// A CUDA device in miniature, for the kernels of this project compiled by g++: the very text that
// NVRTC compiles runs here, thread by thread, and faults that a GPU would hide come to light.
//
// - Every thread of a block is a fibre. Which goes on whenever one waits is up to the seed: any of
//   them by chance, or one warp as far as it can go, then the next. So what a missing barrier
//   leaves open comes out wrong for some seed.
// - Shared memory starts as NaN, and lies between pages that may not be touched, as all tensors do:
//   an access out of bounds ends the launch with a message.
// - Asynchronous copies poison their destination with NaN at once and happen only when their thread
//   waits for them.
// - Vector accesses are checked for alignment.
// - Barriers that not all threads reach are an error; so are arguments of another size than the
//   parameter's, and matrices and asynchronous copies beside shared memory.
// - A warpgroup's products (wgmma) read shared memory when they are started or when they are waited
//   for, by chance. Until then their sums are NaN. Registers that change between their fence and
//   their product, or between the product and the wait for it, are an error, and so is shared
//   memory that was written since the writer's last fence for products. Only what is written by the
//   functions here is known to be written (store, copies, matrices), not plain assignments; a
//   register that is written with the value it had passes for one that is not written.
//
// Tensor-core products add in float, in the order of k: a GPU rounds a little differently.
// Not covered: occupancy, caches, timing, memory that is not coherent between blocks.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#define DEVICE inline
using std::min;
using std::max;
#define KERNEL(...) inline void

using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;

namespace shim {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 128 << 10;
constexpr unsigned MOST_THREADS = 1024;

struct Index {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

struct Copy {
  void *to;
  const void *from;  // null: zeros
};

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fibre {
  jmp_buf jump;
  Index thread;
  unsigned number;
  State state;
  unsigned collectives;                   // of its warp, so far
  std::vector<Copy> open;                 // asynchronous copies of the group that is not closed
  std::deque<std::vector<Copy>> groups;   // closed, not done
  std::vector<unsigned char> stack;       // what was on it at the last fence for products
  std::vector<unsigned> written;          // units of shared memory, since that for shared memory
  float *sums;                            // that products under way add to; null: there are none
  unsigned products, done;                // started; waited for
  std::deque<unsigned> product_groups;    // closed, not waited for: products until their ends
};

// What lanes of a warp show to each other: a slot for each of two collectives in a row.
struct Lane {
  float a[8], b[4];
  const void *row;
  uint32 word;
};
// A warp's part of a product of its warpgroup: d += a b, d 16 x n.
struct Product {
  const uint32 *a[WARP];
  uint32 a_then[WARP][4];  // when it was started
  uint64 b;
  void (*compute)(Product &);
  bool is_done;
};
struct Warp {
  Lane lane[2][WARP];
  std::deque<Product> products;
  std::vector<float> sums;  // of products under way, row by row
  unsigned waiting;   // lanes at a barrier of the warp
  unsigned priority;  // where warps go one after another
};

inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline std::vector<std::vector<uint64>> matrices;  // of each warpgroup's products, in their order
inline std::vector<uint16> writer;  // of 16 bytes of shared memory, plus 1; 0: products see them
inline Fibre *current;
inline Index grid, block_size, block_index;
inline unsigned char *shared;
inline size_t shared_size;
inline std::mt19937 order;
inline sigjmp_buf scheduler;
inline char message[256];
inline void (*body)();

[[noreturn]] inline void fail(const char *what) {
  snprintf(message, sizeof message, "%s (block %u %u %u, thread %u %u %u)", what, block_index.x,
           block_index.y, block_index.z, current->thread.x, current->thread.y, current->thread.z);
  siglongjmp(scheduler, 2);
}

inline void on_bad_access(int) { fail("an access out of bounds"); }

// Gives the processor to the scheduler until it comes back.
__attribute__((noinline)) inline void wait(State state) {
  current->state = state;
  if (!_setjmp(current->jump)) siglongjmp(scheduler, 1);
}

inline void *stack_of(unsigned number) {
  static unsigned char *stacks = static_cast<unsigned char *>(
      mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return stacks + STACK * number;
}

inline void enter() {
  // Entered once to learn the stack, left at once, gone on with by the scheduler's jump.
  if (_setjmp(current->jump)) {
    body();
    for (const auto &group : current->groups)
      if (!group.empty()) fail("a thread ended with copies under way");
    if (!current->open.empty()) fail("a thread ended with copies under way");
    if (current->products != current->done) fail("a thread ended with products under way");
    current->state = State::done;
    siglongjmp(scheduler, 1);
  }
  siglongjmp(scheduler, 1);
}

inline void start(Fibre &fibre) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(fibre.number);
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  current = &fibre;
  if (!sigsetjmp(scheduler, 0)) setcontext(&context);
}

inline bool warp_after_warp;
inline std::vector<Fibre *> ready;

inline Warp &warp_of(const Fibre &fibre) { return warps[fibre.number / WARP]; }

// Takes the one that goes on out of those that may.
inline Fibre *choose() {
  size_t chosen = order() % ready.size();
  if (warp_after_warp)
    for (size_t i = 0; i < ready.size(); ++i)
      if (warp_of(*ready[i]).priority < warp_of(*ready[chosen]).priority) chosen = i;
  Fibre *fibre = ready[chosen];
  ready[chosen] = ready.back();
  ready.pop_back();
  return fibre;
}

inline void go_on(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    fibres[i].state = State::ready;
    ready.push_back(&fibres[i]);
  }
}

// A fibre has stopped: if it was the last of its warp to come to a barrier, they go on.
inline void after(const Fibre &fibre) {
  if (fibre.state != State::at_warp_barrier) return;
  const size_t first = fibre.number / WARP * WARP, last = std::min(first + WARP, fibres.size());
  if (++warp_of(fibre).waiting < last - first) return;
  warp_of(fibre).waiting = 0;
  go_on(first, last);
}

// Runs the threads of a block; nullptr, or what went wrong.
inline const char *run_block() {
  memset(shared, 0xff, shared_size);
  // Not by assign(), which takes g++ a second to compile.
  fibres = std::vector<Fibre>(block_size.count());
  warps = std::vector<Warp>((fibres.size() + WARP - 1) / WARP);
  matrices = std::vector<std::vector<uint64>>(fibres.size() / 128 + 1);
  writer.assign(shared_size / 16 + 1, 0);
  for (unsigned i = 0; i < fibres.size(); ++i) {
    fibres[i].number = i;
    fibres[i].thread = {i % block_size.x, i / block_size.x % block_size.y,
                        i / (block_size.x * block_size.y)};
    start(fibres[i]);
  }
  ready.clear();
  while (true) {
    for (const Fibre &f : fibres)
      if (f.state != fibres[0].state) return "a barrier that not all threads reach";
    if (fibres[0].state == State::done) break;
    for (Warp &w : warps) w.priority = order();
    go_on(0, fibres.size());
    while (!ready.empty()) {
      current = choose();
      const int back = sigsetjmp(scheduler, 0);
      if (back == 2) return message;
      if (!back) _longjmp(current->jump, 1);
      after(*current);
    }
  }
  for (const Fibre &f : fibres)
    if (f.products != matrices[f.number / 128].size())
      return "a product that not all of the warpgroup start";
  return nullptr;
}

// Whether 16 bytes lie in shared memory.
inline void in_shared(const void *address, const char *what) {
  const unsigned char *p = static_cast<const unsigned char *>(address);
  if (p < shared || p + 16 > shared + shared_size) fail(what);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A *>(arguments[I])...);
}

template <class... A>
const char *launch(void (*kernel)(A...), const unsigned *grid_, const unsigned *block_,
                   void *shared_, size_t shared_size_, void **arguments, const size_t *sizes,
                   size_t count, unsigned seed) {
  const size_t expected[] = {sizeof(A)...};
  if (count != sizeof...(A)) return "another number of arguments than the kernel has";
  for (size_t i = 0; i < count; ++i)
    if (sizes[i] != expected[i]) return "an argument of another size than the parameter";
  static void (*what)(A...);
  static void **with;
  what = kernel, with = arguments;
  body = [] { call(what, with, std::index_sequence_for<A...>{}); };
  grid = {grid_[0], grid_[1], grid_[2]};
  block_size = {block_[0], block_[1], block_[2]};
  shared = static_cast<unsigned char *>(shared_), shared_size = shared_size_;
  order.seed(seed);
  warp_after_warp = seed / 2 % 2;

  struct sigaction action = {}, old_segv, old_bus;
  action.sa_handler = on_bad_access;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  static const char *error;
  error = nullptr;
  static std::vector<unsigned> blocks;
  blocks.resize(grid.count());
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  for (unsigned i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[order() % i]);
  static size_t at;
  for (at = 0; at < blocks.size() && !error; ++at) {
    const unsigned i = blocks[at];
    block_index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    error = run_block();
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  return error;
}

inline void aligned(const void *address, size_t size, const char *what) {
  if (reinterpret_cast<uintptr_t>(address) % size) fail(what);
}

inline bool is_shared(const void *address) {
  return address >= shared && address < shared + shared_size;
}

// Up to 16 bytes are written: if they are shared memory, products do not see that yet.
inline void wrote(const void *address) {
  if (!is_shared(address)) return;
  const size_t at = static_cast<const unsigned char *>(address) - shared;
  writer[at / 16] = current->number + 1;
  current->written.push_back(at / 16);
}

// Shows something to the other lanes of the warp and waits for theirs.
template <class Show> const Lane *together(Show show) {
  Lane *lanes = warps[current->number / WARP].lane[current->collectives++ % 2];
  show(lanes[current->number % WARP]);
  wait(State::at_warp_barrier);
  return lanes;
}

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid)

inline void __syncthreads() { shim::wait(shim::State::at_block_barrier); }
inline void __syncwarp() { shim::wait(shim::State::at_warp_barrier); }

struct float16 {
  uint16 bits;
};
struct bfloat16 {
  uint16 bits;
};

inline float bits_to_float(uint32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32 float_to_bits(float x) {
  uint32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(bfloat16 x) { return bits_to_float(uint32(x.bits) << 16); }
inline float to_float(float16 x) {
  const uint32 sign = uint32(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // 2^-14 times what the bits say as a float whose exponent starts at 0: subnormals come out right.
  const float magnitude = bits_to_float(rest << 13) * 0x1p112f;
  return bits_to_float(sign | float_to_bits(magnitude));
}

inline void from_float(float x, bfloat16 &y) {
  const uint32 bits = float_to_bits(x);
  y.bits = x != x ? 0x7fff : uint16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void from_float(float x, float16 &y) {
  const uint32 sign = float_to_bits(x) >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  uint32 bits;
  if (x != x) {
    bits = 0x7fff;
  } else if (magnitude >= 65520.f) {
    bits = 0x7c00;
  } else if (magnitude < 0x1p-14f) {
    bits = uint32(std::nearbyint(magnitude * 0x1p24f));  // subnormal: units of 2^-24
  } else {
    const uint32 m = float_to_bits(magnitude) - (112u << 23);
    bits = (m + 0xfff + (m >> 13 & 1)) >> 13;
  }
  y.bits = uint16(sign | bits);
}

struct alignas(16) Bytes16 {
  uint32 word[4];
};
struct alignas(8) Bytes8 {
  uint32 word[2];
};
template <class Bytes> Bytes load(const void *address) {
  shim::aligned(address, sizeof(Bytes), "a vector load that is not aligned");
  Bytes bytes;
  memcpy(&bytes, address, sizeof bytes);
  return bytes;
}
template <class Bytes> void store(void *address, const Bytes &bytes) {
  shim::aligned(address, sizeof(Bytes), "a vector store that is not aligned");
  memcpy(address, &bytes, sizeof bytes);
  shim::wrote(address);
}

template <class Bytes> void store_global(void *address, const Bytes &bytes) {
  if (shim::is_shared(address)) shim::fail("a store to global memory that is shared memory");
  store(address, bytes);
}

inline unsigned char *shared_memory() { return shim::shared; }

// The first KiB belongs to the system.
inline uint32 shared_address(const void *p) {
  return 1024 + uint32(static_cast<const unsigned char *>(p) - shim::shared);
}

inline uint32 warp_uniform(uint32 x) {
  const shim::Lane *lanes = shim::together([x](shim::Lane &mine) { mine.word = x; });
  if (lanes[0].word != x) shim::fail("a number that is not the same in all lanes");
  return x;
}

inline void copy_async(void *to, const void *from, bool valid) {
  shim::aligned(to, 16, "an asynchronous copy to an address that is not aligned");
  if (valid) shim::aligned(from, 16, "an asynchronous copy from an address that is not aligned");
  shim::in_shared(to, "an asynchronous copy to elsewhere than shared memory");
  memset(to, 0xff, 16);
  shim::current->open.push_back({to, valid ? from : nullptr});
}
inline void copy_async_commit() {
  shim::current->groups.push_back(std::move(shim::current->open));
  shim::current->open.clear();
}
template <int open> void copy_async_wait() {
  auto &groups = shim::current->groups;
  while (groups.size() > size_t(open)) {
    for (const shim::Copy &c : groups.front()) {
      if (c.from)
        memcpy(c.to, c.from, 16);
      else
        memset(c.to, 0, 16);
      shim::wrote(c.to);
    }
    groups.pop_front();
  }
}

// PTX ISA, ldmatrix.
inline void load_matrices(uint32 (&m)[4], const void *row) {
  shim::aligned(row, 16, "a row of a matrix that is not aligned");
  shim::in_shared(row, "a row of a matrix outside shared memory");
  const unsigned lane = shim::current->number % shim::WARP;
  const shim::Lane *lanes = shim::together([row](shim::Lane &mine) { mine.row = row; });
  for (unsigned i = 0; i < 4; ++i)
    memcpy(&m[i], static_cast<const char *>(lanes[8 * i + lane / 4].row) + 4 * (lane % 4), 4);
}

inline void load_matrices_transposed(uint32 (&m)[4], const void *row) {
  shim::aligned(row, 16, "a row of a matrix that is not aligned");
  shim::in_shared(row, "a row of a matrix outside shared memory");
  const unsigned lane = shim::current->number % shim::WARP;
  const shim::Lane *lanes = shim::together([row](shim::Lane &mine) { mine.row = row; });
  for (unsigned i = 0; i < 4; ++i) {
    m[i] = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const void *from = lanes[8 * i + 2 * (lane % 4) + half].row;
      m[i] |= uint32(static_cast<const uint16 *>(from)[lane / 4]) << 16 * half;
    }
  }
}
// PTX ISA, stmatrix.
inline void store_matrices_transposed(void *row, const uint32 (&m)[4]) {
  shim::aligned(row, 16, "a row of a matrix that is not aligned");
  shim::in_shared(row, "a row of a matrix outside shared memory");
  const unsigned lane = shim::current->number % shim::WARP;
  const shim::Lane *lanes = shim::together([row](shim::Lane &mine) { mine.row = row; });
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned half = 0; half < 2; ++half) {
      const void *to = lanes[8 * i + 2 * (lane % 4) + half].row;
      static_cast<uint16 *>(const_cast<void *>(to))[lane / 4] = uint16(m[i] >> 16 * half);
      shim::wrote(to);
    }
}

// PTX ISA, fragments of mma.m16n8k16 for 16-bit numbers.
template <class T> void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 *b) {
  const auto number = [](uint32 word, unsigned half) {
    return to_float(T{uint16(word >> 16 * half)});
  };
  const shim::Lane *lanes = shim::together([&](shim::Lane &mine) {
    for (unsigned i = 0; i < 8; ++i) mine.a[i] = number(a[i / 2], i % 2);
    for (unsigned i = 0; i < 4; ++i) mine.b[i] = number(b[i / 2], i % 2);
  });
  const unsigned lane = shim::current->number % shim::WARP, row = lane / 4, pair = lane % 4;
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned below = e / 2, column = 2 * pair + e % 2;
    for (unsigned k = 0; k < 16; ++k) {
      // The lane of k in a row of a and in a column of b, and its place among that lane's numbers.
      const unsigned owner = k % 8 / 2, half = k % 2, high = k / 8;
      d[e] += lanes[4 * row + owner].a[2 * (2 * high + below) + half] *
              lanes[4 * column + owner].b[2 * high + half];
    }
  }
}

// ------------------------------------------------------------ products of a warpgroup (wgmma)

namespace shim {

constexpr unsigned WIDEST = 256;  // product: columns

// What is where the registers of this thread would be: its stack, from the caller's frame on.
__attribute__((noinline)) inline void remember_stack() {
  asm volatile("" ::: "memory");
  const auto *from = static_cast<unsigned char *>(__builtin_frame_address(0));
  const auto *end = static_cast<unsigned char *>(stack_of(current->number)) + STACK;
  current->stack.assign(from, end);
}
inline void unchanged_since_fence(const void *registers, size_t size) {
  const auto *end = static_cast<unsigned char *>(stack_of(current->number)) + STACK;
  const auto *at = static_cast<const unsigned char *>(registers);
  const size_t behind = end - at;
  if (behind > current->stack.size() || memcmp(at, &*current->stack.end() - behind, size))
    fail("a product's registers were written after the last fence");
}

// Eight numbers of a matrix in shared memory, `address` as a descriptor has it.
inline const uint16 *row_of_matrix(uint64 address) {
  const size_t at = address - 1024;
  if (address < 1024 || at + 16 > shared_size) fail("a matrix out of bounds");
  if (writer[at / 16]) fail("a product reads what was written without a fence for products");
  return reinterpret_cast<const uint16 *>(shared + at);
}

// PTX ISA, "Matrix Descriptor Format", without swizzling and with k along its rows: eight rows of
// 16 bytes lie in a row, each a column of b and half of its 16 values.
template <class T, int N> void compute(Product &product) {
  const uint64 field = 0x3fff, b = product.b;
  const uint64 start = (b & field) << 4;
  const uint64 along_k = (b >> 16 & field) << 4, along_n = (b >> 32 & field) << 4;
  if (b & ~(field | field << 16 | field << 32)) fail("a matrix descriptor that is not known here");
  static float numbers[16][N];
  for (unsigned column = 0; column < N; ++column)
    for (unsigned half = 0; half < 2; ++half) {
      const uint16 *row =
          row_of_matrix(start + half * along_k + column / 8 * along_n + column % 8 * 16);
      for (unsigned k = 0; k < 8; ++k) numbers[8 * half + k][column] = to_float(T{row[k]});
    }
  Warp &warp = warp_of(*current);
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned k = 0; k < 16; ++k) {
      const uint32 word = product.a_then[row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8];
      const float a = to_float(T{uint16(word >> 16 * (k % 2))});
      float *sums = &warp.sums[row * WIDEST];
      for (unsigned column = 0; column < N; ++column) sums[column] += a * numbers[k][column];
    }
  product.is_done = true;
}

// Where a lane's number i is among its warp's sums.
inline float &sum_of(unsigned i) {
  const unsigned lane = current->number % WARP;
  const unsigned row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
  return warp_of(*current).sums[row * WIDEST + column];
}

}  // namespace shim

inline void shared_to_products() {
  for (unsigned unit : shim::current->written)
    if (shim::writer[unit] == shim::current->number + 1) shim::writer[unit] = 0;
  shim::current->written.clear();
}
template <int COUNT> void multiply_async_fence(float (&)[COUNT]) { shim::remember_stack(); }

template <class T, int N>
void multiply_add_async(float (&d)[N / 2], const uint32 (&a)[4], uint64 b) {
  using namespace shim;
  Fibre &mine = *current;
  Warp &warp = warp_of(mine);
  const unsigned lane = mine.number % WARP, number = mine.products++;
  unchanged_since_fence(a, sizeof a);
  if (mine.sums) {
    if (mine.sums != d) fail("products with other sums under way");
    for (float x : d)
      if (float_to_bits(x) != ~0u) fail("sums were written while products were under way");
  } else {
    unchanged_since_fence(d, sizeof d);
    mine.sums = d;
    warp.sums.resize(16 * WIDEST);
    for (unsigned i = 0; i < N / 2; ++i) sum_of(i) = d[i];
    memset(d, 0xff, sizeof d);
  }

  auto &of_warpgroup = matrices[mine.number / 128];
  if (number == of_warpgroup.size()) of_warpgroup.push_back(b);
  if (of_warpgroup[number] != b) fail("a matrix that is not the same in all of the warpgroup");
  if (number == warp.products.size()) warp.products.push_back({{}, {}, b, compute<T, N>, false});
  Product &product = warp.products[number];
  product.a[lane] = a;
  memcpy(product.a_then[lane], a, sizeof a);
  wait(State::at_warp_barrier);
  if (lane == 0 && order() % 2 && !product.is_done) product.compute(product);
}

inline void multiply_async_commit() {
  shim::current->product_groups.push_back(shim::current->products);
}
template <int open> void multiply_async_wait() {
  using namespace shim;
  Fibre &mine = *current;
  while (mine.product_groups.size() > size_t(open)) {
    for (; mine.done < mine.product_groups.front(); ++mine.done) {
      Product &product = warp_of(mine).products[mine.done];
      const unsigned lane = mine.number % WARP;
      if (memcmp(product.a[lane], product.a_then[lane], sizeof product.a_then[lane]))
        fail("a product's registers were written before the wait for it");
      if (!product.is_done) product.compute(product);
    }
    mine.product_groups.pop_front();
  }
}
template <int COUNT> void multiply_async_wait_all(float (&d)[COUNT]) {
  using namespace shim;
  multiply_async_wait<0>();
  if (current->done != current->products || current->sums != d) return;
  for (unsigned i = 0; i < COUNT; ++i) d[i] = sum_of(i);
  current->sums = nullptr;
}

// The door for ctypes: launches `name` and gives nullptr, or what went wrong.
#define SHIM_KERNEL(name)                                                                          \
  extern "C" const char *launch_##name(const unsigned *grid, const unsigned *block, void *shared,  \
                                       size_t shared_size, void **arguments, const size_t *sizes, \
                                       size_t count, unsigned seed) {                             \
    return shim::launch(&name, grid, block, shared, shared_size, arguments, sizes, count, seed);  \
  }
