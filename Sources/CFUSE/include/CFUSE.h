// The binary interface of the Linux FUSE device, protocol 7.31 to 7.45, written down independently
// of any kernel header: the headers that a distribution ships (Debian 12: protocol 7.38) are older
// than the kernels that it runs on. Definitions only, no policy.
//
// All numbers are in host byte order; every structure is a multiple of eight bytes.
#ifndef DELUGEFS_CFUSE_H
#define DELUGEFS_CFUSE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#define CFUSE_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type " layout")
#define CFUSE_OFFSET(type, field, bytes) \
    _Static_assert(offsetof(struct type, field) == (bytes), #type "." #field " layout")

// ---- ioctl requests on /dev/fuse --------------------------------------------------------------

#define CFUSE_IOCTL_CLONE 0x8004e500UL
#define CFUSE_IOCTL_BACKING_OPEN 0x4010e501UL
#define CFUSE_IOCTL_BACKING_CLOSE 0x4004e502UL

struct cfuse_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
CFUSE_SIZE(cfuse_backing_map, 16);

// ---- headers ----------------------------------------------------------------------------------

struct cfuse_in_header {
    uint32_t len;
    uint32_t opcode;
    uint64_t unique;
    uint64_t nodeid;
    uint32_t uid;
    uint32_t gid;
    uint32_t pid;
    uint16_t total_extlen; // in units of eight bytes
    uint16_t padding;
};
CFUSE_SIZE(cfuse_in_header, 40);
CFUSE_OFFSET(cfuse_in_header, total_extlen, 36);

struct cfuse_out_header {
    uint32_t len;
    int32_t error; // negative errno; for a notification its code
    uint64_t unique;
};
CFUSE_SIZE(cfuse_out_header, 16);

// ---- INIT -------------------------------------------------------------------------------------

struct cfuse_init_in {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint32_t flags2;
    uint32_t unused[11];
};
CFUSE_SIZE(cfuse_init_in, 64);

struct cfuse_init_out {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background;
    uint16_t congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages;
    uint16_t map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint16_t request_timeout;
    uint16_t unused[11];
};
CFUSE_SIZE(cfuse_init_out, 64);
CFUSE_OFFSET(cfuse_init_out, max_pages, 28);
CFUSE_OFFSET(cfuse_init_out, flags2, 32);
CFUSE_OFFSET(cfuse_init_out, max_stack_depth, 36);

// ---- attributes and entries -------------------------------------------------------------------

struct cfuse_attr {
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t rdev;
    uint32_t blksize;
    uint32_t flags;
};
CFUSE_SIZE(cfuse_attr, 88);
CFUSE_OFFSET(cfuse_attr, mode, 60);

struct cfuse_entry_out {
    uint64_t nodeid;
    uint64_t generation;
    uint64_t entry_valid;
    uint64_t attr_valid;
    uint32_t entry_valid_nsec;
    uint32_t attr_valid_nsec;
    struct cfuse_attr attr;
};
CFUSE_SIZE(cfuse_entry_out, 128);

struct cfuse_attr_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    uint32_t dummy;
    struct cfuse_attr attr;
};
CFUSE_SIZE(cfuse_attr_out, 104);

struct cfuse_getattr_in {
    uint32_t flags; // bit 0: fh is valid
    uint32_t dummy;
    uint64_t fh;
};
CFUSE_SIZE(cfuse_getattr_in, 16);

struct cfuse_setattr_in {
    uint32_t valid;
    uint32_t padding;
    uint64_t fh;
    uint64_t size;
    uint64_t lock_owner;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t unused4;
    uint32_t uid;
    uint32_t gid;
    uint32_t unused5;
};
CFUSE_SIZE(cfuse_setattr_in, 88);
CFUSE_OFFSET(cfuse_setattr_in, mode, 68);

struct cfuse_statx_in {
    uint32_t getattr_flags;
    uint32_t reserved;
    uint64_t fh;
    uint32_t sx_flags;
    uint32_t sx_mask;
};
CFUSE_SIZE(cfuse_statx_in, 24);

// ---- names ------------------------------------------------------------------------------------

struct cfuse_mknod_in {
    uint32_t mode;
    uint32_t rdev;
    uint32_t umask;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_mknod_in, 16);

struct cfuse_mkdir_in {
    uint32_t mode;
    uint32_t umask;
};
CFUSE_SIZE(cfuse_mkdir_in, 8);

