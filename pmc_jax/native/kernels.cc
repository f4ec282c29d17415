// What a decode step on CPUs spends most time on besides matrix products, where XLA takes one core
// or many passes: attention over a prompt and a sample's own tokens, and the largest logits.
//
// A vector is of eight floats, which compilers map to whatever the processor has. No result
// depends on which thread computes it, or on what else is in the batch.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

constexpr float kLowest = std::numeric_limits<float>::lowest();

int64_t rounded_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

Integers load(const int32_t* from) {
  Integers x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

void store(int32_t* to, Integers x) { std::memcpy(to, &x, sizeof x); }

template <typename Vector>
Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}

float sum(Floats x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// Calls work(item, scratch) for 0 <= item < count on the threads of XLA's pool and on this one,
// which takes part instead of waiting for threads that may all be busy. Scratch is a thread's own.
void in_parallel(ffi::ThreadPool pool, int64_t count, int64_t scratch_size,
                 const std::function<void(int64_t, float*)>& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto progress = std::make_shared<Progress>();
  // Whoever comes too late finds no item left, and does not touch `work`, which may be gone.
  auto take_part = [progress, count, scratch_size, &work] {
    std::vector<float> scratch;
    for (int64_t item; (item = progress->next++) < count; ++progress->finished) {
      if (scratch.empty()) scratch.resize(scratch_size + 1);
      work(item, scratch.data());
    }
  };
  int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([take_part] { take_part(); });
  take_part();
  while (progress->finished < count) std::this_thread::yield();
}

// e^x for x <= 0: 2^n times a polynomial of the rest, as Cephes has it; 0 below the least normal
// number.
Floats exponential(Floats x) {
  const Floats least = Floats{} - 87.0f;
  Integers below = x < least;  // which NaN is not: it stays what it is
  x = below ? least : x;
  Integers n = __builtin_convertvector(x * 1.44269504088896341f - 0.5f, Integers);
  Floats whole = __builtin_convertvector(n, Floats);
  Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats series = Floats{} + 1.9875691500e-4f;
  series = series * rest + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  series = series * (rest * rest) + rest + 1.0f;
  Integers power = (n + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  return below ? Floats{} : series * scale;
}

// out[r, c] = sum over i of a[r, i] b[i, c], for kRows rows and kVectors vectors of columns.
template <int kRows, int kVectors>
void block_product(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t inner,
                   float* out, int64_t out_row) {
  Floats total[kRows][kVectors] = {};
  for (int64_t i = 0; i < inner; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      Floats column = load(b + i * b_row + v * kLanes);
      for (int r = 0; r < kRows; ++r) total[r][v] += column * a[r * a_row + i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(out + r * out_row + v * kLanes, total[r][v]);
  }
}

template <int kRows>
void rows_product(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t inner,
                  int64_t columns, float* out, int64_t out_row) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes) {
    block_product<kRows, 2>(a, a_row, b + c, b_row, inner, out + c, out_row);
  }
  if (c < columns) block_product<kRows, 1>(a, a_row, b + c, b_row, inner, out + c, out_row);
}

// The same for any number of rows, and columns in whole vectors.
void product(int64_t rows, const float* a, int64_t a_row, const float* b, int64_t b_row,
             int64_t inner, int64_t columns, float* out, int64_t out_row) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    rows_product<4>(a + r * a_row, a_row, b, b_row, inner, columns, out + r * out_row, out_row);
  }
  for (; r < rows; ++r) {
    rows_product<1>(a + r * a_row, a_row, b, b_row, inner, columns, out + r * out_row, out_row);
  }
}

float dot(const float* a, const float* b, int64_t size) {
  Floats total = {};
  for (int64_t i = 0; i < size; i += kLanes) total += load(a + i) * load(b + i);
  return sum(total);
}

