// All layers of a Llama-shaped decoder in one call: the kernels of the other files, one after the other. Knows the order
// of a layer's parts and their shapes; the structures are mirrored in decoder.py.
#include <cstdint>

extern "C" {

void tokenwire_linear(
    int kind, const void* x, const void* weight, const float* scale, const float* bias, const void* residual, void* out,
    int64_t num_rows, int64_t num_outputs, int64_t num_inputs, const void* adapters, const void* row_adapters);
void tokenwire_rms_norm(
    int is_bf16, const void* x, const void* weight, float eps, void* out, void* residual, int64_t num_rows,
    int64_t size);
void tokenwire_activate_mul(int is_bf16, int gelu, const void* gate_up, void* out, int64_t num_rows, int64_t size);
void tokenwire_rope_store(
    int is_bf16, const void* qkv, const void* cos, const void* sin, const int64_t* slots, void* key_cache,
    void* value_cache, void* query_out, const void* query_norm, const void* key_norm, float eps, int64_t num_rows,
    int64_t num_heads, int64_t num_kv_heads, int64_t key_size, int64_t value_size);
void tokenwire_attention(
    int is_bf16, const void* query, const void* key_cache, const void* value_cache, const int64_t* table,
    int64_t table_width, const int64_t* lengths, const int64_t* query_starts, int64_t num_rows, float scale,
    int64_t window, void* out, int64_t num_heads, int64_t num_kv_heads, int64_t key_size, int64_t value_size,
    int64_t block_size);

struct Weight {
    int64_t kind, num_outputs, num_inputs;
    const void* packed;
    const float* scale;
    const float* bias;
    const void* adapters;  // by slot, see adapters.h; null: there are none
};

struct Layer {
    const void* attention_norm;  // [hidden]
    const void* mlp_norm;        // [hidden]
    const void* query_norm;      // [key_size] or null
    const void* key_norm;        // [key_size] or null
    Weight qkv, attention_output, gate_up, down;
    void* key_cache;    // [num_blocks, block_size, num_kv_heads, key_size]
    void* value_cache;  // [num_blocks, block_size, num_kv_heads, value_size]
    int64_t rotated, window;
    int64_t num_heads, num_kv_heads, key_size, value_size;
    float attention_eps, mlp_eps, head_eps, attention_scale;
};

struct Step {
    int64_t is_bf16, gelu, num_layers, num_tokens, num_rows, table_width, block_size;
    const int64_t* slots;         // [T]
    const int64_t* table;         // [N, table_width]
    const int64_t* lengths;       // [N]
    const int64_t* query_starts;  // [N + 1]
    const void* cos;              // [T, key_size]
    const void* sin;
    void* hidden;     // [T, hidden]: embeddings on entry; changed
    void* normed;     // [T, hidden]: on return, the last hidden states after the final norm
    void* qkv;        // [T, widest qkv]
    void* query;      // [T, most heads * key_size]
    void* attended;   // [T, most heads * value_size]
    void* gate_up;    // [T, widest gate_up]
    void* activated;  // [T, half of it]
    const void* final_norm;
    const void* row_adapters;  // see adapters.h; null: no token has one
    float final_eps;
};

void tokenwire_decoder(const Layer* layers, const Step* step) {
    const int is_bf16 = static_cast<int>(step->is_bf16);
    const int64_t T = step->num_tokens;
    const auto linear = [&](const Weight& weight, const void* x, void* out, const void* residual) {
        tokenwire_linear(
            static_cast<int>(weight.kind), x, weight.packed, weight.scale, weight.bias, residual, out, T,
            weight.num_outputs, weight.num_inputs, weight.adapters, step->row_adapters);
    };
    const auto norm = [&](const void* weight, float eps) {
        tokenwire_rms_norm(
            is_bf16, step->hidden, weight, eps, step->normed, nullptr, T, layers[0].qkv.num_inputs);
    };
    for (int64_t index = 0; index < step->num_layers; ++index) {
        const Layer& layer = layers[index];
        norm(layer.attention_norm, layer.attention_eps);
        linear(layer.qkv, step->normed, step->qkv, nullptr);
        tokenwire_rope_store(
            is_bf16, step->qkv, layer.rotated ? step->cos : nullptr, layer.rotated ? step->sin : nullptr, step->slots,
            layer.key_cache, layer.value_cache, step->query, layer.query_norm, layer.key_norm, layer.head_eps, T,
            layer.num_heads, layer.num_kv_heads, layer.key_size, layer.value_size);
        tokenwire_attention(
            is_bf16, step->query, layer.key_cache, layer.value_cache, step->table, step->table_width, step->lengths,
            step->query_starts, step->num_rows, layer.attention_scale, layer.window, step->attended, layer.num_heads,
            layer.num_kv_heads, layer.key_size, layer.value_size, step->block_size);
        linear(layer.attention_output, step->attended, step->hidden, step->hidden);
        norm(layer.mlp_norm, layer.mlp_eps);
        linear(layer.gate_up, step->normed, step->gate_up, nullptr);
        tokenwire_activate_mul(
            is_bf16, static_cast<int>(step->gelu), step->gate_up, step->activated, T, layer.gate_up.num_outputs / 2);
        linear(layer.down, step->activated, step->hidden, step->hidden);
    }
    norm(step->final_norm, step->final_eps);
}
}
