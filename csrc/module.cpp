// The Python module svg_fast._C: importing it registers the kernels; it tells how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/capability.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> cpu_capabilities() {
#ifdef SVG_X86
  return {"default", "avx2", "avx512"};
#else
  return {"default"};
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels of svg_fast, which attach themselves to the declared ops, and facts about the build.";
  m.attr("compiler") = compiler();
  m.attr("cpu_capabilities") = cpu_capabilities();
  m.attr("cpu_capability") = svg_fast::capability_name(svg_fast::capability());
  m.attr("cuda_architectures") = std::vector<std::string>();
}
