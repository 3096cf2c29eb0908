#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace svg_fast {
namespace {

constexpr Capability kAll[] = {Capability::kAVX512, Capability::kAVX2, Capability::kDefault};
constexpr const char* kOverride = "SVG_FAST_CPU_CAPABILITY";

// The compiler's own runtime asks CPUID, and whether the system saves the registers.
bool has(Capability capability) {
#ifdef SVG_X86
  switch (capability) {
    case Capability::kAVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has(Capability::kAVX2);
    case Capability::kAVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return capability == Capability::kDefault;
#endif
}

Capability choose() {
  const char* name = std::getenv(kOverride);
  for (const Capability candidate : kAll) {
    const bool wanted = name == nullptr || *name == '\0' || capability_name(candidate) == std::string(name);
    if (wanted && has(candidate)) {
      return candidate;
    }
  }
  std::string had;
  for (const Capability candidate : kAll) {
    had += has(candidate) ? (had.empty() ? "" : ", ") + std::string(capability_name(candidate)) : "";
  }
  throw std::invalid_argument(std::string(kOverride) + " must be one of " + had + " on this machine, got " + name);
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
