/// A pure C surface over libtorrent-rasterbar 2.0.8: one session, torrents named by tokens that the
/// caller chooses. No policy: what to add, dial, prioritise and drop is decided by the caller.
///
/// Every function catches every exception and never throws. All are safe on any thread; none
/// blocks on the network thread unless it says so. After ctorrent_session_stop everything answers
/// CTORRENT_STOPPED until ctorrent_session_free.
#ifndef CTORRENT_H
#define CTORRENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ctorrent_session ctorrent_session;

typedef enum ctorrent_result {
    CTORRENT_OK = 0,
    /// libtorrent refused; the message buffer, where there is one, says why.
    CTORRENT_FAILED = -1,
    CTORRENT_STOPPED = -2,
    /// No torrent with this token is known (not yet, or no more).
    CTORRENT_UNKNOWN_TORRENT = -3,
} ctorrent_result;

typedef struct ctorrent_options {
    /// Numeric address, IPv6 without brackets. NUL-terminated.
    const char *listen_address;
    /// 0 takes a free port.
    uint16_t port;
    /// Listens for TLS only; every torrent must then carry `ssl-cert`.
    bool tls;
    int32_t connections_limit;
    int32_t file_pool_size;
} ctorrent_options;

/// Starts a session and its threads. Blocks until the port is open.
ctorrent_result ctorrent_session_create(const ctorrent_options *options, ctorrent_session **session,
                                        char *message, size_t message_bytes);

/// Closes all connections and files and ends libtorrent's threads. Blocks; at most once.
void ctorrent_session_stop(ctorrent_session *session);

/// Frees a stopped session. No other call may be running or follow.
void ctorrent_session_free(ctorrent_session *session);

/// The port in use.
uint16_t ctorrent_session_port(const ctorrent_session *session);

/// An eventfd that becomes readable when there are events to drain. Owned by the session.
int ctorrent_session_event_descriptor(const ctorrent_session *session);

/// Makes that descriptor readable.
void ctorrent_session_wake(const ctorrent_session *session);

typedef enum ctorrent_event_kind {
    /// `error` is set when the torrent could not be added.
    CTORRENT_EVENT_ADDED,
    /// Resume data is applied: from now on the torrent may dial and be dialled.
    CTORRENT_EVENT_CHECKED,
    CTORRENT_EVENT_RESUMED,
    /// `piece` passed its hash check and its bytes are in the file. May repeat.
    CTORRENT_EVENT_PIECE,
    CTORRENT_EVENT_HASH_FAILED,
    /// Every write requested before ctorrent_flush is in the file.
    CTORRENT_EVENT_FLUSHED,
    CTORRENT_EVENT_REMOVED,
    /// A read or write of the file failed; `error` is an errno, or -1.
    CTORRENT_EVENT_FILE_ERROR,
    CTORRENT_EVENT_TORRENT_ERROR,
    CTORRENT_EVENT_STATUS,
    /// Events were lost (`token` is 0): read the truth with ctorrent_pieces.
    CTORRENT_EVENT_DROPPED,
} ctorrent_event_kind;

typedef struct ctorrent_event {
    ctorrent_event_kind kind;
    uint64_t token;
    uint32_t piece;
    int32_t error;
    /// Of FILE_ERROR, TORRENT_ERROR and a failed ADDED. NUL-terminated, valid during the call.
    const char *message;
    /// Of STATUS: payload bytes per second.
    int32_t download_rate;
    int32_t upload_rate;
    /// Connections, half-open ones included; and those past the handshake.
    int32_t connections;
    int32_t peers;
} ctorrent_event;

typedef void (*ctorrent_event_body)(void *context, const ctorrent_event *event);

/// Calls `body` for every pending event, in order, on the calling thread. One thread at a time.
ctorrent_result ctorrent_session_drain(ctorrent_session *session, ctorrent_event_body body,
                                       void *context);

/// Asks for one STATUS event per torrent whose figures changed.
ctorrent_result ctorrent_session_post_status(ctorrent_session *session);

typedef struct ctorrent_torrent {
    /// Not 0, never reused in a session.
    uint64_t token;
    /// The bencoded info dictionary of a v2 torrent with one file.
    const uint8_t *info;
    size_t info_bytes;
    /// 32 bytes.
    const uint8_t *root;
    /// The piece layer, or nothing for a single piece. Must have been verified against the root.
    const uint8_t *layer;
    size_t layer_bytes;
    uint32_t piece_count;
    /// Absolute path of the file, NUL-terminated bytes.
    const char *path;
    /// All pieces are there and trusted.
    bool seed;
    /// Unless `seed`: pieces that are in the file, one bit each, most significant first,
    /// (piece_count + 7) / 8 bytes.
    const uint8_t *have;
} ctorrent_torrent;

/// Adds a paused torrent with every piece at priority 0. ADDED and CHECKED follow, in any order.
ctorrent_result ctorrent_add(ctorrent_session *session, const ctorrent_torrent *torrent,
                             char *message, size_t message_bytes);

