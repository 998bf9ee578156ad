// The runs of llama-perplexity --kl-divergence, in one program on libllama: the text of stdin is cut into
// windows, decoded with F16 caches and then with each pair of cache types, and the divergence of the second
// half of each window is summed from the logits. For comparing times: scripts/stock/advise_time.sh.
//
//   kld MODEL.gguf WINDOWS T THREADS TYPE... < text     (K and V alike; q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl)
#include <math.h>
#include <string.h>
#include <sys/resource.h>

#include "start.h"

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_utime.tv_usec / 1e6;
}

static enum ggml_type type_of(const char *name) {
    const enum ggml_type all[] = {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0,
                                  GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, ggml_type_name(all[i]))) return all[i];
    fprintf(stderr, "%s is not a cache type\n", name);
    exit(2);
}

// Logs of the probabilities of a row, in double sums.
static double log_sum(const float *z, int n) {
    float top = z[0];
    for (int i = 1; i < n; i++) top = z[i] > top ? z[i] : top;
    double s = 0;
    for (int i = 0; i < n; i++) s += expf(z[i] - top);
    return top + log(s);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    const int windows = atoi(argv[2]), T = atoi(argv[3]), threads = atoi(argv[4]), half = T / 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct llama_model *model = load(argv[1]);
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    const int n = llama_vocab_n_tokens(vocab);
    llama_token *ids = tokens(vocab, windows, T);
    float *base = malloc(sizeof *base * windows * half * (size_t)n);
    if (!base) return 4;
    for (int a = 4; a < argc; a++) { // argv[4] stands for F16
        const double start = cpu();
        struct llama_context_params p = llama_context_default_params();
        p.n_ctx = p.n_batch = p.n_ubatch = T;
        p.n_threads = p.n_threads_batch = threads;
        p.type_k = p.type_v = a == 4 ? GGML_TYPE_F16 : type_of(argv[a]);
        p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        struct llama_context *ctx = llama_init_from_model(model, p);
        if (!ctx) return 5;
        struct llama_batch batch = llama_batch_init(T, 0, 1);
        double sum = 0;
        for (int w = 0; w < windows; w++) {
            llama_memory_clear(llama_get_memory(ctx), true);
            batch.n_tokens = T;
            for (int i = 0; i < T; i++) {
                batch.token[i] = ids[w * T + i];
                batch.pos[i] = i;
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = 0;
                batch.logits[i] = i >= half;
            }
            if (llama_decode(ctx, batch) != 0) return 6;
            for (int i = half; i < T - 1; i++) {
                float *b = base + (w * (size_t)half + i - half) * n;
                const float *z = llama_get_logits_ith(ctx, i);
                if (a == 4) {
                    memcpy(b, z, sizeof *b * n);
                    continue;
                }
                const double lb = log_sum(b, n), lz = log_sum(z, n);
                for (int k = 0; k < n; k++) sum += exp(b[k] - lb) * ((b[k] - lb) - (z[k] - lz));
            }
        }
        llama_batch_free(batch);
        llama_free(ctx);
        printf("%-7s KLD %.6f  user %.1f s\n", a == 4 ? "f16" : argv[a], sum / (windows * (half - 1)), cpu() - start);
    }
    printf("all     user %.1f s\n", cpu());
    return 0;
}
