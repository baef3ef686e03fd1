// Causal attention over the paged KV cache, for rows with one token and rows with several alike.
//
// A row's positions are taken in blocks of KEY_BLOCK, aligned at position 0. For a query and a block there are: scores in
// fp32, their maximum, weights exp(score - maximum) rounded to the cache's type, their sum, and the weighted sum of
// values in fp32; then the block is merged into what came before. Each of these adds in the same order wherever the query
// stands, so its output is the same bits alone, in a batch, in any chunk of its prompt and with any number of threads.
// Keys that a query does not see have weight 0; positions outside of a row are packed as zeros, whatever lies there.
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "simd.h"

namespace tokenwire {
namespace {

constexpr int KEY_BLOCK = 192;  // positions
constexpr int KEY_VECTORS = 3;
constexpr int KEY_TILE = KEY_VECTORS * LANES;
constexpr int VALUE_VECTORS = 2;
constexpr int QUERY_TILE = 32;  // pairs of a token and a query head
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
struct Slots {
    int64_t start, first, stop;
    int64_t slots[KEY_BLOCK];

    Slots(const Shape& shape, const Row& row, int64_t start, int64_t first, int64_t stop)
        : start(start), first(first), stop(stop) {
        int64_t block = first / shape.block_size, offset = first % shape.block_size;
        for (int64_t position = first; position < stop; ++position) {
            slots[position - start] = row.blocks[block] * shape.block_size + offset;
            if (++offset == shape.block_size) offset = 0, ++block;
        }
    }

