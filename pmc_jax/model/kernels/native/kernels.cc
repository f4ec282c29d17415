// What takes most time on CPUs besides matrix products, and for which XLA uses one core or many passes:
// a decode step's attention over prefix and suffix, top-k over the vocabulary, and attention within
// whole sequences with its gradient.
//
// Vectors have eight floats; compilers map them to what the processor has. With the `FLAGS` of
// `__init__.py`, no result depends on the rest of the batch or on the thread that computes it. The
// exception are subnormal numbers, which some threads of XLA treat as 0.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(4 * kLanes)));  // half as many lanes

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

// A vector of lanes of a and b; the lanes of b count from kLanes on.
template <int... kPlaces>
Floats shuffled(Floats a, Floats b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, kPlaces...);
#else
  return __builtin_shuffle(a, b, Integers{kPlaces...});
#endif
}

// The sums of eight vectors, one in each lane, in the same order of additions as `sum`. All shuffles but
// the first stay within halves of a vector, where they are cheaper.
Floats sums(const Floats (&x)[kLanes]) {
  auto halves = [](Floats a, Floats b) {
    return shuffled<0, 1, 2, 3, 8, 9, 10, 11>(a, b) + shuffled<4, 5, 6, 7, 12, 13, 14, 15>(a, b);
  };
  auto quarters = [](Floats a, Floats b) {
    return shuffled<0, 1, 8, 9, 4, 5, 12, 13>(a, b) + shuffled<2, 3, 10, 11, 6, 7, 14, 15>(a, b);
  };
  Floats some = quarters(halves(x[0], x[4]), halves(x[1], x[5]));
  Floats others = quarters(halves(x[2], x[6]), halves(x[3], x[7]));
  return shuffled<0, 2, 8, 10, 4, 6, 12, 14>(some, others) +
         shuffled<1, 3, 9, 11, 5, 7, 13, 15>(some, others);
}

// The lanes of a vector, reduced by `join` in the same order.
template <typename Join>
float folded(Floats x, const Join& join) {
  x = join(x, shuffled<4, 5, 6, 7, 0, 1, 2, 3>(x, x));
  x = join(x, shuffled<2, 3, 0, 1, 6, 7, 4, 5>(x, x));
  return join(x, shuffled<1, 0, 3, 2, 5, 4, 7, 6>(x, x))[0];
}

float sum(Floats x) {
  return folded(x, [](Floats a, Floats b) { return a + b; });
}

float highest(Floats x) { return folded(x, larger<Floats>); }

// Calls work(item) for 0 <= item < count on the threads of XLA's pool and on this thread, which takes
// part since the others may all be busy. An exception ends the process: it must not leave this function
// while other threads use `work`, and must not pass through XLA.
template <typename Work>
void in_parallel(ffi::ThreadPool pool, int64_t count, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto progress = std::make_shared<Progress>();
  // A thread that starts too late finds no item left and does not use `work`, which may be gone.
  auto take_part = [progress, count, &work]() noexcept {
    for (int64_t item; (item = progress->next++) < count; ++progress->finished) work(item);
  };
  int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([take_part] { take_part(); });
  take_part();
  while (progress->finished < count) std::this_thread::yield();
}

// e^x for x <= 0, as in the Cephes library: 2^n times a polynomial of the rest. It is 0 below the least
// normal number.
Floats exponential(Floats x) {
  const Floats least = Floats{} - 87.0f;
  Integers below = x < least;  // false for NaN, which stays NaN
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

// A matrix with strides between rows and between columns.
struct Matrix {
  const float* at;
  int64_t row, column = 1;
};

// out[r, c] = sum over i of a[r, i] b[i, c], for kRows rows and kVectors vectors of columns. With
// `kAdd`, the product is added to `out`.
template <int kRows, int kVectors, bool kAdd>
void block_product(Matrix a, const float* b, int64_t b_row, int64_t inner, float* out,
                   int64_t out_row) {
  Floats total[kRows][kVectors] = {};
  if (kAdd) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) total[r][v] = load(out + r * out_row + v * kLanes);
    }
  }
  for (int64_t i = 0; i < inner; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      Floats column = load(b + i * b_row + v * kLanes);
      for (int r = 0; r < kRows; ++r) total[r][v] += column * a.at[r * a.row + i * a.column];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(out + r * out_row + v * kLanes, total[r][v]);
  }
}

