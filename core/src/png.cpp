// Rows of a PNG file, compressed for masks: most pixels equal the one above or the one before.
//
// A row is stored as it is or, if that leaves fewer runs, as differences to the row above (PNG's filters 0 and 2). Runs of
// equal pixels become deflate's matches with the pixel before, and everything else literals, in blocks with Huffman codes
// of their own. That finds less than a search for matches would, but most of what there is to find in a mask.
#include <initializer_list>
#include <stdlib.h>
#include <string.h>

#include "../include/evitseg.h"

namespace {

constexpr int kLiterals = 286, kLengthCodes = 19;  // symbols for literals, the end and lengths; of code lengths
constexpr int kEnd = 256, kShortest = 3, kLongest = 258;
constexpr int kTokens = 1 << 16;                   // of a block
constexpr uint8_t kNone = 0, kUp = 2;              // PNG's filters

// A literal, or the length of a match. Its distance is always one pixel.
struct Token {
    uint16_t is_match, value;
};

// Symbol, number of extra bits, and their value, of a match's length.
struct Length {
    uint16_t symbol;
    uint8_t bits, extra;
};

Length length_of(int length) {
    if (length == kLongest) return {285, 0, 0};
    const int from = length - kShortest;
    if (from < 8) return {uint16_t(257 + from), 0, 0};
    const int bits = 29 - __builtin_clz(unsigned(from));  // four symbols for every power of two
    return {uint16_t(257 + 4 * bits + (from >> bits)), uint8_t(bits), uint8_t(from & ((1 << bits) - 1))};
}

// Writes bits, the lowest first.
struct Bits {
    uint8_t *out;
    uint64_t held = 0;
    int count = 0;
    void put(uint32_t value, int bits) {
        held |= uint64_t(value) << count;
        for (count += bits; count >= 8; count -= 8, held >>= 8) *out++ = uint8_t(held);
    }
    void align() { put(0, (8 - count) & 7); }
};

// The lengths and bits of a Huffman code for counted symbols; a symbol that does not occur has length 0.
template <int kSymbols>
struct Code {
    uint32_t counts[kSymbols];
    uint8_t lengths[kSymbols];
    uint16_t bits[kSymbols];

    void build(int longest) {
        while (!lay_out(longest))  // counts closer to each other make a flatter tree
            for (uint32_t &count : counts) count = (count + 1) / 2;
        uint16_t next = 0;
        for (int length = 1; length <= longest; length++, next <<= 1)
            for (int s = 0; s < kSymbols; s++)
                if (lengths[s] == length) bits[s] = reversed(next++, length);
    }

   private:
    static uint16_t reversed(unsigned value, int count) {
        unsigned turned = 0;
        for (int i = 0; i < count; i++) turned |= (value >> i & 1) << (count - 1 - i);
        return uint16_t(turned);
    }

    // Huffman's tree by two queues: leaves in the order of their counts, and inner nodes as they are made.
    bool lay_out(int longest) {
        int leaves[kSymbols], parents[2 * kSymbols], depths[2 * kSymbols], used = 0;
        uint64_t sums[2 * kSymbols];
        memset(lengths, 0, sizeof lengths);
        for (int s = 0; s < kSymbols; s++) {
            if (counts[s] == 0) continue;
            int at = used++;
            for (; at > 0 && counts[leaves[at - 1]] > counts[s]; at--) leaves[at] = leaves[at - 1];
            leaves[at] = s;
        }
        if (used == 1) lengths[leaves[0]] = 1;
        if (used < 2) return true;
        for (int i = 0; i < used; i++) sums[i] = counts[leaves[i]];
        int leaf = 0, inner = used, nodes = used;
        for (; nodes < 2 * used - 1; nodes++) {
            sums[nodes] = 0;
            for (int child = 0; child < 2; child++) {
                const bool takes_leaf = leaf < used && (inner == nodes || sums[leaf] <= sums[inner]);
                const int taken = takes_leaf ? leaf++ : inner++;
                sums[nodes] += sums[taken];
                parents[taken] = nodes;
            }
        }
        depths[nodes - 1] = 0;
        for (int i = nodes - 2; i >= 0; i--) depths[i] = depths[parents[i]] + 1;
        for (int i = 0; i < used; i++) {
            if (depths[i] > longest) return false;
            lengths[leaves[i]] = uint8_t(depths[i]);
        }
        return true;
    }
};

// What a call works with, too much for a thread's stack.
struct Writer {
    Bits bits;
    Code<kLiterals> literals;
    Code<kLengthCodes> code_lengths;
    Token tokens[kTokens];
    int count = 0;
    uint32_t low = 1, high = 0;  // the halves of Adler-32

