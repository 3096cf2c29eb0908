// Which instruction set the vector kernels run on. Every file in vector/ is compiled once for each of them, in a
// namespace of its own, and the choice is made when an op is called.
#pragma once

namespace svg_fast {

enum class Capability { kDefault, kAVX2, kAVX512 };

// Those that this build has, the narrowest first; the build defines SVG_AVX2 and SVG_AVX512 where it has them.
constexpr Capability kCapabilities[] = {
    Capability::kDefault,
#ifdef SVG_AVX2
    Capability::kAVX2,
#endif
#ifdef SVG_AVX512
    Capability::kAVX512,
#endif
};

// The widest of them that this CPU has, or the one that SVG_FAST_CPU_CAPABILITY names
// (default, avx2, avx512). Throws std::invalid_argument where that is not to be had.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace svg_fast

// The namespaces of the instruction sets; the name of one that is left out stands for the default, and is never chosen.
#ifdef SVG_AVX2
#define SVG_ISA_AVX2 isa_avx2
#else
#define SVG_ISA_AVX2 isa_default
#endif
#ifdef SVG_AVX512
#define SVG_ISA_AVX512 isa_avx512
#else
#define SVG_ISA_AVX512 isa_default
#endif

#define SVG_DECLARE_TABLE(isa, Type, name) \
  namespace isa {                          \
  extern const Type name;                  \
  }

// Declares `name()`, the kernels of one op: a constant table of type `Type` that each vector file defines as
// `const Type name{...}` in the namespace SVG_ISA. Constant, so that loading runs no code of a set the CPU lacks.
#define SVG_DECLARE_KERNELS(Type, name)         \
  SVG_DECLARE_TABLE(isa_default, Type, name)    \
  SVG_DECLARE_TABLE(SVG_ISA_AVX2, Type, name)   \
  SVG_DECLARE_TABLE(SVG_ISA_AVX512, Type, name) \
  inline const Type& name() {                   \
    switch (capability()) {                     \
      case Capability::kAVX512:                 \
        return SVG_ISA_AVX512::name;            \
      case Capability::kAVX2:                   \
        return SVG_ISA_AVX2::name;              \
      default:                                  \
        return isa_default::name;               \
    }                                           \
  }
