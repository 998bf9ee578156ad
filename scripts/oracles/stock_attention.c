// Golden data for verify/kvcache: attention as llama.cpp builds it, computed by
// ggml's CPU backend on x86-64.
//
//   cc -O1 -I ggml/include stock_attention.c -o stock_attention -L BIN -lggml -lggml-cpu -lggml-base -Wl,-rpath,BIN
//   ./stock_attention > verify/kvcache/testdata/stock.txt
//
// One line per case: K type, V type, head_dim, tokens, size of the Hadamard
// matrix of K and of V (0: none), FNV-1a hashes of the stored K and V, then the
// attention output of the last two queries as float32 bits in hex. Inputs are
// made from integers, so that the test makes the same ones.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

static uint32_t state;

// A sum of four 16-bit numbers from a linear congruential generator, about
// normal with deviation 1.15, every 13th number of a row three times as large.
static void fill(float *x, int rows, int d, uint32_t seed) {
    state = seed;
    for (int i = 0; i < rows * d; i++) {
        int32_t sum = 0;
        for (int k = 0; k < 4; k++) {
            state = state * 1664525u + 1013904223u;
            sum += (int32_t)(state >> 16);
        }
        x[i] = (float)(sum - 131070) / 32768.0f;
        if (i % d % 13 == 5) x[i] *= 3.0f;
    }
}

static uint64_t fnv(const void *p, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

static struct ggml_tensor *matrix(struct ggml_context *c, int n) {
    struct ggml_tensor *t = ggml_new_tensor_2d(c, GGML_TYPE_F32, n, n);
    float *x = t->data;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) x[i * n + j] = (__builtin_popcount(i & j) & 1 ? -1.0f : 1.0f) / sqrtf((float)n);
    return t;
}

static struct ggml_tensor *turn(struct ggml_context *c, struct ggml_tensor *x, int n) {
    if (n == 0) return x;
    struct ggml_tensor *y = ggml_mul_mat(c, matrix(c, n), ggml_reshape_2d(c, x, n, ggml_nelements(x) / n));
    ggml_mul_mat_set_hint(y, GGML_HINT_SRC0_IS_HADAMARD);
    return ggml_reshape_2d(c, y, x->ne[0], x->ne[1]);
}

static void run(const char *kname, const char *vname, int d, int T, int hk, int hv) {
    enum ggml_type kt = GGML_TYPE_COUNT, vt = GGML_TYPE_COUNT;
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        if (ggml_type_name(t) && !strcmp(ggml_type_name(t), kname)) kt = t;
        if (ggml_type_name(t) && !strcmp(ggml_type_name(t), vname)) vt = t;
    }
    struct ggml_init_params ip = {64u << 20, NULL, false};
    struct ggml_context *c = ggml_init(ip);
    struct ggml_tensor *q = ggml_new_tensor_2d(c, GGML_TYPE_F32, d, T), *k = ggml_dup_tensor(c, q), *v = ggml_dup_tensor(c, q);
    fill(q->data, T, d, 1);
    fill(k->data, T, d, 2);
    fill(v->data, T, d, 3);
    struct ggml_tensor *at = ggml_new_tensor_1d(c, GGML_TYPE_I64, T);
    for (int i = 0; i < T; i++) ((int64_t *)at->data)[i] = i;
    struct ggml_tensor *mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, T, T);
    for (int i = 0; i < T; i++)
        for (int j = 0; j < T; j++) ((ggml_fp16_t *)mask->data)[i * T + j] = ggml_fp32_to_fp16(j <= i ? 0.0f : -INFINITY);
    struct ggml_tensor *kc = ggml_new_tensor_2d(c, kt, d, T), *vc = ggml_new_tensor_2d(c, vt, d, T);
    struct ggml_tensor *ks = ggml_set_rows(c, kc, turn(c, k, hk), at), *vs = ggml_set_rows(c, vc, turn(c, v, hv), at);
    struct ggml_cgraph *g = ggml_new_graph(c);
    ggml_build_forward_expand(g, ks);
    ggml_build_forward_expand(g, vs);
    struct ggml_tensor *o = ggml_flash_attn_ext(c, turn(c, q, hk), kc, vc, mask, 1.0f / sqrtf((float)d), 0, 0);
    o = turn(c, ggml_reshape_2d(c, o, d, T), hv);
    ggml_build_forward_expand(g, o);
    ggml_backend_t cpu = ggml_backend_cpu_init();
    if (ggml_backend_graph_compute(cpu, g) != GGML_STATUS_SUCCESS) exit(1);
    printf("%s %s %d %d %d %d %016llx %016llx ", kname, vname, d, T, hk, hv, (unsigned long long)fnv(kc->data, ggml_nbytes(kc)),
           (unsigned long long)fnv(vc->data, ggml_nbytes(vc)));
    for (int i = (T - 2) * d; i < T * d; i++) {
        uint32_t b;
        memcpy(&b, (float *)o->data + i, 4);
        printf("%08x", b);
    }
    printf("\n");
    ggml_backend_free(cpu);
    ggml_free(c);
}

int main(void) {
    static const char *pairs[][2] = {
        {"f16", "f16"}, {"bf16", "bf16"}, {"f16", "q8_0"}, {"bf16", "f16"}, {"f16", "bf16"}, {"q8_0", "f16"}, {"q8_0", "q8_0"}, {"q4_0", "f16"},
        {"q4_0", "q4_0"}, {"q4_1", "q4_1"}, {"q4_1", "f16"}, {"q5_0", "q5_0"}, {"q5_1", "q5_1"}, {"iq4_nl", "iq4_nl"}, {"q1_0", "q1_0"},
    };
    for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const char *k = pairs[i][0], *v = pairs[i][1];
        const int qk = strchr(k, 'q') != NULL, qv = strchr(v, 'q') != NULL;
        run(k, v, 128, 200, 0, 0);
        if (qk || qv) run(k, v, 128, 200, qk ? 128 : 0, qv ? 64 : 0);
    }
    return 0;
}