template <int kRows, bool kAdd>
void rows_product(Matrix a, const float* b, int64_t b_row, int64_t inner, int64_t columns,
                  float* out, int64_t out_row) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes) {
    block_product<kRows, 2, kAdd>(a, b + c, b_row, inner, out + c, out_row);
  }
  if (c < columns) block_product<kRows, 1, kAdd>(a, b + c, b_row, inner, out + c, out_row);
}

// The same for any number of rows. The number of columns is a multiple of kLanes.
template <bool kAdd = false>
void product(int64_t rows, Matrix a, const float* b, int64_t b_row, int64_t inner, int64_t columns,
             float* out, int64_t out_row) {
  auto rows_from = [&](int64_t r, auto count) {
    Matrix from{a.at + r * a.row, a.row, a.column};
    rows_product<count, kAdd>(from, b, b_row, inner, columns, out + r * out_row, out_row);
  };
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) rows_from(r, std::integral_constant<int, 6>());
  for (; r + 4 <= rows; r += 4) rows_from(r, std::integral_constant<int, 4>());
  for (; r + 2 <= rows; r += 2) rows_from(r, std::integral_constant<int, 2>());
  if (r < rows) rows_from(r, std::integral_constant<int, 1>());
}

float dot(const float* a, const float* b, int64_t size) {
  Floats total = {};
  for (int64_t i = 0; i < size; i += kLanes) total += load(a + i) * load(b + i);
  return sum(total);
}

// The dot products with eight vectors that are stored one after another, equal to those of `dot`.
Floats dots(const float* a, const float* b, int64_t size) {
  Floats totals[kLanes] = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    Floats own = load(a + i);
    for (int64_t n = 0; n < kLanes; ++n) totals[n] += own * load(b + n * size + i);
  }
  return sums(totals);
}

// A head's vector with the pairs (i, i + half) of its first 2 * half dimensions rotated.
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

// Reads ahead, which processors do not do by themselves across pages.
void prefetch(const float* from, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(from + i);
}

// Applies `softcap` to scores if it is above 0. The lowest score, of invisible positions, is kept.
void cap(float* scores, int64_t size, float softcap) {
  if (!(softcap > 0)) return;
  for (int64_t i = 0; i < size; ++i) {
    if (scores[i] != kLowest) scores[i] = softcap * std::tanh(scores[i] / softcap);
  }
}

// Softmax in place; `size` is a multiple of kLanes.
void softmax(float* scores, int64_t size) {
  Floats maxima = load(scores);
  for (int64_t i = kLanes; i < size; i += kLanes) maxima = larger(load(scores + i), maxima);
  const float top = highest(maxima);
  Floats total = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    Floats weight = exponential(load(scores + i) - top);
    store(scores + i, weight);
    total += weight;
  }
  const float whole = sum(total);
  for (int64_t i = 0; i < size; i += kLanes) store(scores + i, load(scores + i) / whole);
}

// What a sample sees: the layer of the cache, the visible positions [first, end) of the prompt, the
// first visible position of the suffix, and the newest one.
struct Range {
  int32_t layer, first, end, first_own, step;
};

