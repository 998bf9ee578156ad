// oracle_split PATTERNS: lengths, in code points, of the pieces into which llama.cpp splits texts by the NUL-separated patterns of a file.
// stdin and stdout as oracle_ids, with lengths for ids; the flags are ignored.
#include "unicode.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main(int, char ** argv) {
    std::ifstream in(argv[1], std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(in)), {});
    std::vector<std::string> patterns(1);
    for (char c : all) {
        if (c) {
            patterns.back() += c;
        } else {
            patterns.emplace_back();
        }
    }
    uint8_t flags;
    uint32_t size;
    while (fread(&flags, 1, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
        std::string text(size, 0);
        if (size > 0 && fread(&text[0], 1, size, stdin) != size) {
            return 2;
        }
        std::vector<std::string> pieces;
        if (size > 0) {
            pieces = unicode_regex_split(text, patterns, false);
        }
        uint32_t n = pieces.size();
        fwrite(&n, 4, 1, stdout);
        for (const std::string & p : pieces) {
            n = unicode_cpts_from_utf8(p).size();
            fwrite(&n, 4, 1, stdout);
        }
    }
    return 0;
}
