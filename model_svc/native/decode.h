// Attention of rows with one token, which waits for memory as long as it computes: keys and values are used once. Keys
// are packed a tile at a time and multiplied at once, values are used as they lie, and what comes next is asked for
// ahead of its use. Adds in the order in which chunks add.
#pragma once

#include <atomic>
#include <tuple>

#include "attention.h"

namespace tokenwire {
namespace {

// Two vectors of a unit of positions' values as they lie in the cache. Pairs of bf16 come interleaved within each 128
// bits; store_values puts them in order. `even`, `odd`: which of the 32 numbers there are.
inline void load_values(const float* values, const float*, __mmask32 even, __mmask32, __m512i* units) {
    units[0] = _mm512_maskz_loadu_epi32(even & 0xffff, values);
    units[1] = _mm512_maskz_loadu_epi32(even >> LANES, values + LANES);
}

inline void load_values(const bf16* values, const bf16* next, __mmask32 even, __mmask32 odd, __m512i* units) {
    const __m512i low = _mm512_maskz_loadu_epi16(even, values), high = _mm512_maskz_loadu_epi16(odd, next);
    units[0] = _mm512_unpacklo_epi16(low, high);
    units[1] = _mm512_unpackhi_epi16(low, high);
}

inline void store_values(const float*, const __m512* sums, int64_t num, float* to) {
    store(to, sums[0], first_lanes(num));
    store(to + LANES, sums[1], first_lanes(num - LANES));
}

inline void store_values(const bf16*, const __m512* sums, int64_t num, float* to) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    store(to, _mm512_permutex2var_ps(sums[0], low, sums[1]), first_lanes(num));
    store(to + LANES, _mm512_permutex2var_ps(sums[0], high, sums[1]), first_lanes(num - LANES));
}

inline __mmask32 first_32(int64_t count) { return first_lanes(count) | uint32_t{first_lanes(count - LANES)} << LANES; }

// Weighted sums of a block's values, read as they lie, for R queries and PAIRS times two vectors of a head from `at`.
template <class T, int R, int PAIRS>
inline void weigh_values(
    const T* cache, const Shape& shape, const Slots& slots, int64_t head, int64_t at, const T* weights, float* to,
    Ahead& ahead) {
    constexpr int SIZE = Units<T>::SIZE, V = 2 * PAIRS;
    __m512 sums[R][V];
    clear(sums);
    __mmask32 masks[PAIRS];
    for (int pair = 0; pair < PAIRS; ++pair) masks[pair] = first_32(shape.value_size - at - 2 * LANES * pair);
    for (int64_t position = slots.first / SIZE * SIZE; position < slots.stop; position += SIZE) {
        const T* even = slots.at(cache, shape, position, head, shape.value_size) + at;
        const T* odd = slots.at(cache, shape, position + SIZE - 1, head, shape.value_size) + at;
        const __mmask32 with_even = position >= slots.first ? ~0u : 0, with_odd = position + 1 < slots.stop ? ~0u : 0;
        ahead.ask(2 * PAIRS);
        __m512i right[V];
        for (int pair = 0; pair < PAIRS; ++pair) {
            const int64_t here = 2 * LANES * pair;
            load_values(even + here, odd + here, masks[pair] & with_even, masks[pair] & with_odd, right + 2 * pair);
        }
        for (int row = 0; row < R; ++row) {
            const __m512i left = broadcast_unit(weights + row * KEY_BLOCK + position - slots.start);
            for (int v = 0; v < V; ++v) sums[row][v] = Units<T>::add(sums[row][v], left, right[v]);
        }
    }
    for (int row = 0; row < R; ++row)
        for (int pair = 0; pair < PAIRS; ++pair) {
            const int64_t here = at + 2 * LANES * pair;
            store_values(
                cache, sums[row] + 2 * pair, shape.value_lanes() - here, to + row * shape.value_lanes() + here);
        }
}

// One block of a row with one token: leaves what all of the heads' queries gather in `state`. Asks for its values while
// keys are multiplied, and for the keys of `next`, of which `next_heads` come next, while values are.
template <class T>
void decode_block(
    const Call<T>& call, const Row& row, Heads heads, const Slots& slots, Heads next_heads, const Slots& next,
    State state) {
    static thread_local Scratch scratch;
    const Shape& shape = call.shape;
    const int64_t group = shape.group(), num_queries = heads.num * group;
    const int64_t first = slots.first - slots.start, stop = slots.stop - slots.start;
    const int64_t tile_units = shape.key_units<T>() * KEY_TILE, num_scores = num_queries * KEY_BLOCK;
    uint32_t* packed = scratch.get<uint32_t>(tile_units + 2 * num_scores);
    float* scores = reinterpret_cast<float*>(packed + tile_units);
    T* weights = reinterpret_cast<T*>(scores + num_scores);
    Ahead values(call.value_cache, shape, slots, heads, shape.value_size);
    for (int64_t at = first / KEY_TILE * KEY_TILE; at < stop; at += KEY_TILE)
        for (int64_t head = 0; head < heads.num; ++head) {
            const int64_t num_vectors = tile_vectors(at, stop);
            pack_key_tile(
                call.key_cache, shape, slots, slots.start + at, num_vectors, heads.first + head, packed, values);
            score(
                shape, call.query_at(row, 0, heads.first + head), group, packed, num_vectors,
                scores + head * group * KEY_BLOCK + at);
        }
    for (int64_t query = 0; query < num_queries; ++query)
        softmax(
            scores + query * KEY_BLOCK, shape.scale, first, stop, (stop + LANES - 1) / LANES * LANES,
            weights + query * KEY_BLOCK, state.highest + query, state.total + query);
    Ahead keys(call.key_cache, shape, next, next_heads, shape.key_size);
    for (int64_t head = 0; head < heads.num; ++head)
        for_row_tiles<4>(group, [&]<int R>(int64_t query) {
            query += head * group;
            for (int64_t at = 0; at < shape.value_size; at += 4 * LANES)
                weigh_values<T, R, 2>(
                    call.value_cache, shape, slots, heads.first + head, at, weights + query * KEY_BLOCK,
                    state.values + query * shape.value_lanes(), keys);
        });
}

// How the work is dealt out: a part is some heads of a row, with all of its blocks or, with few rows, with one.
struct Parts {
    const Row* rows;
    int64_t num_heads;  // of a part
    int64_t row_parts;  // parts of a row
    int64_t blocks;     // parts that follow one another for the same heads; 1: a part has all blocks
    int64_t num;