// The query heads of one key-value head, for some samples of a prompt. `next_…` are the strides from
// sample to sample, in floats.
struct Head {
  int64_t count, per_head, dim, half;
  int64_t first_own, step;  // the first visible position of the suffix, and the newest
  float scale, softcap;
  const float *cosine, *sine;                // [count, half]
  const Range* ranges;                       // [count]
  int64_t start, seen, prompt_row;           // prompt positions from `start` on, `seen` of them
  const float *prompt_k, *prompt_v;          // [dim, seen], row stride `prompt_row`; [seen, dim]
  const float *q, *k, *v;                    // [per_head, dim], [dim], [dim]
  int64_t next_sequence, next_out, next_own;
  float *out, *own_k, *own_v;                // [per_head, dim], [room, dim], [room, dim]
};

// Writes the newest keys and values to the caches, and rotated queries to [count * per_head, dim].
void rotate_and_write(const Head& head, float* queries) {
  const int64_t newest = head.step * head.dim;
  for (int64_t s = 0; s < head.count; ++s) {
    prefetch(head.own_k + s * head.next_own + newest, head.dim);
    prefetch(head.own_v + s * head.next_own + newest, head.dim);
  }
  auto rotated = [&](int64_t s, const float* x, float* to) {
    int64_t own = s * head.half;
    rotate(x, head.cosine + own, head.sine + own, head.half, head.dim, to);
  };
  for (int64_t s = 0; s < head.count; ++s) {
    for (int64_t j = 0; j < head.per_head; ++j) {
      int64_t row = s * head.per_head + j;
      rotated(s, head.q + s * head.next_sequence + j * head.dim, queries + row * head.dim);
    }
  }
  for (int64_t s = 0; s < head.count; ++s) {
    rotated(s, head.k + s * head.next_sequence, head.own_k + s * head.next_own + newest);
    std::memcpy(head.own_v + s * head.next_own + newest, head.v + s * head.next_sequence,
                head.dim * sizeof(float));
  }
}

// The attention weights of all queries, in rows of `width`: prompt positions, then suffix positions.
void weigh(const Head& head, const float* queries, int64_t width, float* weights) {
  int64_t own_size = width - head.seen, dim = head.dim;
  product(head.count * head.per_head, {queries, dim}, head.prompt_k, head.prompt_row, dim,
          head.seen, weights, width);
  int64_t first = head.first_own * dim, read = (head.step + 1) * dim - first;
  for (int64_t s = 0; s < head.count; ++s) {
    const float* own_k = head.own_k + s * head.next_own;
    prefetch(own_k + (s + 1 < head.count ? head.next_own : 0) + first, read);
    prefetch(head.own_v + s * head.next_own + first, read);
    for (int64_t r = s * head.per_head; r < (s + 1) * head.per_head; ++r) {
      float *row = weights + r * width, *own = row + head.seen;
      std::fill(row, row + (head.ranges[s].first - head.start), kLowest);
      std::fill(row + (head.ranges[s].end - head.start), own, kLowest);
      std::fill(own, own + own_size, kLowest);
      const float* query = queries + r * dim;
      int64_t t = head.first_own;
      for (; t + kLanes <= head.step + 1; t += kLanes) {
        store(own + t, dots(query, own_k + t * dim, dim) * head.scale);
      }
      for (; t <= head.step; ++t) own[t] = dot(query, own_k + t * dim, dim) * head.scale;
      cap(row, width, head.softcap);
      softmax(row, width);
    }
  }
}

// The weighted sums of values. `of_prompt` [count * per_head, dim] is scratch for the prompt's part.
void mix(const Head& head, const float* weights, int64_t width, float* of_prompt) {
  int64_t size = head.per_head * head.dim, own_tokens = head.step + 1 - head.first_own;
  product(head.count * head.per_head, {weights, width}, head.prompt_v, head.dim, head.seen,
          head.dim, of_prompt, head.dim);
  for (int64_t s = 0; s < head.count; ++s) {
    const float* own_weights = weights + s * head.per_head * width + head.seen + head.first_own;
    const float* values = head.own_v + s * head.next_own + head.first_own * head.dim;
    float* to = head.out + s * head.next_out;
    product(head.per_head, {own_weights, width}, values, head.dim, own_tokens, head.dim, to,
            head.dim);
    for (int64_t i = 0; i < size; i += kLanes) {
      store(to + i, load(to + i) + load(of_prompt + s * size + i));
    }
  }
}

