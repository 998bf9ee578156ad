// Times ggml's dot products of attention scores, for comparison with
// "phaseconv bench": nanoseconds per key, best of many passes over N keys.
//
//	cc -O2 -o ggml_dots ggml_dots.c -ldl
//	./ggml_dots path/to/libggml-cpu.so [keys [head_dim [seconds]]]
//
// Prints one JSON object per line and format.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*dot)(int n, float *s, size_t bs, const void *x, size_t bx, const void *y, size_t by, int nrc);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s libggml-cpu.so [keys [head_dim [seconds]]]\n", argv[0]);
        return 2;
    }
    void *lib = dlopen(argv[1], RTLD_NOW);
    if (!lib) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    size_t n = argc > 2 ? strtoul(argv[2], 0, 10) : 100000, d = argc > 3 ? strtoul(argv[3], 0, 10) : 128;
    double seconds = argc > 4 ? atof(argv[4]) : 1;
    if (n == 0 || d == 0 || d % 32 != 0) {
        fprintf(stderr, "want keys > 0 and a head_dim that is a multiple of 32\n");
        return 2;
    }
    void (*init)(void) = (void (*)(void))dlsym(lib, "ggml_cpu_init");
    if (init) init(); // fills the table of binary16 numbers
    struct {
        const char *name, *symbol;
        size_t key, query; // bytes of a key and of the query
        dot f;
        double best;
        char *keys, *q;
    } f[] = {
        {"f16", "ggml_vec_dot_f16", 2 * d, 2 * d, 0, 1e300, 0, 0},
        {"q8_0", "ggml_vec_dot_q8_0_q8_0", d / 32 * 34, d / 32 * 34, 0, 1e300, 0, 0},
        {"q4_0", "ggml_vec_dot_q4_0_q8_0", d / 32 * 18, d / 32 * 34, 0, 1e300, 0, 0},
    };
    const int formats = sizeof f / sizeof f[0];
    float *out = malloc(n * sizeof *out);
    for (int i = 0; i < formats; i++) {
        f[i].f = (dot)dlsym(lib, f[i].symbol);
        f[i].keys = malloc(n * f[i].key);
        f[i].q = malloc(f[i].query);
        if (!f[i].f || !f[i].keys || !f[i].q || !out) {
            fprintf(stderr, "%s: not in the library, or out of memory\n", f[i].symbol);
            return 1;
        }
        // Bytes 0x3c are binary16 numbers of about 1 and harmless block contents.
        memset(f[i].keys, 0x3c, n * f[i].key);
        memset(f[i].q, 0x3c, f[i].query);
    }
    // All formats in turn, so that a busy machine disturbs them alike.
    for (double end = now() + seconds * 1e9; now() < end;)
        for (int i = 0; i < formats; i++) {
            double t = now();
            for (size_t k = 0; k < n; k++)
                f[i].f((int)d, out + k, 0, f[i].keys + k * f[i].key, 0, f[i].q, 0, 1);
            t = (now() - t) / n;
            if (t < f[i].best) f[i].best = t;
        }
    for (int i = 0; i < formats; i++)
        printf("{\"library\": \"ggml\", \"format\": \"%s\", \"keys\": %zu, \"head_dim\": %zu, \"ns_per_key\": %.3f}\n", f[i].name, n, d, f[i].best);
    return 0;
}
