// A model file: a manifest, which is JSON for the programs that use the model, in front of a program. Offsets in a program
// count from its own start, which is a multiple of 64 bytes from the start of the file.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace evs {

struct ModelFile {
    const char *manifest;
    size_t manifest_size;
    const char *program;
    size_t program_size;
};

// Finds the parts of a file, or of a program that stands alone, whose manifest is empty. Returns: whether the file holds
// as much manifest as it says; nothing else is checked.
inline bool find_parts(const void *bytes, size_t size, ModelFile &file) {
    constexpr char kMagic[8] = {'E', 'V', 'I', 'T', 'F', 'I', 'L', 'E'};
    constexpr size_t kStart = sizeof kMagic + sizeof(uint64_t), kAlignment = 64;
    const char *start = static_cast<const char *>(bytes);
    file = {start, 0, start, size};
    if (bytes == nullptr || size < kStart || memcmp(start, kMagic, sizeof kMagic) != 0) return true;
    uint64_t manifest;
    memcpy(&manifest, start + sizeof kMagic, sizeof manifest);
    if (manifest > size - kStart) return false;
    const size_t end = kStart + size_t(manifest), program = (end + kAlignment - 1) / kAlignment * kAlignment;
    if (program < end || program > size) return false;
    file = {start + kStart, size_t(manifest), start + program, size - program};
    return true;
}

}  // namespace evs
