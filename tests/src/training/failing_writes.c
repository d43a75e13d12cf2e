/* Preloaded into a process: the n-th write to a file below a folder fails, once or from then on.

   Counts write, pwrite, writev, fsync, fdatasync and rename, by whatever language they are called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long counted, failing;
static int error, lasting;

void arm_fault(const char *below, long number, int code, int lasts) {
    strncpy(folder, below, sizeof folder - 1);
    counted = 0;
    failing = number;
    error = code;
    lasting = lasts;
}

long counted_writes(void) { return counted; }

static int fails(const char *path) {
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
    counted++;
    if (counted == failing || (lasting && failing && counted > failing)) {
        errno = error;
        return 1;
    }
    return 0;
}

static int fails_at(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t size) {
    return fails_at(fd) ? -1 : REAL(write)(fd, bytes, size);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place) {
    return fails_at(fd) ? -1 : REAL(pwrite)(fd, bytes, size, place);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) {
    return fails_at(fd) ? -1 : REAL(pwrite64)(fd, bytes, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return fails_at(fd) ? -1 : REAL(writev)(fd, parts, count);
}
int fsync(int fd) { return fails_at(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_at(fd) ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : REAL(rename)(from, to); }