    const Row& row(int64_t part) const { return rows[part / row_parts]; }
    Heads heads(int64_t part) const { return {part % row_parts / blocks * num_heads, num_heads}; }
    // Its blocks, from the first to the one after the last; none where the row has fewer or its window is past them.
    std::pair<int64_t, int64_t> range(const Shape& shape, int64_t part) const {
        const int64_t first = block_of(first_seen(shape, row(part).length - 1)), stop = num_blocks_of(row(part).length);
        const int64_t block = part % blocks;
        return blocks == 1 ? std::pair(first, stop) : std::pair(std::max(first, block), std::min(stop, block + 1));
    }
};

template <class T>
void write_heads(const Call<T>& call, const Row& row, Heads heads, const State& state) {
    T* out = call.out_at(row, 0, heads.first);
    for (int64_t query = 0; query < heads.num * call.shape.group(); ++query, out += call.shape.value_size)
        write(call.shape, state, query, out);
}

// Parts that this thread takes, until none is left. The next block is known before one is computed. Without `states`,
// parts are whole rows and are written; otherwise each one's state is left there.
template <class T>
void decode_parts(const Call<T>& call, const Parts& parts, std::atomic<int64_t>& next_part, float* states) {
    static thread_local Scratch scratch;
    const Shape& shape = call.shape;
    const int64_t num_queries = parts.num_heads * shape.group();
    const size_t state_size = State::size(shape, num_queries);
    float* memory = scratch.get<float>(2 * state_size);
    const State block_state = State::in(memory, shape, num_queries);
    struct Place {
        int64_t part, block, stop;
    };
    const auto after = [&](Place place) {
        ++place.block;
        while (place.block >= place.stop && (place.part = next_part++) < parts.num)
            std::tie(place.block, place.stop) = parts.range(shape, place.part);
        return place;
    };
    const auto find = [&](Place place, Slots& slots) {
        if (place.part >= parts.num) return slots.clear();
        const Row& row = parts.row(place.part);
        const int64_t start = place.block * KEY_BLOCK;
        slots.find(
            shape, row, start, std::max(start, first_seen(shape, row.length - 1)),
            std::min(start + KEY_BLOCK, row.length));
    };
    Slots slots[2];
    int at = 0;
    Place place = after({0, 0, 0});
    find(place, slots[at]);
    State state{};
    for (int64_t part = -1; place.part < parts.num; at ^= 1) {
        const Place next = after(place);
        find(next, slots[at ^ 1]);
        const Row& row = parts.row(place.part);
        const Heads heads = parts.heads(place.part);
        if (place.part != part) {
            state = State::in(states ? states + place.part * state_size : memory + state_size, shape, num_queries);
            state.clear(shape, num_queries);
            part = place.part;
        }
        decode_block(call, row, heads, slots[at], parts.heads(next.part), slots[at ^ 1], block_state);
        for (int64_t query = 0; query < num_queries; ++query) merge(shape, state, block_state, query);
        if (next.part != part && !states) write_heads(call, row, heads, state);
        place = next;
    }
}

// Rows with one token, none of them empty.
template <class T>
void decode(const Call<T>& call, const Row* rows, int64_t num_rows) {
    const Shape& shape = call.shape;
    int64_t most_blocks = 0, num_positions = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
        most_blocks = std::max(most_blocks, num_blocks_of(rows[row].length));
        num_positions += rows[row].length;
    }
    const int64_t operations =
        num_positions * shape.num_kv_heads * (shape.group() + 4) * (shape.key_size + shape.value_size) / 32;
    const int threads = num_threads(num_rows * shape.num_kv_heads * most_blocks, operations);
    const auto few = [&](int64_t num_parts) { return threads > 1 && num_parts < 4 * threads; };
    const int64_t num_heads = few(num_rows) ? 1 : shape.num_kv_heads;
    const int64_t num_items = num_rows * shape.num_kv_heads / num_heads;
    const int64_t blocks = few(num_items) ? most_blocks : 1, num_queries = num_heads * shape.group();
    const Parts parts{rows, num_heads, num_items / num_rows * blocks, blocks, num_items * blocks};
    const size_t state_size = State::size(shape, num_queries);
    static thread_local Scratch shared;
    float* states = blocks > 1 ? shared.get<float>(parts.num * state_size) : nullptr;
    std::atomic<int64_t> next_part = 0;
#pragma omp parallel num_threads(threads)
    {
        decode_parts(call, parts, next_part, states);
        if (states) {
#pragma omp barrier
#pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < num_items; ++item) {
                const int64_t first_part = item * blocks;
                const Row& row = parts.row(first_part);
                const int64_t first = block_of(first_seen(shape, row.length - 1));
                const auto state = [&](int64_t block) {
                    return State::in(states + (first_part + block) * state_size, shape, num_queries);
                };
                State merged = state(first);
                for (int64_t block = first + 1; block < num_blocks_of(row.length); ++block)
                    for (int64_t query = 0; query < num_queries; ++query) merge(shape, merged, state(block), query);
                write_heads(call, row, parts.heads(first_part), merged);
            }
        }
    }
}

}  // namespace
}  // namespace tokenwire
