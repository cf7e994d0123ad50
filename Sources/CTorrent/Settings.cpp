#include "Session.hpp"

#include <limits>

namespace ctorrent {

namespace {

/// No discovery of any kind, TCP only.
void set_network(lt::settings_pack& pack, ctorrent_options const& options) {
    using s = lt::settings_pack;
    std::string const address = options.listen_address;
    std::string const port = std::to_string(options.port) + (options.tls ? "s" : "");
    // libtorrent's IPv6 sockets take no IPv4: every address is two.
    pack.set_str(s::listen_interfaces,
                 address == "::"
                     ? listen_interface("0.0.0.0", port) + "," + listen_interface("::", port)
                     : listen_interface(address, port));
    pack.set_bool(s::listen_system_port_fallback, false);
    pack.set_int(s::max_retry_port_bind, 0);
    pack.set_int(s::listen_queue_size, 3000);
    pack.set_bool(s::enable_dht, false);
    pack.set_bool(s::enable_lsd, false);
    pack.set_bool(s::enable_upnp, false);
    pack.set_bool(s::enable_natpmp, false);
    pack.set_bool(s::enable_ip_notifier, true);  // interfaces may come later
    pack.set_str(s::dht_bootstrap_nodes, "");
    pack.set_bool(s::announce_crypto_support, false);
    pack.set_bool(s::enable_outgoing_utp, false);
    pack.set_bool(s::enable_incoming_utp, false);
    pack.set_int(s::mixed_mode_algorithm, s::prefer_tcp);
    pack.set_bool(s::anonymous_mode, false);
    // Security is TLS's or nobody's: RC4 without a MAC is no boundary.
    pack.set_int(s::out_enc_policy, s::pe_disabled);
    pack.set_int(s::in_enc_policy, s::pe_disabled);
}

void set_peers(lt::settings_pack& pack, ctorrent_options const& options) {
    using s = lt::settings_pack;
    // Several nodes share an address; otherwise the second overwrites the port of the first.
    pack.set_bool(s::allow_multiple_connections_per_ip, true);
    pack.set_int(s::connections_limit, options.connections_limit);
    pack.set_int(s::connection_speed, 500);
    pack.set_bool(s::smooth_connects, false);
    pack.set_int(s::torrent_connect_boost, 100);
    pack.set_int(s::min_reconnect_time, 1);
    pack.set_int(s::max_failcount, 20);
    pack.set_int(s::peer_connect_timeout, 5);
    pack.set_int(s::handshake_timeout, 10);
    // Only the requester dials: two that dial each other drop both connections.
    pack.set_bool(s::seeding_outgoing_connections, false);
    // Otherwise a reader with nothing wanted at the moment loses its sources.
    pack.set_bool(s::close_redundant_connections, false);
    pack.set_int(s::inactivity_timeout, 60);
    pack.set_int(s::peer_timeout, 60);
    pack.set_bool(s::incoming_starts_queued_torrents, true);
    pack.set_int(s::unchoke_slots_limit, -1);
    pack.set_int(s::choking_algorithm, s::fixed_slots_choker);
    pack.set_int(s::allowed_fast_set_size, 0);
    pack.set_bool(s::send_redundant_have, false);
    pack.set_int(s::suggest_mode, s::no_piece_suggestions);
    pack.set_bool(s::dont_count_slow_torrents, true);
    pack.set_int(s::auto_manage_startup, 5);
    for (int const limit : {s::active_downloads, s::active_seeds, s::active_checking,
                            s::active_dht_limit, s::active_tracker_limit, s::active_lsd_limit,
                            s::active_limit})
        pack.set_int(limit, -1);
}

void set_transfer(lt::settings_pack& pack) {
    using s = lt::settings_pack;
    // Greater values overflow an int (fixed in 2.0.14) at the rates of a local network.
    pack.set_int(s::request_queue_time, 1);
    pack.set_int(s::whole_pieces_threshold, 1);
    pack.set_int(s::max_out_request_queue, 4000);
    pack.set_int(s::max_allowed_in_request_queue, 8000);
    pack.set_int(s::piece_timeout, 5);
    pack.set_int(s::request_timeout, 10);
    pack.set_bool(s::strict_end_game_mode, false);
    pack.set_bool(s::auto_sequential, false);
    pack.set_int(s::initial_picker_threshold, 0);
    pack.set_bool(s::prioritize_partial_pieces, false);
    pack.set_bool(s::piece_extent_affinity, false);
    pack.set_int(s::send_buffer_low_watermark, 256 << 10);
    pack.set_int(s::send_buffer_watermark, 1 << 20);
    pack.set_int(s::send_buffer_watermark_factor, 150);
    pack.set_int(s::send_not_sent_low_watermark, 512 << 10);
    pack.set_int(s::max_peer_recv_buffer_size, 5 << 20);
    pack.set_bool(s::rate_limit_ip_overhead, false);
    pack.set_int(s::upload_rate_limit, 0);
    pack.set_int(s::download_rate_limit, 0);
}

void set_disk(lt::settings_pack& pack, ctorrent_options const& options) {
    using s = lt::settings_pack;
    pack.set_int(s::max_queued_disk_bytes, 64 << 20);
    // pread and pwrite, never mmap: no SIGBUS, and coherent with the readers of the file.
    pack.set_int(s::mmap_file_size_cutoff, std::numeric_limits<int>::max());
    pack.set_int(s::disk_io_write_mode, s::enable_os_cache);
    pack.set_int(s::disk_io_read_mode, s::enable_os_cache);
    pack.set_bool(s::no_atime_storage, true);
    // One disk thread makes the queue first in, first out: a piece's hash job runs after its
    // writes, so "piece finished" means that the bytes can be read from the file.
    pack.set_int(s::aio_threads, 1);
    pack.set_int(s::hashing_threads, 2);
    pack.set_int(s::file_pool_size, options.file_pool_size);
    pack.set_bool(s::no_recheck_incomplete_resume, true);
}

}  // namespace

std::string listen_interface(std::string const& address, std::string const& port) {
    bool const v6 = address.find(':') != std::string::npos;
    return (v6 ? "[" + address + "]" : address) + ":" + port;
}

lt::settings_pack make_settings(ctorrent_options const& options) {
    lt::settings_pack pack;
    set_network(pack, options);
    set_peers(pack, options);
    set_transfer(pack);
    set_disk(pack, options);
    pack.set_int(lt::settings_pack::alert_queue_size, 200000);
    pack.set_int(lt::settings_pack::alert_mask,
                 int(std::uint32_t(lt::alert_category::error | lt::alert_category::status
                                   | lt::alert_category::storage
                                   | lt::alert_category::piece_progress)));
    return pack;
}

}  // namespace ctorrent
