// A failing disk: preloaded into a server and its children, it intercepts calls of the C library and makes those on files beneath
// FAULTS_FOLDER fail, as the first bytes of the file FAULTS_CONTROL say (see failingDisk.ts). It counts failures there.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

extern char** environ;

namespace {

enum Mode : uint32_t { sound = 0, full = 1, readOnly = 2, broken = 3, torn = 4 };

struct Control {
  std::atomic<uint32_t> mode;
  std::atomic<uint32_t> permille;  // of the calls that can fail, how many do
  std::atomic<uint32_t> count;
};

Control* control = nullptr;
const char* folder = nullptr;
size_t folder_length = 0;
constexpr int files_max = 1 << 16;
std::atomic<bool> is_ours[files_max];
std::atomic<uint64_t> drawn{0};

__attribute__((constructor)) void begin() {
  folder = getenv("FAULTS_FOLDER");
  const char* path = getenv("FAULTS_CONTROL");
  if (folder == nullptr || path == nullptr) return;
  folder_length = strlen(folder);
  drawn = static_cast<uint64_t>(getpid()) * 0x9e3779b97f4a7c15u;
  auto* real_open = reinterpret_cast<int (*)(const char*, int, ...)>(dlsym(RTLD_NEXT, "open"));
  const int file = real_open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  void* memory = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory != MAP_FAILED) control = static_cast<Control*>(memory);
}

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

