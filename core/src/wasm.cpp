// What the core needs of libc, as WebAssembly: memory and a few functions on bytes. A libc of WASI would do the same in
// more bytes, ask the host for files, and has no threads without another one. Memory is allocated and freed on one thread,
// the one that calls the C interface.
#include <stddef.h>
#include <stdint.h>

#include "platform.h"

extern "C" unsigned char __heap_base;

namespace {

constexpr size_t kLine = 64, kPage = 1 << 16;

// In front of every piece of memory, in a line of its own, so that all pieces are aligned to lines.
struct alignas(kLine) Piece {
    size_t bytes;  // with this line
    Piece *next;   // the next free one, by address
};

Piece *free_pieces;
char *heap_end;

Piece *after(Piece *p) { return reinterpret_cast<Piece *>(reinterpret_cast<char *>(p) + p->bytes); }

void give_back(Piece *piece) {
    Piece **at = &free_pieces;
    while (*at != nullptr && *at < piece && after(*at) != piece) at = &(*at)->next;
    if (*at != nullptr && after(*at) == piece) {
        (*at)->bytes += piece->bytes;
        piece = *at;
    } else {
        piece->next = *at;
        *at = piece;
    }
    if (piece->next != nullptr && after(piece) == piece->next) {
        piece->bytes += piece->next->bytes;
        piece->next = piece->next->next;
    }
}

// Takes at least so many bytes more from the host.
bool grow(size_t bytes) {
    if (heap_end == nullptr) {
        const uintptr_t start = (reinterpret_cast<uintptr_t>(&__heap_base) + kLine - 1) / kLine * kLine;
        const size_t there = __builtin_wasm_memory_size(0) * kPage - start;
        heap_end = reinterpret_cast<char *>(start + there);
        if (there >= kLine) {
            Piece *piece = reinterpret_cast<Piece *>(start);
            piece->bytes = there;
            give_back(piece);
            if (there >= bytes) return true;
        }
    }
    const size_t pages = (bytes + kPage - 1) / kPage, before = __builtin_wasm_memory_grow(0, pages);
    if (before == SIZE_MAX) return false;
    Piece *piece = reinterpret_cast<Piece *>(before * kPage);
    piece->bytes = pages * kPage;
    give_back(piece);
    return true;
}

}  // namespace

extern "C" {

#define EVS_EXPORT __attribute__((visibility("default")))

EVS_EXPORT void *malloc(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    const size_t needed = (bytes + kLine - 1) / kLine * kLine + kLine;
    for (int tries = 0; tries < 2; tries++) {
        for (Piece **at = &free_pieces; *at != nullptr; at = &(*at)->next) {
            Piece *piece = *at;
            if (piece->bytes < needed) continue;
            if (piece->bytes - needed >= 2 * kLine) {
                Piece *rest = reinterpret_cast<Piece *>(reinterpret_cast<char *>(piece) + needed);
                rest->bytes = piece->bytes - needed, rest->next = piece->next;
                piece->bytes = needed;
                *at = rest;
            } else {
                *at = piece->next;
            }
            return piece + 1;
        }
        if (tries == 0 && !grow(needed)) return nullptr;
    }
    return nullptr;
}

EVS_EXPORT void free(void *memory) {
    if (memory != nullptr) give_back(static_cast<Piece *>(memory) - 1);
}

void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
    void *memory = malloc(bytes);
    if (memory != nullptr) __builtin_memset(memory, 0, bytes);
    return memory;
}

void *aligned_alloc(size_t alignment, size_t bytes) { return alignment <= kLine ? malloc(bytes) : nullptr; }

// The compiler makes instructions of these calls, except of some.
void *memcpy(void *to, const void *from, size_t bytes) { return __builtin_memcpy(to, from, bytes); }
void *memmove(void *to, const void *from, size_t bytes) { return __builtin_memmove(to, from, bytes); }
void *memset(void *to, int byte, size_t bytes) { return __builtin_memset(to, byte, bytes); }

int memcmp(const void *a, const void *b, size_t bytes) {
    const unsigned char *x = static_cast<const unsigned char *>(a), *y = static_cast<const unsigned char *>(b);
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length] != 0) length++;
    return length;
}

int strcmp(const char *a, const char *b) {
    while (*a != 0 && *a == *b) a++, b++;
    return static_cast<unsigned char>(*a) - static_cast<unsigned char>(*b);
}

char *strcat(char *text, const char *more) {
    char *to = text + strlen(text);
    while ((*to++ = *more++) != 0) {
    }
    return text;
}

// Makes RGB pixels of the RGBA pixels of a canvas, in their place.
EVS_EXPORT void evs_drop_alpha(uint8_t *pixels, size_t count) {
    typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
    const uint8_t *from = pixels;
    uint8_t *to = pixels;
    for (; count >= 4; count -= 4, from += 16, to += 12) {
        const Bytes four = *reinterpret_cast<const Bytes *>(from);
        *reinterpret_cast<Bytes *>(to) = __builtin_shufflevector(four, four, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    }
    for (; count > 0; count--, from += 4, to += 3) {
        const uint8_t red = from[0], green = from[1], blue = from[2];
        to[0] = red, to[1] = green, to[2] = blue;
    }
}

#if defined(__wasm_atomics__)
// What a thread of the host calls with the argument of evs_host_start, on a stack of its own; returns when the pool ends.
EVS_EXPORT void evs_thread(evs::Thread *thread) {
    thread->work(thread->argument);
    __atomic_store_n(&thread->done, 1, __ATOMIC_SEQ_CST);
    __builtin_wasm_memory_atomic_notify(&thread->done, 1);
}
#endif

}  // extern "C"
