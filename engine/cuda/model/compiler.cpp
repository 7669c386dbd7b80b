// The compiler's functions for the model: a kernel's source becomes a shared library, compiled by the C++ compiler that built the model.
// The option --checked, which only the model has, checks every access of a kernel in the shadow memory.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../host/cuda_api.h"
#include "driver_control.h"

extern char** environ;
using relora::cuda::ProgramHandle;
using relora::cuda::Status;
namespace fs = std::filesystem;

namespace relora::cuda {
struct ProgramTag {
  std::string name, source;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string log, image;
};
}  // namespace relora::cuda

namespace {

constexpr Status failed_to_compile = 6;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// Returns its exit status; its messages go to `log`, and its temporary files next to that.
int run(const std::vector<std::string>& command, const fs::path& log) {
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  // A runtime preloaded into this process must not be loaded into the compiler.
  std::vector<char*> variables;
  for (char** variable = environ; *variable != nullptr; variable++) {
    if (std::strncmp(*variable, "LD_PRELOAD=", 11) != 0 && std::strncmp(*variable, "TMPDIR=", 7) != 0)
      variables.push_back(*variable);
  }
  std::string temporary = "TMPDIR=" + log.parent_path().string();
  variables.push_back(temporary.data());
  // For ccache, which refuses to work without a writable home.
  std::string home = "HOME=" + log.parent_path().string();
  if (std::getenv("HOME") == nullptr) variables.push_back(home.data());
  variables.push_back(nullptr);
  pid_t child;
  const int error = posix_spawnp(&child, words[0], &actions, nullptr, words.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return 127;
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

struct Folder {
  fs::path path;
  /// A sandboxed process may write only into its working folder. NVIDIA's compiler needs no files.
  Folder() {
    for (const fs::path& parent : {fs::temp_directory_path(), fs::current_path()}) {
      std::string pattern = (parent / "relora-model-XXXXXX").string();
      if (mkdtemp(pattern.data()) == nullptr) continue;
      path = pattern;
      return;
    }
    std::abort();
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

Status compile(relora::cuda::ProgramTag& program, const std::vector<std::string>& options) {
  const Folder folder;
  for (const auto& [name, text] : program.headers) {
    fs::create_directories((folder.path / name).parent_path());
    write_file(folder.path / name, text);
  }
  write_file(folder.path / program.name, program.source);
  bool is_checked = false;
  // Contraction is off, as for CPU kernels.
  std::vector<std::string> command = {RELORA_MODEL_COMPILER, "-x", "c++", "-std=c++20", "-fPIC", "-shared",
                                      "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
                                      "-fno-strict-aliasing", "-Wall", "-Wno-unused-function", "-Wno-unknown-pragmas",
                                      "-Wno-attributes", "-Werror", "-ftls-model=global-dynamic"};
  std::istringstream flags(RELORA_MODEL_FLAGS);
  for (std::string flag; flags >> flag;) command.push_back(flag);
  for (const std::string& option : options) {
    if (option == "--checked") is_checked = true;
    if (option.starts_with("-D")) command.push_back(option);
  }
  if (is_checked) {
    const auto own = {"-O1", "-g1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0",
                      "-fsanitize=bounds-strict"};
    command.insert(command.end(), own.begin(), own.end());
  } else {
    command.push_back("-O2");
  }
  // Compiled and linked separately: linking with the sanitizer's flag would add its runtime.
  const fs::path object = folder.path / "kernel.o", library = folder.path / "kernel.so", log = folder.path / "log";
  std::vector<std::string> compiling = command;
  std::erase(compiling, "-shared");
  compiling.insert(compiling.end(), {"-I", RELORA_MODEL_FOLDER, "-include", "device.h", "-c",
                                     (folder.path / program.name).string(), "-o", object.string()});
  int status = run(compiling, log);
  program.log = read_file(log);
  if (status == 0) {
    status = run({RELORA_MODEL_COMPILER, "-shared", object.string(), "-o", library.string()}, log);
    program.log += read_file(log);
  }
  if (status != 0) {
    if (status == 127) program.log += "The compiler " RELORA_MODEL_COMPILER " was not found";
    return failed_to_compile;
  }
  const std::string bytes = read_file(library);
  relora::model::ModelImage header{{}, bytes.size(), is_checked};
  std::memcpy(header.magic, relora::model::model_image_magic, sizeof header.magic);
  program.image.assign(reinterpret_cast<const char*>(&header), sizeof header);
  program.image += bytes;
  return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) Status

EXPORT nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}
EXPORT nvrtcGetNumSupportedArchs(int* count) {
  *count = 6;
  return 0;
}
EXPORT nvrtcGetSupportedArchs(int* architectures) {
  const int all[] = {80, 86, 89, 90, 100, 120};
  std::memcpy(architectures, all, sizeof all);
  return 0;
}
EXPORT nvrtcCreateProgram(ProgramHandle* program, const char* source, const char* name, int count, const char* const* headers,
                          const char* const* names) {
  *program = new relora::cuda::ProgramTag{name, source, {}, {}, {}};
  for (int i = 0; i < count; i++) (*program)->headers.emplace_back(names[i], headers[i]);
  return 0;
}
EXPORT nvrtcDestroyProgram(ProgramHandle* program) {
  delete *program;
  *program = nullptr;
  return 0;
}
EXPORT nvrtcCompileProgram(ProgramHandle program, int count, const char* const* options) {
  return compile(*program, {options, options + count});
}
EXPORT nvrtcGetProgramLogSize(ProgramHandle program, size_t* bytes) {
  *bytes = program->log.size() + 1;
  return 0;
}
EXPORT nvrtcGetProgramLog(ProgramHandle program, char* log) {
  std::memcpy(log, program->log.c_str(), program->log.size() + 1);
  return 0;
}
EXPORT nvrtcGetCUBINSize(ProgramHandle program, size_t* bytes) {
  *bytes = program->image.size();
  return 0;
}
EXPORT nvrtcGetCUBIN(ProgramHandle program, char* image) {
  std::memcpy(image, program->image.data(), program->image.size());
  return 0;
}