void attend(const Head& head) {
  int64_t rows = head.count * head.per_head, width = head.seen + rounded_up(head.step + 1);
  std::unique_ptr<float[]> queries(new float[rows * head.dim]), weights(new float[rows * width]);
  rotate_and_write(head, queries.get());
  weigh(head, queries.get(), width, weights.get());
  mix(head, weights.get(), width, queries.get());
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

// Shapes: projected [batch, samples, heads + 2 kv_heads, dim] (queries, keys, values); cosine, sine
// [batch, samples, half]; prompt_k [batch, kv_heads, dim, prompt] (keys as columns, scaled), prompt_v
// [batch, kv_heads, prompt, dim]; own_k, own_v [layers, batch, samples, kv_heads, room, dim], or
// without layers if there is one; ranges [batch, samples, 5]: a `Range` for each sample. The results
// own_k and own_v share the memory of the arguments.
ffi::Error WriteAndAttend(ffi::ThreadPool pool, F32 projected, F32 cosine, F32 sine, F32 prompt_k,
                          F32 prompt_v, F32 own_k_before, F32 own_v_before, S32 ranges,
                          ffi::Result<F32> out, ffi::Result<F32> own_k, ffi::Result<F32> own_v,
                          float scale, float softcap) {
  auto sizes = prompt_v.dimensions();
  int64_t batch = sizes[0], kv_heads = sizes[1], prompt = sizes[2], dim = sizes[3];
  int64_t samples = projected.dimensions()[1], per_head = projected.dimensions()[2] / kv_heads - 2;
  int64_t room = own_k->dimensions()[own_k->dimensions().size() - 2];
  int64_t half = cosine.dimensions()[2];
  if (dim % kLanes != 0 || prompt % kLanes != 0) {
    return ffi::Error::InvalidArgument("head_dim and prompt must be multiples of 8");
  }
  if (own_k->typed_data() != own_k_before.typed_data() ||
      own_v->typed_data() != own_v_before.typed_data()) {
    return ffi::Error::Internal("the caches were to be written in place");
  }
  // Few prompts with few heads are split by samples, too, so that all threads have work.
  int64_t heads = batch * kv_heads, wanted = 2 * pool.num_threads();
  int64_t parts = std::clamp((wanted + heads - 1) / std::max<int64_t>(heads, 1), int64_t{1}, samples);

  in_parallel(pool, heads * parts, [&](int64_t item) {
    int64_t b = item / parts / kv_heads, head = item / parts % kv_heads, part = item % parts;
    int64_t first = b * samples + samples * part / parts;
    Head found;
    found.count = samples * (part + 1) / parts - samples * part / parts;
    found.ranges = reinterpret_cast<const Range*>(ranges.typed_data()) + first;
    int32_t least = found.ranges[0].first, most = found.ranges[0].end;
    for (int64_t s = 1; s < found.count; ++s) {
      least = std::min(least, found.ranges[s].first);
      most = std::max(most, found.ranges[s].end);
    }
    found.per_head = per_head;
    found.dim = dim;
    found.half = half;
    found.first_own = found.ranges[0].first_own;
    found.step = found.ranges[0].step;
    found.scale = scale;
    found.softcap = softcap;
    found.cosine = cosine.typed_data() + first * half;
    found.sine = sine.typed_data() + first * half;
    int64_t start = least / kLanes * kLanes;  // a multiple of kLanes, like the number of positions
    found.start = start;
    found.seen = rounded_up(most) - start;
    found.prompt_row = prompt;
    found.prompt_k = prompt_k.typed_data() + (b * kv_heads + head) * dim * prompt + start;
    found.prompt_v = prompt_v.typed_data() + ((b * kv_heads + head) * prompt + start) * dim;

    int64_t vectors = kv_heads * (per_head + 2);
    const float* sequence = projected.typed_data() + first * vectors * dim;
    found.next_sequence = vectors * dim;
    found.q = sequence + head * per_head * dim;
    found.k = sequence + (kv_heads * per_head + head) * dim;
    found.v = sequence + (kv_heads * (per_head + 1) + head) * dim;
    found.next_out = kv_heads * per_head * dim;
    found.out = out->typed_data() + (first * kv_heads + head) * per_head * dim;
    int64_t caches = (found.ranges[0].layer * batch * samples + first) * kv_heads + head;
    found.next_own = kv_heads * room * dim;
    found.own_k = own_k->typed_data() + caches * room * dim;
    found.own_v = own_v->typed_data() + caches * room * dim;
    attend(found);
  });
  return ffi::Error::Success();
}

// A sequence within a row of tokens.
struct Sequence {
  int64_t row, first, size;
};

// The sequences of all rows, the longest first; `segments` [rows, time] is 0 at padding.
std::vector<Sequence> sequences(S32 segments) noexcept {
  int64_t rows = segments.dimensions()[0], time = segments.dimensions()[1];
  std::vector<Sequence> found;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t* own = segments.typed_data() + row * time;
    for (int64_t first = 0, last; first < time; first = last) {
      for (last = first + 1; last < time && own[last] == own[first];) ++last;
      if (own[first] != 0) found.push_back({row, first, last - first});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Sequence& a, const Sequence& b) { return a.size > b.size; });
  return found;
}