struct cfuse_rename_in {
    uint64_t newdir;
};
CFUSE_SIZE(cfuse_rename_in, 8);

struct cfuse_rename2_in {
    uint64_t newdir;
    uint32_t flags;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_rename2_in, 16);

struct cfuse_link_in {
    uint64_t oldnodeid;
};
CFUSE_SIZE(cfuse_link_in, 8);

struct cfuse_forget_in {
    uint64_t nlookup;
};
CFUSE_SIZE(cfuse_forget_in, 8);

struct cfuse_forget_one {
    uint64_t nodeid;
    uint64_t nlookup;
};
CFUSE_SIZE(cfuse_forget_one, 16);

struct cfuse_batch_forget_in {
    uint32_t count;
    uint32_t dummy;
};
CFUSE_SIZE(cfuse_batch_forget_in, 8);

// ---- open files -------------------------------------------------------------------------------

struct cfuse_open_in {
    uint32_t flags;
    uint32_t open_flags; // bit 0: drop suid and sgid
};
CFUSE_SIZE(cfuse_open_in, 8);

struct cfuse_create_in {
    uint32_t flags;
    uint32_t mode;
    uint32_t umask;
    uint32_t open_flags;
};
CFUSE_SIZE(cfuse_create_in, 16);

struct cfuse_open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};
CFUSE_SIZE(cfuse_open_out, 16);
CFUSE_OFFSET(cfuse_open_out, backing_id, 12);

struct cfuse_create_out {
    struct cfuse_entry_out entry;
    struct cfuse_open_out open;
};
CFUSE_SIZE(cfuse_create_out, 144);

struct cfuse_read_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t read_flags;
    uint64_t lock_owner;
    uint32_t flags;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_read_in, 40);

struct cfuse_write_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t write_flags;
    uint64_t lock_owner;
    uint32_t flags;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_write_in, 40);

struct cfuse_write_out {
    uint32_t size;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_write_out, 8);

struct cfuse_release_in {
    uint64_t fh;
    uint32_t flags;
    uint32_t release_flags;
    uint64_t lock_owner;
};
CFUSE_SIZE(cfuse_release_in, 24);

struct cfuse_flush_in {
    uint64_t fh;
    uint32_t unused;
    uint32_t padding;
    uint64_t lock_owner;
};
CFUSE_SIZE(cfuse_flush_in, 24);

struct cfuse_fsync_in {
    uint64_t fh;
    uint32_t fsync_flags;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_fsync_in, 16);

struct cfuse_syncfs_in {
    uint64_t padding;
};
CFUSE_SIZE(cfuse_syncfs_in, 8);

struct cfuse_fallocate_in {
    uint64_t fh;
    uint64_t offset;
    uint64_t length;
    uint32_t mode;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_fallocate_in, 32);

struct cfuse_lseek_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t whence;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_lseek_in, 24);

struct cfuse_lseek_out {
    uint64_t offset;
};
CFUSE_SIZE(cfuse_lseek_out, 8);

struct cfuse_copy_file_range_in {
    uint64_t fh_in;
    uint64_t off_in;
    uint64_t nodeid_out;
    uint64_t fh_out;
    uint64_t off_out;
    uint64_t len;
    uint64_t flags;
};
CFUSE_SIZE(cfuse_copy_file_range_in, 56);

struct cfuse_copy_file_range_out {
    uint64_t bytes_copied;
};
CFUSE_SIZE(cfuse_copy_file_range_out, 8);

// ---- the rest ---------------------------------------------------------------------------------

struct cfuse_kstatfs {
    uint64_t blocks;
    uint64_t bfree;
    uint64_t bavail;
    uint64_t files;
    uint64_t ffree;
    uint32_t bsize;
    uint32_t namelen;
    uint32_t frsize;
    uint32_t padding;
    uint32_t spare[6];
};
CFUSE_SIZE(cfuse_kstatfs, 80);

struct cfuse_setxattr_in {
    uint32_t size;
    uint32_t flags;
    uint32_t setxattr_flags; // this and the next only with SETXATTR_EXT
    uint32_t padding;
};
CFUSE_SIZE(cfuse_setxattr_in, 16);
#define CFUSE_COMPAT_SETXATTR_IN_SIZE 8

struct cfuse_getxattr_in {
    uint32_t size;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_getxattr_in, 8);