// A head's vector with its first 2 * half dimensions rotated, every one with its partner.
void rotate(const float* x, const float* cosine, const float* sine, int64_t half, int64_t dim,
            float* out) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    Floats low = load(x + i), high = load(x + i + half);
    store(out + i, low * load(cosine + i) - high * load(sine + i));
    store(out + i + half, high * load(cosine + i) + low * load(sine + i));
  }
  for (; i < half; ++i) {
    out[i] = x[i] * cosine[i] - x[i + half] * sine[i];
    out[i + half] = x[i + half] * cosine[i] + x[i] * sine[i];
  }
  std::memcpy(out + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(float));
}

// Has the processor read ahead, which it does not do by itself from one page to the next.
void prefetch(const float* from, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(from + i);
}

// Scores, in whole vectors, to weights of unnormalised softmax; returns their sum.
float soften(float* scores, int64_t size, float softcap) {
  if (softcap > 0) {
    for (int64_t i = 0; i < size; ++i) {
      if (scores[i] > kLowest) scores[i] = softcap * std::tanh(scores[i] / softcap);
    }
  }
  Floats highest = load(scores);
  for (int64_t i = kLanes; i < size; i += kLanes) highest = larger(load(scores + i), highest);
  float top = highest[0];
  for (int lane = 1; lane < kLanes; ++lane) top = std::max(top, highest[lane]);
  Floats total = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    Floats weight = exponential(load(scores + i) - top);
    store(scores + i, weight);
    total += weight;
  }
  return sum(total);
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