    void add(bool is_match, int value) {
        tokens[count++] = {uint16_t(is_match), uint16_t(value)};
        if (count == kTokens) block(false);
    }

    // Writes the tokens so far as a block with codes of its own.
    void block(bool last) {
        if (count == 0) {  // nothing but the end, in deflate's fixed code: some readers refuse a code of one symbol
            bits.put(last, 1);
            bits.put(1, 2);
            bits.put(0, 7);
            return;
        }
        memset(literals.counts, 0, sizeof literals.counts);
        literals.counts[kEnd] = 1;
        for (int i = 0; i < count; i++) literals.counts[tokens[i].is_match ? length_of(tokens[i].value).symbol : tokens[i].value]++;
        literals.build(15);
        bits.put(last, 1);
        bits.put(2, 2);
        put_codes();
        for (int i = 0; i < count; i++) {
            const Token token = tokens[i];
            if (!token.is_match) {
                bits.put(literals.bits[token.value], literals.lengths[token.value]);
                continue;
            }
            const Length length = length_of(token.value);
            bits.put(literals.bits[length.symbol], literals.lengths[length.symbol]);
            bits.put(length.extra, length.bits);
            bits.put(0, 1);  // the distance
        }
        bits.put(literals.bits[kEnd], literals.lengths[kEnd]);
        count = 0;
    }

    // The lengths of both codes, themselves compressed: runs of zeros, and a code for the rest.
    void put_codes() {
        constexpr uint8_t kOrder[kLengthCodes] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
        constexpr int kFew = 17, kMany = 18;  // 3 to 10 zeros, 11 to 138
        int symbols = kLiterals;
        while (symbols > 257 && literals.lengths[symbols - 1] == 0) symbols--;
        const int distances = distance + 1;
        uint8_t lengths[kLiterals + 2], codes[kLiterals + 2], zeros[kLiterals + 2];
        memcpy(lengths, literals.lengths, size_t(symbols));
        memset(lengths + symbols, 0, size_t(distances));
        lengths[symbols + distance] = 1;  // only this one occurs
        int coded = 0;
        memset(code_lengths.counts, 0, sizeof code_lengths.counts);
        for (int i = 0; i < symbols + distances;) {
            int run = 0;
            while (i + run < symbols + distances && lengths[i + run] == 0 && run < 138) run++;
            codes[coded] = run < 3 ? lengths[i] : uint8_t(run <= 10 ? kFew : kMany);
            zeros[coded] = uint8_t(run);
            i += run < 3 ? 1 : run;
            code_lengths.counts[codes[coded++]]++;
        }
        code_lengths.build(7);
        int ordered = kLengthCodes;
        while (ordered > 4 && code_lengths.lengths[kOrder[ordered - 1]] == 0) ordered--;
        bits.put(uint32_t(symbols - 257), 5);
        bits.put(uint32_t(distances - 1), 5);
        bits.put(uint32_t(ordered - 4), 4);
        for (int i = 0; i < ordered; i++) bits.put(code_lengths.lengths[kOrder[i]], 3);
        for (int i = 0; i < coded; i++) {
            bits.put(code_lengths.bits[codes[i]], code_lengths.lengths[codes[i]]);
            if (codes[i] == kFew) bits.put(uint32_t(zeros[i] - 3), 3);
            if (codes[i] == kMany) bits.put(uint32_t(zeros[i] - 11), 7);
        }
    }

    // Adds bytes to the checksum, count times the same ones.
    void sum(const uint8_t *bytes, int size, uint64_t count) {
        uint32_t all = 0, weighted = 0;
        for (int i = 0; i < size; i++) all += bytes[i], weighted += uint32_t(size - i) * bytes[i];
        const uint64_t between = count * (count - 1) / 2 % 65521;
        high = uint32_t((high + count * uint64_t(size) * low + count * weighted + between * uint64_t(size) * all) % 65521);
        low = uint32_t((low + count * all) % 65521);
    }

