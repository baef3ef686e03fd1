// out = x Wᵀ + bias + residual for packed weights: fp32, bf16, int8 with a scale per output, int4 with groups of inputs.
//
// Weights lie in blocks of 48 outputs. Within a block: units [K / unit size][48] for fp32, bf16 and int8 (there a pair of
// bytes stands for a unit); for int4 [K / 32] groups of 960 bytes, see Int4Group. K is never split, so a row's output
// does not depend on the other rows or on the number of threads. What a token's adapter adds (adapters.h) is added before
// the sum is rounded.
#include "adapters.h"
#include "simd.h"

namespace tokenwire {
namespace {

constexpr int VECTORS = 3;
constexpr int BLOCK = VECTORS * LANES;  // outputs
constexpr int GROUP = 32;               // inputs that share a scale and an offset in int4
constexpr int GROUP_UNITS = GROUP / 2;
constexpr int MOST_INT8_ROWS = 16;      // beyond, a block is unpacked first
constexpr int MOST_INT4_ROWS = 12;
constexpr int INT4_TILE = 4;            // rows; each has two sets of accumulators
constexpr int ROWS_AT_ONCE = 64;        // rows that share an unpacked group

enum Kind { FP32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

struct Int4Group {
    // [4][VECTORS][LANES][2] words; nibble i of word [m][v][lane][parity] is input 2 (4 m + i) + parity of output
    // 16 v + lane, as q from 0 to 15.
    uint16_t words[4][VECTORS][2 * LANES];
    bf16 scale[BLOCK];
    bf16 offset[BLOCK];  // the value of q = 8
};
static_assert(sizeof(Int4Group) == 960, "the packing in Python relies on it");

struct Call {
    const void* x;
    const void* weight;
    const float* scale;     // int8: [N padded]
    const float* bias;      // [N padded] or null
    const void* residual;   // [T, N] or null
    void* out;              // [T, N]
    int64_t num_rows, num_outputs, num_inputs;
    float* group_sums;      // int4: [T, K / GROUP]
    Adapted adapted;
};

template <class T, int R>
inline void finish(const Call& call, int64_t first_row, int64_t block, __m512 (&sums)[R][VECTORS]) {
    if (call.scale)
        for (int v = 0; v < VECTORS; ++v) {
            const __m512 scale = _mm512_loadu_ps(call.scale + block * BLOCK + v * LANES);
            for (int row = 0; row < R; ++row) sums[row][v] = _mm512_mul_ps(sums[row][v], scale);
        }
    if (call.adapted.rows)
        for (int row = 0; row < R; ++row)
            if (const Adapter* adapter = call.adapted.of(first_row + row))
                adapter_up<T>(call.adapted, *adapter, first_row + row, block, sums[row]);
    for (int v = 0; v < VECTORS; ++v) {
        const int64_t output = block * BLOCK + v * LANES;
        const __mmask16 mask = first_lanes(call.num_outputs - output);
        if (mask == 0) break;
        const __m512 bias = call.bias ? _mm512_loadu_ps(call.bias + output) : _mm512_setzero_ps();
        for (int row = 0; row < R; ++row) {
            const int64_t at = (first_row + row) * call.num_outputs + output;
            __m512 sum = sums[row][v];
            if (call.bias) sum = _mm512_add_ps(sum, bias);
            if (call.residual) sum = _mm512_add_ps(sum, load(static_cast<const T*>(call.residual) + at, mask));
            store(static_cast<T*>(call.out) + at, sum, mask);
        }
    }
}

template <class T>
inline const char* row_at(const Call& call, int64_t row) {
    return reinterpret_cast<const char*>(static_cast<const T*>(call.x) + row * call.num_inputs);
}

template <class T, int R>
inline void plain_tile(const Call& call, int64_t first_row, int64_t block, const uint32_t* packed) {
    const size_t num_units = call.num_inputs / Units<T>::SIZE, row_bytes = call.num_inputs * sizeof(T);
    const char* rows = row_at<T>(call, first_row);
    __m512 sums[R][VECTORS];
    clear(sums);
    multiply<T>(rows, row_bytes, packed, BLOCK, num_units, sums);
    if (call.num_inputs % Units<T>::SIZE != 0) {
        for (int row = 0; row < R; ++row)
            for (int v = 0; v < VECTORS; ++v)
                sums[row][v] = Units<T>::add(
                    sums[row][v], half_unit(rows + row * row_bytes + 4 * num_units),
                    _mm512_loadu_si512(packed + num_units * BLOCK + v * LANES));
    }
    finish<T, R>(call, first_row, block, sums);
}

// 16 pairs of int8 as 16 pairs of bf16: exact.
inline __m512i unpack_int8(const int8_t* from) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + 16))));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

