#include "Session.hpp"

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#include <libtorrent/alert_types.hpp>
#include <libtorrent/disabled_disk_io.hpp>
#pragma clang diagnostic pop

namespace lt = libtorrent;

struct ctorrent_dht : ctorrent::Running {
    /// Guards `senders` together with the filters that are made of it.
    std::mutex filtering;
    ctorrent::Senders senders;
};

namespace {

using ctorrent::explain;

std::string interfaces(char const* const* addresses, size_t count, std::uint16_t port) {
    std::string list;
    for (size_t i = 0; i < count; ++i)
        list += (list.empty() ? "" : ",")
                + ctorrent::listen_interface(addresses[i], std::to_string(port));
    return list;
}

/// A DHT among nodes that know each other, in private networks too, several on one address; and
/// nothing else. Not yet enabled.
lt::settings_pack make_dht_settings(ctorrent_dht_options const& options) {
    using s = lt::settings_pack;
    lt::settings_pack pack;
    pack.set_str(s::listen_interfaces,
                 interfaces(options.listen_addresses, options.listen_address_count, options.port));
    pack.set_bool(s::listen_system_port_fallback, false);
    pack.set_int(s::max_retry_port_bind, 0);
    for (int const discovery : {s::enable_dht, s::enable_lsd, s::enable_upnp, s::enable_natpmp,
                                s::enable_ip_notifier, s::enable_outgoing_utp,
                                s::enable_incoming_utp, s::enable_outgoing_tcp})
        pack.set_bool(discovery, false);
    pack.set_str(s::dht_bootstrap_nodes, "");
    for (int const suspicion :
         {s::dht_restrict_routing_ips, s::dht_restrict_search_ips, s::dht_enforce_node_id,
          s::dht_prefer_verified_node_ids, s::dht_ignore_dark_internet})
        pack.set_bool(suspicion, false);
    pack.set_int(s::dht_upload_rate_limit, options.upload_bytes_per_second);
    pack.set_int(s::dht_max_torrents, options.keys_max);
    pack.set_int(s::dht_max_peers, options.peers_per_key_max);
    pack.set_int(s::dht_max_dht_items, 0);
    // Of one address, which several nodes may have: members are no attackers.
    pack.set_int(s::dht_block_ratelimit, options.packets_per_second_max);
    // The default, 20, is for nodes that come back by themselves.
    pack.set_int(s::dht_max_fail_count, 3);
    pack.set_int(s::connections_limit, 2);
    pack.set_int(s::alert_mask,
                 int(std::uint32_t(lt::alert_category::status | lt::alert_category::error
                                   | lt::alert_category::dht_operation)));
    return pack;
}

/// TCP is shut and UDP filtered on whatever sockets there are now.
bool secure(ctorrent_dht& dht) {
    std::lock_guard guard(dht.filtering);
    ctorrent::shut_listeners(dht.port);
    return ctorrent::admit_only(dht.port, dht.senders);
}

lt::sha1_hash hash_of(std::uint8_t const* key) {
    return lt::sha1_hash(reinterpret_cast<char const*>(key));
}

}  // namespace

ctorrent_result ctorrent_dht_create(ctorrent_dht_options const* options, ctorrent_dht** dht,
                                    char* message, size_t message_bytes) {
    return ctorrent::explained(message, message_bytes, [&] {
        auto created = std::make_unique<ctorrent_dht>();
        lt::session_params parameters(make_dht_settings(*options),
                                      std::vector<std::shared_ptr<lt::plugin>>{});
        parameters.disk_io_constructor = lt::disabled_disk_io_constructor;
        created->session = std::make_unique<lt::session>(std::move(parameters));
        created->port = ctorrent::wait_for_port(*created->session, false);
        if (created->port == 0) {
            explain(message, message_bytes, ctorrent::listen_failure(*created->session).c_str());
            return CTORRENT_FAILED;
        }
        // Before the first packet can be answered: the DHT has no filter of its own, and
        // libtorrent's is for peers only.
        if (!secure(*created)) {
            explain(message, message_bytes, "the kernel takes no packet filter");
            return CTORRENT_FAILED;
        }
        lt::settings_pack enabling;
        enabling.set_bool(lt::settings_pack::enable_dht, true);
        created->session->apply_settings(std::move(enabling));
        created->notify();
        *dht = created.release();
        return CTORRENT_OK;
    });
}

void ctorrent_dht_stop(ctorrent_dht* dht) {
    dht->stop([] {});
}

void ctorrent_dht_free(ctorrent_dht* dht) { delete dht; }

uint16_t ctorrent_dht_port(ctorrent_dht const* dht) { return dht->port; }

int ctorrent_dht_event_descriptor(ctorrent_dht const* dht) { return dht->event_descriptor; }

void ctorrent_dht_wake(ctorrent_dht const* dht) { dht->wake(); }

ctorrent_result ctorrent_dht_listen(ctorrent_dht* dht, char const* const* addresses,
                                    size_t count) {
    return dht->use([&](lt::session& session) {
        lt::settings_pack pack;
        pack.set_str(lt::settings_pack::listen_interfaces, interfaces(addresses, count, dht->port));
        session.apply_settings(std::move(pack));
        return CTORRENT_OK;
    });
}

ctorrent_result ctorrent_dht_admit(ctorrent_dht* dht, char const* const* addresses, size_t count) {
    return dht->use([&](lt::session&) {
        ctorrent::Senders senders;
        for (size_t i = 0; i < count; ++i) senders.add(addresses[i]);
        {
            std::lock_guard guard(dht->filtering);
            dht->senders = std::move(senders);
        }
        return secure(*dht) ? CTORRENT_OK : CTORRENT_FAILED;
    });
}

ctorrent_result ctorrent_dht_add_node(ctorrent_dht* dht, char const* address, uint16_t port) {
    return dht->use([&](lt::session& session) {
        session.add_dht_node({address, port});
        return CTORRENT_OK;
    });
}

ctorrent_result ctorrent_dht_announce(ctorrent_dht* dht, uint8_t const* key, uint16_t port) {
    return dht->use([&](lt::session& session) {
        session.dht_announce(hash_of(key), port);
        return CTORRENT_OK;
    });
}

ctorrent_result ctorrent_dht_look_up(ctorrent_dht* dht, uint8_t const* key) {
    return dht->use([&](lt::session& session) {
        session.dht_get_peers(hash_of(key));
        return CTORRENT_OK;
    });
}

ctorrent_result ctorrent_dht_drain(ctorrent_dht* dht, ctorrent_dht_body body, void* context) {
    auto const result = dht->drain();
    if (result != CTORRENT_OK) return result;
    try {
        bool opened = false;
        for (auto* alert : dht->alerts) {
            if (lt::alert_cast<lt::listen_succeeded_alert>(alert) != nullptr) opened = true;
            auto const* reply = lt::alert_cast<lt::dht_get_peers_reply_alert>(alert);
            if (reply == nullptr) continue;
            auto const* key = reinterpret_cast<std::uint8_t const*>(reply->info_hash.data());
            for (auto const& peer : reply->peers())
                body(context, key, peer.address().to_string().c_str(), peer.port());
        }
        if (opened && !secure(*dht)) return CTORRENT_FAILED;
        return CTORRENT_OK;
    } catch (...) {
        return CTORRENT_FAILED;
    }
}
