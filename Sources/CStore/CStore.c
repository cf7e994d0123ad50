#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "CStore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define RESULT(call) \
    do { \
        int64_t result_ = (int64_t)(call); \
        return result_ < 0 ? -errno : result_; \
    } while (0)

const int cstore_o_path = O_PATH;
const int cstore_o_direct = O_DIRECT;

int cstore_openat(int directory, const char *name, int flags, unsigned mode) {
    RESULT(openat(directory, name, flags | O_CLOEXEC, (mode_t)mode));
}
int cstore_mkdirat(int directory, const char *name, unsigned mode) {
    RESULT(mkdirat(directory, name, (mode_t)mode));
}
int cstore_unlinkat(int directory, const char *name) { RESULT(unlinkat(directory, name, 0)); }
int cstore_linkat(int from_directory, const char *from, int to_directory, const char *to) {
    RESULT(linkat(from_directory, from, to_directory, to, 0));
}
int cstore_renameat(int from_directory, const char *from, int to_directory, const char *to) {
    RESULT(renameat(from_directory, from, to_directory, to));
}
int cstore_rename_new(int from_directory, const char *from, int to_directory, const char *to) {
    RESULT(renameat2(from_directory, from, to_directory, to, RENAME_NOREPLACE));
}
int cstore_exchangeat(int a_directory, const char *a, int b_directory, const char *b) {
    RESULT(renameat2(a_directory, a, b_directory, b, RENAME_EXCHANGE));
}
int cstore_readlink(const char *path, char *buffer, uint64_t size) {
    RESULT(readlink(path, buffer, size));
}

int cstore_fsync(int fd) { RESULT(fsync(fd)); }
int cstore_syncfs(int fd) { RESULT(syncfs(fd)); }
int cstore_start_writing(int fd) { RESULT(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)); }
int cstore_drop_cache(int fd, uint64_t offset, uint64_t length) {
    return -posix_fadvise(fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
}
int cstore_fchmod(int fd, unsigned mode) { RESULT(fchmod(fd, (mode_t)mode)); }
int cstore_ftruncate(int fd, uint64_t length) { RESULT(ftruncate(fd, (off_t)length)); }
int64_t cstore_pread(int fd, void *buffer, uint64_t size, uint64_t offset) {
    RESULT(pread(fd, buffer, size, (off_t)offset));
}
int64_t cstore_pwrite(int fd, const void *buffer, uint64_t size, uint64_t offset) {
    RESULT(pwrite(fd, buffer, size, (off_t)offset));
}
int cstore_lock(int fd) { RESULT(flock(fd, LOCK_EX | LOCK_NB)); }

int cstore_allocate(int fd, uint64_t length) { RESULT(fallocate(fd, 0, 0, (off_t)length)); }
int cstore_own(int fd, uint64_t length) {
    RESULT(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)length));
}
int cstore_punch(int fd, uint64_t offset, uint64_t length) {
    RESULT(fallocate(
        fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}
int64_t cstore_next_data(int fd, uint64_t offset) { RESULT(lseek(fd, (off_t)offset, SEEK_DATA)); }
int64_t cstore_next_hole(int fd, uint64_t offset) { RESULT(lseek(fd, (off_t)offset, SEEK_HOLE)); }

int cstore_clone_range(int from, uint64_t from_offset, uint64_t length, int to, uint64_t to_offset) {
    struct file_clone_range range = {
        .src_fd = from, .src_offset = from_offset, .src_length = length, .dest_offset = to_offset};
    RESULT(ioctl(to, FICLONERANGE, &range));
}
int64_t cstore_copy_range(
    int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t length) {
    off_t source = (off_t)from_offset, destination = (off_t)to_offset;
    RESULT(copy_file_range(from, &source, to, &destination, length, 0));
}

int cstore_take_and_drop_read_lease(int fd) {
    if (fcntl(fd, F_SETSIG, SIGURG) < 0) return -errno;
    if (fcntl(fd, F_SETLEASE, F_RDLCK) < 0) return -errno;
    RESULT(fcntl(fd, F_SETLEASE, F_UNLCK));
}

static void copy_stat(const struct stat *from, struct cstore_stat *out) {
    out->device = from->st_dev;
    out->inode = from->st_ino;
    out->size = (uint64_t)from->st_size;
    out->blocks512 = (uint64_t)from->st_blocks;
    out->mode = from->st_mode;
    out->uid = from->st_uid;
    out->links = (uint32_t)from->st_nlink;
    out->modified_seconds = from->st_mtim.tv_sec;
    out->modified_nanoseconds = (uint32_t)from->st_mtim.tv_nsec;
    out->changed_seconds = from->st_ctim.tv_sec;
    out->changed_nanoseconds = (uint32_t)from->st_ctim.tv_nsec;
}
int cstore_fstat(int fd, struct cstore_stat *out) {
    struct stat status;
    if (fstat(fd, &status) < 0) return -errno;
    copy_stat(&status, out);
    return 0;
}
int cstore_fstatat(int directory, const char *name, struct cstore_stat *out) {
    struct stat status;
    if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return -errno;
    copy_stat(&status, out);
    return 0;
}
int cstore_device_number(const char *path, uint64_t *device) {
    struct stat status;
    if (stat(path, &status) < 0) return -errno;
    *device = status.st_rdev;
    return 0;
}

int cstore_fstatfs(int fd, struct cstore_filesystem *out) {
    struct statfs status;
    if (fstatfs(fd, &status) < 0) return -errno;
    out->type = (uint64_t)(uint32_t)status.f_type;
    out->block_bytes = (uint64_t)(status.f_frsize ? status.f_frsize : status.f_bsize);
    out->blocks = status.f_blocks;
    out->blocks_free = status.f_bfree;
    out->blocks_available = status.f_bavail;
    out->files = status.f_files;
    out->files_free = status.f_ffree;
    return 0;
}

int cstore_filesystem_uuid(int fd, uint8_t *uuid) {
    /* <linux/fs.h> of kernel 6.1 does not have it yet: _IOR(0x15, 0, struct fsuuid2). */
    struct { uint8_t length, uuid[16]; } answer = {0};
    if (ioctl(fd, _IOR(0x15, 0, answer), &answer) < 0) return -errno;
    if (answer.length != 16) return -EOPNOTSUPP;
    memcpy(uuid, answer.uuid, 16);
    return 0;
}

struct cstore_listing { DIR *stream; };

int cstore_listing_open(int directory, struct cstore_listing **out) {
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -errno;
    DIR *stream = fdopendir(fd);
    if (!stream) {
        int error = errno;
        close(fd);
        return -error;
    }
    *out = malloc(sizeof **out);
    if (!*out) {
        closedir(stream);
        return -ENOMEM;
    }
    (*out)->stream = stream;
    return 0;
}
int cstore_listing_next(struct cstore_listing *listing, char *name) {
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(listing->stream);
        if (!entry) return errno ? -errno : 0;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        memcpy(name, entry->d_name, strlen(entry->d_name) + 1);
        return 1;
    }
}
void cstore_listing_close(struct cstore_listing *listing) {
    closedir(listing->stream);
    free(listing);
}

void cstore_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

int cstore_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
    return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}