template <int R>
inline void int8_tile(const Call& call, int64_t first_row, int64_t block, const int8_t* packed) {
    const size_t num_units = call.num_inputs / 2, row_bytes = call.num_inputs * 2;
    const char* rows = row_at<bf16>(call, first_row);
    __m512 sums[R][VECTORS];
    clear(sums);
    for (size_t unit = 0; unit < num_units; ++unit, packed += 2 * BLOCK) {
        __m512i right[VECTORS];
        for (int v = 0; v < VECTORS; ++v) right[v] = unpack_int8(packed + v * 2 * LANES);
        for (int row = 0; row < R; ++row) {
            const __m512i left = broadcast_unit(rows + row * row_bytes + 4 * unit);
            for (int v = 0; v < VECTORS; ++v) sums[row][v] = Units<bf16>::add(sums[row][v], left, right[v]);
        }
    }
    if (call.num_inputs % 2 != 0)
        for (int row = 0; row < R; ++row)
            for (int v = 0; v < VECTORS; ++v)
                sums[row][v] = Units<bf16>::add(
                    sums[row][v], half_unit(rows + row * row_bytes + 4 * num_units),
                    unpack_int8(packed + v * 2 * LANES));
    finish<bf16, R>(call, first_row, block, sums);
}

// Table for vpermw: q - 8 in bf16 at q; twice, since it looks at five bits of a word and q has four.
inline __m512i int4_table() {
    alignas(64) uint16_t table[32];
    for (int q = 0; q < 32; ++q) {
        const float value = static_cast<float>(q % 16 - 8);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        table[q] = static_cast<uint16_t>(bits >> 16);
    }
    return _mm512_load_si512(table);
}

// total += scale * sum + offset * (sum of the group's inputs)
inline __m512 add_group(__m512 total, __m512 sum, __m512 scale, __m512 offset, const float* inputs) {
    return _mm512_fmadd_ps(offset, _mm512_set1_ps(*inputs), _mm512_fmadd_ps(scale, sum, total));
}

template <int R>
inline void int4_tile(const Call& call, int64_t first_row, int64_t block, const Int4Group* groups) {
    const int64_t num_groups = call.num_inputs / GROUP;
    const size_t row_bytes = call.num_inputs * 2;
    const char* rows = row_at<bf16>(call, first_row);
    const float* group_sums = call.group_sums + first_row * num_groups;
    const __m512i table = int4_table();
    __m512 totals[R][VECTORS];
    clear(totals);
    for (int64_t group = 0; group < num_groups; ++group, rows += 2 * GROUP) {
        const Int4Group& packed = groups[group];
        __m512 sums[R][VECTORS];
        clear(sums);
        for (int m = 0; m < 4; ++m) {
            __m512i words[VECTORS];
            for (int v = 0; v < VECTORS; ++v) words[v] = _mm512_loadu_si512(packed.words[m][v]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                __m512i right[VECTORS];
                for (int v = 0; v < VECTORS; ++v)
                    right[v] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words[v], 4 * i), table);
                for (int row = 0; row < R; ++row) {
                    const __m512i left = broadcast_unit(rows + row * row_bytes + 4 * (4 * m + i));
                    for (int v = 0; v < VECTORS; ++v) sums[row][v] = Units<bf16>::add(sums[row][v], left, right[v]);
                }
            }
        }
        for (int v = 0; v < VECTORS; ++v) {
            const __m512 scale = load(packed.scale + v * LANES), offset = load(packed.offset + v * LANES);
            for (int row = 0; row < R; ++row)
                totals[row][v] =
                    add_group(totals[row][v], sums[row][v], scale, offset, group_sums + row * num_groups + group);
        }
    }
    finish<bf16, R>(call, first_row, block, totals);
}