// Shapes: projected [batch, samples, heads + 2 kv_heads, dim] (queries, keys, values); cosine, sine
// [batch, half]; prompt_k [batch, kv_heads, dim, prompt] (keys as columns, scaled), prompt_v [batch,
// kv_heads, prompt, dim]; own_k, own_v [layers, batch, samples, kv_heads, room, dim], or without
// layers if there is one; places [batch, 4]: the layer, the first visible places of the prompt and
// of the own tokens, the step. The results own_k and own_v are the memory of the arguments.
ffi::Error WriteAndAttend(ffi::ThreadPool pool, F32 projected, F32 cosine, F32 sine, F32 prompt_k,
                          F32 prompt_v, F32 own_k_before, F32 own_v_before, S32 places,
                          ffi::Result<F32> out, ffi::Result<F32> own_k, ffi::Result<F32> own_v,
                          float scale, float softcap) {
  auto sizes = prompt_v.dimensions();
  int64_t batch = sizes[0], kv_heads = sizes[1], prompt = sizes[2], dim = sizes[3];
  int64_t samples = projected.dimensions()[1], per_head = projected.dimensions()[2] / kv_heads - 2;
  int64_t room = own_k->dimensions()[own_k->dimensions().size() - 2];
  int64_t half = cosine.dimensions()[1], rows = samples * per_head;
  if (dim % kLanes != 0 || prompt % kLanes != 0) {
    return ffi::Error::InvalidArgument("head_dim and prompt must be multiples of 8");
  }
  if (own_k->typed_data() != own_k_before.typed_data() ||
      own_v->typed_data() != own_v_before.typed_data()) {
    return ffi::Error::Internal("the caches were to be written in place");
  }
  int64_t width = prompt + rounded_up(room);

  auto attend = [&](int64_t item, float* scratch) {
    int64_t b = item / kv_heads, head = item % kv_heads;
    const int32_t* place = places.typed_data() + 4 * b;
    int64_t layer = place[0], first = place[1], first_own = place[2], step = place[3];
    int64_t own_size = rounded_up(step + 1), start = first / kLanes * kLanes;
    const float* angle_cos = cosine.typed_data() + b * half;
    const float* angle_sin = sine.typed_data() + b * half;
    const float* keys = prompt_k.typed_data() + item * dim * prompt;
    const float* values = prompt_v.typed_data() + item * prompt * dim;
    float *queries = scratch, *scores = queries + rows * dim, *mixed = scores + rows * width;

    auto vector = [&](int64_t sample, int64_t index) {
      int64_t vectors = kv_heads * (per_head + 2);
      return projected.typed_data() + ((b * samples + sample) * vectors + index) * dim;
    };
    auto own = [&](float* cache, int64_t sample) {
      return cache + (((layer * batch + b) * samples + sample) * kv_heads + head) * room * dim;
    };

    for (int64_t s = 0; s < samples; ++s) {
      prefetch(own(own_k->typed_data(), s) + step * dim, dim);
      prefetch(own(own_v->typed_data(), s) + step * dim, dim);
    }
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t j = 0; j < per_head; ++j) {
        rotate(vector(s, head * per_head + j), angle_cos, angle_sin, half, dim,
               queries + (s * per_head + j) * dim);
      }
    }
    for (int64_t s = 0; s < samples; ++s) {
      rotate(vector(s, kv_heads * per_head + head), angle_cos, angle_sin, half, dim,
             own(own_k->typed_data(), s) + step * dim);
      std::memcpy(own(own_v->typed_data(), s) + step * dim,
                  vector(s, kv_heads * (per_head + 1) + head), dim * sizeof(float));
    }
    // Scores of the prompt's places from `start` on, then of the own ones.
    int64_t seen = prompt - start;
    product(rows, queries, dim, keys + start, prompt, dim, seen, scores, width);
    for (int64_t r = 0; r < rows; ++r) {
      float *row = scores + r * width, *row_own = row + seen;
      std::fill(row, row + (first - start), kLowest);
      std::fill(row_own, row_own + own_size, kLowest);
      const float* own_keys = own(own_k->typed_data(), r / per_head);
      if (r % per_head == 0) {
        int64_t read = (step + 1 - first_own) * dim, next = std::min(r / per_head + 1, samples - 1);
        prefetch(own(own_k->typed_data(), next) + first_own * dim, read);
        prefetch(own(own_v->typed_data(), r / per_head) + first_own * dim, read);
      }
      for (int64_t t = first_own; t <= step; ++t) {
        row_own[t] = scale * dot(queries + r * dim, own_keys + t * dim, dim);
      }
      float total = soften(row, seen + own_size, softcap);
      for (int64_t i = 0; i < seen + own_size; i += kLanes) store(row + i, load(row + i) / total);
    }
    product(rows, scores, width, values + start * dim, dim, seen, dim, mixed, dim);
    int64_t heads = kv_heads * per_head, own_tokens = step + 1 - first_own;
    for (int64_t s = 0; s < samples; ++s) {
      const float* weights = scores + s * per_head * width + seen + first_own;
      const float* of_prompt = mixed + s * per_head * dim;
      const float* own_values = own(own_v->typed_data(), s) + first_own * dim;
      float* to = out->typed_data() + ((b * samples + s) * heads + head * per_head) * dim;
      product(per_head, weights, width, own_values, dim, own_tokens, dim, to, dim);
      for (int64_t i = 0; i < per_head * dim; i += kLanes) {
        store(to + i, load(to + i) + load(of_prompt + i));
      }
    }
  };
  in_parallel(pool, batch * kv_heads, rows * (2 * dim + width), attend);
  return ffi::Error::Success();
}

// A float's bits as an integer in the order of the floats: -0 before 0, NaN at the ends.
template <typename Integer, typename Float>
Integer ordered(Float x) {
  Integer bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
}

bool any(Integers mask) {
  uint64_t parts[4];
  std::memcpy(parts, &mask, sizeof mask);
  return ((parts[0] | parts[1]) | (parts[2] | parts[3])) != 0;
}

