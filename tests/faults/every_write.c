/* Shows a folder as a kill -9 would leave it, at every write into it.

   LD_PRELOAD=every_write.so FAULTS_OF=FOLDER FAULTS_TO=SNAPSHOTS COMMAND

   Before whatever changes the folder (a file opened to be written, written,
   cut, renamed or removed, a folder made or removed), and in the middle of every
   write, the folder is copied to SNAPSHOTS/1, 2, 3, ...; other threads that
   would change it wait meanwhile. What a process has given to the kernel outlives
   its death, so a copy is what a kill at that moment leaves.

   With FAULTS_KILL=N the process kills itself at the N-th of these moments
   instead, and nothing is copied; with FAULTS_INTERRUPT=N it sends itself what
   Ctrl-C sends. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
/* Moments so far; tests in the process set it back. */
int faults_count;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int below(const char *path) {
  const char *of = getenv("FAULTS_OF");
  size_t n = of ? strlen(of) : 0;
  return n && path && !strncmp(path, of, n) && (path[n] == '/' || !path[n]);
}

static int inside(int at, const char *path) {
  char folder[64], full[2 * PATH_MAX + 2];
  if (!path || path[0] == '/') return below(path);
  if (at == AT_FDCWD) {
    if (!getcwd(full, PATH_MAX)) return 0;
  } else {
    snprintf(folder, sizeof folder, "/proc/self/fd/%d", at);
    ssize_t n = readlink(folder, full, PATH_MAX);
    if (n < 0) return 0;
    full[n] = 0;
  }
  size_t n = strlen(full);
  snprintf(full + n, sizeof full - n, "/%s", path);
  return below(full);
}

static int inside_fd(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return below(path);
}

/* A moment at which the process might be killed; the caller has the turn. */
static void moment(void) {
  char to[PATH_MAX];
  const char *of = getenv("FAULTS_OF"), *place = getenv("FAULTS_TO");
  const char *last = getenv("FAULTS_KILL");
  const char *asked = getenv("FAULTS_INTERRUPT");
  faults_count++;
  if (last) {
    if (faults_count == atoi(last)) raise(SIGKILL);
    return;
  }
  if (asked) {
    /* To the process, as the terminal does: the kernel picks the thread. */
    if (faults_count == atoi(asked)) kill(getpid(), SIGINT);
    return;
  }
  if (!place || access(of, F_OK)) return;
  snprintf(to, sizeof to, "%s/%d", place, faults_count);
  char *command[] = {"cp", "-a", (char *)of, to, NULL};
  char *nothing[] = {"PATH=/usr/bin:/bin", NULL};
  pid_t child;
  int status = 0;
  if (posix_spawnp(&child, "cp", NULL, NULL, command, nothing)) abort();
  while (waitpid(child, &status, 0) < 0) {}
  if (status) abort();
}

#define CHANGE(is_inside, call)          \
  int ours = (is_inside);                \
  if (!ours) return call;                \
  pthread_mutex_lock(&turn);             \
  moment();                              \
  __auto_type done = call;               \
  pthread_mutex_unlock(&turn);           \
  return done

#define OPEN(name, place, at, ...)                                  \
  mode_t mode = 0;                                                  \
  if (flags & (O_CREAT | O_TMPFILE)) {                              \
    va_list more;                                                   \
    va_start(more, flags);                                          \
    mode = va_arg(more, mode_t);                                    \
    va_end(more);                                                   \
  }                                                                 \
  CHANGE((flags & (O_CREAT | O_TRUNC)) && inside(at, path),         \
         REAL(name)(__VA_ARGS__, flags, mode))

int open(const char *path, int flags, ...) {
  OPEN(open, path, AT_FDCWD, path);
}
int open64(const char *path, int flags, ...) {
  OPEN(open64, path, AT_FDCWD, path);
}
int openat(int at, const char *path, int flags, ...) {
  OPEN(openat, path, at, at, path);
}
int openat64(int at, const char *path, int flags, ...) {
  OPEN(openat64, path, at, at, path);
}

/* Half of it, a moment, and the rest. */
ssize_t write(int fd, const void *data, size_t size) {
  if (!inside_fd(fd)) return REAL(write)(fd, data, size);
  pthread_mutex_lock(&turn);
  moment();
  ssize_t half = size > 1 ? REAL(write)(fd, data, size / 2) : 0;
  if (half > 0) moment();
  if (half >= 0) {
    ssize_t rest = REAL(write)(fd, (const char *)data + half, size - half);
    half = rest < 0 ? (half ? half : rest) : half + rest;
  }
  pthread_mutex_unlock(&turn);
  return half;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t from) {
  CHANGE(inside_fd(fd), REAL(pwrite)(fd, data, size, from));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t from) {
  CHANGE(inside_fd(fd), REAL(pwrite64)(fd, data, size, from));
}
ssize_t writev(int fd, const struct iovec *data, int parts) {
  CHANGE(inside_fd(fd), REAL(writev)(fd, data, parts));
}
int ftruncate(int fd, off_t size) {
  CHANGE(inside_fd(fd), REAL(ftruncate)(fd, size));
}
int ftruncate64(int fd, off64_t size) {
  CHANGE(inside_fd(fd), REAL(ftruncate64)(fd, size));
}
int truncate(const char *path, off_t size) {
  CHANGE(inside(AT_FDCWD, path), REAL(truncate)(path, size));
}
int rename(const char *from, const char *to) {
  CHANGE(inside(AT_FDCWD, from) || inside(AT_FDCWD, to),
         REAL(rename)(from, to));
}
int renameat(int at, const char *from, int there, const char *to) {
  CHANGE(inside(at, from) || inside(there, to),
         REAL(renameat)(at, from, there, to));
}
int unlink(const char *path) {
  CHANGE(inside(AT_FDCWD, path), REAL(unlink)(path));
}
int unlinkat(int at, const char *path, int flags) {
  CHANGE(inside(at, path), REAL(unlinkat)(at, path, flags));
}
int mkdir(const char *path, mode_t mode) {
  CHANGE(inside(AT_FDCWD, path), REAL(mkdir)(path, mode));
}
int mkdirat(int at, const char *path, mode_t mode) {
  CHANGE(inside(at, path), REAL(mkdirat)(at, path, mode));
}
int rmdir(const char *path) {
  CHANGE(inside(AT_FDCWD, path), REAL(rmdir)(path));
}
