#ifndef CAVAHI_SHIM_H
#define CAVAHI_SHIM_H

#include <avahi-common/address.h>
#include <avahi-common/alternative.h>
#include <avahi-common/defs.h>
#include <avahi-common/error.h>
#include <avahi-common/malloc.h>
#include <avahi-common/simple-watch.h>
#include <avahi-common/strlst.h>
#include <avahi-core/core.h>
#include <avahi-core/log.h>
#include <avahi-core/lookup.h>
#include <avahi-core/publish.h>
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Variadic, so that Swift cannot call it: the calling thread's name, at most 15 bytes. */
static inline void cavahi_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

/* A socket on which the kernel tells of interfaces and addresses that come and go; or -1. */
static inline int cavahi_interface_changes(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
    if (fd < 0) return -1;
    struct sockaddr_nl address = {
        .nl_family = AF_NETLINK,
        .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Opaque in Swift otherwise: the functions of an event loop are fields. */
static inline AvahiWatch *cavahi_watch(
    const AvahiPoll *poll, int fd, AvahiWatchCallback callback, void *userdata) {
    return poll->watch_new(poll, fd, AVAHI_WATCH_IN, callback, userdata);
}
static inline void cavahi_unwatch(const AvahiPoll *poll, AvahiWatch *watch) {
    poll->watch_free(watch);
}

#endif