    template <class T>
    const T* at(const T* cache, const Shape& shape, int64_t position, int64_t head, int64_t size) const {
        return cache + (slots[position - start] * shape.num_kv_heads + head) * size;
    }
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

// A block's keys as [tile][unit][KEY_TILE]; zeros beside its positions, in the vectors that are touched.
template <class T>
void pack_keys(
    const T* cache, const Shape& shape, const Slots& slots, int64_t head, uint32_t* packed) {
    const auto [start, first, stop] = std::tuple(slots.start, slots.first, slots.stop);
    const int64_t num_units = shape.key_units<T>();
    for (int64_t lanes = start; lanes < stop; lanes += LANES) {
        const char* keys[LANES] = {};
        for (int64_t position = std::max(lanes, first); position < std::min(lanes + LANES, stop); ++position)
            keys[position - lanes] =
                reinterpret_cast<const char*>(slots.at(cache, shape, position, head, shape.key_size));
        const int64_t tile = (lanes - start) / KEY_TILE;
        uint32_t* to = packed + tile * num_units * KEY_TILE + (lanes - start) % KEY_TILE;
        for (int64_t unit = 0; unit < num_units; unit += LANES) {
            const __mmask16 mask = first_lanes(num_units - unit);
            __m512i units[LANES];
            for (int lane = 0; lane < LANES; ++lane)
                units[lane] = keys[lane] ? _mm512_maskz_loadu_epi32(mask, keys[lane] + 4 * unit) : _mm512_setzero_si512();
            transpose(units);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, num_units - unit); ++i)
                _mm512_storeu_si512(to + (unit + i) * KEY_TILE, units[i]);
        }
    }
}

// A unit of positions' values, for pack_values: fp32 numbers, or pairs of bf16; null: zeros.
inline void pack_value_unit(const float* even, const float*, int64_t size, int64_t lanes, uint32_t* to) {
    for (int64_t at = 0; at < lanes; at += LANES) {
        const __mmask16 mask = even ? first_lanes(size - at) : 0;
        _mm512_storeu_ps(to + at, _mm512_maskz_loadu_ps(mask, even + at));
    }
}

inline void pack_value_unit(const bf16* even, const bf16* odd, int64_t size, int64_t lanes, uint32_t* to) {
    for (int64_t at = 0; at < lanes; at += LANES) {
        const __mmask16 mask = first_lanes(size - at);
        const __m256i low = _mm256_maskz_loadu_epi16(even ? mask : 0, even + at);
        const __m256i high = _mm256_maskz_loadu_epi16(odd ? mask : 0, odd + at);
        _mm512_storeu_si512(
            to + at, _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    }
}

// A block's values as [unit of positions][value_lanes]; zeros before its first position and up to a whole unit.
template <class T>
void pack_values(
    const T* cache, const Shape& shape, const Slots& slots, int64_t head, uint32_t* packed) {
    constexpr int SIZE = Units<T>::SIZE;
    const auto value = [&](int64_t position) -> const T* {
        if (position < slots.first || position >= slots.stop) return nullptr;
        return slots.at(cache, shape, position, head, shape.value_size);
    };
    for (int64_t position = slots.start; position < slots.stop; position += SIZE, packed += shape.value_lanes())
        pack_value_unit(value(position), value(position + SIZE - 1), shape.value_size, shape.value_lanes(), packed);
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

// A thread's memory for one block of keys and one tile of queries.
template <class T>
struct Workspace {
    alignas(64) float scores[QUERY_TILE * KEY_BLOCK];
    alignas(64) T weights[QUERY_TILE * KEY_BLOCK];
};

template <class T, int R, int V>
inline void score_tile(
    const T* queries, size_t row_bytes, const uint32_t* packed, size_t num_units, float* scores) {
    __m512 sums[R][V];
    clear(sums);
    multiply<T>(reinterpret_cast<const char*>(queries), row_bytes, packed, KEY_TILE, num_units, sums);
    for (int row = 0; row < R; ++row)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(scores + row * KEY_BLOCK + v * LANES, sums[row][v]);
}

template <class T, int R, int V>
inline void value_tile(const T* weights, const uint32_t* packed, size_t step, size_t num_units, float* values) {
    __m512 sums[R][V];
    clear(sums);
    multiply<T>(reinterpret_cast<const char*>(weights), KEY_BLOCK * sizeof(T), packed, step, num_units, sums);
    for (int row = 0; row < R; ++row)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(values + row * step + v * LANES, sums[row][v]);
}

// A tile of queries: `num` pairs of a token and a head of the group, from pair `first` of the row.
struct QueryTile {
    int64_t first, num;
};

// One block of packed keys and values for a tile of queries (contiguous, key_size apart). `seen(query)` gives the positions
// from the block's start that a query sees, as first and stop. Writes `state` of each that sees any.
template <class T, class Seen>
void attend_block(
    const Shape& shape, const T* queries, int64_t num_queries, const uint32_t* keys, const uint32_t* values,
    const Seen& seen, Workspace<T>& work, State state) {
    int64_t stop = 0;
    for (int64_t query = 0; query < num_queries; ++query) stop = std::max(stop, seen(query).second);
    const int64_t num_units = shape.key_units<T>(), lanes = shape.value_lanes();
    const size_t row_bytes = shape.key_size * sizeof(T);
    for_row_tiles(num_queries, [&]<int R>(int64_t first) {
        const T* rows = queries + first * shape.key_size;
        float* scores = work.scores + first * KEY_BLOCK;
        int64_t at = 0;
        for (; at + 2 * LANES < stop; at += KEY_TILE)
            score_tile<T, R, 3>(rows, row_bytes, keys + at * num_units, num_units, scores + at);
        if (at + LANES < stop)
            score_tile<T, R, 2>(rows, row_bytes, keys + at * num_units, num_units, scores + at);
        else if (at < stop)
            score_tile<T, R, 1>(rows, row_bytes, keys + at * num_units, num_units, scores + at);
    });
    const int64_t num_lanes = (stop + LANES - 1) / LANES * LANES;
    for (int64_t query = 0; query < num_queries; ++query) {
        const auto [first, end] = seen(query);
        softmax(
            work.scores + query * KEY_BLOCK, shape.scale, first, end, num_lanes, work.weights + query * KEY_BLOCK,
            state.highest + query, state.total + query);
    }
    const int64_t num_value_units = (stop + Units<T>::SIZE - 1) / Units<T>::SIZE;
    for_row_tiles(num_queries, [&]<int R>(int64_t first) {
        const T* weights = work.weights + first * KEY_BLOCK;
        float* sums = state.values + first * lanes;
        int64_t at = 0;
        for (; at + VALUE_VECTORS * LANES <= lanes; at += VALUE_VECTORS * LANES)
            value_tile<T, R, VALUE_VECTORS>(weights, values + at, lanes, num_value_units, sums + at);
        if (at < lanes) value_tile<T, R, 1>(weights, values + at, lanes, num_value_units, sums + at);
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

template <class T>
Workspace<T>& workspace() {
    static thread_local Scratch scratch;
    return *scratch.get<Workspace<T>>(1);
}

inline int64_t block_of(int64_t position) { return position / KEY_BLOCK; }
inline int64_t num_blocks_of(int64_t length) { return (length + KEY_BLOCK - 1) / KEY_BLOCK; }

// One block of a row with one token: packs it and leaves what all of the group's queries gather in `state`.
template <class T>
void decode_block(const Call<T>& call, const Row& row, int64_t head, int64_t block, State state) {
    static thread_local Scratch scratch;
    const Shape& shape = call.shape;
    const int64_t start = block * KEY_BLOCK, stop = std::min(start + KEY_BLOCK, row.length);
    const int64_t first = std::max(start, first_seen(shape, row.length - 1));
    uint32_t* keys = scratch.get<uint32_t>(shape.packed_keys<T>() + shape.packed_values<T>());
    uint32_t* values = keys + shape.packed_keys<T>();
    const Slots slots(shape, row, start, first, stop);
    pack_keys(call.key_cache, shape, slots, head, keys);
    pack_values(call.value_cache, shape, slots, head, values);
    const auto seen = [&](int64_t) { return std::pair<int64_t, int64_t>(first - start, stop - start); };
    for (int64_t query = 0; query < shape.group(); query += QUERY_TILE) {
        const int64_t num = std::min<int64_t>(QUERY_TILE, shape.group() - query);
        const State part{state.values + query * shape.value_lanes(), state.highest + query, state.total + query};
        attend_block(shape, call.query_at(row, query, head), num, keys, values, seen, workspace<T>(), part);
    }
}

// Rows with one token. Each pair of a row and a key head is an item; with few of them, each of its blocks is.
template <class T>
void decode(const Call<T>& call, const Row* rows, int64_t num_rows) {
    const Shape& shape = call.shape;
    const int64_t group = shape.group(), num_items = num_rows * shape.num_kv_heads;
    int64_t most_blocks = 0, num_positions = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
        most_blocks = std::max(most_blocks, num_blocks_of(rows[row].length));
        num_positions += rows[row].length;
    }
    const int64_t operations = num_positions * shape.num_kv_heads * (group + 4) * (shape.key_size + shape.value_size) / 32;
    const int threads = num_threads(num_items * most_blocks, operations);
    const size_t state_size = State::size(shape, group);
    const bool split = threads > 1 && most_blocks > 1 && num_items < 4 * threads;
    static thread_local Scratch shared;
    float* states = split ? shared.get<float>(num_items * most_blocks * state_size) : nullptr;
    const auto finish = [&](int64_t item, const auto& block_state) {
        static thread_local Scratch own;
        const Row& row = rows[item / shape.num_kv_heads];
        const int64_t head = item % shape.num_kv_heads;
        float* memory = own.get<float>(2 * state_size);
        State state = State::in(memory, shape, group);
        state.clear(shape, group);
        for (int64_t block = block_of(first_seen(shape, row.length - 1)); block < num_blocks_of(row.length); ++block) {
            const State other = block_state(row, head, block, memory + state_size);
            for (int64_t query = 0; query < group; ++query) merge(shape, state, other, query);
        }
        for (int64_t query = 0; query < group; ++query) {
            if (row.length > 0) write(shape, state, query, call.out_at(row, query, head));
            else std::memset(call.out_at(row, query, head), 0, shape.value_size * sizeof(T));
        }
    };
    if (!split) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t item = 0; item < num_items; ++item)
            finish(item, [&](const Row& row, int64_t head, int64_t block, float* memory) {
                const State state = State::in(memory, shape, group);
                decode_block(call, row, head, block, state);
                return state;
            });
        return;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < num_items * most_blocks; ++part) {
            const int64_t item = part / most_blocks, block = part % most_blocks;
            const Row& row = rows[item / shape.num_kv_heads];
            if (block >= block_of(first_seen(shape, row.length - 1)) && block < num_blocks_of(row.length))
                decode_block(
                    call, row, item % shape.num_kv_heads, block,
                    State::in(states + part * state_size, shape, group));
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < num_items; ++item)
            finish(item, [&](const Row&, int64_t, int64_t block, float*) {
                return State::in(states + (item * most_blocks + block) * state_size, shape, group);
            });
    }
}

// A tile of a chunk's queries for one key head, over all blocks of packed keys that any of them sees.
template <class T>
void chunk_tile(
    const Call<T>& call, const Row& row, int64_t head, QueryTile tile, int64_t first_block, const uint32_t* packed) {
    static thread_local Scratch scratch;
    alignas(64) static thread_local T queries[QUERY_TILE * 256];
    const Shape& shape = call.shape;
    for (int64_t query = 0; query < tile.num; ++query)
        std::memcpy(
            queries + query * shape.key_size, call.query_at(row, tile.first + query, head), shape.key_size * sizeof(T));
    const size_t state_size = State::size(shape, tile.num);
    float* memory = scratch.get<float>(2 * state_size);
    State state = State::in(memory, shape, tile.num);
    const State other = State::in(memory + state_size, shape, tile.num);
    state.clear(shape, tile.num);
    const auto position = [&](int64_t query) { return row.position((tile.first + query) / shape.group()); };
    const int64_t last_block = block_of(position(tile.num - 1));
    for (int64_t block = block_of(first_seen(shape, position(0))); block <= last_block; ++block) {
        const int64_t start = block * KEY_BLOCK;
        const uint32_t* keys =
            packed + (block - first_block) * (shape.packed_keys<T>() + shape.packed_values<T>());
        const auto seen = [&](int64_t query) {
            const int64_t first = first_seen(shape, position(query)) - start, stop = position(query) + 1 - start;
            return std::pair(
                std::clamp<int64_t>(first, 0, KEY_BLOCK), std::clamp<int64_t>(stop, 0, KEY_BLOCK));
        };
        attend_block(shape, queries, tile.num, keys, keys + shape.packed_keys<T>(), seen, workspace<T>(), other);
        for (int64_t query = 0; query < tile.num; ++query)
            if (const auto [first, stop] = seen(query); first < stop) merge(shape, state, other, query);
    }
    for (int64_t query = 0; query < tile.num; ++query)
        write(shape, state, query, call.out_at(row, tile.first + query, head));
}

// A row with several tokens: its keys and values are packed once, then tiles of queries go over them.
template <class T>
void chunk(const Call<T>& call, const Row& row) {
    static thread_local Scratch shared;
    const Shape& shape = call.shape;
    const int64_t first_position = first_seen(shape, row.position(0)), first_block = block_of(first_position);
    const int64_t num_blocks = num_blocks_of(row.length) - first_block;
    const size_t block_units = shape.packed_keys<T>() + shape.packed_values<T>();
    uint32_t* packed = shared.get<uint32_t>(shape.num_kv_heads * num_blocks * block_units);
    const int64_t num_pairs = row.num_tokens * shape.group(), num_tiles = (num_pairs + QUERY_TILE - 1) / QUERY_TILE;
    const int64_t num_positions = row.length - first_position;
    const int threads = num_threads(
        shape.num_kv_heads * std::max(num_blocks, num_tiles),
        num_positions * shape.num_kv_heads * (num_pairs + 4) * (shape.key_size + shape.value_size) / 32);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < shape.num_kv_heads * num_blocks; ++item) {
            const int64_t head = item / num_blocks, start = (first_block + item % num_blocks) * KEY_BLOCK;
            const int64_t first = std::max(start, first_position), stop = std::min(start + KEY_BLOCK, row.length);
            uint32_t* keys = packed + item * block_units;
            const Slots slots(shape, row, start, first, stop);
            pack_keys(call.key_cache, shape, slots, head, keys);
            pack_values(call.value_cache, shape, slots, head, keys + shape.packed_keys<T>());
        }
        // The last tiles see most and are given out first.
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < shape.num_kv_heads * num_tiles; ++item) {
            const int64_t head = item % shape.num_kv_heads, tile = num_tiles - 1 - item / shape.num_kv_heads;
            const int64_t first = tile * QUERY_TILE;
            chunk_tile(
                call, row, head, {first, std::min<int64_t>(QUERY_TILE, num_pairs - first)}, first_block,
                packed + head * num_blocks * block_units);
        }
    }
}