// Causal attention within a sequence, for the query heads of one key-value head. `next_q` is the stride
// from token to token of queries and of arrays of their shape, `next_kv` that of keys and values.
struct Causal {
  static constexpr int64_t kBlock = 16;  // queries whose scores are in memory at the same time
  int64_t size, per_head, dim, next_q, next_kv, window;
  float scale, softcap;
  const float *q, *k, *v;

  int64_t width() const { return rounded_up(size); }

  // The transpose of x [size, dim] times a factor: [dim, width].
  std::unique_ptr<float[]> as_columns(const float* x, float factor) const {
    std::unique_ptr<float[]> to(new float[dim * width()]());
    for (int64_t t = 0; t < size; ++t) {
      for (int64_t d = 0; d < dim; ++d) to[d * width() + t] = factor * x[t * next_kv + d];
    }
    return to;
  }

  // The first position that a query sees.
  int64_t sees_from(int64_t query) const {
    return window > 0 ? std::max<int64_t>(0, query - window + 1) : 0;
  }

  // The first position that this query or a later one sees, rounded down to a multiple of kLanes.
  int64_t begin(int64_t query) const { return sees_from(query) / kLanes * kLanes; }

  // The attention weights of the queries [first, last) of a head, in rows of `width()` whose first
  // position is `begin(first)`. `slopes`, of the same shape, gets the derivative of the softcap.
  void weigh(int64_t head, int64_t first, int64_t last, const float* columns, float* weights,
             float* slopes = nullptr) const {
    int64_t start = begin(first), keys = rounded_up(last - start);
    product(last - first, {q + first * next_q + head * dim, next_q}, columns + start, width(), dim,
            keys, weights, width());
    for (int64_t t = first; t < last; ++t) {
      float* row = weights + (t - first) * width();
      int64_t from = sees_from(t) - start, to = t + 1 - start;
      cap(row + from, to - from, softcap);
      if (slopes != nullptr) {
        float* own = slopes + (t - first) * width();
        std::fill(own, own + keys, 0.0f);
        for (int64_t i = from; i < to; ++i) {
          float capped = row[i] / softcap;  // tanh, whose slope is 1 - tanh^2
          own[i] = 1 - capped * capped;
        }
      }
      std::fill(row, row + from, kLowest);
      std::fill(row + to, row + keys, kLowest);
      softmax(row, keys);
    }
  }

