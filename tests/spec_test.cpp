// Spec: every preset and key, the canonical form, and errors that name the key, the value and what would do.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <set>
#include <string>

#include "mikv/spec.hpp"

namespace mikv {
namespace {

Spec parsed(std::string_view text) {
  const Result<Spec> spec = Spec::parse(text);
  if (!spec) throw std::runtime_error(spec.message());
  return spec.value();
}

std::string error_of(std::string_view text) {
  const Result<Spec> spec = Spec::parse(text);
  return spec ? "accepted: " + spec.value().to_string() : spec.message();
}

TEST(SpecTest, DefaultIsThePresetOfItsName) { EXPECT_EQ(parsed("mikv"), Spec{}); }

TEST(SpecTest, PresetsAreWhatTheirNamesPromise) {
  const Spec full = parsed("full");
  EXPECT_TRUE(full.uncompressed());
  EXPECT_FALSE(full.needs_calibration());
  EXPECT_EQ(full.keep, 1.0);

  for (const auto& [name, importance] : {std::pair{"h2o", Importance::h2o},
                                         {"window", Importance::window},
                                         {"streaming", Importance::streaming},
                                         {"snapkv", Importance::snapkv},
                                         {"scissorhands", Importance::scissorhands},
                                         {"random", Importance::random}}) {
    const Spec spec = parsed(name);
    EXPECT_EQ(spec.importance, importance) << name;
    EXPECT_EQ(spec.keep, 0.2) << name;
    EXPECT_EQ(spec.hi, Format::f16) << name;
    EXPECT_EQ(spec.lo, Format::evict) << name;
    EXPECT_FALSE(spec.balancer || spec.center || spec.hadamard) << name;
  }
  for (const auto& [name, lo] :
       {std::pair{"rtn8", Format::int8}, {"rtn4", Format::int4}, {"rtn3", Format::int3}, {"rtn2", Format::int2}}) {
    const Spec spec = parsed(name);
    EXPECT_EQ(spec.keep, 0.0) << name;
    EXPECT_EQ(spec.lo, lo) << name;
    EXPECT_EQ(spec.group.kind, GroupSize::Kind::half) << name;
    EXPECT_FALSE(spec.needs_calibration() || spec.hadamard) << name;
  }
  for (const auto& [name, lo] : {std::pair{"kivi2", Format::int2}, {"kivi4", Format::int4}}) {
    const Spec spec = parsed(name);
    EXPECT_EQ(spec.importance, Importance::residual) << name;
    EXPECT_EQ(spec.residual, 128u) << name;
    EXPECT_EQ(spec.hi, Format::f16) << name;
    EXPECT_EQ(spec.lo, lo) << name;
    EXPECT_TRUE(spec.keys_by_channel) << name;
    EXPECT_EQ(spec.group, (GroupSize{GroupSize::Kind::channels, 32})) << name;
    EXPECT_FALSE(spec.needs_calibration() || spec.hadamard) << name;
  }
  const Spec paper = parsed("mikv-paper");
  EXPECT_EQ(paper.keep, 0.2);
  EXPECT_EQ(paper.hi, Format::f16);
  EXPECT_EQ(paper.lo, Format::int4);
  EXPECT_EQ(paper.group.kind, GroupSize::Kind::half);
  EXPECT_TRUE(paper.balancer && !paper.center && !paper.hadamard);

  const Spec hq = parsed("mikv-hq"), max = parsed("mikv-max");
  const Spec standard = parsed("mikv");
  EXPECT_GT(hq.bits, standard.bits);
  EXPECT_GT(standard.bits, max.bits);
  for (const Spec& spec : {standard, hq, max}) {
    EXPECT_TRUE(spec.mixed());
    EXPECT_EQ(spec.group.kind, GroupSize::Kind::head);
    EXPECT_EQ(spec.hi, Format::int8);
    EXPECT_TRUE(spec.balancer && spec.center && spec.hadamard);
  }
}

TEST(SpecTest, EveryPresetIsListedOnceAndRoundTrips) {
  std::set<std::string_view> names;
  for (const Preset& preset : presets()) {
    EXPECT_TRUE(names.insert(preset.name).second) << preset.name;
    EXPECT_FALSE(preset.description.empty());
    const Spec spec = parsed(preset.name);
    EXPECT_EQ(spec.preset, preset.name);
    EXPECT_EQ(parsed(spec.to_string()), spec) << spec.to_string();
    EXPECT_EQ(parsed(std::string(preset.name) + ":" + std::string(preset.keys)), spec) << preset.name;
  }
  EXPECT_EQ(names.size(), 27u);
}

TEST(SpecTest, KeysOverrideThePreset) {
  const Spec spec =
      parsed("mikv:keep=0.25,hi=int4,lo=int2,group=32,outlier=hadamard,importance=streaming,prefill=streaming,sinks=7");
  EXPECT_EQ(spec.keep, 0.25);
  EXPECT_EQ(spec.hi, Format::int4);
  EXPECT_EQ(spec.lo, Format::int2);
  EXPECT_EQ(spec.group, (GroupSize{GroupSize::Kind::channels, 32}));
  EXPECT_TRUE(spec.hadamard && !spec.balancer && !spec.center);
  EXPECT_EQ(spec.importance, Importance::streaming);
  EXPECT_EQ(spec.prefill, Prefill::streaming);
  EXPECT_EQ(spec.sinks, 7u);
  EXPECT_EQ(parsed("mikv:lo=int3,outlier=centre+balancer"), parsed("mikv:lo=int3,outlier=balancer+center"));
  EXPECT_EQ(parsed("mikv:importance=random,seed=18446744073709551615").seed, UINT64_MAX);
  EXPECT_FALSE(std::signbit(parsed("mikv:keep=-0").keep));
}

TEST(SpecTest, PromptsWaitInF16UnlessTheyAreStreamed) {
  EXPECT_EQ(parsed("mikv").staged, Format::f16);
  EXPECT_EQ(parsed("mikv:staged=int8").staged, Format::int8);
  EXPECT_EQ(parsed("mikv:prefill=streaming").staged, Format::int8);
  EXPECT_EQ(parsed("mikv:prefill=streaming,staged=f16").staged, Format::f16);
  for (const char* never : {"full:prefill=streaming", "h2o:prefill=streaming", "llm-int8:prefill=streaming"}) {
    EXPECT_EQ(parsed(never).staged, Format::f16) << never;
  }
  for (const char* text : {"mikv", "mikv:staged=int8", "mikv:prefill=streaming", "mikv:prefill=streaming,staged=f16"}) {
    EXPECT_EQ(parsed(parsed(text).to_string()), parsed(text)) << text;
  }
}

TEST(SpecTest, FullDropsWhatOnlyItsPresetAskedFor) {
  const Spec spec = parsed("mikv:importance=full,hi=f16");
  EXPECT_TRUE(spec.uncompressed());
  EXPECT_FALSE(spec.needs_calibration());
  EXPECT_EQ(spec.lo, Format::evict);
  EXPECT_EQ(parsed("mikv:lo=int3").bits, Spec().bits);  // only mixed has them
  EXPECT_EQ(parsed("mikv:bits=2.5,lo=mixed").bits, 2.5);
  EXPECT_EQ(parsed("mikv:recent=0.25").recent, 0.25);
  EXPECT_EQ(parsed("mikv-paper").recent, 0.5);
  EXPECT_EQ(parsed("window:importance=h2o").recent, 0.5);
  EXPECT_EQ(parsed("mikv:prefill=streaming").recent, 0.75);
  EXPECT_EQ(parsed("mikv:prefill=streaming,recent=0.6").recent, 0.6);
  const Spec uniform8 =
      parsed("mikv:importance=full");  // every token in INT8: possible, and keeps its outlier handling
  EXPECT_EQ(uniform8.keep, 1.0);
  EXPECT_TRUE(uniform8.center);
}

RC_GTEST_PROP(SpecProperty, CanonicalFormRoundTrips, ()) {
  const auto pick = [](std::initializer_list<std::string> values) {
    return *rc::gen::elementOf(std::vector<std::string>(values));
  };
  const double keep = *rc::gen::inRange(0, 1000001) / 1e6;
  const std::string keep_text = std::to_string(keep);
  const std::string sinks = ",sinks=" + std::to_string(*rc::gen::inRange(0, 1025)),
                    seed = ",seed=" + std::to_string(*rc::gen::arbitrary<uint64_t>());
  const std::string text =
      pick({"mikv", "mikv-paper", "mikv-max", "rtn4"}) + ":keep=" + keep_text +
      ",hi=" + pick({"f16", "int8", "int5", "int4", "int2"}) + ",lo=" + pick({"int2", "int3", "int4", "int5", "int8"}) +
      ",group=" + pick({"auto", "half", "head", "1", "64", "512"}) + ",quantiser=" + pick({"asymmetric", "symmetric"}) +
      ",outlier=" + pick({"none", "balancer", "f16", "center+hadamard", "hadamard+balancer+center"}) + ",importance=" +
      pick({"h2o", "window", "streaming" + sinks, "snapkv", "scissorhands", "fastgen" + sinks, "random" + seed}) +
      ",prefill=" + pick({"exact", "streaming", "spread"});
  const std::string staged =
      text.find("outlier=f16") != std::string::npos ? "" : pick({"", ",staged=f16", ",staged=int8"});
  const Spec spec = parsed(text + staged);
  RC_ASSERT(spec.keep == std::stod(keep_text));
  RC_ASSERT(parsed(spec.to_string()) == spec);
  RC_ASSERT(parsed(spec.to_string()).to_string() == spec.to_string());
}

// Never a crash, and never a message of several lines, whatever is typed.
RC_GTEST_PROP(SpecProperty, AnyTextGivesASpecOrOneLine, (const std::string& noise)) {
  for (const std::string& text : {noise, "mikv:" + noise, "mikv:keep=" + noise, "mikv:outlier=" + noise}) {
    const Result<Spec> spec = Spec::parse(text);
    if (spec) continue;
    RC_ASSERT(!spec.message().empty());
    for (const char c : spec.message()) RC_ASSERT(c >= 0x20 && c < 0x7f);
  }
}

struct Refusal {
  const char* text;
  std::vector<const char*> named;  ///< what the message must contain
};

const Refusal kRefusals[] = {
    {"", {"begin with a preset", "mikv-paper"}},
    {"keep=0.2", {"begin with a preset", "'keep=0.2'"}},
    {"mikv,keep=0.2", {"begin with a preset"}},
    {"mkiv", {"'mkiv'", "did you mean 'mikv'", "rtn4"}},
    {"mikvpaper", {"did you mean 'mikv-paper'"}},
    {"MIKV", {"'MIKV'"}},
    {"mikv ", {"'mikv '", "did you mean 'mikv'"}},
    {"gzip", {"unknown spec preset 'gzip'", "presets: full, mikv"}},
    {"mikv:", {"key=value"}},
    {"mikv:keep", {"'keep'", "key=value"}},
    {"mikv:keep=0.2,", {"key=value"}},
    {"mikv:=0.2", {"key=value"}},
    {"mikv:kep=0.2", {"'kep'", "did you mean 'keep'", "outlier"}},
    {"mikv:colour=red", {"'colour'", "keys: keep, hi, lo"}},
    {"mikv:keep=0.2,keep=0.2", {"'keep'", "twice"}},
    {"mikv:keep=", {"'keep'", "''", "0 to 1"}},
    {"mikv:keep=1.5", {"'keep'", "'1.5'", "0 to 1"}},
    {"mikv:keep=-0.1", {"'-0.1'", "0 to 1"}},
    {"mikv:keep=nan", {"'nan'", "0 to 1"}},
    {"mikv:keep=inf", {"'inf'", "0 to 1"}},
    {"mikv:keep=-inf", {"'-inf'"}},
    {"mikv:keep=1e999", {"'1e999'"}},
    {"mikv:keep=0.2x", {"'0.2x'"}},
    {"mikv:keep= 0.2", {"' 0.2'"}},
    {"mikv:keep=20%", {"'20%'"}},
    {"mikv:keep=0,2", {"'2'", "key=value"}},
    {"mikv:hi=int3", {"'hi'", "'int3'", "f16, int8, int5, int4, int2"}},
    {"mikv:hi=mixed", {"'hi'", "'mixed'", "f16, int8, int5, int4, int2"}},
    {"mikv:hi=fp16", {"'fp16'", "f16"}},
    {"mikv:lo=f16", {"'lo'", "'f16'", "evict, mixed, int2, int3, int4, int5, int8"}},
    {"mikv:lo=int6", {"'int6'"}},
    {"mikv:group=0", {"'group'", "'0'", "1 to 512"}},
    {"mikv:group=513", {"'513'"}},
    {"mikv:group=-1", {"'-1'"}},
    {"mikv:group=third", {"'third'", "auto, half, head"}},
    {"mikv:outlier=", {"'outlier'", "none", "balancer, center, hadamard"}},
    {"mikv:outlier=balancer+", {"'balancer+'"}},
    {"mikv:outlier=balancer+balancer", {"'balancer+balancer'"}},
    {"mikv:outlier=none+center", {"'none+center'"}},
    {"rtn4:outlier=f16+center", {"'f16+center'", "none, f16, or"}},
    {"mikv:importance=heavy",
     {"'importance'", "full, h2o, window, streaming, snapkv, scissorhands, fastgen, residual, random"}},
    {"mikv:prefill=fast", {"'prefill'", "exact, streaming"}},
    {"mikv:staged=int4", {"'staged'", "'int4'", "f16, int8"}},
    {"full:staged=int8", {"staged", "hi=f16 with lo=evict"}},
    {"h2o:staged=int8", {"staged", "hi=f16 with lo=evict"}},
    {"llm-int8:staged=int8", {"staged", "outlier=none"}},
    {"mikv:recent=1.5", {"'recent'", "'1.5'", "0 to 1"}},
    {"mikv:recent=0.5,importance=window", {"recent", "importance=h2o"}},
    {"window:recent=0.75", {"recent", "importance=h2o"}},
    {"h2o:seed=5", {"seed", "importance=random"}},
    {"mikv:sinks=8", {"sinks", "importance=streaming", "fastgen"}},
    {"fastgen:recovery=1.5", {"'recovery'", "'1.5'", "0 to 1"}},
    {"h2o:recovery=0.9", {"recovery", "importance=fastgen"}},
    {"mikv:sinks=1025", {"'sinks'", "'1025'", "0 to 1024"}},
    {"mikv:sinks=-1", {"'-1'"}},
    {"mikv:sinks=4294967296", {"'4294967296'"}},
    {"mikv:seed=18446744073709551616", {"'seed'", "2^64-1"}},
    {"mikv:seed=0x10", {"'0x10'"}},
    {"mikv:bits=0.5", {"'bits'", "'0.5'", "1 to 5"}},
    {"mikv:bits=nan", {"'bits'", "'nan'"}},
    {"rtn4:bits=3", {"bits", "lo=mixed"}},
    {"mikv:outlier=none", {"lo=mixed", "outlier"}},
    {"mikv:outlier=f16", {"lo=mixed", "outlier"}},
    {"h2o:outlier=f16", {"lo=evict", "outlier"}},
    {"mikv:group=64", {"lo=mixed", "group=head"}},
    {"rtn4:quantiser=even", {"'quantiser'", "'even'", "asymmetric, symmetric"}},
    {"mikv:quantiser=symmetric", {"lo=mixed", "quantiser"}},
    {"rtn4:keys=both", {"'keys'", "'both'", "token, channel"}},
    {"mikv:keys=channel", {"keys=channel", "lo=mixed"}},
    {"h2o:keys=channel", {"keys=channel", "lo=evict"}},
    {"kivi2:hi=int8", {"keys=channel", "hi=f16"}},
    {"mikv-paper-int8:keys=channel", {"keys=channel", "hi=f16"}},
    {"kivi2:quantiser=symmetric", {"keys=channel", "quantiser"}},
    {"kivi2:outlier=f16", {"keys=channel", "outlier"}},
    {"kivi2:outlier=hadamard", {"keys=channel", "outlier"}},
    {"kivi2:balancer=file", {"keys=channel", "balancer"}},
    {"kivi2:residual=65537", {"'residual'", "0 to 65536"}},
    {"kivi2:residual=-1", {"'residual'", "'-1'"}},
    {"mikv:residual=64", {"residual", "importance=residual"}},
    {"kivi2:keep=0.2", {"keep", "residual=128"}},
    {"h2o:quantiser=symmetric", {"quantiser", "lo=evict"}},
    {"mikv:importance=full,keep=0.5", {"importance=full", "keep"}},
    {"full:keep=0.5", {"importance=full", "keep"}},
    {"full:lo=int4", {"importance=full", "lo=int4"}},
    {"full:outlier=center", {"outlier", "none"}},
    {"h2o:outlier=balancer", {"outlier", "lo=evict"}},
    {"h2o:keep=0", {"keep=0", "lo=evict"}},
    {"rtn4:lo=evict", {"keep=0", "lo=evict"}},
    {"rtn4:balancer=", {"'balancer'", "mikv calibrate"}},
    {"rtn4:balancer=a\tb", {"'balancer'", "mikv calibrate"}},
    {"mikv:balancer=file", {"lo=mixed", "balancer"}},
    {"h2o:balancer=file", {"balancer", "lo=evict"}},
    {"mikv-paper:balancer=file,outlier=balancer", {"balancer=FILE", "outlier=balancer"}},
};

TEST(SpecTest, RefusalsNameTheKeyTheValueAndWhatWouldDo) {
  for (const Refusal& refusal : kRefusals) {
    const std::string error = error_of(refusal.text);
    for (const char* part : refusal.named)
      EXPECT_NE(error.find(part), std::string::npos) << "'" << refusal.text << "' gave: " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos);
    EXPECT_NE(error.rfind("accepted", 0), 0u) << error;
  }
}

TEST(SpecTest, FiveBitsInBothTiers) {
  const Spec spec = parsed("mikv:hi=int5,lo=int5");
  EXPECT_EQ(spec.hi, Format::int5);
  EXPECT_EQ(spec.lo, Format::int5);
  EXPECT_EQ(parsed(spec.to_string()), spec);
  EXPECT_EQ(smaller_format(Format::int5), Format::int4);
}

TEST(SpecTest, TheQuantiserIsNamedWhereItIsSymmetric) {
  EXPECT_EQ(parsed("llm-qat4").quantiser, Quantiser::symmetric);
  EXPECT_NE(parsed("llm-qat4").to_string().find("quantiser=symmetric"), std::string::npos);
  EXPECT_EQ(parsed("rtn4").to_string().find("quantiser"), std::string::npos);  // sessions of 0.1.0 have no such key
  EXPECT_EQ(parsed("rtn4:quantiser=asymmetric"), parsed("rtn4"));
  EXPECT_EQ(parsed("llm-qat4:lo=mixed").quantiser, Quantiser::asymmetric);  // dropped: only the preset asked for it
}

TEST(SpecTest, KeysByChannelAndTheResidual) {
  EXPECT_NE(parsed("kivi2").to_string().find(",keys=channel"), std::string::npos);
  EXPECT_NE(parsed("kivi2").to_string().find(",residual=128"), std::string::npos);
  EXPECT_EQ(parsed("rtn4").to_string().find("keys"), std::string::npos);  // sessions of 0.1.0 have neither key
  EXPECT_EQ(parsed("rtn4").to_string().find("residual"), std::string::npos);
  EXPECT_EQ(parsed("rtn4:keys=token"), parsed("rtn4"));
  for (const char* text : {"kivi2:residual=0", "kivi4:residual=65536,group=half", "rtn4:keys=channel",
                           "mikv-paper:keys=channel", "residual", "mikv:importance=residual,residual=32"}) {
    EXPECT_EQ(parsed(parsed(text).to_string()), parsed(text)) << text;
  }
  EXPECT_EQ(parsed("kivi2:keep=0"), parsed("kivi2"));
  EXPECT_EQ(parsed("kivi2:importance=h2o").residual, Spec().residual);
  EXPECT_EQ(parsed("mikv-paper:keys=channel").balancer, false);  // dropped: only the preset asked for it
  EXPECT_EQ(parsed("kivi2:lo=mixed").keys_by_channel, false);
  EXPECT_EQ(parsed("kivi2:lo=evict").keys_by_channel, false);
}

TEST(SpecTest, ABalancerFromAFileTakesThePlaceOfThePrompts) {
  const Spec spec = parsed("mikv-paper:balancer=/some/folder/model-1.5b:q4.balancers,keep=0.1");
  EXPECT_EQ(spec.balancer_file, "/some/folder/model-1.5b:q4.balancers");
  EXPECT_FALSE(spec.balancer);
  EXPECT_FALSE(spec.needs_calibration());
  EXPECT_EQ(spec.keep, 0.1);
  EXPECT_EQ(parsed(spec.to_string()), spec);
  EXPECT_TRUE(parsed("rtn4:balancer=x,outlier=center").center);
  EXPECT_EQ(parsed("rtn4").to_string().find("balancer"), std::string::npos);
}

TEST(SpecTest, HostileTextIsQuotedShortAndPrintable) {
  const std::string huge(1 << 20, 'x');
  EXPECT_LT(error_of(huge).size(), 200u);
  EXPECT_LT(error_of("mikv:keep=" + std::string(400, '9')).size(), 200u);
  EXPECT_NE(error_of("mi\nkv\x01\xff").find("'mi?kv?"), std::string::npos);
  EXPECT_NE(error_of(std::string_view("mikv\0", 5)).find("'mikv?'"), std::string::npos);
}

TEST(SpecTest, GroupResolves) {
  using Kind = GroupSize::Kind;
  struct Row {
    uint32_t head_dim, automatic, half;
  };
  for (const Row& row : {Row{8, 8, 4},
                         {24, 24, 12},
                         {40, 40, 20},
                         {64, 64, 32},
                         {72, 36, 36},
                         {80, 40, 40},
                         {96, 48, 48},
                         {128, 64, 64},
                         {256, 64, 128},
                         {512, 64, 256}}) {
    EXPECT_EQ(GroupSize{}.resolve(row.head_dim), row.automatic) << row.head_dim;
    EXPECT_EQ((GroupSize{Kind::half, 0}.resolve(row.head_dim)), row.half) << row.head_dim;
    EXPECT_EQ((GroupSize{Kind::head, 0}.resolve(row.head_dim)), row.head_dim);
    EXPECT_EQ((GroupSize{Kind::channels, 8}.resolve(row.head_dim)), 8u);
  }
  EXPECT_EQ((GroupSize{Kind::channels, 64}.resolve(80)), 0u);
  EXPECT_EQ((GroupSize{Kind::channels, 0}.resolve(80)), 0u);
  EXPECT_EQ((GroupSize{Kind::channels, 128}.resolve(64)), 0u);
  EXPECT_EQ(GroupSize{}.resolve(0), 0u);
}

TEST(SpecTest, ListsSplitAtSpecsNotAtKeys) {
  using List = std::vector<std::string>;
  EXPECT_EQ(split_spec_list("full,mikv:keep=0.2,hi=f16,h2o"), (List{"full", "mikv:keep=0.2,hi=f16", "h2o"}));
  EXPECT_EQ(split_spec_list("mikv"), List{"mikv"});
  EXPECT_EQ(split_spec_list("full,llama:q4_0,llama:f16"), (List{"full", "llama:q4_0", "llama:f16"}));
  EXPECT_EQ(split_spec_list("mikv,keep=0.2,lo=int2"), List{"mikv:keep=0.2,lo=int2"});
  EXPECT_EQ(split_spec_list("keep=0.2,full"), (List{"keep=0.2", "full"}));  // parse says what is wrong with it
  EXPECT_EQ(split_spec_list("full,,h2o"), (List{"full", "", "h2o"}));
  EXPECT_EQ(split_spec_list(""), List{""});
}

TEST(SpecTest, FormatsHaveNamesAndBits) {
  for (const auto& [format, name, bits] : {std::tuple{Format::evict, "evict", 0u},
                                           {Format::int2, "int2", 2u},
                                           {Format::int3, "int3", 3u},
                                           {Format::int4, "int4", 4u},
                                           {Format::int5, "int5", 5u},
                                           {Format::mixed, "mixed", 0u},
                                           {Format::int8, "int8", 8u},
                                           {Format::f16, "f16", 16u}}) {
    EXPECT_EQ(format_name(format), name);
    EXPECT_EQ(format_bits(format), bits);
  }
}

}  // namespace
}  // namespace mikv
