// Low-rank adapters of a linear layer, mixed in one batch: out[t] += up · (scale · (down · x[t])), each token with its own
// adapter or with none. Both products go through the same units as the layer's own, and each sum adds its units in one
// order, so a token's output does not depend on which adapters its neighbours have. Structures mirrored in adapters.py.
#pragma once

#include "simd.h"

namespace tokenwire {

// What one adapter does to one linear layer. Ranks of merged layers lie one after the other, each layer's a whole number of
// units. Without `down` it leaves the layer alone.
struct Adapter {
    const void* down;       // units [inputs][num_ranks]
    const float* scale;     // [num_ranks]
    const void* up;         // units [..][48]
    const int64_t* blocks;  // for each 48 outputs: the first unit of the ranks they read, how many, and where in `up`
    int64_t num_ranks;      // a multiple of LANES, with zeros
};

// A step's tokens by adapter.
struct RowAdapters {
    const int64_t* slots;   // [T]: each token's adapter, or -1
    const int64_t* tokens;  // [M]: those that have one, adapter after adapter
    const int64_t* starts;  // [num_slots + 1]: where in `tokens` each adapter's begin
    int64_t num_slots;

    int64_t count(int64_t slot) const { return starts[slot + 1] - starts[slot]; }
};

// The adapters of one call of a linear layer: null `rows` where no token has one.
struct Adapted {
    const Adapter* adapters = nullptr;  // by slot
    const RowAdapters* rows = nullptr;
    void* hidden = nullptr;  // [T, most_ranks]: what `down` gave, scaled, in the type of the inputs
    int64_t most_ranks = 0;
    int64_t num_items = 0;