int64_t cstore_copy_some(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t length) {
    off_t source = (off_t)from_offset, target = (off_t)to_offset;
    ssize_t count = copy_file_range(from, &source, to, &target, length, 0);
    return count < 0 ? -errno : count;
}
int cstore_set_modified(int fd, int64_t seconds, uint32_t nanoseconds) {
    struct timespec times[2] = {{0, UTIME_OMIT}, {seconds, nanoseconds}};
    return futimens(fd, times) < 0 ? -errno : 0;
}

int cstore_symlinkat(const char *target, int directory, const char *name) {
    RESULT(symlinkat(target, directory, name));
}
int cstore_mknodat(int directory, const char *name, unsigned mode, uint32_t major, uint32_t minor) {
    RESULT(mknodat(directory, name, (mode_t)mode, makedev(major, minor)));
}
int cstore_fchmodat(int directory, const char *name, unsigned mode) {
    RESULT(fchmodat(directory, name, (mode_t)mode, 0));
}
int cstore_fchownat(int directory, const char *name, uint32_t uid, uint32_t gid) {
    RESULT(fchownat(directory, name, uid, gid, AT_SYMLINK_NOFOLLOW));
}
int cstore_set_modified_at(int directory, const char *name, int64_t seconds, uint32_t nanoseconds) {
    struct timespec times[2] = {{0, UTIME_OMIT}, {seconds, nanoseconds}};
    return utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}
int cstore_lsetxattr(const char *path, const char *name, const void *value, uint64_t size) {
    RESULT(lsetxattr(path, name, value, size, 0));
}

/* The extents of a file one after the other, fetched in batches. */
struct mapping {
    int fd, is_end;
    unsigned index;
    uint64_t start;
    union {
        struct fiemap map;
        char room[sizeof(struct fiemap) + 64 * sizeof(struct fiemap_extent)];
    };
};

/* The extent to look at next: 1, or 0 at the end, or -errno. */
static int next_extent(struct mapping *mapping, struct fiemap_extent **out) {
    if (mapping->index == mapping->map.fm_mapped_extents) {
        if (mapping->is_end) return 0;
        memset(&mapping->map, 0, sizeof mapping->map);
        mapping->map.fm_start = mapping->start;
        mapping->map.fm_length = FIEMAP_MAX_OFFSET - mapping->start;
        mapping->map.fm_flags = FIEMAP_FLAG_SYNC;
        mapping->map.fm_extent_count = 64;
        if (ioctl(mapping->fd, FS_IOC_FIEMAP, &mapping->map) < 0) return -errno;
        mapping->index = 0;
        unsigned count = mapping->map.fm_mapped_extents;
        if (!count) return 0;
        struct fiemap_extent *last = &mapping->map.fm_extents[count - 1];
        mapping->start = last->fe_logical + last->fe_length;
        mapping->is_end = (last->fe_flags & FIEMAP_EXTENT_LAST) != 0;
    }
    *out = &mapping->map.fm_extents[mapping->index];
    return 1;
}

int cstore_same_blocks(int a, int b) {
    /* Only such extents say where the bytes are. */
    const uint32_t plain = FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_SHARED | FIEMAP_EXTENT_MERGED;
    struct mapping first = {.fd = a}, second = {.fd = b};
    for (;;) {
        struct fiemap_extent *x = NULL, *y = NULL;
        int more = next_extent(&first, &x), others = next_extent(&second, &y);
        if (more < 0 || others < 0) return more < 0 ? more : others;
        if (!more || !others) return !more && !others;
        if ((x->fe_flags | y->fe_flags) & ~plain) return 0;
        if (x->fe_logical != y->fe_logical || x->fe_physical != y->fe_physical) return 0;
        /* One file may have in two extents what the other has in one. */
        uint64_t length = x->fe_length < y->fe_length ? x->fe_length : y->fe_length;
        if (!length) return 0;
        struct mapping *both[] = {&first, &second};
        for (int i = 0; i < 2; i++) {
            struct fiemap_extent *extent = i ? y : x;
            extent->fe_logical += length;
            extent->fe_physical += length;
            extent->fe_length -= length;
            if (!extent->fe_length) both[i]->index++;
        }
    }
}
