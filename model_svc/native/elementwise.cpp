// Norms, gated activations, and rotary embedding with the write into the KV cache. Knows rows and heads, no model.
#include <cmath>

#include "simd.h"

namespace tokenwire {
namespace {

constexpr float LOG2_E = 1.44269504f;

// to = weight · from / rms(from), rounded as transformers' LlamaRMSNorm rounds; `from` may be `to`.
template <class From, class To>
void normalise(const From* from, const To* weight, float eps, To* to, int64_t size) {
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t at = 0; at < size; at += LANES) {
        const __m512 value = load(from + at, first_lanes(size - at));
        __m512& sum = sums[at / LANES % 2];
        sum = _mm512_fmadd_ps(value, value, sum);
    }
    const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / static_cast<float>(size);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
    for (int64_t at = 0; at < size; at += LANES) {
        const __mmask16 mask = first_lanes(size - at);
        const __m512 value = rounded(to, _mm512_mul_ps(load(from + at, mask), factor));
        store(to + at, _mm512_mul_ps(load(weight + at, mask), value), mask);
    }
}

template <class T>
void norm_rows(const T* x, const T* weight, float eps, T* out, T* residual, int64_t num_rows, int64_t size) {
#pragma omp parallel for schedule(static) num_threads(num_threads(num_rows, num_rows * size / 8))
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* from = x + row * size;
        if (residual) {
            T* sum = residual + row * size;
            for (int64_t at = 0; at < size; at += LANES) {
                const __mmask16 mask = first_lanes(size - at);
                store(sum + at, _mm512_add_ps(load(sum + at, mask), load(from + at, mask)), mask);
            }
            from = sum;
        }
        normalise(from, weight, eps, out + row * size, size);
    }
}

inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp2(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)))));
}

struct Silu {
    static __m512 of(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }
};

// 0.5 x (1 + tanh(y)) is x sigmoid(2 y).
struct GeluTanh {
    static __m512 of(__m512 x) {
        const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(1.5957691216f))));
    }
};

template <class Activation, class T>
void activate(const T* gate_up, T* out, int64_t num_rows, int64_t size) {
#pragma omp parallel for schedule(static) num_threads(num_threads(num_rows, num_rows * size))
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* gate = gate_up + row * 2 * size;
        for (int64_t at = 0; at < size; at += LANES) {
            const __mmask16 mask = first_lanes(size - at);
            const __m512 active = Activation::of(load(gate + at, mask));
            store(out + row * size + at, _mm512_mul_ps(active, load(gate + size + at, mask)), mask);
        }
    }
}

struct Heads {
    int64_t num_heads, num_kv_heads, key_size, value_size;
};

// One query or key head: normalised if there is a weight, rotated if there is a cosine.
template <class T>
void rotate(const T* from, const T* cos, const T* sin, const T* norm, float eps, T* to, int64_t size) {
    if (norm) {
        normalise(from, norm, eps, to, size);
        from = to;
    }
    if (cos == nullptr) {
        if (from != to) std::memcpy(to, from, size * sizeof(T));
        return;
    }
    const int64_t half = size / 2;
    for (int64_t at = 0; at < half; at += LANES) {
        const __mmask16 mask = first_lanes(half - at);
        const __m512 low = load(from + at, mask), high = load(from + half + at, mask);
        const __m512 turned_low = _mm512_mul_ps(high, load(sin + at, mask));
        const __m512 turned_high = _mm512_mul_ps(low, load(sin + half + at, mask));
        store(to + at, _mm512_fmsub_ps(low, load(cos + at, mask), turned_low), mask);
        store(to + half + at, _mm512_fmadd_ps(high, load(cos + half + at, mask), turned_high), mask);
    }
}

template <class T>
void rope_rows(
    const T* qkv, const T* cos, const T* sin, const int64_t* slots, T* key_cache, T* value_cache, T* query_out,
    const T* query_norm, const T* key_norm, float eps, int64_t num_rows, const Heads& heads) {
    const int64_t query_width = heads.num_heads * heads.key_size, key_width = heads.num_kv_heads * heads.key_size;
    const int64_t value_width = heads.num_kv_heads * heads.value_size;
    const int64_t width = query_width + key_width + value_width;
#pragma omp parallel for schedule(static) num_threads(num_threads(num_rows, num_rows * width / 8))
    for (int64_t row = 0; row < num_rows; ++row) {
        const T* from = qkv + row * width;
        const T* row_cos = cos ? cos + row * heads.key_size : nullptr;
        const T* row_sin = cos ? sin + row * heads.key_size : nullptr;
        T* query = query_out + row * query_width;
        T* key = key_cache + slots[row] * key_width;
        for (int64_t at = 0; at < query_width; at += heads.key_size)
            rotate(from + at, row_cos, row_sin, query_norm, eps, query + at, heads.key_size);
        from += query_width;
        for (int64_t at = 0; at < key_width; at += heads.key_size)
            rotate(from + at, row_cos, row_sin, key_norm, eps, key + at, heads.key_size);
        std::memcpy(value_cache + slots[row] * value_width, from + key_width, value_width * sizeof(T));
    }
}

template <class T>
void activate_as(bool gelu, const void* gate_up, void* out, int64_t num_rows, int64_t size) {
    if (gelu) activate<GeluTanh>(static_cast<const T*>(gate_up), static_cast<T*>(out), num_rows, size);
    else activate<Silu>(static_cast<const T*>(gate_up), static_cast<T*>(out), num_rows, size);
}

}  // namespace
}  // namespace tokenwire

extern "C" {

void tokenwire_rms_norm(
    int is_bf16, const void* x, const void* weight, float eps, void* out, void* residual, int64_t num_rows,
    int64_t size) {
    using namespace tokenwire;
    if (is_bf16)
        norm_rows((const bf16*)x, (const bf16*)weight, eps, (bf16*)out, (bf16*)residual, num_rows, size);
    else
        norm_rows((const float*)x, (const float*)weight, eps, (float*)out, (float*)residual, num_rows, size);
}

void tokenwire_activate_mul(int is_bf16, int gelu, const void* gate_up, void* out, int64_t num_rows, int64_t size) {
    using namespace tokenwire;
    if (is_bf16) activate_as<bf16>(gelu, gate_up, out, num_rows, size);
    else activate_as<float>(gelu, gate_up, out, num_rows, size);
}

void tokenwire_rope_store(
    int is_bf16, const void* qkv, const void* cos, const void* sin, const int64_t* slots, void* key_cache,
    void* value_cache, void* query_out, const void* query_norm, const void* key_norm, float eps, int64_t num_rows,
    int64_t num_heads, int64_t num_kv_heads, int64_t key_size, int64_t value_size) {
    using namespace tokenwire;
    const Heads heads{num_heads, num_kv_heads, key_size, value_size};
    if (is_bf16)
        rope_rows(
            (const bf16*)qkv, (const bf16*)cos, (const bf16*)sin, slots, (bf16*)key_cache, (bf16*)value_cache,
            (bf16*)query_out, (const bf16*)query_norm, (const bf16*)key_norm, eps, num_rows, heads);
    else
        rope_rows(
            (const float*)qkv, (const float*)cos, (const float*)sin, slots, (float*)key_cache, (float*)value_cache,
            (float*)query_out, (const float*)query_norm, (const float*)key_norm, eps, num_rows, heads);
}
}