// The same sums for many rows: each group is unpacked once and multiplied with up to ROWS_AT_ONCE rows.
void int4_block(const Call& call, int64_t first_row, int64_t num_rows, int64_t block, const Int4Group* groups) {
    const int64_t num_groups = call.num_inputs / GROUP;
    const size_t row_bytes = call.num_inputs * 2;
    const __m512i table = int4_table();
    alignas(64) float totals[ROWS_AT_ONCE][BLOCK];
    alignas(64) uint32_t unpacked[GROUP_UNITS][BLOCK];
    std::memset(totals, 0, num_rows * sizeof totals[0]);
    for (int64_t group = 0; group < num_groups; ++group) {
        const Int4Group& packed = groups[group];
        for (int m = 0; m < 4; ++m)
            for (int v = 0; v < VECTORS; ++v) {
                const __m512i words = _mm512_loadu_si512(packed.words[m][v]);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i)
                    _mm512_store_si512(
                        unpacked[4 * m + i] + v * LANES,
                        _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * i), table));
            }
        for_row_tiles(num_rows, [&]<int R>(int64_t first) {
            __m512 sums[R][VECTORS];
            clear(sums);
            multiply<bf16>(
                row_at<bf16>(call, first_row + first) + group * 2 * GROUP, row_bytes, unpacked[0], BLOCK, GROUP_UNITS,
                sums);
            for (int v = 0; v < VECTORS; ++v) {
                const __m512 scale = load(packed.scale + v * LANES), offset = load(packed.offset + v * LANES);
                for (int row = 0; row < R; ++row) {
                    float* total = totals[first + row] + v * LANES;
                    const float* inputs = call.group_sums + (first_row + first + row) * num_groups + group;
                    _mm512_store_ps(total, add_group(_mm512_load_ps(total), sums[row][v], scale, offset, inputs));
                }
            }
        });
    }
    for_row_tiles(num_rows, [&]<int R>(int64_t first) {
        __m512 sums[R][VECTORS];
        for (int row = 0; row < R; ++row)
            for (int v = 0; v < VECTORS; ++v) sums[row][v] = _mm512_load_ps(totals[first + row] + v * LANES);
        finish<bf16, R>(call, first_row + first, block, sums);
    });
}

template <class T>
void plain_rows(const Call& call, int64_t first_row, int64_t num_rows, int64_t block, const uint32_t* packed) {
    for_row_tiles(num_rows, [&]<int R>(int64_t first) { plain_tile<T, R>(call, first_row + first, block, packed); });
}

void int8_rows(const Call& call, int64_t first_row, int64_t num_rows, int64_t block) {
    const size_t num_units = (call.num_inputs + 1) / 2;
    const int8_t* packed = static_cast<const int8_t*>(call.weight) + block * num_units * 2 * BLOCK;
    if (num_rows <= MOST_INT8_ROWS) {
        for_row_tiles(num_rows, [&]<int R>(int64_t first) { int8_tile<R>(call, first_row + first, block, packed); });
        return;
    }
    static thread_local Scratch scratch;
    uint32_t* unpacked = scratch.get<uint32_t>(num_units * BLOCK);
    for (size_t at = 0; at < num_units * BLOCK; at += LANES)
        _mm512_store_si512(unpacked + at, unpack_int8(packed + 2 * at));
    plain_rows<bf16>(call, first_row, num_rows, block, unpacked);
}