    int distance = 0;  // deflate's symbol of one pixel: 0 for one byte, 1 for two
};

// Length of the run at `at` in which every byte equals the one `pixel` before it.
size_t run_at(const uint8_t *row, size_t at, size_t end, size_t pixel) {
    size_t i = at;
    for (; i + 8 <= end; i += 8) {
        uint64_t a, b;
        memcpy(&a, row + i, 8);
        memcpy(&b, row + i - pixel, 8);
        if (a == b) continue;
        while (row[i] == row[i - pixel]) i++;
        return i - at;
    }
    while (i < end && row[i] == row[i - pixel]) i++;
    return i - at;
}

size_t changes(const uint8_t *row, size_t size, size_t pixel) {
    size_t count = 0;
    for (size_t at = pixel; at < size; at += 240) {  // counted in bytes, of which a vector holds most
        const size_t end = size - at < 240 ? size : at + 240;
        uint8_t part = 0;
        for (size_t i = at; i < end; i++) part += row[i] != row[i - pixel];
        count += part;
    }
    return count;
}

}  // namespace

extern "C" {

size_t evs_png_bound(int rows, size_t row_bytes) {
    const size_t bytes = size_t(rows) * (row_bytes + 1);
    return bytes + bytes / 4 + 1024 + 512 * (bytes / kTokens);
}

int evs_png_rows(const uint8_t *pixels, int rows, size_t row_bytes, int pixel_bytes, const uint8_t *above, int last,
                 uint32_t *adler, uint8_t *out, size_t *size) {
    if (pixels == nullptr || rows < 1 || row_bytes < 1 || adler == nullptr || out == nullptr || size == nullptr) return EVS_BAD_ARGUMENT;
    if ((pixel_bytes != 1 && pixel_bytes != 2) || row_bytes % size_t(pixel_bytes) != 0) return EVS_BAD_ARGUMENT;
    Writer *w = static_cast<Writer *>(malloc(sizeof(Writer)));
    uint8_t *line = static_cast<uint8_t *>(malloc(row_bytes + 1));
    if (w == nullptr || line == nullptr) {
        free(w), free(line);
        return EVS_NO_MEMORY;
    }
    w->bits = {out};
    w->count = 0;
    w->distance = pixel_bytes - 1;
    w->low = *adler & 0xffff, w->high = *adler >> 16;
    if (above == nullptr) {
        w->low = 1, w->high = 0;
        w->bits.put(0x78, 8);
        w->bits.put(0x01, 8);
    }
    const size_t pixel = size_t(pixel_bytes);
    for (int y = 0; y < rows; y++, above = pixels, pixels += row_bytes) {
        line[0] = kNone;
        if (above != nullptr) {
            line[0] = kUp;
            for (size_t i = 0; i < row_bytes; i++) line[1 + i] = uint8_t(pixels[i] - above[i]);
        }
        if (above == nullptr || changes(line + 1, row_bytes, pixel) > changes(pixels, row_bytes, pixel)) {
            line[0] = kNone;
            memcpy(line + 1, pixels, row_bytes);
        }
        for (size_t i = 0; i <= row_bytes;) {
            const size_t run = i < pixel ? 0 : run_at(line, i, row_bytes + 1, pixel);
            if (run < kShortest) {
                w->sum(line + i, 1, 1);
                w->add(false, line[i++]);
                continue;
            }
            w->sum(line + i, pixel_bytes, run / pixel);
            w->sum(line + i, int(run % pixel), 1);  // a pixel's first byte may begin the run, or its second
            for (size_t left = run; left > 0;) {
                size_t part = left < kLongest ? left : kLongest;
                if (left - part > 0 && left - part < kShortest) part = left - kShortest;
                w->add(true, int(part));
                left -= part;
            }
            i += run;
        }
    }
    w->block(last != 0);
    if (last) {
        w->bits.align();
        for (int shift : {8, 0}) w->bits.put(w->high >> shift & 0xff, 8);
        for (int shift : {8, 0}) w->bits.put(w->low >> shift & 0xff, 8);
    } else {  // an empty stored block ends at a byte
        w->bits.put(0, 3);
        w->bits.align();
        w->bits.put(0, 16);
        w->bits.put(0xffff, 16);
    }
    *adler = w->high << 16 | w->low;
    *size = size_t(w->bits.out - out);
    free(w), free(line);
    return EVS_OK;
}

}  // extern "C"