/// PEM, NUL-terminated. Must precede ctorrent_resume in TLS mode.
ctorrent_result ctorrent_set_certificate(ctorrent_session *session, uint64_t token,
                                         const char *certificate, const char *key,
                                         const char *dh_parameters);
/// Remembers a source. It is dialled at once when ctorrent_resume follows, else within a second.
ctorrent_result ctorrent_connect(ctorrent_session *session, uint64_t token, const char *address,
                                 uint16_t port);
ctorrent_result ctorrent_set_priorities(ctorrent_session *session, uint64_t token,
                                        const uint32_t *pieces, const uint8_t *priorities,
                                        size_t count);
ctorrent_result ctorrent_set_sequential(ctorrent_session *session, uint64_t token, bool sequential);
ctorrent_result ctorrent_pause(ctorrent_session *session, uint64_t token);
/// Also forgets an earlier file error, so that a full disk can be retried.
ctorrent_result ctorrent_resume(ctorrent_session *session, uint64_t token);
/// FLUSHED follows.
ctorrent_result ctorrent_flush(ctorrent_session *session, uint64_t token);
/// REMOVED follows. Files stay.
ctorrent_result ctorrent_remove(ctorrent_session *session, uint64_t token);
/// Reads the bits of the verified pieces. Blocks until the network thread answers.
ctorrent_result ctorrent_pieces(ctorrent_session *session, uint64_t token, uint8_t *bits,
                                size_t bytes);

/// Payload bytes since the torrent was added, to the moment. Known until REMOVED was drained.
ctorrent_result ctorrent_traffic(ctorrent_session *session, uint64_t token,
                                 int64_t *downloaded_bytes, int64_t *uploaded_bytes);

/// SHA-256 of each of `count` inputs of `stride` bytes in a row; `digests` takes 32 * count bytes.
ctorrent_result ctorrent_sha256(const uint8_t *inputs, size_t stride, size_t count,
                                uint8_t *digests);

// A DHT among the nodes of one volume: a session of its own without torrents, because one that
// listens for TLS only has none. Keys are 20 bytes.

typedef struct ctorrent_dht ctorrent_dht;

typedef struct ctorrent_dht_options {
    /// Numeric addresses, IPv6 without brackets. NUL-terminated.
    const char *const *listen_addresses;
    size_t listen_address_count;
    /// UDP; must be free for TCP, too. 0 takes a free port, for one address.
    uint16_t port;
    /// Beyond, queries stay unanswered for a while.
    int32_t upload_bytes_per_second;
    /// Kept for others, and places kept of each.
    int32_t keys_max;
    int32_t peers_per_key_max;
    /// From one address; beyond, packets are dropped.
    int32_t packets_per_second_max;
} ctorrent_dht_options;

/// Starts the session and its threads; nobody is admitted yet. Blocks until the port is open.
ctorrent_result ctorrent_dht_create(const ctorrent_dht_options *options, ctorrent_dht **dht,
                                    char *message, size_t message_bytes);
/// Blocks; at most once. No other call may be running or follow ctorrent_dht_free.
void ctorrent_dht_stop(ctorrent_dht *dht);
void ctorrent_dht_free(ctorrent_dht *dht);
uint16_t ctorrent_dht_port(const ctorrent_dht *dht);
/// An eventfd that becomes readable when there is something to drain. Owned by the session.
int ctorrent_dht_event_descriptor(const ctorrent_dht *dht);
void ctorrent_dht_wake(const ctorrent_dht *dht);

/// Listens on these addresses from now on, on the same port.
ctorrent_result ctorrent_dht_listen(ctorrent_dht *dht, const char *const *addresses, size_t count);
/// From now on the kernel drops all packets but those from these addresses, the most important ones
/// first. CTORRENT_FAILED: a socket has no filter, and the session is to be stopped.
ctorrent_result ctorrent_dht_admit(ctorrent_dht *dht, const char *const *addresses, size_t count);
/// Asks a node to take part in the table; nothing tells whether it answers.
ctorrent_result ctorrent_dht_add_node(ctorrent_dht *dht, const char *address, uint16_t port);
/// Leaves this address with `port` under a key; it is forgotten after some 45 minutes.
ctorrent_result ctorrent_dht_announce(ctorrent_dht *dht, const uint8_t *key, uint16_t port);
/// Asks for what others left under a key. Answers are drained; nothing tells that there are no more.
ctorrent_result ctorrent_dht_look_up(ctorrent_dht *dht, const uint8_t *key);

typedef void (*ctorrent_dht_body)(void *context, const uint8_t *key, const char *address,
                                  uint16_t port);

/// Calls `body` for every place found, on the calling thread. One thread at a time.
/// CTORRENT_FAILED: as of ctorrent_dht_admit.
ctorrent_result ctorrent_dht_drain(ctorrent_dht *dht, ctorrent_dht_body body, void *context);

// GNU extensions that Swift's Glibc module leaves out.

/// Frees a file's blocks, which then read as zeros; its length stays.
ctorrent_result ctorrent_punch_hole(int descriptor, uint64_t offset, uint64_t bytes);
/// At most 15 bytes and a NUL.
void ctorrent_name_this_thread(const char *name);

#ifdef __cplusplus
}
#endif

#endif
