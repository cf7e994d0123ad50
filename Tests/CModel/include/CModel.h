// Linux's own system calls that Swift's Glibc does not declare. Each returns a negative errno.
#ifndef CMODEL_H
#define CMODEL_H

#include <stdint.h>

extern const int cmodel_o_tmpfile;
extern const int cmodel_o_path;
extern const int cmodel_o_direct;

/// The calling thread's identity in file systems alone.
void cmodel_act_as(unsigned uid, unsigned gid);

int64_t cmodel_seek(int fd, int64_t offset, int is_hole);
int64_t cmodel_allocate(int fd, int mode, int64_t offset, int64_t length);
/// A negative offset: the descriptor's own.
int64_t cmodel_copy(int from, int64_t at, int to, int64_t target, uint64_t length);
int64_t cmodel_rename(const char *from, const char *to, unsigned flags);
/// Links the open file itself.
int64_t cmodel_link_open(int fd, const char *to);
/// Nanoseconds since the epoch; negative: now.
int64_t cmodel_set_times(const char *path, int64_t accessed, int64_t modified);

// Of the path itself, not of what a symbolic link leads to.
int64_t cmodel_set_xattr(
    const char *path, const char *name, const void *value, uint64_t size, int flags);
int64_t cmodel_get_xattr(const char *path, const char *name, void *value, uint64_t size);
int64_t cmodel_list_xattrs(const char *path, char *names, uint64_t size);
int64_t cmodel_remove_xattr(const char *path, const char *name);

/// Stores and loads through the kernel, so that a page that is not there is EFAULT and no signal.
int64_t cmodel_store(int pipe_in, int pipe_out, void *to, const void *bytes, uint64_t count);
int64_t cmodel_load(int pipe_in, int pipe_out, const void *from, void *bytes, uint64_t count);

const char *cmodel_error_name(int error);

// Here because a debug build of Swift takes longer for them than for all else.
void cmodel_fill(uint8_t *bytes, uint64_t count, uint8_t fill);
/// Only has to tell apart.
uint64_t cmodel_digest(const uint8_t *bytes, uint64_t count);

#endif
