// What the sanitizers must stop: tests/sanitize.py looks whether they do.
#include <cstdint>

extern "C" {

// The element after the last of a tensor.
float beyond(const float* data, int64_t count) { return data[count]; }

int64_t overflow(int64_t value) { return value + 1; }
}