void int4_rows(const Call& call, int64_t first_row, int64_t num_rows, int64_t block) {
    const Int4Group* groups = static_cast<const Int4Group*>(call.weight) + block * (call.num_inputs / GROUP);
    if (num_rows <= MOST_INT4_ROWS) {
        for_row_tiles<INT4_TILE>(
            num_rows, [&]<int R>(int64_t first) { int4_tile<R>(call, first_row + first, block, groups); });
        return;
    }
    for (int64_t first = 0; first < num_rows; first += ROWS_AT_ONCE)
        int4_block(call, first_row + first, std::min<int64_t>(ROWS_AT_ONCE, num_rows - first), block, groups);
}

void block_rows(const Call& call, Kind kind, int64_t first_row, int64_t num_rows, int64_t block) {
    switch (kind) {
        case FP32:
            return plain_rows<float>(
                call, first_row, num_rows, block,
                static_cast<const uint32_t*>(call.weight) + block * call.num_inputs * BLOCK);
        case BF16:
            return plain_rows<bf16>(
                call, first_row, num_rows, block,
                static_cast<const uint32_t*>(call.weight) + block * ((call.num_inputs + 1) / 2) * BLOCK);
        case INT8: return int8_rows(call, first_row, num_rows, block);
        case INT4: return int4_rows(call, first_row, num_rows, block);
    }
}

void sum_groups(const Call& call, int64_t row) {
    const int64_t num_groups = call.num_inputs / GROUP;
    const bf16* inputs = static_cast<const bf16*>(call.x) + row * call.num_inputs;
    for (int64_t group = 0; group < num_groups; ++group, inputs += GROUP)
        call.group_sums[row * num_groups + group] =
            _mm512_reduce_add_ps(_mm512_add_ps(load(inputs), load(inputs + LANES)));
}

}  // namespace
}  // namespace tokenwire

extern "C" void tokenwire_linear(
    int kind, const void* x, const void* weight, const float* scale, const float* bias, const void* residual, void* out,
    int64_t num_rows, int64_t num_outputs, int64_t num_inputs, const void* adapters, const void* row_adapters) {
    using namespace tokenwire;
    static thread_local Scratch scratch, hidden;
    Call call{x, weight, scale, bias, residual, out, num_rows, num_outputs, num_inputs, nullptr, {}};
    call.adapted = adapted(static_cast<const Adapter*>(adapters), static_cast<const RowAdapters*>(row_adapters));
    if (call.adapted.rows) call.adapted.hidden = hidden.get<float>(num_rows * call.adapted.most_ranks);
    if (kind == INT4) call.group_sums = scratch.get<float>(num_rows * (num_inputs / GROUP));
    const int64_t num_blocks = (num_outputs + BLOCK - 1) / BLOCK;
    const int threads =
        num_threads(num_blocks * ((num_rows + MOST_ROWS - 1) / MOST_ROWS), num_rows * num_outputs * num_inputs / 32);
    // With few blocks for the threads, the rows are shared out too.
    const int64_t wanted = num_blocks >= 4 * threads ? 1 : (4 * threads + num_blocks - 1) / num_blocks;
    const int64_t num_parts = std::max<int64_t>(1, std::min<int64_t>(wanted, num_rows / (4 * MOST_ROWS)));
#pragma omp parallel num_threads(threads)
    {
        if (kind == INT4) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < num_rows; ++row) sum_groups(call, row);
        }
        if (call.adapted.rows) {
#pragma omp for schedule(static)
            for (int64_t item = 0; item < call.adapted.num_items; ++item) {
                if (kind == FP32) adapter_down_item<float>(call.adapted, item, x, num_inputs);
                else adapter_down_item<bf16>(call.adapted, item, x, num_inputs);
            }
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < num_blocks * num_parts; ++item) {
            const int64_t block = item / num_parts, part = item % num_parts;
            const int64_t first = part * num_rows / num_parts, stop = (part + 1) * num_rows / num_parts;
            block_rows(call, static_cast<Kind>(kind), first, stop - first, block);
        }
    }
}
