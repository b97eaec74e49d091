// Presets: the one table of named specs. A policy brings its own preset (src/policy/); here are those that only combine
// keys. docs/systems.md has the source of each, and how it is read where the source is silent.
#include "mikv/spec.hpp"
#include "policy/policy.hpp"

namespace mikv {
namespace {

constexpr Preset kOurs[] = {
    {"mikv", "importance=h2o,recent=0.75,keep=0.08,hi=int8,lo=mixed,bits=2.7",
     "our default: about 3.3 bits per element"},
    {"mikv-hq", "importance=h2o,recent=0.75,keep=0.12,hi=int8,lo=mixed,bits=3.61",
     "closest to the full cache: about 4.4 bits"},
    {"mikv-max", "importance=h2o,recent=0.75,keep=0.06,hi=int8,lo=mixed,bits=1.89", "smallest: about 2.4 bits"},
};

constexpr Preset kAsPublished[] = {
    {"mikv-paper", "importance=h2o,keep=0.2,hi=f16,lo=int4,group=half,outlier=balancer",
     "MiKV as published (arXiv 2402.18096)"},
    {"mikv-paper-f16", "importance=h2o,keep=0.2,hi=f16,lo=int2,group=half,outlier=balancer",
     "MiKV as published, lo in INT2"},
    {"mikv-paper-int8", "importance=h2o,keep=0.2,hi=int8,lo=int2,group=half,outlier=balancer",
     "MiKV as published, hi in INT8, lo in INT2"},
    {"mikv-paper-int4", "importance=h2o,keep=0.2,hi=int4,lo=int2,group=half,outlier=balancer",
     "MiKV as published, hi in INT4, lo in INT2"},
    {"mikv-paper-int2", "importance=h2o,keep=0.2,hi=int2,lo=int2,group=half,outlier=balancer",
     "MiKV as published, hi and lo in INT2"},
};

constexpr Preset kQuantisers[] = {
    {"rtn8", "importance=window,keep=0,hi=f16,lo=int8,group=half,outlier=none", "every token in INT8"},
    {"rtn4", "importance=window,keep=0,hi=f16,lo=int4,group=half,outlier=none", "every token in INT4"},
    {"rtn3", "importance=window,keep=0,hi=f16,lo=int3,group=half,outlier=none", "every token in INT3"},
    {"rtn2", "importance=window,keep=0,hi=f16,lo=int2,group=half,outlier=none", "every token in INT2"},
    {"kivi4", "importance=residual,residual=128,hi=f16,lo=int4,keys=channel,group=32,outlier=none",
     "all but the last 128 in INT4, keys by channel (arXiv 2402.02750)"},
    {"kivi2", "importance=residual,residual=128,hi=f16,lo=int2,keys=channel,group=32,outlier=none",
     "all but the last 128 in INT2, keys by channel (arXiv 2402.02750)"},
    {"flexgen", "importance=window,keep=0,hi=f16,lo=int4,group=auto,outlier=none",
     "every token in INT4, groups of 64 (arXiv 2303.06865)"},
    {"llm-qat8", "importance=window,keep=0,hi=f16,lo=int8,group=head,quantiser=symmetric,outlier=none",
     "every token in symmetric INT8 (arXiv 2305.17888)"},
    {"llm-qat4", "importance=window,keep=0,hi=f16,lo=int4,group=head,quantiser=symmetric,outlier=none",
     "every token in symmetric INT4 (arXiv 2305.17888)"},
    {"llm-int8", "importance=window,keep=0,hi=f16,lo=int8,group=head,quantiser=symmetric,outlier=f16",
     "every token in INT8, outlier channels in f16 (arXiv 2208.07339)"},
};

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = [] {
    std::vector<Preset> list;
    const auto add_policies = [&list](bool demoting) {
      for (const policy::Policy& each : policy::policies()) {
        if (each.demotes() == demoting) list.push_back({each.name, each.preset_keys, each.description});
      }
    };
    add_policies(false);
    list.insert(list.end(), std::begin(kOurs), std::end(kOurs));
    list.insert(list.end(), std::begin(kAsPublished), std::end(kAsPublished));
    add_policies(true);
    list.insert(list.end(), std::begin(kQuantisers), std::end(kQuantisers));
    return list;
  }();
  return all;
}

}  // namespace mikv
