// confine [-x PATH]... [-r PATH]... [-w PATH]... [-d PATH]... -- PROGRAM [ARGUMENT]...
// confine --probe
//
// Runs a program with the least rights: it can only open the named paths (-x to read and execute, -r to read, -w to read and
// change, -d a device), has no network, and cannot affect other processes. The kernel (Landlock and seccomp) enforces this
// without root and permanently, also for the processes that the program starts. Paths that do not exist are ignored.
//
// --probe prints which of these means the kernel has: exit code 0, or 3 with the reason.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Values of linux/landlock.h, which may be older here than the kernel that this runs on.
constexpr long create_ruleset = 444, add_rule = 445, restrict_self = 446;
constexpr uint64_t execute = 1 << 0, write_file = 1 << 1, read_file = 1 << 2, read_dir = 1 << 3, remove_dir = 1 << 4,
                   remove_file = 1 << 5, make_dir = 1 << 7, make_reg = 1 << 8, refer = 1 << 13, truncate_file = 1 << 14,
                   ioctl_dev = 1 << 15;
/// Rights that can be given on paths other than folders.
constexpr uint64_t of_files = execute | write_file | read_file | truncate_file | ioctl_dev;
constexpr uint64_t reading = read_file | read_dir;
/// Without creating links, sockets, pipes and devices: later readers of the folder must not be led elsewhere.
constexpr uint64_t changing =
    reading | write_file | remove_dir | remove_file | make_dir | make_reg | refer | truncate_file;

struct Ruleset {
  uint64_t files, network, scopes;
};
struct __attribute__((packed)) Rule {
  uint64_t access;
  int32_t folder;
};

[[noreturn]] void fail(const char* what, int error, int code = 125) {
  fprintf(stderr, "confine: %s: %s\n", what, strerror(error));
  exit(code);
}

/// The kernel's version of Landlock, at least 2: with 1 no file could be linked from one folder into another.
int landlock_version() {
  const long version = syscall(create_ruleset, nullptr, 0, 1);
  if (version < 0) fail("this kernel has no Landlock", errno, 3);
  if (version < 2) fail("Landlock of this kernel is too old, Linux 5.19 is needed", ENOSYS, 3);
  return static_cast<int>(version);
}

int make_ruleset(int version) {
  uint64_t files = (uint64_t{1} << 14) - 1;
  if (version >= 3) files |= truncate_file;
  if (version >= 5) files |= ioctl_dev;
  const Ruleset rules{files, version >= 4 ? uint64_t{3} : 0, version >= 6 ? uint64_t{3} : 0};
  const size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  const long made = syscall(create_ruleset, &rules, size, 0);
  if (made < 0) fail("Landlock", errno, 3);
  return static_cast<int>(made);
}

void allow(int ruleset, int version, const char* path, uint64_t access) {
  const int opened = open(path, O_PATH | O_CLOEXEC);
  if (opened < 0) {
    if (errno == ENOENT || errno == ENOTDIR || errno == EACCES) return;
    fail(path, errno);
  }
  struct stat found;
  if (fstat(opened, &found) < 0) fail(path, errno);
  if (!S_ISDIR(found.st_mode)) access &= of_files;
  if (version < 3) access &= ~truncate_file;
  if (version < 5) access &= ~ioctl_dev;
  const Rule rule{access, opened};
  if (access != 0 && syscall(add_rule, ruleset, 1, &rule, 0) < 0) fail(path, errno);
  close(opened);
}

// Calls that a trainer does not need: sockets of any kind, other processes, namespaces and mounts, keys, the kernel itself.
constexpr int refused[] = {
    SYS_socket,       SYS_ptrace,        SYS_process_vm_readv,  SYS_process_vm_writev, SYS_kcmp,
    SYS_unshare,      SYS_setns,         SYS_mount,             SYS_umount2,           SYS_pivot_root,
    SYS_chroot,       SYS_keyctl,        SYS_add_key,           SYS_request_key,       SYS_bpf,
    SYS_perf_event_open, SYS_userfaultfd, SYS_kexec_load,       SYS_init_module,       SYS_finit_module,
    SYS_delete_module, SYS_reboot,       SYS_swapon,            SYS_swapoff,           SYS_acct,
    SYS_quotactl,     SYS_open_by_handle_at, SYS_settimeofday,  SYS_clock_settime,     SYS_sethostname,
    SYS_setdomainname, SYS_fanotify_init, SYS_sched_setscheduler, SYS_sched_setparam,  SYS_sched_setattr,
    SYS_setpriority,  424 /* pidfd_send_signal */, 428 /* open_tree */, 429 /* move_mount */, 430 /* fsopen */,
    431 /* fsconfig */, 432 /* fsmount */, 433 /* fspick */,    438 /* pidfd_getfd */, 440 /* process_madvise */,
    442 /* mount_setattr */,
};
constexpr uint32_t namespaces = 0x7e020000;  // CLONE_NEW…

