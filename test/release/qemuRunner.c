// What binfmt_misc starts in place of a program for arm64 (flag P: the program's own name comes too). In the environment of a child
// little is left, so qemu's settings stand here.
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **arguments) {  // own path, the program's path, its name, its arguments
  char **to = calloc(count + 8, sizeof *to);
  char *settings[] = {"qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", CPU, "-0", arguments[2], arguments[1]};
  int next = 0;
  for (; next < 8; next++) to[next] = settings[next];
  for (int index = 3; index < count; index++) to[next++] = arguments[index];
  execv("/usr/bin/qemu-aarch64", to);
  return 127;
}
