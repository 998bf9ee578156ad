// What the programs of this folder begin with: a quiet libllama, a model, and a text of stdin in tokens.
#include <stdio.h>
#include <stdlib.h>

#include "ggml-backend.h"
#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

// Loads a model with the libraries that LLAMA_CPP_BIN names, or those that are found. Exits with 3 without one.
static struct llama_model *load(const char *path) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    if (getenv("LLAMA_CPP_BIN")) ggml_backend_load_all_from_path(getenv("LLAMA_CPP_BIN"));
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) exit(3);
    return model;
}

// Cuts the text of stdin into tokens, windows times T at least; exits with 2 where it is shorter. Windows begin with
// the model's first token, if it has one, in place of their own.
static llama_token *tokens(const struct llama_vocab *vocab, int windows, int T) {
    const int size = 64 * windows * T;
    char *text = malloc(size);
    llama_token *ids = malloc(sizeof *ids * size);
    const int got = llama_tokenize(vocab, text, fread(text, 1, size, stdin), ids, size, false, false);
    free(text);
    if (got < windows * T) {
        fprintf(stderr, "the text has %d tokens\n", got);
        exit(2);
    }
    if (llama_vocab_get_add_bos(vocab))
        for (int w = 0; w < windows; w++) ids[w * T] = llama_vocab_bos(vocab);
    return ids;
}