#if defined(__x86_64__)
constexpr uint32_t machine = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t machine = AUDIT_ARCH_AARCH64;
#else
#error "confine knows x86-64 and ARM64"
#endif

void filter_calls() {
  sock_filter program[256];
  size_t length = 0;
  const auto add = [&](sock_filter instruction) { program[length++] = instruction; };
  const auto load = [&](size_t offset) { add(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset))); };
  const auto answer = [&](uint32_t action) { add(BPF_STMT(BPF_RET | BPF_K, action)); };
  const auto error = [](int number) { return SECCOMP_RET_ERRNO | static_cast<uint32_t>(number); };
  const auto refuse = [&](uint32_t call, int number) {
    add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
    answer(error(number));
  };
  load(offsetof(seccomp_data, arch));
  add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, machine, 1, 0));
  answer(SECCOMP_RET_KILL_PROCESS);
  load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
  add(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));  // the numbers of x32
  answer(error(ENOSYS));
#endif
  for (const int call : refused) refuse(static_cast<uint32_t>(call), EACCES);
  // Reported as not implemented, so that libraries use other calls: io_uring can create sockets, and the flags of clone3 are in
  // memory, which a filter cannot read.
  refuse(425 /* io_uring_setup */, ENOSYS);
  refuse(435 /* clone3 */, ENOSYS);
  // Setting a limit of another process, such as its processor time, can end that process.
  add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 0, 4));
  load(offsetof(seccomp_data, args[0]));
  add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0));
  answer(error(EACCES));
  answer(SECCOMP_RET_ALLOW);
  add(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
  load(offsetof(seccomp_data, args[0]));
  add(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, namespaces, 0, 1));
  answer(error(EACCES));
  answer(SECCOMP_RET_ALLOW);
  sock_fprog filter{static_cast<unsigned short>(length), program};
  // Without this flag, kernels before 5.16 slow down every branch of the program.
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) < 0)
    fail("seccomp", errno, 3);
}

/// If the server runs as root, only root's rights over files remain, which the rules limit.
void drop_powers() {
  for (int power = CAP_FSETID + 1; power <= 63; power++)
    if (prctl(PR_CAPBSET_DROP, power) < 0 && errno == EINVAL) break;
}

void confine(int ruleset) {
  drop_powers();
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) fail("no_new_privs", errno, 3);
  if (syscall(restrict_self, ruleset, 0) < 0) fail("Landlock", errno, 3);
  close(ruleset);
  filter_calls();
}

/// If memory runs out, the kernel should end a trainer, which can be started again, and never the service. The confined
/// program has no access to this file.
void volunteer() {
  const int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (file < 0) return;
  if (write(file, "500", 3) < 0) errno = 0;  // not allowed: then the kernel chooses by size
  close(file);
}

uint64_t access_of(const char* flag) {
  if (strcmp(flag, "-x") == 0) return reading | execute;
  if (strcmp(flag, "-r") == 0) return reading;
  if (strcmp(flag, "-w") == 0) return changing;
  if (strcmp(flag, "-d") == 0) return reading | write_file | ioctl_dev;
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const int version = landlock_version();
  const int ruleset = make_ruleset(version);
  if (count == 2 && strcmp(arguments[1], "--probe") == 0) {
    confine(ruleset);
    printf("Landlock %d, seccomp\n", version);
    return 0;
  }
  int next = 1;
  for (; next + 1 < count && access_of(arguments[next]) != 0; next += 2)
    allow(ruleset, version, arguments[next + 1], access_of(arguments[next]));
  if (next + 1 >= count || strcmp(arguments[next], "--") != 0) {
    fprintf(stderr, "confine: expected [-x|-r|-w|-d PATH]... -- PROGRAM [ARGUMENT]...\n");
    return 125;
  }
  volunteer();
  confine(ruleset);
  execv(arguments[next + 1], arguments + next + 1);
  fail(arguments[next + 1], errno, 126);
}
