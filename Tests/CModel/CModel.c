#define _GNU_SOURCE
#include "CModel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define RESULT(call) \
    do { \
        int64_t result_ = (int64_t)(call); \
        return result_ < 0 ? -errno : result_; \
    } while (0)

const int cmodel_o_tmpfile = O_TMPFILE;
const int cmodel_o_path = O_PATH;
const int cmodel_o_direct = O_DIRECT;

void cmodel_act_as(unsigned uid, unsigned gid) {
    setfsgid(gid);
    setfsuid(uid);
}

int64_t cmodel_seek(int fd, int64_t offset, int is_hole) {
    RESULT(lseek(fd, offset, is_hole ? SEEK_HOLE : SEEK_DATA));
}

int64_t cmodel_allocate(int fd, int mode, int64_t offset, int64_t length) {
    RESULT(fallocate(fd, mode, offset, length));
}

int64_t cmodel_copy(int from, int64_t at, int to, int64_t target, uint64_t length) {
    RESULT(copy_file_range(
        from, at < 0 ? NULL : &at, to, target < 0 ? NULL : &target, length, 0));
}

int64_t cmodel_rename(const char *from, const char *to, unsigned flags) {
    RESULT(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags));
}

int64_t cmodel_link_open(int fd, const char *to) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    RESULT(linkat(AT_FDCWD, path, AT_FDCWD, to, AT_SYMLINK_FOLLOW));
}

static struct timespec time_of(int64_t nanoseconds) {
    if (nanoseconds < 0) return (struct timespec){.tv_nsec = UTIME_NOW};
    return (struct timespec){nanoseconds / 1000000000, nanoseconds % 1000000000};
}

int64_t cmodel_set_times(const char *path, int64_t accessed, int64_t modified) {
    struct timespec times[2] = {time_of(accessed), time_of(modified)};
    RESULT(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW));
}

int64_t cmodel_set_xattr(
    const char *path, const char *name, const void *value, uint64_t size, int flags) {
    RESULT(lsetxattr(path, name, value, size, flags));
}

int64_t cmodel_get_xattr(const char *path, const char *name, void *value, uint64_t size) {
    RESULT(lgetxattr(path, name, value, size));
}

int64_t cmodel_list_xattrs(const char *path, char *names, uint64_t size) {
    RESULT(llistxattr(path, names, size));
}

int64_t cmodel_remove_xattr(const char *path, const char *name) {
    RESULT(lremovexattr(path, name));
}

// What stays in the pipe after a failure is taken out again.
static int64_t drained(int64_t result, int pipe_out, uint64_t count) {
    char rest[4096];
    while (count > 0) {
        ssize_t taken = read(pipe_out, rest, count < sizeof rest ? count : sizeof rest);
        if (taken <= 0) break;
        count -= (uint64_t)taken;
    }
    return result;
}

int64_t cmodel_store(int pipe_in, int pipe_out, void *to, const void *bytes, uint64_t count) {
    if (write(pipe_in, bytes, count) != (ssize_t)count) return -EIO;
    ssize_t stored = read(pipe_out, to, count);
    if (stored < 0) return drained(-errno, pipe_out, count);
    return drained(stored, pipe_out, count - (uint64_t)stored);
}

int64_t cmodel_load(int pipe_in, int pipe_out, const void *from, void *bytes, uint64_t count) {
    ssize_t loaded = write(pipe_in, from, count);
    if (loaded <= 0) return loaded < 0 ? -errno : 0;
    RESULT(read(pipe_out, bytes, (uint64_t)loaded));
}

const char *cmodel_error_name(int error) {
    const char *name = strerrorname_np(error);
    return name ? name : "?";
}

void cmodel_fill(uint8_t *bytes, uint64_t count, uint8_t fill) {
    for (uint64_t i = 0; i < count; i++)
        bytes[i] = fill == 0 ? 0 : (uint8_t)(i * 7 + (i >> 8)) ^ fill;
}

uint64_t cmodel_digest(const uint8_t *bytes, uint64_t count) {
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
    for (uint64_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}
