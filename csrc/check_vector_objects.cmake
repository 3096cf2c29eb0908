# Fails where an object file of vector kernels holds what could reach a CPU without its instruction set.
#
#   cmake -DNM=nm "-DOBJECTS=a.o;b.o" -P check_vector_objects.cmake
#
# The linker keeps one copy of an inline function or a template for all objects, and may keep the one compiled for
# AVX-512: such functions belong into the namespaces isa_*, where every set has its own, or must always be inlined.
# A static initialiser would run on loading, on any CPU.
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" symbols "${symbols}")
  foreach(symbol ${symbols})
    if(symbol MATCHES " W " AND NOT symbol MATCHES "isa_(default|avx2|avx512)")
      message(FATAL_ERROR "weak function outside the namespaces isa_* in ${object}: ${symbol}")
    elseif(symbol MATCHES "_GLOBAL__sub_I_|__cxx_global_var_init")
      message(FATAL_ERROR "static initialiser in ${object}: ${symbol}")
    endif()
  endforeach()
endforeach()
