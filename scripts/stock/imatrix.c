// An importance matrix as llama-imatrix makes it, in one program on libllama, for releases of the library that
// come without that tool: sums of squares of the inputs of every matrix over a text, and how many were summed.
// Dense models only.
//
//   gcc -O2 -march=native -o imatrix imatrix.c -I$LLAMA_CPP_SOURCE/include -I$LLAMA_CPP_SOURCE/ggml/include
//       -L$LLAMA_CPP_BIN -lllama -lggml -lggml-base -Wl,-rpath,$LLAMA_CPP_BIN
//   imatrix MODEL.gguf WINDOWS T THREADS OUT.gguf < text
#include <string.h>

#include "gguf.h"
#include "start.h"

enum { most = 4096 };
static struct entry {
    char name[GGML_MAX_NAME];
    float *sums;
    float count;
    int64_t n;
} entries[most];
static int used;

// Takes products with matrices of blocks; the names of their first operand are those of the file.
static bool each(struct ggml_tensor *t, bool ask, void *user) {
    (void)user;
    const struct ggml_tensor *w = t->src[0], *x = t->src[1];
    if (t->op == GGML_OP_MUL_MAT_ID) {
        fprintf(stderr, "%s: models with experts are not done here\n", w->name);
        exit(2);
    }
    const bool wanted = t->op == GGML_OP_MUL_MAT && !strncmp(w->name, "blk.", 4) && strstr(w->name, ".weight");
    if (ask || !wanted) return wanted || !ask;
    if (x->type != GGML_TYPE_F32 || !ggml_is_contiguous(x)) exit(6);
    struct entry *e = entries;
    while (e < entries + used && strcmp(e->name, w->name)) e++;
    if (e == entries + used) {
        if (++used > most) exit(7);
        memcpy(e->name, w->name, sizeof e->name);
        e->n = x->ne[0];
        e->sums = calloc(e->n, sizeof *e->sums);
    }
    const int64_t rows = ggml_nrows(x);
    float *v = malloc(ggml_nbytes(x));
    ggml_backend_tensor_get(x, v, 0, ggml_nbytes(x));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < e->n; i++) e->sums[i] += v[r * e->n + i] * v[r * e->n + i];
    e->count += rows;
    free(v);
    return true;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const int windows = atoi(argv[2]), T = atoi(argv[3]), threads = atoi(argv[4]);
    struct llama_model *model = load(argv[1]);
    llama_token *ids = tokens(llama_model_get_vocab(model), windows, T);
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = T;
    p.n_threads = p.n_threads_batch = threads;
    p.cb_eval = each;
    struct llama_context *ctx = llama_init_from_model(model, p);
    if (!ctx) return 5;
    for (int w = 0; w < windows; w++) {
        llama_memory_clear(llama_get_memory(ctx), true);
        if (llama_decode(ctx, llama_batch_get_one(ids + w * T, T)) != 0) return 6;
    }
    struct ggml_init_params room = {.mem_size = (size_t)1 << 28};
    struct ggml_context *g = ggml_init(room);
    struct gguf_context *out = gguf_init_empty();
    gguf_set_val_str(out, "general.type", "imatrix");
    gguf_set_val_u32(out, "imatrix.chunk_count", windows);
    gguf_set_val_u32(out, "imatrix.chunk_size", T);
    for (struct entry *e = entries; e < entries + used; e++) {
        struct ggml_tensor *sums = ggml_new_tensor_2d(g, GGML_TYPE_F32, e->n, 1), *count = ggml_new_tensor_2d(g, GGML_TYPE_F32, 1, 1);
        memcpy(sums->data, e->sums, ggml_nbytes(sums));
        memcpy(count->data, &e->count, sizeof e->count);
        ggml_format_name(sums, "%s.in_sum2", e->name);
        ggml_format_name(count, "%s.counts", e->name);
        gguf_add_tensor(out, sums);
        gguf_add_tensor(out, count);
    }
    printf("%d matrices, %d tokens\n", used, windows * T);
    return gguf_write_to_file(out, argv[5], false) ? 0 : 8;
}
