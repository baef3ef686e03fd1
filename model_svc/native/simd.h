// What every kernel is built from: 32-bit units, the register-tiled product, and conversions. Knows no layout of a model.
//
// A unit is one fp32 number or a pair of bf16 numbers. A product takes rows of units (the left side, as they lie in
// memory) and packed units [unit][output] (the right side). Each output has one accumulator and adds its units in
// order, so its value does not depend on how many rows or outputs are computed beside it.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace tokenwire {

constexpr int LANES = 16;
constexpr int MOST_ROWS = 8;

struct bf16 {
    uint16_t bits;
};

inline __mmask16 first_lanes(int64_t count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 load(const float* from, __mmask16 mask = 0xffff) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const bf16* from, __mmask16 mask = 0xffff) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
inline void store(float* to, __m512 value, __mmask16 mask = 0xffff) { _mm512_mask_storeu_ps(to, mask, value); }
inline void store(bf16* to, __m512 value, __mmask16 mask = 0xffff) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(value));
}
// `value` as it would be read back after a store.
inline __m512 rounded(const float*, __m512 value) { return value; }
inline __m512 rounded(const bf16*, __m512 value) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16));
}

// 2^x; NaN stays NaN, minus infinity gives 0.
inline __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 power = _mm512_set1_ps(1.5252734e-5f);
    for (float factor : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(power, whole);
}

template <class T>
struct Units;

template <>
struct Units<float> {
    static constexpr int SIZE = 1;  // elements in a unit
    static inline __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
};

template <>
struct Units<bf16> {
    static constexpr int SIZE = 2;
    static inline __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

template <int R, int V>
inline void clear(__m512 (&sums)[R][V]) {
    for (int row = 0; row < R; ++row)
        for (int v = 0; v < V; ++v) sums[row][v] = _mm512_setzero_ps();
}

inline __m512i broadcast_unit(const void* from) {
    int32_t unit;
    std::memcpy(&unit, from, sizeof unit);
    return _mm512_set1_epi32(unit);
}

// The last unit of an odd number of bf16 inputs: the second half is 0.
inline __m512i half_unit(const char* from) {
    uint16_t half;
    std::memcpy(&half, from, sizeof half);
    return _mm512_set1_epi32(half);
}

// sums[row][v] += rows · packed over `num_units`; `step` is the number of 32-bit units from one packed unit to the next.
template <class T, int R, int V>
inline void multiply(
    const char* rows, size_t row_bytes, const uint32_t* packed, size_t step, size_t num_units, __m512 (&sums)[R][V]) {
    for (size_t unit = 0; unit < num_units; ++unit, packed += step, rows += 4) {
        __m512i right[V];
        for (int v = 0; v < V; ++v) right[v] = _mm512_loadu_si512(packed + v * LANES);
        for (int row = 0; row < R; ++row) {
            const __m512i left = broadcast_unit(rows + row * row_bytes);
            for (int v = 0; v < V; ++v) sums[row][v] = Units<T>::add(sums[row][v], left, right[v]);
        }
    }
}

// Calls `work.template operator()<rows>(first)` for tiles of at most MOST rows, 4 or 8, of nearly equal size.
template <int MOST = MOST_ROWS, class Work>
inline void for_row_tiles(int64_t num_rows, const Work& work) {
    static_assert(MOST == 4 || MOST == 8);
    const int64_t num_tiles = (num_rows + MOST - 1) / MOST;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t first = tile * num_rows / num_tiles, stop = (tile + 1) * num_rows / num_tiles;
        switch (stop - first) {
            case 1: work.template operator()<1>(first); break;
            case 2: work.template operator()<2>(first); break;
            case 3: work.template operator()<3>(first); break;
            case 4: work.template operator()<4>(first); break;
            case 5: work.template operator()<std::min(5, MOST)>(first); break;
            case 6: work.template operator()<std::min(6, MOST)>(first); break;
            case 7: work.template operator()<std::min(7, MOST)>(first); break;
            default: work.template operator()<MOST>(first);
        }
    }
}

// Memory that grows to what was asked for most, aligned to a cache line. One per thread and purpose.
class Scratch {
  public:
    ~Scratch() { std::free(memory_); }
    template <class T>
    T* get(size_t count) {
        const size_t num_bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (num_bytes > size_) {
            std::free(memory_);
            memory_ = std::aligned_alloc(64, num_bytes);
            if (memory_ == nullptr) std::abort();
            size_ = num_bytes;
        }
        return static_cast<T*>(memory_);
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

// How many threads a loop over `num_items` deserves when all of it takes about `num_operations`.
inline int num_threads(int64_t num_items, int64_t num_operations) {
    constexpr int64_t LEAST_OPERATIONS = 16384;  // per thread; waking one takes about as long
    const int64_t useful = std::min<int64_t>(num_items, num_operations / LEAST_OPERATIONS + 1);
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(useful, omp_get_max_threads())));
}

}  // namespace tokenwire
