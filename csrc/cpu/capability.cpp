#include "capability.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace svg_fast {
namespace {

constexpr const char* kOverride = "SVG_FAST_CPU_CAPABILITY";

// The compiler's own runtime asks CPUID, and whether the system saves the registers.
bool cpu_has(Capability capability) {
  switch (capability) {
#ifdef SVG_AVX512
    case Capability::kAVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && cpu_has(Capability::kAVX2);
#endif
#ifdef SVG_AVX2
    case Capability::kAVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    default:
      return true;
  }
}

Capability choose() {
  const char* name = std::getenv(kOverride);
  const std::string wanted = name == nullptr ? "" : name;
  std::string had;
  for (auto candidate = std::rbegin(kCapabilities); candidate != std::rend(kCapabilities); ++candidate) {
    if (!cpu_has(*candidate)) {
      continue;
    }
    if (wanted.empty() || wanted == capability_name(*candidate)) {
      return *candidate;
    }
    had = capability_name(*candidate) + (had.empty() ? "" : ", " + had);
  }
  throw std::invalid_argument(std::string(kOverride) + " must be one of " + had + " on this machine, got " + wanted);
}

}  // namespace

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::kAVX512:
      return "avx512";
    case Capability::kAVX2:
      return "avx2";
    default:
      return "default";
  }
}

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

}  // namespace svg_fast
