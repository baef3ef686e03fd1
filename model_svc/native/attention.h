// Causal attention over the paged KV cache: what rows with one token (decode.h) and with several (attention.cpp) share.
//
// A row's positions are taken in blocks of KEY_BLOCK, aligned at position 0. For a query and a block there are: scores
// in fp32, their maximum, weights exp(score - maximum) rounded to the cache's type, their sum, and the weighted sum of
// values in fp32; then the block is merged into what came before. Each of these adds in the same order wherever the
// query stands, so its output is the same bits alone, in a batch, in any chunk of its prompt and with any number of
// threads. Keys that a query does not see have weight 0; values outside of a row count as zeros, whatever lies there.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "simd.h"

namespace tokenwire {
namespace {

constexpr int KEY_BLOCK = 192;  // positions
constexpr int KEY_VECTORS = 3;
constexpr int KEY_TILE = KEY_VECTORS * LANES;
constexpr float LOG2_E = 1.44269504f;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Shape {
    int64_t num_heads, num_kv_heads, key_size, value_size, block_size, window;
    float scale;  // in powers of 2
    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t value_lanes() const { return (value_size + LANES - 1) / LANES * LANES; }
    template <class T>
    int64_t key_units() const { return key_size / Units<T>::SIZE; }
    template <class T>
    size_t packed_keys() const { return key_units<T>() * KEY_BLOCK; }  // 32-bit units
    template <class T>
    size_t packed_values() const { return KEY_BLOCK / Units<T>::SIZE * value_lanes(); }
};

// One sequence of the step.
struct Row {
    const int64_t* blocks;
    int64_t length, first_token, num_tokens;
    // The position of its token `token`.
    int64_t position(int64_t token) const { return length - num_tokens + token; }
};

// The first position that the query at `position` sees.
inline int64_t first_seen(const Shape& shape, int64_t position) {
    return shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window) : 0;
}

// Where the positions of one block of keys lie in the cache: `first` to `stop`, in the block that begins at `start`.
// What is beside them has the slot of the nearest.
struct Slots {
    int64_t start, first, stop;
    int64_t slots[KEY_BLOCK];

    void clear() { start = first = stop = 0; }
    void find(const Shape& shape, const Row& row, int64_t start, int64_t first, int64_t stop) {
        this->start = start, this->first = first, this->stop = stop;
        int64_t block = first / shape.block_size, offset = first % shape.block_size;
        for (int64_t position = first; position < stop; ++position) {
            slots[position - start] = row.blocks[block] * shape.block_size + offset;
            if (++offset == shape.block_size) offset = 0, ++block;
        }
        std::fill(slots, slots + (first - start), slots[first - start]);
        std::fill(slots + (stop - start), slots + KEY_BLOCK, slots[stop - 1 - start]);
    }

    template <class T>
    const T* at(const T* cache, const Shape& shape, int64_t position, int64_t head, int64_t size) const {
        return cache + (slots[position - start] * shape.num_kv_heads + head) * size;
    }
};

// Key heads, each with its group of queries.
struct Heads {
    int64_t first, num;
};

// What will be read next from a cache, asked for a few cache lines at a time so that memory works while products do.
// Lines are asked for into the second level, which takes more of them at once than the first.
class Ahead {
  public:
    Ahead() = default;  // nothing
    template <class T>
    Ahead(const T* cache, const Shape& shape, const Slots& slots, Heads heads, int64_t size)
        : next_(slots.slots + (slots.first - slots.start)), stop_(slots.slots + (slots.stop - slots.start)),
          from_(reinterpret_cast<const char*>(cache + heads.first * size)),
          slot_bytes_(shape.num_kv_heads * size * sizeof(T)), num_bytes_(heads.num * size * sizeof(T)) {}

    void ask(int num_lines) {
        for (; num_lines > 0 && next_ != stop_; --num_lines) {
            _mm_prefetch(from_ + *next_ * slot_bytes_ + byte_, _MM_HINT_T1);
            byte_ += 64;
            if (byte_ >= num_bytes_) byte_ = 0, ++next_;
        }
    }