    const Adapter* of(int64_t token) const {
        const int64_t slot = rows->slots[token];
        return slot < 0 || adapters[slot].down == nullptr ? nullptr : adapters + slot;
    }
};

constexpr int ADAPTED_ROWS = 8;  // that share a read of `down`

struct AdaptedTile {
    const Adapter* adapter;
    const int64_t* tokens;
    int64_t num_tokens, vector;
};

inline int64_t tiles_of(int64_t num_tokens) { return (num_tokens + ADAPTED_ROWS - 1) / ADAPTED_ROWS; }

// Whose adapters change this layer at all, and how many pieces of work their first product is.
inline Adapted adapted(const Adapter* adapters, const RowAdapters* rows) {
    Adapted found;
    if (adapters == nullptr || rows == nullptr) return found;
    found.adapters = adapters;
    for (int64_t slot = 0; slot < rows->num_slots; ++slot) {
        const Adapter& adapter = adapters[slot];
        if (adapter.down == nullptr || rows->count(slot) == 0) continue;
        found.most_ranks = std::max(found.most_ranks, adapter.num_ranks);
        found.num_items += tiles_of(rows->count(slot)) * (adapter.num_ranks / LANES);
    }
    if (found.num_items) found.rows = rows;
    return found;
}

inline AdaptedTile adapted_tile(const Adapted& call, int64_t item) {
    for (int64_t slot = 0;; ++slot) {
        const Adapter& adapter = call.adapters[slot];
        if (adapter.down == nullptr) continue;
        const int64_t first = call.rows->starts[slot], count = call.rows->count(slot);
        const int64_t vectors = adapter.num_ranks / LANES, items = tiles_of(count) * vectors;
        if (item >= items) {
            item -= items;
            continue;
        }
        const int64_t at = item / vectors * ADAPTED_ROWS;
        return {&adapter, call.rows->tokens + first + at, std::min<int64_t>(ADAPTED_ROWS, count - at), item % vectors};
    }
}

// hidden[token] = scale · (down · x[token]) for up to ADAPTED_ROWS tokens and LANES ranks. Two chains of sums each.
template <class T, int R>
inline void adapter_down(const Adapted& call, const AdaptedTile& tile, const T* x, int64_t num_inputs) {
    const int64_t num_ranks = tile.adapter->num_ranks, size = Units<T>::SIZE, num_units = num_inputs / size;
    const uint32_t* down = static_cast<const uint32_t*>(tile.adapter->down) + tile.vector * LANES;
    const char* rows[R];
    __m512 sums[2][R];
    for (int row = 0; row < R; ++row) {
        rows[row] = reinterpret_cast<const char*>(x + tile.tokens[row] * num_inputs);
        sums[0][row] = sums[1][row] = _mm512_setzero_ps();
    }
    int64_t unit = 0;
    for (; unit + 2 <= num_units; unit += 2, down += 2 * num_ranks) {
        const __m512i even = _mm512_loadu_si512(down), odd = _mm512_loadu_si512(down + num_ranks);
        for (int row = 0; row < R; ++row) {
            sums[0][row] = Units<T>::add(sums[0][row], broadcast_unit(rows[row] + 4 * unit), even);
            sums[1][row] = Units<T>::add(sums[1][row], broadcast_unit(rows[row] + 4 * unit + 4), odd);
        }
    }
    if (unit < num_units) {
        const __m512i right = _mm512_loadu_si512(down);
        for (int row = 0; row < R; ++row)
            sums[0][row] = Units<T>::add(sums[0][row], broadcast_unit(rows[row] + 4 * unit), right);
        down += num_ranks;
    }
    if (num_inputs % size != 0) {
        const __m512i right = _mm512_loadu_si512(down);
        for (int row = 0; row < R; ++row)
            sums[1][row] = Units<T>::add(sums[1][row], half_unit(rows[row] + 4 * num_units), right);
    }
    const __m512 scale = load(tile.adapter->scale + tile.vector * LANES);
    for (int row = 0; row < R; ++row) {
        T* hidden = static_cast<T*>(call.hidden) + tile.tokens[row] * call.most_ranks + tile.vector * LANES;
        store(hidden, _mm512_mul_ps(scale, _mm512_add_ps(sums[0][row], sums[1][row])));
    }
}

template <class T>
void adapter_down_item(const Adapted& call, int64_t item, const void* x, int64_t num_inputs) {
    const AdaptedTile tile = adapted_tile(call, item);
    const T* rows = static_cast<const T*>(x);
    switch (tile.num_tokens) {
        case 1: return adapter_down<T, 1>(call, tile, rows, num_inputs);
        case 2: return adapter_down<T, 2>(call, tile, rows, num_inputs);
        case 3: return adapter_down<T, 3>(call, tile, rows, num_inputs);
        case 4: return adapter_down<T, 4>(call, tile, rows, num_inputs);
        case 5: return adapter_down<T, 5>(call, tile, rows, num_inputs);
        case 6: return adapter_down<T, 6>(call, tile, rows, num_inputs);
        case 7: return adapter_down<T, 7>(call, tile, rows, num_inputs);
        default: return adapter_down<T, ADAPTED_ROWS>(call, tile, rows, num_inputs);
    }
}

// sums += up · hidden[token] for one block of outputs.
template <class T, int V>
inline void adapter_up(const Adapted& call, const Adapter& adapter, int64_t token, int64_t block, __m512 (&sums)[V]) {
    const int64_t* place = adapter.blocks + 3 * block;
    const char* hidden = reinterpret_cast<const char*>(static_cast<const T*>(call.hidden) + token * call.most_ranks);
    const uint32_t* up = static_cast<const uint32_t*>(adapter.up) + place[2] * V * LANES;
    for (int64_t unit = 0; unit < place[1]; ++unit, up += V * LANES) {
        const __m512i left = broadcast_unit(hidden + 4 * (place[0] + unit));
        for (int v = 0; v < V; ++v) sums[v] = Units<T>::add(sums[v], left, _mm512_loadu_si512(up + v * LANES));
    }
}

}  // namespace tokenwire