  // `out` has the shape of `q`.
  void attend(float* out) const {
    std::unique_ptr<float[]> columns = as_columns(k, scale), weights(new float[kBlock * width()]);
    for (int64_t head = 0; head < per_head; ++head) {
      for (int64_t first = 0, last; first < size; first = last) {
        last = std::min(first + kBlock, size);
        weigh(head, first, last, columns.get(), weights.get());
        int64_t start = begin(first);
        product(last - first, {weights.get(), width()}, v + start * next_kv, next_kv, last - start,
                dim, out + first * next_q + head * dim, next_q);
      }
    }
  }

  // Gradients from `d_out`, which has the shape of `q`; `dk` and `dv` are 0 before. With the weights
  // p = softmax(s): dv = p^T d_out, dp = d_out v^T, ds = p (dp - sum p dp).
  void attend_backward(const float* d_out, float* dq, float* dk, float* dv) const {
    int64_t room = kBlock * width();
    std::unique_ptr<float[]> key_columns = as_columns(k, scale), value_columns = as_columns(v, 1);
    std::unique_ptr<float[]> weights(new float[room]), d_scores(new float[room]);
    std::unique_ptr<float[]> slopes(softcap > 0 ? new float[room] : nullptr);
    for (int64_t head = 0; head < per_head; ++head) {
      for (int64_t first = 0, last; first < size; first = last) {
        last = std::min(first + kBlock, size);
        int64_t count = last - first, start = begin(first), keys = rounded_up(last - start);
        const float* queries = q + first * next_q + head * dim;
        const float* d_mixed = d_out + first * next_q + head * dim;
        weigh(head, first, last, key_columns.get(), weights.get(), slopes.get());
        product(count, {d_mixed, next_q}, value_columns.get() + start, width(), dim, keys,
                d_scores.get(), width());
        for (int64_t r = 0; r < count; ++r) {
          const float *weight = &weights[r * width()], *slope = nullptr;
          float* d_score = &d_scores[r * width()];
          if (softcap > 0) slope = &slopes[r * width()];
          const float mean = dot(weight, d_score, keys);
          for (int64_t i = 0; i < keys; i += kLanes) {
            Floats x = load(weight + i) * (load(d_score + i) - mean) * scale;
            store(d_score + i, slope ? x * load(slope + i) : x);
          }
        }
        int64_t seen = last - start;
        product(count, {d_scores.get(), width()}, k + start * next_kv, next_kv, seen, dim,
                dq + first * next_q + head * dim, next_q);
        product<true>(seen, {d_scores.get(), 1, width()}, queries, next_q, count, dim,
                      dk + start * next_kv, next_kv);
        product<true>(seen, {weights.get(), 1, width()}, d_mixed, next_q, count, dim,
                      dv + start * next_kv, next_kv);
      }
    }
  }
};

// Calls work(attention, queries, keys) for every key-value head of every sequence; the last two are the
// offsets of its queries and keys, in floats.
template <typename Work>
ffi::Error for_all_causal(ffi::ThreadPool pool, F32 q, F32 k, F32 v, S32 segments, S32 window,
                          float scale, float softcap, const Work& work) {
  auto sizes = k.dimensions();
  int64_t time = sizes[1], kv_heads = sizes[2], dim = sizes[3];
  if (dim % kLanes != 0) return ffi::Error::InvalidArgument("head_dim must be a multiple of 8");
  Causal shared;
  shared.per_head = q.dimensions()[2] / kv_heads;
  shared.dim = dim;
  shared.next_q = q.dimensions()[2] * dim;
  shared.next_kv = kv_heads * dim;
  shared.window = window.typed_data()[0];
  shared.scale = scale;
  shared.softcap = softcap;
  std::vector<Sequence> all = sequences(segments);
  in_parallel(pool, all.size() * kv_heads, [&](int64_t item) {
    const Sequence& sequence = all[item / kv_heads];
    int64_t head = item % kv_heads, token = sequence.row * time + sequence.first;
    int64_t queries = token * shared.next_q + head * shared.per_head * dim;
    int64_t keys = token * shared.next_kv + head * dim;
    Causal own = shared;
    own.size = sequence.size;
    own.q = q.typed_data() + queries;
    own.k = k.typed_data() + keys;
    own.v = v.typed_data() + keys;
    work(own, queries, keys);
  });
  return ffi::Error::Success();
}