template <class T>
void attend(
    const Call<T>& call, const int64_t* table, int64_t table_width, const int64_t* lengths, const int64_t* query_starts,
    int64_t num_rows) {
    static thread_local Scratch scratch;
    Row* decodes = scratch.get<Row>(num_rows);
    int64_t num_decodes = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
        const Row here{
            table + row * table_width, lengths[row], query_starts[row], query_starts[row + 1] - query_starts[row]};
        if (here.num_tokens == 1) decodes[num_decodes++] = here;
    }
    if (num_decodes > 0) decode(call, decodes, num_decodes);
    for (int64_t row = 0; row < num_rows; ++row) {
        const Row here{
            table + row * table_width, lengths[row], query_starts[row], query_starts[row + 1] - query_starts[row]};
        if (here.num_tokens > 1) chunk(call, here);
    }
}

}  // namespace
}  // namespace tokenwire

extern "C" void tokenwire_attention(
    int is_bf16, const void* query, const void* key_cache, const void* value_cache, const int64_t* table,
    int64_t table_width, const int64_t* lengths, const int64_t* query_starts, int64_t num_rows, float scale,
    int64_t window, void* out, int64_t num_heads, int64_t num_kv_heads, int64_t key_size, int64_t value_size,
    int64_t block_size) {
    using namespace tokenwire;
    const Shape shape{num_heads, num_kv_heads, key_size, value_size, block_size, window, scale * LOG2_E};
    if (is_bf16) {
        const Call<bf16> call{
            (const bf16*)query, (const bf16*)key_cache, (const bf16*)value_cache, (bf16*)out, shape};
        attend(call, table, table_width, lengths, query_starts, num_rows);
    } else {
        const Call<float> call{
            (const float*)query, (const float*)key_cache, (const float*)value_cache, (float*)out, shape};
        attend(call, table, table_width, lengths, query_starts, num_rows);
    }
}
