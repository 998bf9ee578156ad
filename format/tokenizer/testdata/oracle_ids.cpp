// oracle_ids MODEL.gguf: token ids of texts, by llama.cpp.
// stdin: records of u8 flags (1 add special tokens, 2 parse special tokens), u32 length, bytes. stdout: per record u32 count, i32 ids.
#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

int main(int, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) {
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    uint8_t flags;
    uint32_t size;
    while (fread(&flags, 1, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
        std::string text(size, 0);
        if (size > 0 && fread(&text[0], 1, size, stdin) != size) {
            return 2;
        }
        std::vector<llama_token> ids(size + 16);
        int32_t n = llama_tokenize(vocab, text.data(), size, ids.data(), ids.size(), flags & 1, flags & 2);
        if (n < 0) {
            ids.resize(-n);
            n = llama_tokenize(vocab, text.data(), size, ids.data(), ids.size(), flags & 1, flags & 2);
        }
        fwrite(&n, 4, 1, stdout);
        fwrite(ids.data(), 4, n, stdout);
    }
    return 0;
}