// Shapes: q, out and d_out [batch, time, heads, dim]; k and v [batch, time, kv_heads, dim]; segments
// [batch, time]; window a scalar. The result at padding is 0.
ffi::Error CausalAttention(ffi::ThreadPool pool, F32 q, F32 k, F32 v, S32 segments, S32 window,
                           ffi::Result<F32> out, float scale, float softcap) {
  std::fill_n(out->typed_data(), out->element_count(), 0.0f);
  auto attend = [&](const Causal& own, int64_t queries, int64_t) {
    own.attend(out->typed_data() + queries);
  };
  return for_all_causal(pool, q, k, v, segments, window, scale, softcap, attend);
}

ffi::Error CausalAttentionBackward(ffi::ThreadPool pool, F32 q, F32 k, F32 v, S32 segments,
                                   S32 window, F32 d_out, ffi::Result<F32> dq, ffi::Result<F32> dk,
                                   ffi::Result<F32> dv, float scale, float softcap) {
  for (auto* gradient : {&dq, &dk, &dv}) {
    std::fill_n((*gradient)->typed_data(), (*gradient)->element_count(), 0.0f);
  }
  auto attend_backward = [&](const Causal& own, int64_t queries, int64_t keys) {
    own.attend_backward(d_out.typed_data() + queries, dq->typed_data() + queries,
                        dk->typed_data() + keys, dv->typed_data() + keys);
  };
  return for_all_causal(pool, q, k, v, segments, window, scale, softcap, attend_backward);
}