struct cfuse_getxattr_out {
    uint32_t size;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_getxattr_out, 8);

struct cfuse_access_in {
    uint32_t mask;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_access_in, 8);

struct cfuse_file_lock {
    uint64_t start;
    uint64_t end;
    uint32_t type;
    uint32_t pid;
};
CFUSE_SIZE(cfuse_file_lock, 24);

struct cfuse_lk_in {
    uint64_t fh;
    uint64_t owner;
    struct cfuse_file_lock lk;
    uint32_t lk_flags;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_lk_in, 48);

struct cfuse_interrupt_in {
    uint64_t unique;
};
CFUSE_SIZE(cfuse_interrupt_in, 8);

struct cfuse_bmap_in {
    uint64_t block;
    uint32_t blocksize;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_bmap_in, 16);

struct cfuse_bmap_out {
    uint64_t block;
};
CFUSE_SIZE(cfuse_bmap_out, 8);

struct cfuse_ioctl_in {
    uint64_t fh;
    uint32_t flags;
    uint32_t cmd;
    uint64_t arg;
    uint32_t in_size;
    uint32_t out_size;
};
CFUSE_SIZE(cfuse_ioctl_in, 32);

struct cfuse_ioctl_out {
    int32_t result;
    uint32_t flags;
    uint32_t in_iovs;
    uint32_t out_iovs;
};
CFUSE_SIZE(cfuse_ioctl_out, 16);

struct cfuse_poll_in {
    uint64_t fh;
    uint64_t kh;
    uint32_t flags;
    uint32_t events;
};
CFUSE_SIZE(cfuse_poll_in, 24);

struct cfuse_poll_out {
    uint32_t revents;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_poll_out, 8);

// ---- directories ------------------------------------------------------------------------------

struct cfuse_dirent { // followed by the name, padded to eight bytes
    uint64_t ino;
    uint64_t off;
    uint32_t namelen;
    uint32_t type;
};
CFUSE_SIZE(cfuse_dirent, 24);

struct cfuse_direntplus {
    struct cfuse_entry_out entry;
    struct cfuse_dirent dirent;
};
CFUSE_SIZE(cfuse_direntplus, 152);

// ---- notifications (unique 0, the code in `error`) --------------------------------------------

struct cfuse_notify_inval_inode_out {
    uint64_t ino;
    int64_t off;
    int64_t len;
};
CFUSE_SIZE(cfuse_notify_inval_inode_out, 24);

struct cfuse_notify_inval_entry_out { // followed by the name and a NUL
    uint64_t parent;
    uint32_t namelen;
    uint32_t flags;
};
CFUSE_SIZE(cfuse_notify_inval_entry_out, 16);

struct cfuse_notify_delete_out { // followed by the name and a NUL
    uint64_t parent;
    uint64_t child;
    uint32_t namelen;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_notify_delete_out, 24);

struct cfuse_notify_store_out { // followed by the data
    uint64_t nodeid;
    uint64_t offset;
    uint32_t size;
    uint32_t padding;
};
CFUSE_SIZE(cfuse_notify_store_out, 24);

// ---- Linux system calls that <unistd.h> and others hide unless _GNU_SOURCE is defined, which a
// ---- module for Swift cannot be sure of -----------------------------------------------------

extern int dup3(int from, int to, int flags);
extern int pipe2(int ends[2], int flags);
extern int pthread_setname_np(pthread_t thread, const char *name);
#define CFUSE_O_PATH 010000000

// ---- wrappers ---------------------------------------------------------------------------------

/// Receives one descriptor (SCM_RIGHTS) over a Unix socket, close-on-exec. Here because the
/// CMSG_* macros do not exist for Swift. Returns the descriptor, -1 with errno, or -2 when the
/// peer closed the socket or sent none.
static inline int cfuse_receive_descriptor(int connection) {
    char byte;
    union {
        struct cmsghdr aligned;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec vector = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message;
    memset(&message, 0, sizeof message);
    memset(&control, 0, sizeof control);
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    // MSG_CMSG_CLOEXEC, which <sys/socket.h> declares for every language mode.
    ssize_t count = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    if (count < 0) {
        return -1;
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (count == 0 || header == NULL || header->cmsg_level != SOL_SOCKET ||
        header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int))) {
        return -2;
    }
    int descriptor;
    memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    return descriptor;
}

#endif
