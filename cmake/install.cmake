# `cmake --install`: binary, library, headers, packaged model, and a CMake package for find_package(hotset).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS hotset EXPORT hotset_targets COMPONENT library)
install(TARGETS hotset_cli RUNTIME COMPONENT library)
install(FILES
  core/engine.h core/error.h core/log.h core/model.h core/model_config.h core/architecture.h core/kinds.h
  core/calibration.h core/dtype.h core/profile.h core/quantize_model.h core/sampler.h core/synth.h core/tensor.h
  core/tokenizer.h core/unit_counts.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/hotset/core COMPONENT library)
install(FILES cmake/engine.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/hotset COMPONENT library)
install(DIRECTORY python/hotset/data/ DESTINATION ${CMAKE_INSTALL_DATADIR}/hotset COMPONENT library)

install(DIRECTORY tools/machines DESTINATION ${CMAKE_INSTALL_DATADIR}/hotset COMPONENT library)

install(EXPORT hotset_targets NAMESPACE hotset:: FILE hotset-targets.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/hotset COMPONENT library)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/hotset-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/hotset-config.cmake ${PROJECT_BINARY_DIR}/hotset-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/hotset COMPONENT library)
