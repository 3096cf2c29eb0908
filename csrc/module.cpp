// The Python module svg_fast._C: importing it registers the kernels; it tells how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/capability.h"
#include "signature.h"

PYBIND11_MODULE(_C, m) {
  std::vector<std::string> capabilities;
  for (const svg_fast::Capability capability : svg_fast::kCapabilities) {
    capabilities.push_back(svg_fast::capability_name(capability));
  }
  m.doc() = "The compiled kernels of svg_fast, which attach themselves to the declared ops, and facts about the build.";
  m.attr("compiler") = SVG_COMPILER;
  m.attr("cpu_capabilities") = capabilities;
  m.attr("cpu_capability") = svg_fast::capability_name(svg_fast::capability());
  std::istringstream architectures(SVG_CUDA_ARCHITECTURES);
  m.attr("cuda_architectures") =
      std::vector<std::string>(std::istream_iterator<std::string>(architectures), std::istream_iterator<std::string>());
  m.attr("nvcc") = SVG_NVCC;
  m.attr("left_out") = SVG_LEFT_OUT;
  m.attr("signatures") = svg_fast::signatures();
}