uint64_t draw() {
  uint64_t x = drawn.fetch_add(0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool is_drawn() {
  if (control == nullptr || draw() % 1000 >= control->permille.load()) return false;
  control->count++;
  return true;
}

Mode mode() { return control == nullptr ? sound : static_cast<Mode>(control->mode.load()); }

bool is_beneath(int at, const char* path) {
  if (control == nullptr || path == nullptr) return false;
  char absolute[PATH_MAX];
  if (path[0] != '/') {
    char link[64];
    if (at == AT_FDCWD)
      snprintf(link, sizeof link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    const ssize_t length = readlink(link, absolute, sizeof absolute - 1);
    if (length < 0) return false;
    absolute[length] = '\0';
    path = absolute;
  }
  return strncmp(path, folder, folder_length) == 0;
}

// A descriptor closed by other means may refer to a socket by now.
bool is_watched(int file) {
  struct stat what;
  return mode() != sound && file >= 0 && file < files_max && is_ours[file].load() && fstat(file, &what) == 0 &&
         S_ISREG(what.st_mode);
}

void note(int file, bool ours) {
  if (file >= 0 && file < files_max) is_ours[file].store(ours);
}

// Error of a call that creates or changes something; 0 if the call may proceed.
int refusal() {
  switch (mode()) {
    case full: return is_drawn() ? ENOSPC : 0;
    case readOnly: return is_drawn() ? EROFS : 0;
    case broken: return is_drawn() ? EIO : 0;
    default: return 0;
  }
}

int refusal_of_path(int at, const char* path) {
  return mode() != sound && mode() != torn && is_beneath(at, path) ? refusal() : 0;
}

// For a call that takes no space, which a full disk allows.
int refusal_without_room(int at, const char* path) { return mode() == full ? 0 : refusal_of_path(at, path); }

int refused(int error) {
  errno = error;
  return -1;
}

// Some bytes are written, the others keep their old content, and then the machine loses power.
template <typename Write>
void tear(size_t length, Write write_prefix) {
  if (mode() != torn || length < 2 || !is_drawn()) return;
  write_prefix(1 + draw() % (length - 1));
  kill(getpid(), SIGKILL);
  pause();
}

size_t length_of(const iovec* parts, int count) {
  size_t length = 0;
  for (int i = 0; i < count; i++) length += parts[i].iov_len;
  return length;
}

// Writes the first bytes of several buffers.
void write_prefix_of(int file, const iovec* parts, int count, off64_t offset, size_t length) {
  for (int i = 0; i < count && length > 0; i++) {
    const size_t taken = parts[i].iov_len < length ? parts[i].iov_len : length;
    if (offset < 0)
      next<ssize_t (*)(int, const void*, size_t)>("write")(file, parts[i].iov_base, taken);
    else
      next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64")(file, parts[i].iov_base, taken, offset);
    if (offset >= 0) offset += static_cast<off64_t>(taken);
    length -= taken;
  }
}

int open_by(const char* name, int at, const char* path, int flags, mode_t permissions) {
  const bool changes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
  const bool ours = is_beneath(at, path);
  if (ours && changes && (mode() == readOnly || mode() == broken || (mode() == full && (flags & O_CREAT) != 0))) {
    if (const int error = refusal()) return refused(error);
  }
  const int file = next<int (*)(int, const char*, int, ...)>(name)(at, path, flags, permissions);
  note(file, ours);
  return file;
}

mode_t permissions_of(int flags, va_list rest) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

// Children get the failing disk too, whatever environment they are given.
void with_ours(char* const* given, char** mixed, const char* (&names)[3], char (&texts)[3][PATH_MAX + 32]) {
  size_t count = 0;
  for (; given != nullptr && *given != nullptr; given++) {
    bool is_named = false;
    for (const char* name : names) {
      const size_t length = strlen(name);
      is_named |= strncmp(*given, name, length) == 0 && (*given)[length] == '=';
    }
    if (!is_named) mixed[count++] = *given;
  }
  for (int i = 0; i < 3; i++) mixed[count++] = texts[i];
  mixed[count] = nullptr;
}

const char* names[3] = {"LD_PRELOAD", "FAULTS_FOLDER", "FAULTS_CONTROL"};
char texts[3][PATH_MAX + 32];

__attribute__((constructor)) void remember() {
  for (int i = 0; i < 3; i++) {
    const char* value = getenv(names[i]);
    snprintf(texts[i], sizeof texts[i], "%s=%s", names[i], value == nullptr ? "" : value);
  }
}

size_t count_of(char* const* list) {
  size_t count = 0;
  while (list != nullptr && list[count] != nullptr) count++;
  return count;
}

}  // namespace

#define WITH_PERMISSIONS \
  va_list rest; \
  va_start(rest, flags); \
  const mode_t permissions = permissions_of(flags, rest); \
  va_end(rest)

extern "C" {

int open(const char* path, int flags, ...) {
  WITH_PERMISSIONS;
  return open_by("openat", AT_FDCWD, path, flags, permissions);
}
int open64(const char* path, int flags, ...) {
  WITH_PERMISSIONS;
  return open_by("openat64", AT_FDCWD, path, flags, permissions);
}
int openat(int at, const char* path, int flags, ...) {
  WITH_PERMISSIONS;
  return open_by("openat", at, path, flags, permissions);
}
int openat64(int at, const char* path, int flags, ...) {
  WITH_PERMISSIONS;
  return open_by("openat64", at, path, flags, permissions);
}
int close(int file) {
  note(file, false);
  static const auto real = next<int (*)(int)>("close");
  return real(file);
}

ssize_t write(int file, const void* bytes, size_t length) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  if (is_watched(file)) {
    if (const int error = refusal()) return refused(error);
    tear(length, [&](size_t part) { real(file, bytes, part); });
  }
  return real(file, bytes, length);
}

#define PWRITE(name) \
  ssize_t name(int file, const void* bytes, size_t length, off64_t offset) { \
    static const auto real = next<ssize_t (*)(int, const void*, size_t, off64_t)>(#name); \
    if (is_watched(file)) { \
      if (const int error = refusal()) return refused(error); \
      tear(length, [&](size_t part) { real(file, bytes, part, offset); }); \
    } \
    return real(file, bytes, length, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int file, const iovec* parts, int count) {
  if (is_watched(file)) {
    if (const int error = refusal()) return refused(error);
    tear(length_of(parts, count), [&](size_t part) { write_prefix_of(file, parts, count, -1, part); });
  }
  static const auto real = next<ssize_t (*)(int, const iovec*, int)>("writev");
  return real(file, parts, count);
}

#define PWRITEV(name) \
  ssize_t name(int file, const iovec* parts, int count, off64_t offset) { \
    if (is_watched(file)) { \
      if (const int error = refusal()) return refused(error); \
      tear(length_of(parts, count), [&](size_t part) { write_prefix_of(file, parts, count, offset, part); }); \
    } \
    static const auto real = next<ssize_t (*)(int, const iovec*, int, off64_t)>(#name); \
    return real(file, parts, count, offset); \
  }
PWRITEV(pwritev)
PWRITEV(pwritev64)

// Reading and syncing fail only if the disk is broken.
#define ONLY_WHERE_BROKEN(file) \
  if (mode() == broken && is_watched(file) && is_drawn()) return refused(EIO)

ssize_t read(int file, void* bytes, size_t length) {
  ONLY_WHERE_BROKEN(file);
  static const auto real = next<ssize_t (*)(int, void*, size_t)>("read");
  return real(file, bytes, length);
}
ssize_t pread(int file, void* bytes, size_t length, off64_t offset) {
  ONLY_WHERE_BROKEN(file);
  static const auto real = next<ssize_t (*)(int, void*, size_t, off64_t)>("pread");
  return real(file, bytes, length, offset);
}
ssize_t pread64(int file, void* bytes, size_t length, off64_t offset) {
  ONLY_WHERE_BROKEN(file);
  static const auto real = next<ssize_t (*)(int, void*, size_t, off64_t)>("pread64");
  return real(file, bytes, length, offset);
}
int fsync(int file) {
  ONLY_WHERE_BROKEN(file);
  static const auto real = next<int (*)(int)>("fsync");
  return real(file);
}
int fdatasync(int file) {
  ONLY_WHERE_BROKEN(file);
  static const auto real = next<int (*)(int)>("fdatasync");
  return real(file);
}

// posix_fallocate returns the error itself.
#define POSIX_FALLOCATE(name) \
  int name(int file, off64_t offset, off64_t length) { \
    if (is_watched(file)) { \
      if (const int error = refusal()) return error; \
    } \
    static const auto real = next<int (*)(int, off64_t, off64_t)>(#name); \
    return real(file, offset, length); \
  }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

#define FALLOCATE(name) \
  int name(int file, int flags, off64_t offset, off64_t length) { \
    if (is_watched(file)) { \
      if (const int error = refusal()) return refused(error); \
    } \
    static const auto real = next<int (*)(int, int, off64_t, off64_t)>(#name); \
    return real(file, flags, offset, length); \
  }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

#define FTRUNCATE(name) \
  int name(int file, off64_t length) { \
    if (mode() != full && is_watched(file)) { \
      if (const int error = refusal()) return refused(error); \
    } \
    static const auto real = next<int (*)(int, off64_t)>(#name); \
    return real(file, length); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

int mkdir(const char* path, mode_t permissions) {
  if (const int error = refusal_of_path(AT_FDCWD, path)) return refused(error);
  static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
  return real(path, permissions);
}
int rename(const char* from, const char* to) {
  if (const int error = refusal_without_room(AT_FDCWD, to)) return refused(error);
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return real(from, to);
}
int link(const char* from, const char* to) {
  if (const int error = refusal_of_path(AT_FDCWD, to)) return refused(error);
  static const auto real = next<int (*)(const char*, const char*)>("link");
  return real(from, to);
}
int unlink(const char* path) {
  if (const int error = refusal_without_room(AT_FDCWD, path)) return refused(error);
  static const auto real = next<int (*)(const char*)>("unlink");
  return real(path);
}
int rmdir(const char* path) {
  if (const int error = refusal_without_room(AT_FDCWD, path)) return refused(error);
  static const auto real = next<int (*)(const char*)>("rmdir");
  return real(path);
}

int execve(const char* path, char* const* arguments, char* const* environment) {
  char** mixed = static_cast<char**>(alloca((count_of(environment) + 4) * sizeof(char*)));
  with_ours(environment, mixed, names, texts);
  static const auto real = next<int (*)(const char*, char* const*, char* const*)>("execve");
  return real(path, arguments, mixed);
}
int execvpe(const char* file, char* const* arguments, char* const* environment) {
  char** mixed = static_cast<char**>(alloca((count_of(environment) + 4) * sizeof(char*)));
  with_ours(environment, mixed, names, texts);
  static const auto real = next<int (*)(const char*, char* const*, char* const*)>("execvpe");
  return real(file, arguments, mixed);
}
int execvp(const char* file, char* const* arguments) { return execvpe(file, arguments, environ); }

}  // extern "C"
