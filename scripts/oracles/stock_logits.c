// Runs token windows through stock llama.cpp and writes all logits: the exact
// counterpart of the forward pass, without a tokenizer or 16-bit files between.
//
//   stock_logits MODEL.gguf WINDOWS T < tokens (int32) > logits (float32, [WINDOWS, T, vocab])
//
// Built and called by stock_gguf.py.
#include <stdio.h>
#include <stdlib.h>

#include "ggml-backend.h"
#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const int windows = atoi(argv[2]), T = atoi(argv[3]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    // Builds with backends in files of their own have them beside the library.
    if (getenv("LLAMA_CPP_BIN")) ggml_backend_load_all_from_path(getenv("LLAMA_CPP_BIN"));
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 3;
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = 256;
    p.n_threads = p.n_threads_batch = 1;
    p.type_k = p.type_v = GGML_TYPE_F32;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *ctx = llama_init_from_model(model, p);
    if (!ctx) return 4;
    struct llama_batch batch = llama_batch_init(T, 0, 1);
    for (int w = 0; w < windows; w++) {
        llama_memory_clear(llama_get_memory(ctx), true);
        batch.n_tokens = T;
        for (int i = 0; i < T; i++) {
            if (fread(&batch.token[i], sizeof(llama_token), 1, stdin) != 1) return 5;
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(ctx, batch) != 0) return 6;
        for (int i = 0; i < T; i++) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), vocab, stdout);
    }
    return 0;
}