  private:
    const int64_t *next_ = nullptr, *stop_ = nullptr;
    const char* from_ = nullptr;
    int64_t slot_bytes_ = 0, num_bytes_ = 0, byte_ = 0;
};

// rows[lane] of 32-bit units become columns.
inline void transpose(__m512i (&rows)[LANES]) {
    __m512i pairs[LANES], fours[LANES];
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        rows[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        rows[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        rows[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

// The keys of `num_vectors` times LANES positions, from `from` on, as [unit][KEY_TILE].
template <class T>
void pack_key_tile(
    const T* cache, const Shape& shape, const Slots& slots, int64_t from, int64_t num_vectors, int64_t head,
    uint32_t* packed, Ahead& ahead) {
    const int64_t num_units = shape.key_units<T>();
    for (int64_t v = 0; v < num_vectors; ++v, from += LANES, packed += LANES) {
        const char* keys[LANES];
        for (int lane = 0; lane < LANES; ++lane)
            keys[lane] = reinterpret_cast<const char*>(slots.at(cache, shape, from + lane, head, shape.key_size));
        for (int64_t unit = 0; unit < num_units; unit += LANES) {
            const int64_t num = std::min<int64_t>(LANES, num_units - unit);
            __m512i units[LANES];
            for (int lane = 0; lane < LANES; ++lane)
                units[lane] = _mm512_maskz_loadu_epi32(first_lanes(num), keys[lane] + 4 * unit);
            ahead.ask(LANES);
            transpose(units);
            uint32_t* to = packed + unit * KEY_TILE;
            if (num == LANES)
                for (int i = 0; i < LANES; ++i) _mm512_storeu_si512(to + i * KEY_TILE, units[i]);
            else
                for (int64_t i = 0; i < num; ++i) _mm512_storeu_si512(to + i * KEY_TILE, units[i]);
        }
    }
}

// How many vectors of a tile of keys, from position `at` of its block on, hold positions before `stop`.
inline int64_t tile_vectors(int64_t at, int64_t stop) {
    return std::min<int64_t>(KEY_VECTORS, (stop - at + LANES - 1) / LANES);
}

// What queries have gathered so far: value_lanes() numbers each, not yet divided by `total`.
struct State {
    float* values;
    float* highest;  // minus infinity: nothing yet
    float* total;

    static size_t size(const Shape& shape, int64_t num_queries) { return num_queries * (shape.value_lanes() + 2); }
    static State in(float* memory, const Shape& shape, int64_t num_queries) {
        float* end = memory + num_queries * shape.value_lanes();
        return {memory, end, end + num_queries};
    }
    void clear(const Shape& shape, int64_t num_queries) {
        std::fill_n(values, num_queries * shape.value_lanes(), 0.0f);
        std::fill_n(highest, num_queries, -INFINITE);
        std::fill_n(total, num_queries, 0.0f);
    }
};

inline float exp2_of(float x) { return _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))); }

// Adds a later block's `other`, whose query `query` saw something, to `state`.
void merge(const Shape& shape, State& state, const State& other, int64_t query) {
    const float highest = std::max(state.highest[query], other.highest[query]);
    const float old_factor = exp2_of(state.highest[query] - highest), factor = exp2_of(other.highest[query] - highest);
    const __m512 old_factors = _mm512_set1_ps(old_factor), factors = _mm512_set1_ps(factor);
    float* values = state.values + query * shape.value_lanes();
    const float* others = other.values + query * shape.value_lanes();
    for (int64_t at = 0; at < shape.value_lanes(); at += LANES)
        _mm512_storeu_ps(
            values + at,
            _mm512_fmadd_ps(
                _mm512_loadu_ps(others + at), factors, _mm512_mul_ps(_mm512_loadu_ps(values + at), old_factors)));
    state.total[query] = std::fma(other.total[query], factor, state.total[query] * old_factor);
    state.highest[query] = highest;
}

template <class T>
void write(const Shape& shape, const State& state, int64_t query, T* out) {
    const float* values = state.values + query * shape.value_lanes();
    const __m512 total = _mm512_set1_ps(state.total[query]);
    for (int64_t at = 0; at < shape.value_size; at += LANES) {
        const __mmask16 mask = first_lanes(shape.value_size - at);
        store(out + at, _mm512_div_ps(load(values + at, mask), total), mask);
    }
}

// The scores become weights in place of `weights`; positions outside of `first` to `stop` (in the block) get 0.
template <class T>
void softmax(
    const float* scores, float scale, int64_t first, int64_t stop, int64_t num_lanes, T* weights, float* highest,
    float* total) {
    const __m512 scales = _mm512_set1_ps(scale);
    __m512 most = _mm512_set1_ps(-INFINITE), sum = _mm512_setzero_ps();
    for (int64_t at = first / LANES * LANES; at < stop; at += LANES) {
        const __mmask16 mask = first_lanes(stop - at) & ~first_lanes(first - at);
        most = _mm512_mask_max_ps(most, mask, most, _mm512_mul_ps(load(scores + at), scales));
    }
    *highest = _mm512_reduce_max_ps(most);
    most = _mm512_set1_ps(*highest);
    for (int64_t at = 0; at < num_lanes; at += LANES) {
        const __mmask16 mask = first_lanes(stop - at) & ~first_lanes(first - at);
        __m512 weight = _mm512_setzero_ps();
        if (mask != 0) {
            weight = exp2(_mm512_fmsub_ps(load(scores + at), scales, most));
            weight = rounded(weights, _mm512_maskz_mov_ps(mask, weight));
            sum = _mm512_add_ps(sum, weight);
        }
        store(weights + at, weight);
    }
    *total = _mm512_reduce_add_ps(sum);
}

template <class T, int R, int V>
inline void score_tile(
    const T* queries, size_t row_bytes, const uint32_t* packed, size_t num_units, float* scores) {
    __m512 sums[R][V];
    clear(sums);
    multiply<T>(reinterpret_cast<const char*>(queries), row_bytes, packed, KEY_TILE, num_units, sums);
    for (int row = 0; row < R; ++row)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(scores + row * KEY_BLOCK + v * LANES, sums[row][v]);
}

// Scores of a tile of packed keys for any number of queries (contiguous, key_size apart); `scores` are KEY_BLOCK apart.
template <class T>
void score(
    const Shape& shape, const T* queries, int64_t num_queries, const uint32_t* packed, int64_t num_vectors,
    float* scores) {
    const int64_t num_units = shape.key_units<T>();
    const size_t row_bytes = shape.key_size * sizeof(T);
    for_row_tiles(num_queries, [&]<int R>(int64_t first) {
        const T* rows = queries + first * shape.key_size;
        float* to = scores + first * KEY_BLOCK;
        if (num_vectors == 3) score_tile<T, R, 3>(rows, row_bytes, packed, num_units, to);
        else if (num_vectors == 2) score_tile<T, R, 2>(rows, row_bytes, packed, num_units, to);
        else score_tile<T, R, 1>(rows, row_bytes, packed, num_units, to);
    });
}

template <class T>
struct Call {
    const T* query;
    const T* key_cache;
    const T* value_cache;
    T* out;
    Shape shape;

    const T* query_at(const Row& row, int64_t pair, int64_t head) const {
        const int64_t group = shape.group(), token = row.first_token + pair / group;
        return query + (token * shape.num_heads + head * group + pair % group) * shape.key_size;
    }
    T* out_at(const Row& row, int64_t pair, int64_t head) const {
        const int64_t group = shape.group(), token = row.first_token + pair / group;
        return out + (token * shape.num_heads + head * group + pair % group) * shape.value_size;
    }
};

inline int64_t block_of(int64_t position) { return position / KEY_BLOCK; }
inline int64_t num_blocks_of(int64_t length) { return (length + KEY_BLOCK - 1) / KEY_BLOCK; }

}  // namespace
}  // namespace tokenwire
