/* Preloaded into a peer: keeps what it writes to its data file, and when that was made durable.
 *
 *     cc -O2 -shared -fPIC -o disk_watch.so disk_watch.c -ldl -lpthread
 *     LD_PRELOAD=disk_watch.so DISK_WATCH_LOG=FILE peerd serve …
 *
 * FILE gets one record for each call on a file named data.mdb, in the order of the calls; see
 * disk_watch.py, which reads it. A write is recorded before it is made, so that nothing can be in
 * the data file that is not in FILE, wherever the process is killed; a sync once before and once
 * after it, with its result. DISK_WATCH_DELAY_MS lets each sync take so much longer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <stdio.h>

enum kind { WRITE = 1, WRITE_DONE, SYNC, SYNC_DONE, TRUNCATE };

struct record {
    uint32_t kind;
    int32_t durable; /* of a write: the call itself makes it so; of SYNC_DONE: it succeeded */
    uint64_t offset;
    uint64_t length;
    uint64_t at_ns; /* CLOCK_MONOTONIC */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...)                           \
    static type (*real)(__VA_ARGS__);                   \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

static int is_data_file(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    static const char name[] = "/data.mdb";
    size_t name_length = sizeof name - 1;
    return length >= (ssize_t)name_length &&
           !memcmp(path + length - name_length, name, name_length);
}

static int log_file(void) {
    static int file = -2;
    if (file == -2) {
        const char *path = getenv("DISK_WATCH_LOG");
        file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    }
    return file;
}

/* The record and its data go out in one call: what a kill leaves is whole but for the very end. */
static void tell(enum kind kind, int durable, uint64_t offset, const struct iovec *data, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record record = {kind, durable, offset, 0, now.tv_sec * 1000000000ull + now.tv_nsec};
    struct iovec parts[1025] = {{&record, sizeof record}};
    for (int i = 0; i < count; i++) {
        record.length += data[i].iov_len;
        parts[i + 1] = data[i];
    }
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (log_file() < 0 || real(log_file(), parts, count + 1) < 0) abort();
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void tell_write(int fd, uint64_t offset, const struct iovec *data, int count) {
    if (count > 1023) abort();
    tell(WRITE, (fcntl(fd, F_GETFL) & O_DSYNC) != 0, offset, data, count);
}

static ssize_t done(int fd, uint64_t offset, ssize_t result) {
    if (result >= 0) tell(WRITE_DONE, (fcntl(fd, F_GETFL) & O_DSYNC) != 0, offset, NULL, 0);
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    if (!is_data_file(fd)) return real(fd, bytes, length, offset);
    tell_write(fd, offset, &(struct iovec){(void *)bytes, length}, 1);
    return done(fd, offset, real(fd, bytes, length, offset));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) {
    return pwrite(fd, bytes, length, offset);
}

ssize_t pwritev(int fd, const struct iovec *data, int count, off_t offset) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    if (!is_data_file(fd)) return real(fd, data, count, offset);
    tell_write(fd, offset, data, count);
    return done(fd, offset, real(fd, data, count, offset));
}

ssize_t pwritev64(int fd, const struct iovec *data, int count, off_t offset) {
    return pwritev(fd, data, count, offset);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!is_data_file(fd)) return real(fd, bytes, length);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    tell_write(fd, offset, &(struct iovec){(void *)bytes, length}, 1);
    return done(fd, offset, real(fd, bytes, length));
}

ssize_t writev(int fd, const struct iovec *data, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!is_data_file(fd)) return real(fd, data, count);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    tell_write(fd, offset, data, count);
    return done(fd, offset, real(fd, data, count));
}

static int sync_file(int fd, int (*real)(int)) {
    if (!is_data_file(fd)) return real(fd);
    const char *delay = getenv("DISK_WATCH_DELAY_MS");
    tell(SYNC, 0, 0, NULL, 0);
    if (delay) usleep(1000 * atoi(delay));
    int result = real(fd);
    tell(SYNC_DONE, result == 0, 0, NULL, 0);
    return result;
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return sync_file(fd, real);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return sync_file(fd, real);
}

int ftruncate(int fd, off_t length) {
    REAL(int, "ftruncate", int, off_t);
    if (is_data_file(fd)) tell(TRUNCATE, 0, length, NULL, 0);
    return real(fd, length);
}

int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }
