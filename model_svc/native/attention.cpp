// Attention of a step: of rows with several tokens, and the entry for all. Their keys and values are packed once.
#include "attention.h"
#include "decode.h"

namespace tokenwire {
namespace {

constexpr int VALUE_VECTORS = 2;
constexpr int QUERY_TILE = 32;  // pairs of a token and a query head

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

// A thread's memory for one block of keys and one tile of queries.
template <class T>
struct Workspace {
    alignas(64) float scores[QUERY_TILE * KEY_BLOCK];
    alignas(64) T weights[QUERY_TILE * KEY_BLOCK];
};

template <class T>
Workspace<T>& workspace() {
    static thread_local Scratch scratch;
    return *scratch.get<Workspace<T>>(1);
}

// A tile of queries: `num` pairs of a token and a head of the group, from pair `first` of the row.
struct QueryTile {
    int64_t first, num;
};

template <class T, int R, int V>
inline void value_tile(const T* weights, const uint32_t* packed, size_t step, size_t num_units, float* values) {
    __m512 sums[R][V];
    clear(sums);
    multiply<T>(reinterpret_cast<const char*>(weights), KEY_BLOCK * sizeof(T), packed, step, num_units, sums);
    for (int row = 0; row < R; ++row)
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(values + row * step + v * LANES, sums[row][v]);
}

// One block of packed keys and values for a tile of queries (contiguous, key_size apart). `seen(query)` gives the
// positions from the block's start that a query sees, as first and stop. Writes `state` of each that sees any.
template <class T, class Seen>
void attend_block(
    const Shape& shape, const T* queries, int64_t num_queries, const uint32_t* keys, const uint32_t* values,
    const Seen& seen, Workspace<T>& work, State state) {
    int64_t stop = 0;
    for (int64_t query = 0; query < num_queries; ++query) stop = std::max(stop, seen(query).second);
    const int64_t num_units = shape.key_units<T>(), lanes = shape.value_lanes();
    for (int64_t at = 0; at < stop; at += KEY_TILE)
        score(shape, queries, num_queries, keys + at * num_units, tile_vectors(at, stop), work.scores + at);
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
            Slots slots;
            slots.find(shape, row, start, first, stop);
            Ahead nothing;
            for (int64_t at = 0; at < stop - start; at += KEY_TILE)
                pack_key_tile(
                    call.key_cache, shape, slots, start + at, tile_vectors(at, stop - start), head,
                    keys + at * shape.key_units<T>(), nothing);
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
        if (here.num_tokens != 1) continue;
        if (here.length > 0) decodes[num_decodes++] = here;
        else std::fill_n(call.out_at(here, 0, 0), call.shape.num_heads * call.shape.value_size, T{});
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