// A number that at least `count` of these reach, in whole vectors, and hardly more of them do.
int32_t reached_by(const std::vector<int32_t>& numbers, int64_t count) {
  const int64_t enough = count + count / 8;
  int64_t low = std::numeric_limits<int32_t>::min(), high = std::numeric_limits<int32_t>::max();
  while (low < high) {
    int64_t middle = low + (high - low + 1) / 2;
    Integers found = {};
    for (size_t i = 0; i < numbers.size(); i += kLanes) {
      found -= load(&numbers[i]) >= int32_t(middle);
    }
    int64_t total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += found[lane];
    if (total < count) {
      high = middle - 1;
    } else {
      low = middle;
      if (total <= enough) break;
    }
  }
  return low;
}

// The `count` largest of each row of x * scale, in descending order, and where they are; of equals
// the first ones, in their order.
//
// A row is dealt out to piles. The count-th largest of the piles' maxima is reached by `count`
// elements at least, so that what is below it need not be looked at.
ffi::Error TopK(ffi::ThreadPool pool, F32 x, F32 scale, ffi::Result<F32> values,
                ffi::Result<S32> indices) {
  constexpr int64_t kRowsAtATime = 4, kGroup = 2 * kLanes;
  int64_t size = x.dimensions()[1], rows = x.dimensions()[0], count = values->dimensions()[1];
  const float factor = scale.typed_data()[0];
  int64_t piles = kGroup;
  while (piles < 4 * count) piles *= 2;

  auto find = [&](int64_t item, float*) {
    std::vector<int32_t> highest(piles);
    std::unique_ptr<uint64_t[]> found(new uint64_t[size]);
    int64_t end = std::min(rows, (item + 1) * kRowsAtATime);
    for (int64_t r = item * kRowsAtATime; r < end; ++r) {
      const float* row = x.typed_data() + r * size;
      auto key = [&](int64_t i) { return ordered<int32_t>(row[i] * factor); };
      auto keys = [&](int64_t i) { return ordered<Integers>(load(row + i) * factor); };
      int32_t least = std::numeric_limits<int32_t>::min();
      if (size >= 2 * piles) {
        std::fill(highest.begin(), highest.end(), least);
        for (int64_t first = 0; first + piles <= size; first += piles) {
          for (int64_t p = 0; p < piles; p += kLanes) {
            store(&highest[p], larger(keys(first + p), load(&highest[p])));
          }
        }
        least = reached_by(highest, count);
      }
      int64_t size_found = 0;
      auto collect = [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          // Larger for larger keys and, of equals, for lower places.
          found[size_found] = (uint64_t(uint32_t(key(i)) ^ 0x80000000u) << 32) | uint32_t(~i);
          size_found += key(i) >= least;
        }
      };
      int64_t i = 0;
      for (; i + kGroup <= size; i += kGroup) {
        if (any((keys(i) >= least) | (keys(i + kLanes) >= least))) collect(i, i + kGroup);
      }
      collect(i, size);
      uint64_t *begin = found.get(), *sorted = begin + count, *end_found = begin + size_found;
      std::nth_element(begin, sorted - 1, end_found, std::greater<uint64_t>());
      std::sort(begin, sorted, std::greater<uint64_t>());
      for (int64_t n = 0; n < count; ++n) {
        int32_t place = ~uint32_t(found[n]);
        indices->typed_data()[r * count + n] = place;
        values->typed_data()[r * count + n] = row[place] * factor;
      }
    }
  };
  in_parallel(pool, (rows + kRowsAtATime - 1) / kRowsAtATime, 0, find);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pmc_jax_write_and_attend, WriteAndAttend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // projected
                                  .Arg<F32>()  // cosine
                                  .Arg<F32>()  // sine
                                  .Arg<F32>()  // prompt_k
                                  .Arg<F32>()  // prompt_v
                                  .Arg<F32>()  // own_k
                                  .Arg<F32>()  // own_v
                                  .Arg<S32>()  // places
                                  .Ret<F32>()  // out
                                  .Ret<F32>()  // own_k
                                  .Ret<F32>()  // own_v
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(pmc_jax_top_k, TopK,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // x
                                  .Arg<F32>()  // scale
                                  .Ret<F32>()  // values
                                  .Ret<S32>());  // indices