// A float's bits as an integer in the order of the floats (-0 before 0, NaN at the ends), and back.
template <typename To, typename From>
To ordered(From x) {
  typedef std::conditional_t<sizeof(To) == sizeof(int32_t), int32_t, Integers> Bits;
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits ^= (bits >> 31) & std::numeric_limits<int32_t>::max();
  To found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// The number of masks whose lanes `bits_of` packs into one integer.
constexpr int64_t kMasks = 4;

uint32_t bits_of(const Integers (&masks)[kMasks]) {
  constexpr Integers kBits = {1, 2, 4, 8, 16, 32, 64, 128};
  Integers joined = {};
  for (int v = 0; v < kMasks; ++v) joined |= masks[v] & kBits << (kLanes * v);
  uint64_t parts[4];
  std::memcpy(parts, &joined, sizeof joined);
  uint64_t both = (parts[0] | parts[1]) | (parts[2] | parts[3]);
  return both | both >> 32;
}

// A threshold that at least `count` of the numbers reach, and, but for ties, at most an eighth more.
// Their number is a multiple of kLanes.
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

// A threshold, in the order of `ordered`, that at least `count` elements of a row reach.
//
// The elements are dealt out to piles, and the threshold is one that `count` of the piles' maxima reach.
// If the row is too short for piles, it is the least integer.
int32_t reached_in_row(const float* row, int64_t size, float factor, int64_t count) {
  int64_t piles = kLanes;
  while (piles < 4 * count) piles *= 2;
  std::vector<int32_t> maxima(piles, std::numeric_limits<int32_t>::min());
  if (size < 2 * piles) return maxima[0];
  for (int64_t first = 0; first + piles <= size; first += piles) {
    for (int64_t p = 0; p < piles; p += kLanes) {
      Integers keys = ordered<Integers>(load(row + first + p) * factor);
      store(&maxima[p], larger(keys, load(&maxima[p])));
    }
  }
  return reached_by(maxima, count);
}

// The elements of a row that reach `least`, as distinct numbers in the order of the elements. The upper
// half is the element; the lower half is the complement of its index, so that of equal elements the first
// is the largest. Returns how many there are.
int64_t collect(const float* row, int64_t size, float factor, int32_t least, int64_t* found) {
  int64_t count = 0;
  auto look_at = [&](int64_t i) {
    int32_t key = ordered<int32_t>(row[i] * factor);
    found[count] = int64_t(key) * (int64_t{1} << 32) + uint32_t(~i);
    count += key >= least;
  };
  const float threshold = ordered<float>(least);
  int64_t i = 0;
  for (; i + kMasks * kLanes <= size; i += kMasks * kLanes) {
    Integers masks[kMasks];  // elements that may reach it; a comparison with NaN is never below
    for (int v = 0; v < kMasks; ++v) {
      masks[v] = ~(load(row + i + v * kLanes) * factor < threshold);
    }
    for (uint32_t bits = bits_of(masks); bits != 0; bits &= bits - 1) {
      look_at(i + __builtin_ctz(bits));
    }
  }
  for (; i < size; ++i) look_at(i);
  return count;
}

// For each of `size` distinct numbers, how many of them are larger. Both arrays are padded to whole
// vectors. The time is quadratic, but the numbers are few and no branch depends on them.
void rank(const int64_t* numbers, int64_t size, int64_t* ranks) {
  for (int64_t i = 0; i < size; i += kLanes / 2) {
    Longs own, larger_ones = {};
    std::memcpy(&own, numbers + i, sizeof own);
    for (int64_t j = 0; j < size; ++j) larger_ones -= numbers[j] > own;
    std::memcpy(ranks + i, &larger_ones, sizeof own);
  }
}

// The `count` largest elements of each row of x * scale, in descending order, and their indices; of equal
// elements the first ones, in their order.
ffi::Error TopK(ffi::ThreadPool pool, F32 x, F32 scale, ffi::Result<F32> values,
                ffi::Result<S32> indices) {
  int64_t size = x.dimensions()[1], rows = x.dimensions()[0], count = values->dimensions()[1];
  if (count < 1 || count > size) {
    return ffi::Error::InvalidArgument("count must be from 1 to the size of a row");
  }
  const float factor = scale.typed_data()[0];

  in_parallel(pool, rows, [&](int64_t r) {
    const float* row = x.typed_data() + r * size;
    std::unique_ptr<int64_t[]> found(new int64_t[size + kLanes]);
    const int32_t least = reached_in_row(row, size, factor, count);
    int64_t size_found = collect(row, size, factor, least, found.get());
    if (size_found > count + count / 8) {
      std::nth_element(found.get(), found.get() + count - 1, found.get() + size_found,
                       std::greater<int64_t>());
      size_found = count;
    }
    std::unique_ptr<int64_t[]> ranks(new int64_t[size_found + kLanes]);
    rank(found.get(), size_found, ranks.get());
    for (int64_t n = 0; n < size_found; ++n) {
      if (ranks[n] >= count) continue;
      int32_t index = ~uint32_t(found[n]);
      indices->typed_data()[r * count + ranks[n]] = index;
      values->typed_data()[r * count + ranks[n]] = row[index] * factor;
    }
  });
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
                                  .Arg<S32>()  // ranges
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

// The operands that both kernels of causal attention share.
static auto causal_operands() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<F32>()   // q
      .Arg<F32>()   // k
      .Arg<F32>()   // v
      .Arg<S32>()   // segments
      .Arg<S32>();  // window
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(pmc_jax_causal_attention, CausalAttention,
                              causal_operands()
                                  .Ret<F32>()  // out
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(pmc_jax_causal_attention_backward, CausalAttentionBackward,
                              causal_operands()
                                  .Arg<F32>()  // d_out
                                  .Ret<F32>()  // dq
                                  .Ret<F32>()  // dk
                                  .Ret<F32>()  // dv
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap"));
