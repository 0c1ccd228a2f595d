// The loader: which NCCL is taken, and what is said when none can be.
#include "cuda/nccl_library.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"
#include "nccl_world.h"

namespace crossover::testing {
namespace {

std::string refusal(const NcclSearch& search) {
  try {
    NcclLibrary::load(search);
  } catch (const TransportError& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class NcclLoader : public ::testing::Test {
 protected:
  void SetUp() override { fake_nccl().script(""); }
  void TearDown() override { fake_nccl().script(""); }
};

TEST_F(NcclLoader, AnOverrideIsTakenAndNamed) {
  const auto library = NcclLibrary::load({.override_path = FAKE_NCCL_PATH, .wheel_path = "absent"});
  EXPECT_EQ(library->origin().path, FAKE_NCCL_PATH);
  EXPECT_EQ(library->origin().source, "CROSSOVER_NCCL_SO");
  EXPECT_EQ(library->origin().version, nccl::version_code(2, 28, 9));
}

TEST_F(NcclLoader, AnOverrideThatIsAbsentIsNotReplacedByAnother) {
  const std::string text =
      refusal({.override_path = "/absent/libnccl.so", .wheel_path = FAKE_NCCL_PATH});
  EXPECT_TRUE(contains(text, "CROSSOVER_NCCL_SO allows one place only")) << text;
  EXPECT_TRUE(contains(text, "/absent/libnccl.so")) << text;
}

TEST_F(NcclLoader, ThePackageComesBeforeTheLoadersPath) {
  const auto library =
      NcclLibrary::load({.override_path = {}, .use_loaded = false, .wheel_path = FAKE_NCCL_PATH});
  EXPECT_EQ(library->origin().source, "the nvidia-nccl package");
}

TEST_F(NcclLoader, AnOldVersionIsRefusedWithBothVersionsAndThePlace) {
  fake_nccl().script("version=2804");
  const std::string text = refusal({.override_path = FAKE_NCCL_PATH, .wheel_path = {}});
  EXPECT_TRUE(contains(text, "is version 2.8.4; expected 2.19.1 or newer")) << text;
  EXPECT_TRUE(contains(text, FAKE_NCCL_PATH)) << text;
}

TEST_F(NcclLoader, AMissingSymbolIsNamed) {
  const std::string text =
      refusal({.override_path = FAKE_NCCL_WITHOUT_SEND_PATH, .wheel_path = {}});
  EXPECT_TRUE(contains(text, "lacks the symbol ncclSend")) << text;
}

TEST_F(NcclLoader, EveryPlaceThatWasTriedIsListed) {
  const std::string text = refusal(
      {.override_path = {}, .wheel_path = "/absent/libnccl.so.2", .use_loader_path = false});
  EXPECT_TRUE(contains(text, "in the process already: none")) << text;
  EXPECT_TRUE(contains(text, "the nvidia-nccl package: /absent/libnccl.so.2")) << text;
}

TEST_F(NcclLoader, EveryUniqueIdIsNew) {
  const auto library = fake_nccl().library();
  const nccl::UniqueId a = library->unique_id();
  const nccl::UniqueId b = library->unique_id();
  EXPECT_NE(std::memcmp(a.internal, b.internal, sizeof(a.internal)), 0);
}

TEST_F(NcclLoader, AnErrorNamesTheCallTheReasonAndTheLibrary) {
  const auto library = fake_nccl().library();
  try {
    library->check_result(nccl::kRemoteError, "ncclGroupEnd", nullptr);
    FAIL() << "an error was expected";
  } catch (const TransportError& error) {
    EXPECT_EQ(std::string(error.what()),
              "ncclGroupEnd: remote process exited or there was a network error (as scripted); "
              "NCCL 2.28.9 at " FAKE_NCCL_PATH);
  }
}

TEST_F(NcclLoader, ALibraryInTheProcessComesFirst) {
  ASSERT_NE(dlopen(FAKE_NCCL_LOADED_PATH, RTLD_NOW | RTLD_LOCAL), nullptr) << dlerror();
  const auto library = NcclLibrary::load({.override_path = {}, .wheel_path = FAKE_NCCL_PATH});
  EXPECT_EQ(library->origin().source, "in the process already");
  EXPECT_EQ(library->origin().path, FAKE_NCCL_LOADED_PATH);
}

TEST(NcclVersion, IsReadInBothCodings) {
  EXPECT_EQ(nccl_version_text(2804), "2.8.4");
  EXPECT_EQ(nccl_version_text(22809), "2.28.9");
  EXPECT_EQ(nccl_version_text(23007), "2.30.7");
}

TEST(RealNccl, GivesItsVersionAndIdsWithoutAGpu) {
  const char* path = std::getenv("CROSSOVER_TEST_REAL_NCCL");
  if (!path) GTEST_SKIP() << "CROSSOVER_TEST_REAL_NCCL names no libnccl.so.2";
  const auto library = NcclLibrary::load({.override_path = path, .wheel_path = {}});
  EXPECT_GE(library->origin().version, NcclLibrary::kMinVersion);
  const nccl::UniqueId a = library->unique_id();
  const nccl::UniqueId b = library->unique_id();
  EXPECT_NE(std::memcmp(a.internal, b.internal, sizeof(a.internal)), 0);
}

}  // namespace
}  // namespace crossover::testing
