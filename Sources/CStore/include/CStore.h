#ifndef CSTORE_H
#define CSTORE_H

#include <stdint.h>

/*
 * Linux calls that Swift's Glibc module does not show, because glibc declares them under
 * _GNU_SOURCE only, and constants that would have to be repeated in Swift otherwise.
 *
 * Every function returns a result >= 0, or the negative errno: errno itself never crosses into
 * Swift, where anything may run between a call and the reading of errno. No policy, no retries.
 */

/* Extra open(2) flags. */
extern const int cstore_o_path;
extern const int cstore_o_direct;

/* openat(2): variadic in C. */
int cstore_openat(int directory, const char *name, int flags, unsigned mode);
int cstore_mkdirat(int directory, const char *name, unsigned mode);
int cstore_unlinkat(int directory, const char *name);
int cstore_linkat(int from_directory, const char *from, int to_directory, const char *to);
int cstore_renameat(int from_directory, const char *from, int to_directory, const char *to);
/* renameat2(2) with RENAME_NOREPLACE. */
int cstore_rename_new(int from_directory, const char *from, int to_directory, const char *to);
/* renameat2(2) with RENAME_EXCHANGE. */
int cstore_exchangeat(int a_directory, const char *a, int b_directory, const char *b);
int cstore_readlink(const char *path, char *buffer, uint64_t size);

int cstore_fsync(int fd);
int cstore_syncfs(int fd);
/* sync_file_range(2) over the whole file: starts writing, waits for nothing. */
int cstore_start_writing(int fd);
/* posix_fadvise(2) POSIX_FADV_DONTNEED: later reads come from the disk. */
int cstore_drop_cache(int fd, uint64_t offset, uint64_t length);
int cstore_fchmod(int fd, unsigned mode);
int cstore_ftruncate(int fd, uint64_t length);
int64_t cstore_pread(int fd, void *buffer, uint64_t size, uint64_t offset);
int64_t cstore_pwrite(int fd, const void *buffer, uint64_t size, uint64_t offset);
/* flock(2), exclusive, without waiting. */
int cstore_lock(int fd);

/* fallocate(2), mode 0. */
int cstore_allocate(int fd, uint64_t length);
/* fallocate(2) of the first bytes, FALLOC_FL_KEEP_SIZE. */
int cstore_own(int fd, uint64_t length);
/* fallocate(2), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE. */
int cstore_punch(int fd, uint64_t offset, uint64_t length);
/* lseek(2), SEEK_DATA and SEEK_HOLE. */
int64_t cstore_next_data(int fd, uint64_t offset);
int64_t cstore_next_hole(int fd, uint64_t offset);
/* ioctl FICLONERANGE. A length of 0 means up to the end of the source. */
int cstore_clone_range(int from, uint64_t from_offset, uint64_t length, int to, uint64_t to_offset);
/*
 * ioctl FS_IOC_FIEMAP of both: 1 when they are the same blocks of the disk all through, 0 when they
 * are not or when the disk does not say.
 */
int cstore_same_blocks(int a, int b);
int64_t cstore_copy_range(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t length);

/*
 * fcntl(2) F_SETLEASE with F_RDLCK, then F_UNLCK. The break signal is set to SIGURG beforehand:
 * its default is to be ignored, where the default SIGIO would end the process when somebody opens
 * the file for writing between the two calls.
 */
int cstore_take_and_drop_read_lease(int fd);

struct cstore_stat {
    uint64_t device, inode, size, blocks512;
    uint32_t mode, uid, links;
    int64_t modified_seconds, changed_seconds;
    uint32_t modified_nanoseconds, changed_nanoseconds;
};
int cstore_fstat(int fd, struct cstore_stat *out);
/* Does not follow a symbolic link. */
int cstore_fstatat(int directory, const char *name, struct cstore_stat *out);
/* Follows symbolic links; the device number that a device file stands for. */
int cstore_device_number(const char *path, uint64_t *device);

struct cstore_filesystem {
    uint64_t type, block_bytes, blocks, blocks_free, blocks_available, files, files_free;
};
int cstore_fstatfs(int fd, struct cstore_filesystem *out);
/* ioctl FS_IOC_GETFSUUID (kernel 6.9): 16 bytes. */
int cstore_filesystem_uuid(int fd, uint8_t *uuid);

/*
 * The names in a directory, one call each, without `.` and `..`: 1 and a NUL-terminated name in
 * `name` (256 bytes), 0 at the end. The listing owns a descriptor of its own.
 */
struct cstore_listing;
int cstore_listing_open(int directory, struct cstore_listing **out);
int cstore_listing_next(struct cstore_listing *listing, char *name);
void cstore_listing_close(struct cstore_listing *listing);

/* fallocate, copy_file_range and futimens as they are; -errno on failure. */
int cstore_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
int64_t cstore_copy_some(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t length);
int cstore_set_modified(int fd, int64_t seconds, uint32_t nanoseconds);

/* Making files of every kind. Links are not followed but by fchmodat(2), which cannot help it. */
int cstore_symlinkat(const char *target, int directory, const char *name);
int cstore_mknodat(int directory, const char *name, unsigned mode, uint32_t major, uint32_t minor);
int cstore_fchmodat(int directory, const char *name, unsigned mode);
int cstore_fchownat(int directory, const char *name, uint32_t uid, uint32_t gid);
int cstore_set_modified_at(int directory, const char *name, int64_t seconds, uint32_t nanoseconds);
/* lsetxattr(2): the last component of the path is not followed. */
int cstore_lsetxattr(const char *path, const char *name, const void *value, uint64_t size);

/* The calling thread's name, at most 15 bytes. */
void cstore_name_thread(const char *name);

#endif
